"""`edgebuild release`: what is in the folder, that it is the same everywhere, and that it is whole or not there."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from releases import FAR, KEY, OTHER, TARGETS, Home, stage_cache, write_recipe

from edgebuild.core import bundle, digest, minisign
from edgebuild.core.dates import parse_day
from edgebuild.core.manifest import serialize
from edgebuild.core.recipe import load_recipe
from edgebuild.core.target_file import load_target
from edgebuild.core.trust import Trust, TrustFile, with_signature
from edgebuild.release import folder as release_folder
from edgebuild.release import index, make, names, sums

TRUST = Trust([KEY.public])


def bundle_of(folder: Path, target: str) -> bytes:
    (path,) = folder.glob(f"*-{target}.ebundle")
    return path.read_bytes()


def test_everything_is_there(home: Home) -> None:
    stem = "dense-1.1.0"
    first = {
        one: index.parse((home.first / names.INDEX).read_bytes()).bundles[at] for at, one in enumerate(["host", FAR])
    }
    expected = {names.SUMS, "SHA256SUMS.minisig", names.INDEX, "release.json.minisig", f"{stem}.cdx.json"}
    expected.add(f"{stem}.intoto.jsonl")
    for target, old in first.items():
        delta = f"{stem}-{target}-from-{old.id[:16]}.edelta"
        expected |= {f"{stem}-{target}{suffix}" for suffix in (".ebundle", *names.REPORTS, names.BASIS)} | {delta}
    assert {path.name for path in home.second.iterdir()} == expected
    found = release_folder.read(home.second, TRUST)
    given_on = {name for name in expected if not name.endswith(names.BASIS)}
    assert (found.signer, set(found.files), found.strange) == (KEY.public.name, given_on, ())
    assert (found.index.release, found.index.version) == (2, "1.1.0")
    assert (found.index.made, found.index.expires) == (parse_day("2026-02-28"), parse_day("2026-05-29"))


@pytest.mark.parametrize("target", ["host", FAR])
def test_bundles_say_what_the_index_says(home: Home, target: str) -> None:
    found = index.parse((home.second / names.INDEX).read_bytes())
    (row,) = (one for one in found.bundles if one.target == target)
    manifest = bundle.read_bundle(bundle_of(home.second, target), TRUST).manifest
    assert digest.sha256(serialize(manifest)) == row.id
    assert (manifest.release, manifest.made, manifest.expires) == (2, found.made, found.expires)
    (delta,) = row.deltas
    old = bundle.read_bundle(bundle_of(home.first, target), TRUST).manifest
    assert delta.base == digest.sha256(serialize(old))
    assert delta.item.size < row.item.size


def test_what_other_programs_say_of_it(home: Home) -> None:
    check = ["sha256sum", "--check", "--strict", "--quiet", names.SUMS]
    subprocess.run(check, cwd=home.second, check=True)
    if shutil.which("minisign") is None:
        pytest.skip("minisign is not installed")
    for name in (names.SUMS, names.INDEX):
        subprocess.run(["minisign", "-Vm", name, "-P", KEY.public.line()], cwd=home.second, check=True)


def test_the_table(home: Home) -> None:
    assert "dense 1.1.0, release 2, signed by" in home.said.out
    assert "1.0.0 (release 1)" in home.said.out
    assert "agreement 100 → " in home.said.out
    assert "has no recipe.lock" in home.said.err


@pytest.fixture(scope="module")
def again(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second release once more: another process, folder, cache, home, umask, time zone and order of files."""
    place = tmp_path_factory.mktemp("elsewhere") / "a longer way" / "down"
    recipe, previous = write_recipe(place / "model", 0.5), shutil.copytree(home.first, place / "before")
    variables = {
        **home.variables,
        "EDGEBUILD_CACHE": str(stage_cache(place / "cache")),
        "HOME": str(place),
        "TZ": "Pacific/Kiritimati",
        "USER": "zaphod42",
    }
    words = ["release", ".", "--targets", TARGETS, "--previous", previous, "--version", "1.1.0", "--out", "../out"]
    command = [sys.executable, "-m", "edgebuild", *words, "--made", "2026-02-28", "--expires", "+90d", "--json"]
    done = subprocess.run(
        command, cwd=recipe, env={**os.environ, **variables}, umask=0o077, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [one["deltas"][0]["release"] for one in said["bundles"]] == [1, 1]
    return place / "out"


def sources(folder: Path) -> str:
    """The digest of edgebuild's own sources that a release was built with."""
    envelope = json.loads((folder / "dense-1.1.0.intoto.jsonl").read_bytes())
    definition = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["buildDefinition"]
    (found,) = (one["digest"] for one in definition["resolvedDependencies"] if "pkg:pypi/edgebuild@" in str(one))
    return str(found["edgebuildSources"])


def test_another_checkout_gives_the_same_bytes(home: Home, again: Path) -> None:
    assert sources(again) == sources(home.second), "edgebuild was edited while these tests ran"
    listed = sums.parse((home.second / names.SUMS).read_bytes())
    assert len(listed) == 8
    for name in (*listed, names.SUMS, "SHA256SUMS.minisig"):
        assert (again / name).read_bytes() == (home.second / name).read_bytes(), name


def test_no_path_and_no_user_is_in_it(home: Home, again: Path) -> None:
    for name in sums.parse((again / names.SUMS).read_bytes()):
        data = (again / name).read_bytes()
        for word in (str(home.folder), str(again.parent), "a longer way", "zaphod42", "Kiritimati"):
            assert word.encode() not in data, name


def test_the_same_again_changes_nothing(home: Home) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in home.second.iterdir()}
    words = ("release", home.tuned, "--targets", TARGETS, "--previous", home.first, "--version", "1.1.0", "--out")
    ran = home.run(*words, home.second, "--made", "2026-02-28", "--expires", "+90d")
    assert (ran.code, "the same release lay there already" in ran.out) == (0, True), ran.err
    assert {path.name: path.stat().st_mtime_ns for path in home.second.iterdir()} == before


