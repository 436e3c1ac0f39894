import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.core import tar
from edgebuild.core.errors import BundleError

MEMBERS = [("manifest", b"m" * 700), ("edgebuild-run", b"r" * 512), ("empty", b"")]


def test_other_tools_read_the_archive() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar.write(MEMBERS))) as archive:
        found = [(member.name, member.mode, archive.extractfile(member).read()) for member in archive]
    assert found == [(name, 0o755 if name == "edgebuild-run" else 0o644, data) for name, data in MEMBERS]


@given(st.lists(st.tuples(st.from_regex(r"[a-z0-9/]{1,99}", fullmatch=True), st.binary(max_size=2000)), max_size=4))
def test_what_is_written_is_read(members: list[tuple[str, bytes]]) -> None:
    reader = tar.Reader(tar.write(members))
    assert [bytes(reader.exact(name, len(data))) for name, data in members] == [data for _, data in members]
    reader.end()


@given(st.data())
def test_no_byte_outside_the_data_may_change(data: st.DataObject) -> None:
    archive = bytearray(tar.write(MEMBERS))
    at = data.draw(st.integers(0, len(archive) - 1))
    archive[at] ^= data.draw(st.integers(1, 255))
    reader = tar.Reader(bytes(archive))
    try:
        read = [bytes(reader.exact(name, len(content))) for name, content in MEMBERS]
        reader.end()
    except BundleError:
        return
    assert read != [content for _, content in MEMBERS]


@pytest.mark.parametrize("cut", [1, 512, 1024, 1025, 1536, 2000])
def test_a_cut_archive_is_refused(cut: int) -> None:
    reader = tar.Reader(tar.write(MEMBERS)[:-cut])
    with pytest.raises(BundleError, match=r"cut off|does not end|header of"):
        [reader.exact(name, len(data)) for name, data in MEMBERS] and reader.end()


def test_bytes_behind_the_end_are_refused() -> None:
    reader = tar.Reader(tar.write([]) + b"\0")
    with pytest.raises(BundleError, match="does not end where"):
        reader.end()


def test_a_size_over_the_limit_is_refused() -> None:
    with pytest.raises(BundleError, match="claims 700 bytes; the limit is 699"):
        tar.Reader(tar.write(MEMBERS)).bounded("manifest", 699)


@pytest.mark.parametrize("data", [b"", b"no archive", bytes(2048)])
def test_something_else_is_not_a_bundle(data: bytes) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        tar.Reader(data).bounded("manifest", 100)
