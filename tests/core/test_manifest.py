import dataclasses
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.core import manifest
from edgebuild.core.errors import BundleError
from edgebuild.core.manifest import DTYPES, File, Manifest, Tensor, Trigger
from edgebuild.core.target import FEATURES

numbers = st.integers(1, 2**31 - 1)
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
identifiers = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,63}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
shapes = st.one_of(
    st.lists(st.integers(1, 16), max_size=6), st.lists(st.integers(1, 2**28), min_size=1, max_size=1)
).map(tuple)
tensors = st.builds(Tensor, identifiers, st.sampled_from(DTYPES), shapes)
ports = st.lists(tensors, max_size=3, unique_by=lambda tensor: tensor.name)
days = st.none() | st.dates(date(2000, 1, 1), date(9999, 12, 31))
paths = st.from_regex(r"function/[a-z0-9][a-z0-9.-]{0,30}", fullmatch=True).filter(manifest.is_path)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    arch = draw(st.sampled_from(sorted(FEATURES)))
    chosen = draw(st.sets(st.sampled_from(FEATURES[arch])))
    inputs, outputs = draw(ports), draw(ports)
    required = [*manifest.REQUIRED_FILES, *manifest.golden_paths(len(inputs), len(outputs))]
    extra = draw(st.sets(paths, max_size=5))
    files = [
        File(draw(st.integers(0, 2**31)), draw(digests), path) for path in draw(st.permutations([*required, *extra]))
    ]
    trigger = draw(st.one_of(st.just(Trigger()), st.builds(Trigger, st.sampled_from(["camera", "timer"]), numbers)))
    return Manifest(
        draw(names),
        draw(st.from_regex(r"[0-9A-Za-z][0-9A-Za-z.+~-]{0,31}", fullmatch=True)),
        draw(names),
        draw(numbers),
        arch,
        tuple(feature for feature in FEATURES[arch] if feature in chosen),
        1,
        draw(st.sampled_from(["trained", "speed-only"])),
        draw(identifiers),
        trigger,
        draw(st.one_of(st.none(), numbers)),
        tuple(inputs),
        tuple(outputs),
        tuple(files),
        draw(st.booleans()),
        draw(days),
        draw(days),
    )


@given(manifests())
def test_a_manifest_survives_its_text(made: Manifest) -> None:
    data = manifest.serialize(made)
    assert manifest.parse(data) == made


@given(manifests(), st.data())
def test_a_changed_text_is_refused_or_means_something_else(made: Manifest, data: st.DataObject) -> None:
    """No two texts mean the same: what parses after a change differs, and is written back as the changed text."""
    text = bytearray(manifest.serialize(made))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    try:
        parsed = manifest.parse(bytes(text))
    except BundleError:
        return
    assert parsed != made
    assert manifest.serialize(parsed) == bytes(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("edgebuild-manifest 1", "edgebuild-manifest 2", "manifest has version 2; this edgebuild reads 1"),
        ("edgebuild-manifest 1", "edgebuild-manifest 01", "`01` is not a number"),
        ("edgebuild-manifest 1", "manifest 1", "line 1: expected `edgebuild-manifest`"),
        ("release 1\n", "release 01\n", "`01` is not a number from 1"),
        ("release 1\n", "release 0\n", "`0` is not a number from 1"),
        ("release 1\n", "release 2147483648\n", "is not a number"),
        ("release 1\n", "release  1\n", "takes one value"),
        ("name digits", "name Digits", "is not a valid name"),
        ("name digits", "name digits ", "takes one value"),
        ("name digits\nversion 1.0.0", "version 1.0.0\nname digits", "line 2: expected `name`"),
        ("arch x86_64", "arch mips", "arch must be one of x86_64, aarch64"),
        ("needs avx2 fma", "needs fma avx2", "in the order of SPEC section 6"),
        ("needs avx2 fma", "needs avx2 avx2", "each once"),
        ("needs avx2 fma", "needs avx2 amx9", "the CPU feature amx9 of x86_64, which this edgebuild does not know"),
        ("needs avx2 fma", "needs neon", "the CPU feature neon of x86_64, which this edgebuild does not know"),
        ("needs avx2 fma", "needs AVX2", "CPU features of x86_64"),
        ("needs avx2 fma", "needs", "needs must be"),
        ("abi 1", "abi 2", "kernel ABI 2; this edgebuild knows 1"),
        ("quality trained", "quality good", "quality must be one of"),
        ("quality trained", "quality trained\nchecked yes", "checked must be one of no"),
        ("quality trained", "checked no\nquality trained", "expected `quality`"),
        ("trigger camera 15", "trigger camera", "trigger must be"),
        ("trigger camera 15", "trigger none 1", "trigger must be"),
        ("timeout-ms 500", "timeout-ms 0", "is not a number"),
        ("frame uint8", "frame uint16", "a tensor is NAME DTYPE"),
        ("frame uint8 48 64 3", "frame uint8 48 64 0", "is not a number from 1"),
        ("frame uint8 48 64 3", "frame uint8 1 1 1 1 1 1 1", "at most 6 axes"),
        ("frame uint8 48 64 3", "frame uint8 65536 32769", "at most 2147483648 bytes"),
        ("output confidence", "output label", "a second output `label`"),
        ("function/function.py", "manifest", "`manifest` is a part of every bundle"),
        ("function/function.py", "manifest.minisig", "`manifest.minisig` is a part of every bundle"),
        ("function/function.py", "function/../function.py", "is not a valid path"),
        ("function/function.py", "/function.py", "is not a valid path"),
        ("function/function.py", "function//function.py", "is not a valid path"),
        ("function/function.py", "function/", "is not a valid path"),
        ("function/function.py", "plan.bin", "a path occurs twice"),
        ("golden/out-1.npy", "golden/out-2.npy", "`golden/out-1.npy` is missing"),
        (" program.so", " program", "`program.so` is missing"),
        ("function/function.py\n", "function/function.py\nmore 1\n", "does not belong here"),
        ("function/function.py\n", "function/function.py\n\n", "does not belong here"),
        ("function/function.py\n", "function/function.py", "the last line has no end"),
        ("name digits\n", "name digits\r\n", "outside printable ASCII"),
        ("name digits\n", "name digits\0\n", "outside printable ASCII"),
    ],
)
def test_one_way_of_being_wrong(sample, old: str, new: str, message: str) -> None:
    data = manifest.serialize(sample.manifest)
    assert manifest.parse(data) == sample.manifest
    assert data.count(old.encode()) == 1
    with pytest.raises(BundleError, match=message.replace("(", r"\(")):
        manifest.parse(data.replace(old.encode(), new.encode()))


