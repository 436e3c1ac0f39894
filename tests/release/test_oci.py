"""`edgebuild push` and `pull`: layouts that OCI's schema takes, and hostile ones that are refused.

The schemas below say what image-spec 1.1 says of descriptors, manifests, indices and layouts
(https://github.com/opencontainers/image-spec: descriptor.md, manifest.md, image-index.md, image-layout.md), and are as
strict as its own schema/*.json, plus what the text demands of artifacts.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from releases import KEY, Home

from edgebuild.core.errors import BundleError, UsageError
from edgebuild.core.trust import Trust
from edgebuild.release import names, oci
from edgebuild.release.oci import Place

TRUST = Trust([KEY.public])
MEDIA_TYPE = {
    "type": "string",
    "pattern": "^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$",
}
ANNOTATIONS = {"type": "object", "additionalProperties": {"type": "string"}}
DESCRIPTOR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "mediaType": MEDIA_TYPE,
        "size": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
        "digest": {"type": "string", "pattern": "^sha256:[a-f0-9]{64}$"},
        "urls": {"type": "array", "items": {"type": "string", "format": "uri"}},
        "data": {"type": "string", "contentEncoding": "base64"},
        "artifactType": MEDIA_TYPE,
        "annotations": ANNOTATIONS,
        "platform": {
            "type": "object",
            "properties": {
                "architecture": {"enum": ["amd64", "arm64", "riscv64"]},
                "os": {"const": "linux"},
                "variant": {"type": "string"},
            },
            "required": ["architecture", "os"],
            "additionalProperties": False,
        },
    },
    "required": ["mediaType", "size", "digest"],
    "additionalProperties": False,
}
MANIFEST = {
    "type": "object",
    "properties": {
        "schemaVersion": {"const": 2},
        "mediaType": {"const": "application/vnd.oci.image.manifest.v1+json"},
        "artifactType": MEDIA_TYPE,
        "config": DESCRIPTOR,
        "layers": {"type": "array", "minItems": 1, "items": DESCRIPTOR},
        "annotations": ANNOTATIONS,
    },
    "required": ["schemaVersion", "mediaType", "artifactType", "config", "layers"],
    "additionalProperties": False,
}
INDEX = {
    "type": "object",
    "properties": {
        "schemaVersion": {"const": 2},
        "mediaType": {"const": "application/vnd.oci.image.index.v1+json"},
        "manifests": {"type": "array", "items": DESCRIPTOR},
        "annotations": ANNOTATIONS,
    },
    "required": ["schemaVersion", "mediaType", "manifests"],
    "additionalProperties": False,
}
LAYOUT = {
    "type": "object",
    "properties": {"imageLayoutVersion": {"const": "1.0.0"}},
    "required": ["imageLayoutVersion"],
}
REF_NAME = r"^[A-Za-z0-9]+(([-._:@+]|--)[A-Za-z0-9]+)*$"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def blob(layout: Path, descriptor: Any) -> Path:
    algorithm, value = descriptor["digest"].split(":")
    return layout / "blobs" / algorithm / value


def check_layout(layout: Path) -> dict[str, Any]:
    """The manifests by tag, after all of the layout was held against the schemas."""
    assert {path.name for path in layout.iterdir()} == {"oci-layout", "index.json", "blobs"}
    jsonschema.validate(read(layout / "oci-layout"), LAYOUT)
    index = read(layout / "index.json")
    jsonschema.validate(index, INDEX)
    found = {}
    for entry in index["manifests"]:
        manifest = read(blob(layout, entry))
        jsonschema.validate(manifest, MANIFEST)
        assert manifest["artifactType"] == entry["artifactType"]
        for one in (entry, manifest["config"], *manifest["layers"]):
            data = blob(layout, one).read_bytes()
            assert (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") == (one["size"], one["digest"])
        tag = entry["annotations"]["org.opencontainers.image.ref.name"]
        jsonschema.validate(tag, {"type": "string", "pattern": REF_NAME})
        found[tag] = (entry, manifest)
    assert len(found) == len(index["manifests"])
    return found


def titles(manifest: Any) -> set[str]:
    return {layer["annotations"]["org.opencontainers.image.title"] for layer in manifest["layers"]}


@pytest.fixture(scope="module")
def layout(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both releases in one layout."""
    place = tmp_path_factory.mktemp("oci") / "layout"
    first = home.run("push", home.first, place, "--json")
    assert (first.code, first.json["tags"]) == (0, ["1.0.0", "1.0.0-host", "1.0.0-aarch64-generic"])
    second = home.run("push", home.second, f"oci:{place}", "--trust", home.trust)
    assert second.code == 0, second.err
    assert "tags: 1.1.0, 1.1.0-host, 1.1.0-aarch64-generic" in second.out
    return place