def test_another_release_is_never_overwritten(home: Home, copy: Path) -> None:
    words = ("release", home.tuned, "--targets", "host", "--previous", home.first, "--out", copy)
    ran = home.run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert f"error: {copy}: holds another release already\nhint: " in ran.err
    assert release_folder.read(copy, TRUST).index.version == "1.1.0"
    (copy / "release.json").write_bytes(b"")  # the same sums, but the files are others
    ran = home.run("release", home.tuned, "--targets", TARGETS, "--previous", home.first, "--version", "1.1.0",
                   "--out", copy, "--made", "2026-02-28", "--expires", "+90d")  # fmt: skip
    assert (ran.code, "holds another release already" in ran.err) == (2, True)
    assert [path for path in copy.parent.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out", "full"], 2, "full: holds other files, and no release"),
        (["--out", "full/file"], 2, "full/file: is no folder"),
        (["--targets", ""], 2, "--targets: names no target"),
        (["--targets", "host,host"], 2, "--targets: 'host' occurs twice"),
        (["--targets", "hots"], 2, "unknown target 'hots'"),
        (["--previous", "nowhere"], 2, "--previous nowhere: no such folder"),
        (["--release", "0"], 2, "Invalid value for '--release'"),
        (["--release", "1"], 2, "--release 1: release 1 came before, and devices install nothing that is older"),
        (["--made", "today"], 2, "--made today: no day"),
        (["--made", "2026-01-02", "--expires", "2026-01-01"], 2, "--expires 2026-01-01: is not after 2026-01-02"),
        (["--commit", "main"], 2, "--commit main: is no commit"),
        (["--version", "a/b"], 2, "--version a/b: may hold"),
        (["--key", "full/file"], 8, "full/file: not a minisign secret key"),
        (["--trust", "other.pub"], 8, "other.pub: does not list the signing key"),
        (["--signer", "cat", "--trust", "other.pub", "--release", "2"], 8, "--signer cat: signature: not "),
    ],
)  # fmt: skip
def test_a_wrong_command_line(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("x")
    Path("other.pub").write_bytes(OTHER.public.file())
    ran = home.run("release", home.recipe, "--targets", "host", "--out", "out", "--previous", home.first, *words)
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert message in ran.err
    assert "\nhint: " in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "other.pub"]