def test_a_bundle_that_no_machine_has_run(sample) -> None:
    unchecked = dataclasses.replace(sample.manifest, checked=False)
    data = manifest.serialize(unchecked)
    assert b"quality trained\nchecked no\n" in data
    assert manifest.parse(data) == unchecked
    assert b"checked" not in manifest.serialize(sample.manifest)


def test_when_it_was_made_and_when_it_expires(sample) -> None:
    dated = dataclasses.replace(sample.manifest, made=date(2026, 1, 31), expires=date(2028, 2, 29))
    data = manifest.serialize(dated)
    assert b"release 1\nmade 2026-01-31\nexpires 2028-02-29\narch " in data
    assert manifest.parse(data) == dated


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("made 2026-02-29", "line 6: `2026-02-29` is no day"),
        ("made 2026-2-28", "is no day"),
        ("made 1999-12-31", "is no day as YYYY-MM-DD of the years 2000 to 9999"),
        ("made 20260228", "is no day"),
        ("made 2026-W09-6", "is no day"),
        ("made", "`made` takes one value"),
        ("expires 2026-01-01\nmade 2026-01-01", "line 7: expected `arch`"),
        ("made 2026-01-01\nmade 2026-01-01", "line 7: expected `arch`"),
    ],
)
def test_a_wrong_day(sample, line: str, message: str) -> None:
    data = manifest.serialize(sample.manifest)
    assert manifest.parse(data.replace(b"release 1\n", b"release 1\nmade 2026-02-28\n"))
    with pytest.raises(BundleError, match=message):
        manifest.parse(data.replace(b"release 1\n", f"release 1\n{line}\n".encode()))


def test_an_upper_case_digest_is_refused(sample) -> None:
    data = manifest.serialize(sample.manifest)
    digest = sample.manifest.files[0].sha256.encode()
    with pytest.raises(BundleError, match="lower-case hex"):
        manifest.parse(data.replace(digest, digest.upper()))


def test_a_manifest_over_the_limit_is_refused() -> None:
    with pytest.raises(BundleError, match="the limit is 65536"):
        manifest.parse(b"x" * 65537)


def test_too_many_files_are_refused(sample) -> None:
    more = tuple(File(0, "0" * 64, f"function/f{i}.py") for i in range(256))
    with pytest.raises(BundleError, match="the limit is 256"):
        manifest.serialize(dataclasses.replace(sample.manifest, files=sample.manifest.files + more))


@pytest.mark.parametrize("field", [{"name": "a b"}, {"version": "1\n2"}, {"function": "ü"}, {"release": 0}])
def test_a_value_that_the_format_cannot_hold_is_not_written(sample, field: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="manifest"):
        manifest.serialize(dataclasses.replace(sample.manifest, **field))