@pytest.fixture
def damaged(layout: Path, tmp_path: Path) -> Path:
    return shutil.copytree(layout, tmp_path / "layout")


def test_the_layout_is_one_of_ocis(home: Home, layout: Path) -> None:
    found = check_layout(layout)
    both = [f"{version}{end}" for version in ("1.0.0", "1.1.0") for end in ("", "-host", "-aarch64-generic")]
    assert list(found) == both
    entry, manifest = found["1.1.0"]
    assert manifest["artifactType"] == "application/vnd.edgebuild.release.v1"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert blob(layout, manifest["config"]).read_bytes() == b"{}"
    given_on = {path.name for path in home.second.iterdir() if not path.name.endswith(names.BASIS)}
    assert titles(manifest) == given_on  # what holds the float network stays at home
    notes = manifest["annotations"]
    assert notes["org.opencontainers.image.version"] == "1.1.0"
    assert notes["org.opencontainers.image.created"] == "2026-02-28T00:00:00Z"
    assert "platform" not in entry


def test_a_kind_of_device_has_an_artifact_of_its_own(layout: Path) -> None:
    found = check_layout(layout)
    entry, manifest = found["1.1.0-aarch64-generic"]
    assert entry["platform"] == {"architecture": "arm64", "os": "linux"}
    assert found["1.1.0-host"][0]["platform"]["architecture"] == "amd64"
    assert {title.partition("generic")[2][:5] for title in titles(manifest)} == {".ebun", "-from"}


def test_push_is_reproducible_and_may_be_repeated(home: Home, layout: Path, tmp_path: Path) -> None:
    before = (layout / "index.json").read_bytes()
    assert home.run("push", home.first, layout).code == 0
    assert sorted(check_layout(layout)) == sorted(one["annotations"]["org.opencontainers.image.ref.name"]
                                                  for one in json.loads(before)["manifests"])  # fmt: skip
    for release in (home.first, home.second):
        assert home.run("push", release, tmp_path / "again").code == 0
    mine, other = ({path.name for path in place.rglob("*") if path.is_file()} for place in (layout, tmp_path / "again"))
    assert mine == other


def test_pull_gives_the_release_back(home: Home, layout: Path, tmp_path: Path) -> None:
    ran = home.run("pull", f"oci:{layout}:1.1.0", tmp_path / "out", "--trust", home.trust, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["signer"], ran.json["release"], ran.json["existed"]) == (KEY.public.name, 2, False)
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (home.second / path.name).read_bytes()
    again = home.run("pull", f"oci:{layout}:1.1.0", tmp_path / "out", "--json")
    assert (again.code, again.json["existed"], again.json["signer"]) == (0, True, None)
    other = home.run("pull", f"oci:{layout}:1.0.0", tmp_path / "out")
    assert (other.code, "holds another release already" in other.err) == (2, True)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_another_program_carries_it(home: Home, layout: Path, tmp_path: Path) -> None:
    copy = ["skopeo", "copy", "--quiet", "--insecure-policy"]
    subprocess.run([*copy, f"oci:{layout}:1.1.0", f"oci:{tmp_path / 'there'}:latest"], check=True)
    ran = home.run("pull", tmp_path / "there", tmp_path / "out", "--trust", home.trust, "--json")
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / names.SUMS).read_bytes() == (home.second / names.SUMS).read_bytes()
    subprocess.run([*copy, f"oci:{layout}:1.1.0-host", f"dir:{tmp_path / 'host'}"], check=True)
    (bundle,) = home.second.glob("*-host.ebundle")
    assert hashlib.sha256(bundle.read_bytes()).hexdigest() in {path.name for path in (tmp_path / "host").iterdir()}