def test_without_a_recipe_here_nothing_is_released(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile` tries the example then; signed for devices it would be the wrong function."""
    monkeypatch.chdir(tmp_path)
    ran = home.run("release", "--targets", "host")
    assert (ran.code, f"error: {tmp_path}: holds no recipe.toml" in ran.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_cpu_is_none(home: Home, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    lock, isa = recipe / "recipe.lock", load_target("host").isa
    for known, warned in (("other", True), (isa, False)):
        lock.write_text(f"version = 1\n[schedules.{known}]\n")
        ran = home.run("release", recipe, "--targets", TARGETS, "--out", tmp_path / known, "--json")
        said = "dense has no recipe.lock for host: what this machine measured"
        assert [one[: len(said)] == said for one in ran.json["warnings"]] == [True] * warned, ran.err


def test_all_targets_are_tried_and_one_that_fails_fails_the_release(home: Home, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    (recipe / "recipe.lock").write_text('version = 1\n[fallback.neon]\n"conv_1" = "int16"\n')
    ran = home.run("release", recipe, "--targets", f"{FAR},host", "--out", tmp_path / "out")
    assert ran.code == 3
    error, hint = ran.err.splitlines()[-2:]
    assert error.startswith(f"error: target {FAR}: {recipe}/recipe.lock: fallback: the model has no layer 'conv_1'")
    assert error.endswith("(1 of 2 targets failed)")
    assert hint.startswith("hint: measure again")
    assert "host (2 of 2)" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe"]


def strange(home: Home, folder: Path) -> Path:
    """Bundles of before, among them some that are of no use."""
    folder.mkdir()
    data = bundle_of(home.first, "host")
    (folder / "good.ebundle").write_bytes(data)
    (folder / "twice.ebundle").write_bytes(data)
    (folder / "cut.ebundle").write_bytes(data[:-1000])
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (folder / "flipped.ebundle").write_bytes(flipped)
    (folder / "text.ebundle").write_text("hello")
    (folder / "far.ebundle").write_bytes(bundle_of(home.first, FAR))
    (folder / "folder.ebundle").mkdir()
    os.mkfifo(folder / "pipe.ebundle")
    (folder / "good.report.json").write_text('{"accuracy": {"metric": "agreement", "int8": "[red]"}}')
    read = bundle.read_unverified(data)
    for name, changed in {"name": {"name": "other"}, "poison": {"release": 2**31 - 1}}.items():
        other = type(read.manifest)(**{**read.manifest.__dict__, **changed})
        signature = minisign.sign(serialize(other), OTHER, "x")
        (folder / f"{name}.ebundle").write_bytes(b"".join(bundle.pieces(other, signature, read.files)))
    return folder


def test_what_lies_about_in_previous(home: Home, tmp_path: Path) -> None:
    before = strange(home, tmp_path / "before")
    words = ("release", home.tuned, "--targets", "host", "--previous", before, "--out", tmp_path / "out", "--json")
    refused = home.run(*words)
    assert (refused.code, refused.out) == (8, "")
    said = json.loads(refused.err)
    assert f"poison.ebundle: signed by key {OTHER.public.name}, which is not trusted here" in said["error"]
    assert "--release" in said["hint"]
    ran = home.run(*words, "--release", "2")
    assert ran.code == 0, ran.err
    skipped = {one["file"]: one["reason"] for one in ran.json["skipped"]}
    assert set(skipped) == {
        "cut.ebundle",
        "flipped.ebundle",
        "text.ebundle",
        "far.ebundle",
        "folder.ebundle",
        "name.ebundle",
        "pipe.ebundle",
    }
    assert skipped["name.ebundle"] == "is of 'other'"
    assert skipped["far.ebundle"] == f"is for {FAR}, which is not in this release"
    assert skipped["text.ebundle"].startswith("not a bundle: ")
    (made,) = ran.json["bundles"]
    assert {one["release"] for one in made["deltas"]} == {1, 2**31 - 1}
    (told,) = (one for one in ran.json["warnings"] if "signed by key" in one)
    assert told.startswith(f"signed by key {OTHER.public.name}, which is not trusted here: ")
    assert "poison.ebundle; deltas start from them" in told
    assert not any("--update:" in one for one in ran.json["warnings"])
    sizes = [one["bytes"] for one in made["deltas"]]
    assert sizes == sorted(sizes)


def test_a_delta_that_is_no_smaller_is_left_out(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "_make_delta", lambda old, new: new)
    words = ("--targets", "host", "--previous", home.first, "--out", tmp_path / "out", "--json")
    ran = home.run("release", home.tuned, *words)
    assert ran.code == 0, ran.err
    assert ran.json["bundles"][0]["deltas"] == []
    assert any("no delta: it has" in one["reason"] for one in ran.json["skipped"])
    assert list((tmp_path / "out").glob("*.edelta")) == []


def test_a_command_signs(home: Home, tmp_path: Path) -> None:
    """Its signatures are minisign's, so that DSSE's stay empty and a signature of the file lies beside."""
    script = tmp_path / "sign.py"
    script.write_text(
        "import sys\nfrom edgebuild.core import minisign\n"
        f"key = minisign.SecretKey({KEY.key_id!r}, {KEY.seed!r})\n"
        "sys.stdout.buffer.write(minisign.sign(sys.stdin.buffer.read(), key, 'by command'))\n"
    )
    words = ("--targets", "host", "--signer", f"{sys.executable} {script}", "--trust", home.trust)
    ran = home.run("release", home.recipe, *words, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    found = release_folder.read(tmp_path / "out", TRUST)
    assert "dense-1.0.0.intoto.jsonl.minisig" in found.files
    envelope = json.loads((tmp_path / "out" / "dense-1.0.0.intoto.jsonl").read_text())
    assert envelope["signatures"] == []


def test_a_trust_file_with_roles_goes_along(home: Home, tmp_path: Path) -> None:
    root = minisign.SecretKey(b"rootroot", b"R" * 32)
    days = parse_day("2026-01-01"), parse_day("2030-01-01")
    body = TrustFile(3, *days, 1, (root.public,), (), (KEY.public,))
    (tmp_path / "roles").write_bytes(with_signature(body, root.sign(body.body(), "x")).file())
    words = ("--targets", "host", "--trust", tmp_path / "roles", "--out", tmp_path / "out")
    ran = home.run("release", home.recipe, *words)
    assert ran.code == 0, ran.err
    found = release_folder.read(tmp_path / "out", TRUST).index
    assert found.trust is not None
    assert (found.trust.version, found.trust.item.file) == (3, "trust")
    assert (tmp_path / "out" / "trust").read_bytes() == (tmp_path / "roles").read_bytes()


def test_an_update_keeps_the_grid(home: Home, tmp_path: Path) -> None:
    """One column of four has changed; in an update the other three are the same bytes, and the delta says so."""
    words = ("release", home.tuned, "--targets", TARGETS, "--previous", home.first, "--version", "1.1.0", "--json")
    ran = home.run(*words, "--made", "2026-02-28", "--expires", "+90d", "--update", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    for target in ("host", FAR):
        report = json.loads((tmp_path / "out" / f"dense-1.1.0-{target}.report.json").read_text())
        assert report["update"]
        (delta,), (plain,) = (list(place.glob(f"*{target}-from-*.edelta")) for place in (tmp_path / "out", home.second))
        assert delta.stat().st_size <= plain.stat().st_size
    assert ran.json["release"] == 2
    again = home.run(*words, "--made", "2026-02-28", "--expires", "+90d", "--update", "--out", tmp_path / "out")
    assert (again.code, again.json["existed"]) == (0, True)
    without = shutil.copytree(home.first, tmp_path / "without")
    (without / f"dense-1.0.0-host{names.BASIS}").unlink()
    words = ("--targets", "host", "--previous", without, "--version", "2", "--update", "--out", tmp_path / "other")
    refused = home.run("release", home.tuned, *words)
    assert refused.code == 2
    assert "dense-1.0.0-host.basis.zip is not beside it" in refused.err


def test_a_budget_holds_for_each_delta(home: Home, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", 0.5)
    words = ("release", recipe, "--version", "1.1.0", "--json", "--made", "2026-02-28", "--update")
    ran = home.run(
        *words, "--targets", TARGETS, "--previous", home.first, "--max-delta", "700B", "--out", tmp_path / "a"
    )
    assert ran.code == 0, ran.err
    for target in ("host", FAR):
        (delta,) = (tmp_path / "a").glob(f"*{target}-from-*.edelta")
        report = json.loads((tmp_path / "a" / f"dense-1.1.0-{target}.report.json").read_text())
        assert delta.stat().st_size == report["update"]["delta_bytes"] <= report["update"]["max_delta"] == 700
    ran = home.run(
        *words, "--targets", TARGETS, "--previous", home.first, "--max-delta", "320B", "--out", tmp_path / "b"
    )
    assert ran.code == 7
    assert "target host: --max-delta: nothing fits into 320 bytes" in ran.err
    words = (*words, "--targets", "host", "--out", tmp_path / "c", "--max-delta", "1KB")
    assert "--previous has no release" in (refused := home.run(*words)).err
    assert (refused.code, (tmp_path / "c").exists()) == (2, False)
    other = tmp_path / "d"
    assert home.run(*words[:2], "--targets", "host", "--max-delta", "1KB", "--out", other).code == 2


def test_a_target_that_update_finds_no_release_of_is_named(home: Home, tmp_path: Path) -> None:
    words = ("--targets", "host,x86_64-generic", "--previous", home.first, "--version", "1.1.0", "--update", "--json")
    ran = home.run("release", home.tuned, *words, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    said = [one for one in ran.json["warnings"] if "--update: x86_64-generic has no release in --previous" in one]
    assert len(said) == 1


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_commit_is_what_the_recipe_comes_from(home: Home, tmp_path: Path) -> None:
    from test_provenance import statement_of

    recipe = write_recipe(tmp_path / "work" / "recipe")
    git(recipe, "init", "--quiet")
    git(recipe, "add", ".")
    git(recipe, "commit", "--quiet", "-m", "x")
    head = git(recipe, "rev-parse", "HEAD")
    words = ("release", recipe, "--targets", "host", "--out", tmp_path / "out", "--commit")
    wrong = home.run(*words, "0" * 40)
    assert (wrong.code, f"lies in a checkout of {head}" in wrong.err) == (2, True)
    toml = (recipe / "recipe.toml").read_text()
    (recipe / "recipe.toml").write_text(toml + "# changed\n")
    dirty = home.run(*words, head)
    assert (dirty.code, "changes that are not committed: recipe.toml" in dirty.err) == (2, True)
    (recipe / "recipe.toml").write_text(toml)
    assert home.run(*words, head).code == 0
    dependencies = statement_of(tmp_path / "out")["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {"name": "source", "digest": {"gitCommit": head}} in dependencies


def test_a_signer_that_is_not_there_is_refused_before_the_build(home: Home, tmp_path: Path) -> None:
    words = ("--targets", "host", "--signer", "no-such-program --slot 1", "--trust", home.trust)
    ran = home.run("release", home.recipe, *words, "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (9, "")
    assert ran.err.startswith(
        "error: --signer no-such-program --slot 1: cannot be run: No such file or directory\nhint"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_signer_that_fails_at_the_end_leaves_nothing(home: Home, tmp_path: Path) -> None:
    """It signs the bundle and then no more: nothing appears, and what was staged is gone."""
    script, count = tmp_path / "sign.py", tmp_path / "count"
    script.write_text(
        "import pathlib, sys\nfrom edgebuild.core import minisign\n"
        f"count = pathlib.Path({str(count)!r})\n"
        "count.write_text((count.read_text() if count.exists() else '') + '.')\n"
        "if len(count.read_text()) > 3: sys.exit('the token was pulled out')\n"
        f"key = minisign.SecretKey({KEY.key_id!r}, {KEY.seed!r})\n"
        "sys.stdout.buffer.write(minisign.sign(sys.stdin.buffer.read(), key, 'by command'))\n"
    )
    words = ("--targets", "host", "--signer", f"{sys.executable} {script}", "--trust", home.trust)
    ran = home.run("release", home.recipe, *words, "--out", tmp_path / "out")
    assert (ran.code, "the token was pulled out" in ran.err) == (9, True)
    assert count.read_text() == "...."  # bundle, provenance, index; the sums are not signed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count", "sign.py"]


def test_verify_takes_the_folder(home: Home, copy: Path) -> None:
    (copy / "no\x1b[31mtes").write_text("x")
    ran = home.run("verify", copy, "--trust", home.trust, SOURCE_DATE_EPOCH="1800000000")
    assert ran.code == 0, ran.err
    said, expired, strange = ran.out.splitlines()
    assert said.endswith(f"dense 1.1.0, release 2, 14 files, signed by {KEY.public.name}")
    assert expired == "warning: the release expired on 2026-05-29: devices do not install it any more"
    assert strange == "warning: no\\x1b[31mtes is no part of the release"
    (copy / "dense-1.1.0.cdx.json").write_text("{}")
    ran = home.run("verify", copy, "--trust", home.trust, "--json")
    assert (ran.code, "is not the file that was released" in json.loads(ran.err)["error"]) == (8, True)


def test_a_trust_file_that_has_expired_by_then(home: Home, tmp_path: Path) -> None:
    root = minisign.SecretKey(b"rootroot", b"R" * 32)
    body = TrustFile(3, parse_day("2025-01-01"), parse_day("2026-01-01"), 1, (root.public,), (), (KEY.public,))
    (tmp_path / "roles").write_bytes(with_signature(body, root.sign(body.body(), "x")).file())
    words = ("--targets", "host", "--trust", tmp_path / "roles", "--made", "2026-01-01", "--out", tmp_path / "out")
    ran = home.run("release", home.recipe, *words)
    assert (ran.code, "version 3, expired on 2026-01-01, and the release is made on 2026-01-01" in ran.err) == (8, True)
    late = {"SOURCE_DATE_EPOCH": "1767225600"}
    ran = home.run("release", home.recipe, *words[:5], "2025-12-31", *words[6:], **late)
    said = "the trust file expired on 2026-01-01: devices do not install it"
    assert (ran.code, f"warning: {said}\n" in ran.err) == (0, True)
    found = home.run("verify", tmp_path / "out", "--trust", tmp_path / "roles", "--json", **late)
    assert (found.code, found.json["expired"]) == (0, ["the trust file expired on 2026-01-01"])


def test_a_version_that_was_released_is_told(home: Home, tmp_path: Path) -> None:
    words = ("--targets", "host", "--previous", home.first, "--out", tmp_path / "out")
    ran = home.run("release", home.recipe, *words)
    assert (ran.code, "release 1 in --previous has the version 1.0.0, too" in ran.err) == (0, True)


def test_a_release_in_the_recipes_folder_is_no_part_of_the_recipe(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_recipe(tmp_path / "recipe"))
    words = ("release", "--targets", "host", "--json")
    assert home.run(*words).json["existed"] is False
    assert home.run("push", "release", "layout").code == 0
    assert home.run("compile", "--out", "out").code == 0
    again = home.run(*words)
    assert (again.code, again.json["existed"]) == (0, True)
    recipe = load_recipe(Path())
    assert {name for name in recipe.sources() if not name.startswith("model:")} == {
        *("model.onnx", "recipe.toml", "samples/set.toml", "samples/x.npy")
    }


def test_source_date_epoch_is_the_day(home: Home, tmp_path: Path) -> None:
    words = ("release", home.recipe, "--targets", "host", "--out", tmp_path / "out", "--json")
    ran = home.run(*words, SOURCE_DATE_EPOCH="1767225599")
    assert (ran.code, ran.json["made"]) == (0, "2025-12-31")
