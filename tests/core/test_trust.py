import pytest

from edgebuild.core import minisign
from edgebuild.core.errors import BundleError
from edgebuild.core.trust import parse_trust


def test_comments_and_empty_lines_are_skipped(key) -> None:
    other = minisign.generate().public
    data = b"# keys of the team\n\n" + key.public.file() + b"\n" + other.line().encode()
    assert parse_trust(data) == {key.key_id: key.public, other.key_id: other}


@pytest.mark.parametrize("data", [b"", b"# nothing\n\n"])
def test_a_trust_file_without_a_key(data: bytes) -> None:
    with pytest.raises(BundleError, match="no key in it"):
        parse_trust(data)


@pytest.mark.parametrize("change", [b"\r", b" ", b"=", b"\xff", b"A"])
def test_a_line_with_one_more_character(key, change: bytes) -> None:
    line = key.public.line().encode()
    assert parse_trust(line)
    with pytest.raises(BundleError, match="line 1: not a minisign public key"):
        parse_trust(line + change + b"\n")


def test_two_keys_of_one_id(key) -> None:
    other = minisign.PublicKey(key.key_id, minisign.generate().public.key)
    with pytest.raises(BundleError, match=f"line 2: a second key with id {key.public.name}"):
        parse_trust(f"{key.public.line()}\n{other.line()}\n".encode())


def test_a_trust_file_over_the_limit(key) -> None:
    with pytest.raises(BundleError, match="the limit is 65536"):
        parse_trust(key.public.file() + b"#" * 65536)