def test_a_tag_is_needed_where_there_are_two(home: Home, layout: Path, tmp_path: Path) -> None:
    ran = home.run("pull", layout, tmp_path / "out")
    assert ran.code == 2
    assert f"error: {layout}: holds 2 releases\nhint: name one: oci:{layout}:TAG; tags: " in ran.err
    for tag, message in {"2.0": "has no tag '2.0'", "1.1.0-host": "the tag '1.1.0-host' names one bundle"}.items():
        ran = home.run("pull", f"oci:{layout}:{tag}", tmp_path / "out")
        assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_a_tag_moves_only_if_it_is_named(home: Home, damaged: Path) -> None:
    copy = shutil.copytree(home.first, damaged.parent / "copy")
    report = copy / "dense-1.0.0-host.report.json"
    report.write_bytes(report.read_bytes() + b"\n")  # reports are not signed, so that this is a release all the same
    ran = home.run("push", copy, damaged)
    assert (ran.code, "the tag '1.0.0' names another release" in ran.err) == (2, True)
    assert home.run("push", home.first, f"oci:{damaged}:latest").code == 0
    assert home.run("push", home.second, f"oci:{damaged}:latest").code == 0
    found = check_layout(damaged)
    assert found["latest"][0]["digest"] == found["1.1.0"][0]["digest"]
    assert len(found) == 9


def test_what_a_killed_push_left_goes_with_the_next(home: Home, damaged: Path) -> None:
    left = damaged / ".index.json.123", damaged / "blobs/sha256" / f".{'0' * 64}.77"
    other = damaged / ".index.json.mine"
    for path in (*left, other):
        path.write_bytes(b"half")
    assert home.run("push", home.second, damaged).code == 0
    assert [path.exists() for path in (*left, other)] == [False, False, True]


def test_two_pushes_at_once_lose_no_tag(home: Home, tmp_path: Path) -> None:
    tags = [f"t{number}" for number in range(8)]

    def push(tag: str) -> None:
        oci.push(home.second if tag in tags[::2] else home.first, Place(tmp_path / "layout", tag), None)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, tags))
    assert set(tags) <= set(check_layout(tmp_path / "layout"))


@pytest.mark.parametrize(
    ("text", "layout", "tag"),
    [
        ("oci:a/b", "a/b", None),
        ("oci:a/b:1.0", "a/b", "1.0"),
        ("oci:/x:y/z", "/x:y/z", None),
        ("a/b:c", "a/b:c", None),
        ("oci:a:", "a", None),
    ],
)
def test_places(text: str, layout: str, tag: str | None) -> None:
    assert Place.of(text) == Place(Path(layout), tag)


@pytest.mark.parametrize("text", ["oci:", "oci::1", "oci:a:-x", "oci:a:x..y", "oci:a:" + "x" * 200])
def test_places_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Place.of(text)
    assert caught.value.hint


def test_a_registry_is_no_place() -> None:
    with pytest.raises(UsageError, match=r"docker://x/y: is a registry's address") as caught:
        Place.of("docker://x/y")
    assert "oras cp" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "tag"),
    [("1.0.0", "1.0.0"), ("1.0+cu12", "1.0-cu12"), ("1.0~rc1", "1.0-rc1"), ("1.+-~.", "1"), ("1--2", "1-2")],
)
def test_versions_as_tags(version: str, tag: str) -> None:
    assert oci.tag_of(version) == tag
    jsonschema.validate(tag, {"type": "string", "pattern": REF_NAME})


Change = Callable[[Path], None]


def with_manifest(change: Callable[[Any], None]) -> Change:
    """Changes the release's manifest; its digest and size in index.json fit it again."""

    def apply(layout: Path) -> None:
        index = read(layout / "index.json")
        (entry,) = (one for one in index["manifests"] if one["annotations"][oci._REF_NAME] == "1.1.0")
        manifest = read(blob(layout, entry))
        change(manifest)
        data = json.dumps(manifest).encode()
        entry["digest"], entry["size"] = f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)
        blob(layout, entry).write_bytes(data)
        (layout / "index.json").write_text(json.dumps(index))

    return apply


def with_layer(**fields: Any) -> Change:
    return with_manifest(lambda manifest: manifest["layers"][0].update(fields))


def titled(title: Any) -> Change:
    return with_layer(annotations={"org.opencontainers.image.title": title})


