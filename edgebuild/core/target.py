"""A target as the stages see it; `edgebuild.core.target_file` reads it from `targets/NAME.toml`."""

from dataclasses import dataclass

# SPEC section 6: a feature's bit is its place in the row.
FEATURES = {
    "x86_64": (
        "avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe",
        "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni", "avxvnni",
        "avx512vbmi",
    ),
    "aarch64": ("neon", "dotprod", "i8mm", "lse", "rdm", "crc", "aes", "sha2", "fp16", "rcpc"),
    "riscv64": ("zba", "zbb", "zbs", "zicond", "v", "zvl256b"),
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A kind of device.

    `triple` is an LLVM triple without a libc version (`x86_64-linux-gnu`, `aarch64-linux-gnu`,
    `riscv64-linux-gnu`), `cpu` LLVM's `-mcpu`,
    `attributes` LLVM's `-mattr` (`+avx512vnni`), `features` the CPU features that code for it may use, in SPEC
    section 6's names and order, `isa` the row of `edgebuild.kernels.isa` that kernels are written for
    (`plain`, `sse2`, `avx2`, `avxvnni`, `avx512vnni`, `neon`, `dotprod`, `rvv`).
    """

    name: str
    description: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    isa: str
    engines: tuple[str, ...] = ("tvm",)
    attributes: tuple[str, ...] = ()

    @property
    def arch(self) -> str:
        return self.triple.split("-", maxsplit=1)[0]
