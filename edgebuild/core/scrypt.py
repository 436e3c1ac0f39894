"""libsodium's crypto_pwhash_scryptsalsa208sha256, with which minisign protects a secret key by a password."""

import hashlib
from dataclasses import dataclass

from edgebuild.core.errors import BundleError, EnvironmentProblem

_BLOCKS = 8  # r; libsodium knows no other
_MOST_OPERATIONS, _MOST_MEMORY = 1 << 25, 1 << 30  # what minisign writes: never a reason to allocate or to work more
_BESIDE = 1 << 20  # of OpenSSL, beside the table of N blocks


@dataclass(frozen=True)
class Limits:
    """Salsa20/8 cores, and bytes of memory."""

    operations: int = _MOST_OPERATIONS
    memory: int = _MOST_MEMORY

    def to_bytes(self) -> bytes:
        return self.operations.to_bytes(8, "little") + self.memory.to_bytes(8, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Limits":
        return cls(int.from_bytes(data[:8], "little"), int.from_bytes(data[8:16], "little"))

    def parameters(self) -> tuple[int, int, int]:
        """N, r and p; libsodium's pickparams."""
        operations = max(self.operations, 32768)
        thrifty = operations < self.memory // 32
        most = operations // (4 * _BLOCKS) if thrifty else self.memory // (128 * _BLOCKS)
        log_n = 1
        while log_n < 63 and 1 << log_n <= most // 2:
            log_n += 1
        p = 1 if thrifty else min(operations // 4 >> log_n, 0x3FFFFFFF) // _BLOCKS
        return 1 << log_n, _BLOCKS, p


def key_stream(password: bytes, salt: bytes, limits: Limits, size: int) -> bytes:
    """`size` bytes. Raises BundleError for limits above minisign's, before anything is allocated."""
    if limits.operations > _MOST_OPERATIONS or limits.memory > _MOST_MEMORY:
        raise BundleError(
            f"the secret key asks for {limits.memory} bytes of memory and {limits.operations} operations",
            f"minisign's own limits are {_MOST_MEMORY} and {_MOST_OPERATIONS}: the key file is damaged or hostile",
        )
    n, r, p = limits.parameters()
    maximum = _MOST_MEMORY + _BESIDE
    try:
        return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=maximum, dklen=size)
    except (MemoryError, ValueError) as error:
        needed = 128 * r * (n + p) >> 20
        raise EnvironmentProblem(
            f"the password of the secret key cannot be used: scrypt needs {needed} MiB of memory", "free some memory"
        ) from error