def of_bundle(change: Callable[[Path], None]) -> Change:
    def apply(layout: Path) -> None:
        _, manifest = check_layout(layout)["1.1.0"]
        (layer,) = (one for one in manifest["layers"] if one["annotations"][oci._TITLE].endswith("host.ebundle"))
        change(blob(layout, layer))

    return apply


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def smuggle(manifest: Any) -> None:
    manifest["layers"].append({**manifest["layers"][0], "annotations": {oci._TITLE: "extra.sh"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layout: (layout / "oci-layout").unlink(), "is no OCI layout"),
        (lambda layout: (layout / "oci-layout").write_text("{}"), "its imageLayoutVersion is not 1.0.0"),
        (lambda layout: (layout / "index.json").write_text("[]"), "is no JSON object"),
        (
            lambda layout: (layout / "index.json").write_text('{"schemaVersion": 1, "manifests": []}'),
            "no OCI image index",
        ),
        (lambda layout: (layout / "index.json").write_text('{"schemaVersion": 2, "manifests": [1]}'), "no descriptor"),
        (lambda layout: (layout / "index.json").write_text(" " * (5 << 20)), "the limit is 4194304"),
        (of_bundle(Path.unlink), ": is missing"),
        (of_bundle(flip), "its SHA-256 differs"),
        (of_bundle(link), ": is a link"),
        (of_bundle(lambda path: path.write_bytes(path.read_bytes() + b"x")), "bytes, not "),
        (titled("../evil"), "'../evil' is no plain file name"),
        (titled("/etc/cron.d/evil"), "is no plain file name"),
        (titled(".profile"), "is no plain file name"),
        (titled("a\nb"), "is no plain file name"),
        (titled(5), "5 is no plain file name"),
        (with_layer(annotations=None), "None is no plain file name"),
        (titled(names.INDEX), "two layers have the title `release.json`"),
        (with_layer(digest="sha256:../../../../etc/passwd"), "has no SHA-256 or size"),
        (with_layer(digest="md5:00"), "has no SHA-256 or size"),
        (with_layer(size=-1), "has no SHA-256 or size"),
        (with_layer(size=True), "has no SHA-256 or size"),
        (with_layer(digest="sha256:" + "0" * 64), "is missing"),
        (with_manifest(lambda manifest: manifest.update(layers=[])), "has no layers"),
        (with_manifest(lambda manifest: manifest.update(layers={})), "has no layers"),
        (with_manifest(lambda manifest: manifest.update(artifactType="x/y")), "is no release of edgebuild"),
        (with_manifest(smuggle), "`extra.sh` is no part of the release"),
        (with_manifest(lambda manifest: manifest["layers"].pop(0)), "is missing|holds no SHA256SUMS"),
    ],
)
def test_a_hostile_layout(damaged: Path, change: Change, message: str) -> None:
    change(damaged)
    out = damaged.parent / "out"
    with pytest.raises((BundleError, UsageError), match=message) as caught:
        oci.pull(Place(damaged, "1.1.0"), out, None)
    assert caught.value.hint
    assert [path.name for path in damaged.parent.iterdir()] == ["layout"]


def test_signatures_count_with_trust_only(home: Home, damaged: Path) -> None:
    stranger = Trust([home_key()])
    with pytest.raises(BundleError, match="which the trust file does not list"):
        oci.pull(Place(damaged, "1.1.0"), damaged.parent / "out", stranger)
    with pytest.raises(BundleError, match="which the trust file does not list"):
        oci.push(home.first, Place(damaged.parent / "new"), stranger)
    assert not (damaged.parent / "new").exists()


def home_key() -> Any:
    from releases import OTHER

    return OTHER.public


@pytest.mark.parametrize(
    "words", [("push", "nothing", "x"), ("pull", "nothing", "x"), ("push", "full", "x"), ("pull", "full", "x")]
)
def test_what_is_no_release_or_layout(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("x")
    ran = home.run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "\nhint: " in ran.err
    assert not Path("x").exists()
    into = home.run("push", home.first, "full")
    assert (into.code, "full: holds other files, and no OCI layout" in into.err) == (2, True)


def test_a_folder_that_cannot_be_written(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for words in (
        ("push", home.first, tmp_path / "file" / "layout"),
        ("release", home.recipe, "--targets", "host", "--out", tmp_path / "file" / "out"),
    ):
        ran = home.run(*words)
        assert ran.code in (2, 9)
        assert isinstance(ran.err, str)
        assert "internal error" not in ran.err
