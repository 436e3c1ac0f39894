"""Trust files with roles, written straight from SPEC section 4, to hold both readers to the page."""

from dataclasses import dataclass, field, replace

import tiny

ROOTS = tuple(tiny.Key.new(seed) for seed in range(10, 15))
RELEASES = (tiny.KEY, tiny.Key.new(2))
COMMENT = "edgebuild trust"


@dataclass(frozen=True)
class Roles:
    """The parts of a trust file; tests replace one and call `build`."""

    version: str = "1"
    made: str = "2026-01-01"
    expires: str = "2030-01-01"
    threshold: str = "2"
    roots: tuple[tiny.Key, ...] = ROOTS[:3]
    retired: tuple[tiny.Key, ...] = ()
    release: tuple[tiny.Key, ...] = RELEASES
    signers: tuple[tiny.Key, ...] = field(default=ROOTS[:2])

    def body(self) -> bytes:
        lines = [
            "edgebuild-trust 1",
            f"version {self.version}",
            f"made {self.made}",
            f"expires {self.expires}",
            f"root-threshold {self.threshold}",
            *(f"root {key.public}" for key in self.roots),
            *(f"retired {key.public}" for key in self.retired),
            *(f"release {key.public}" for key in self.release),
        ]
        return "".join(f"{line}\n" for line in lines).encode()

    def build(self) -> bytes:
        return signed(self.body(), self.signers)

    def but(self, **changes: object) -> "Roles":
        return replace(self, **changes)  # type: ignore[arg-type]


def signed(body: bytes, signers: tuple[tiny.Key, ...]) -> bytes:
    return body + b"\n" + b"".join(key.sign(body, COMMENT) for key in signers)
