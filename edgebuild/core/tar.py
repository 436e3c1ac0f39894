"""SPEC section 1: the one spelling of ustar that a bundle has. Bytes in, bytes out."""

from collections.abc import Iterable, Iterator

from edgebuild.core.errors import BundleError

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_NAME = 99
EXECUTABLE = "edgebuild-run"
MAX_MANIFEST = 64 * 1024
MAX_SIGNATURE = 1024
MAX_FILE = 2**31
DAMAGED = "the file was damaged or changed on its way; get it again from its source"
NO_BUNDLE = "give a file that `edgebuild compile` wrote"


def header(name: str, size: int) -> bytes:
    """The 512 bytes that precede a member."""
    mode = b"0000755\0" if name == EXECUTABLE else b"0000644\0"
    zero = b"0000000\0"
    head = b"".join([
        name.encode("ascii").ljust(100, b"\0"),
        mode, zero, zero, b"%011o\0" % size, b"00000000000\0",
        b" " * 8, b"0", bytes(100), b"ustar\0", b"00",
    ]).ljust(BLOCK, b"\0")  # fmt: skip
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def pieces(members: Iterable[tuple[str, bytes | memoryview]]) -> Iterator[bytes | memoryview]:
    """The archive, piece by piece, so that a large blob is never copied."""
    for name, data in members:
        yield header(name, len(data))
        yield data
        yield padding(len(data))
    yield END


def write(members: Iterable[tuple[str, bytes | memoryview]]) -> bytes:
    """The whole archive."""
    return b"".join(pieces(members))


class Reader:
    """Walks an archive whose members the caller knows; every byte that is not data is compared."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def bounded(self, name: str, limit: int) -> memoryview:
        """The next member, which must be `name`, with 1 to `limit` bytes; its size comes from its own header."""
        field = bytes(self._data[self._at + 124 : self._at + 135])
        if len(field) != 11 or any(digit not in b"01234567" for digit in field):
            cut = len(self._data) < self._at + BLOCK
            why = f"it is cut off before `{name}`" if cut else f"no archive member `{name}` at byte {self._at}"
            raise BundleError(f"not a bundle: {why}", NO_BUNDLE)
        size = int(field, 8)
        if not 0 < size <= limit:
            raise BundleError(f"not a bundle: `{name}` claims {size} bytes; the limit is {limit}", NO_BUNDLE)
        return self.exact(name, size)

    def exact(self, name: str, size: int) -> memoryview:
        """The next member, which must be `name` with `size` bytes."""
        expected = header(name, size)
        end = self._at + BLOCK + size
        found = bytes(self._data[self._at : self._at + BLOCK])
        if len(found) < BLOCK and expected.startswith(found):
            raise BundleError(f"the bundle is cut off before `{name}`", DAMAGED)
        if found != expected:
            raise BundleError(f"the archive's header of `{name}` is not the one that its manifest calls for", DAMAGED)
        if end + len(padding(size)) > len(self._data):
            raise BundleError(f"the bundle is cut off inside `{name}`", DAMAGED)
        if bytes(self._data[end : end + len(padding(size))]) != padding(size):
            raise BundleError(f"the padding behind `{name}` is not zero", DAMAGED)
        member = self._data[self._at + BLOCK : end]
        self._at = end + len(padding(size))
        return member

    def end(self) -> None:
        """Checks that the archive ends here."""
        if bytes(self._data[self._at : self._at + len(END) + 1]) != END:
            raise BundleError("the archive does not end where its manifest says", DAMAGED)
