"""A target as the stages see it; `edgebuild.core.target_file` reads it from `targets/NAME.toml`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A kind of device.

    `triple` is an LLVM triple without a libc version (`x86_64-linux-gnu`, `aarch64-linux-gnu`), `cpu` LLVM's `-mcpu`, `features` the CPU
    features in SPEC section 6's names and order, `isa` the row of `edgebuild.kernels.isa` that kernels are written for
    (`avx2`, `avx512vnni`, `neon`, `dotprod`).
    """

    name: str
    description: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    isa: str
    engines: tuple[str, ...] = ("tvm",)

    @property
    def arch(self) -> str:
        return self.triple.split("-", maxsplit=1)[0]
