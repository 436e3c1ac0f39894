"""Reads `targets/NAME.toml`, and finds out what this machine's CPU can do."""

import dataclasses
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgebuild.core import toml
from edgebuild.core.errors import EnvironmentProblem, RecipeError, UsageError
from edgebuild.core.manifest import is_name
from edgebuild.core.resources import resource
from edgebuild.core.target import FEATURES, Target

HOST = "host"
_CPUINFO = Path("/proc/cpuinfo")
_ATTRIBUTE = re.compile(r"[+-][A-Za-z0-9][A-Za-z0-9.-]*")

# Linux's spelling in /proc/cpuinfo, where it is not SPEC section 6's.
_CPUINFO_NAMES = {
    "x86_64": {"bmi": "bmi1", "lzcnt": "abm", "avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni"},
    "aarch64": {
        "neon": "asimd",
        "dotprod": "asimddp",
        "lse": "atomics",
        "rdm": "asimdrdm",
        "crc": "crc32",
        "fp16": "asimdhp",
        "rcpc": "lrcpc",
    },
}


# What the kernels of an instruction set cannot do without.
_ISA_FEATURES = {
    "plain": (),
    "sse2": (),
    "avx2": ("avx2", "fma"),
    "avxvnni": ("avx2", "fma", "avxvnni"),
    "avx512vnni": ("avx2", "fma", "avx512f", "avx512bw", "avx512vnni"),
    "avx512vbmi": ("avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avx512vbmi"),
    "neon": ("neon",),
    "dotprod": ("neon", "dotprod"),
    "i8mm": ("neon", "dotprod", "i8mm"),
    "rvv": ("v",),
}


@dataclass(frozen=True)
class _TargetFile:
    """The schema of a target; the fields are those of `Target`, the name is the file's."""

    description: str
    triple: Literal["x86_64-linux-gnu", "aarch64-linux-gnu", "riscv64-linux-gnu"]
    cpu: str
    features: tuple[str, ...]
    isa: Literal["plain", "sse2", "avx2", "avxvnni", "avx512vnni", "avx512vbmi", "neon", "dotprod", "i8mm", "rvv"]
    engines: tuple[Literal["tvm"], ...]
    attributes: tuple[str, ...] = ()
    alias: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = FEATURES[self.triple.split("-", maxsplit=1)[0]]
        for feature in self.features:
            if feature not in known:
                raise ValueError(f"features: unknown CPU feature '{feature}'; {toml.did_you_mean(feature, known)}")
        if self.features != tuple(feature for feature in known if feature in self.features):
            raise ValueError(f"features: must be in this order, each once: {', '.join(known)}")
        for attribute in self.attributes:
            if not _ATTRIBUTE.fullmatch(attribute):
                raise ValueError(f'attributes: {attribute!r} is none of LLVM\'s; write + or - and a name: "+dotprod"')
        if not self.engines:
            raise ValueError('engines: at least one is needed; write ["tvm"]')
        if self.isa == "sse2" and not self.triple.startswith("x86_64-"):
            raise ValueError("isa: 'sse2' is a part of x86-64; write \"plain\" for other processors")
        missing = [feature for feature in _ISA_FEATURES[self.isa] if feature not in self.features]
        if missing:
            raise ValueError(
                f"isa: '{self.isa}' needs the CPU features {', '.join(missing)}, which `features` lacks; list them"
            )


@dataclass(frozen=True)
class _HostFile:
    """The schema of `host.toml`: names of targets, the most capable first."""

    description: str
    candidates: tuple[str, ...]


def load_target(name: str) -> Target:
    """The target of a name, alias or TOML file's path, or `host`. A bundle bears the name that was asked for."""
    if name.endswith(".toml"):
        return _read(Path(name))
    if name == HOST:
        return _host()
    files = {path.stem: path for path in _files()}
    if name in files:
        return _read(files[name])
    aliases = {alias: path for path in files.values() for alias in toml.read(path, _TargetFile).alias}
    if name in aliases:
        return dataclasses.replace(_read(aliases[name]), name=name)
    raise UsageError(f"unknown target '{name}'", toml.did_you_mean(name, [HOST, *files, *aliases]))


def list_targets() -> list[Target]:
    """All targets, by name; without `host`."""
    return [_read(path) for path in _files()]


def target_aliases() -> dict[str, tuple[str, ...]]:
    """Target name to its other names."""
    return {path.stem: toml.read(path, _TargetFile).alias for path in _files()}


def host_features() -> tuple[str, tuple[str, ...]]:
    """The architecture of this machine and its CPU features, in SPEC section 6's names and order."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    names = _CPUINFO_NAMES.get(arch, {})
    flags = _cpu_flags()
    return arch, tuple(feature for feature in FEATURES.get(arch, ()) if names.get(feature, feature) in flags)


def runs_here(target: Target) -> bool:
    """Whether this machine's CPU can run code for `target` without an emulator."""
    arch, features = host_features()
    return arch == target.arch and set(target.features) <= set(features)


def _files() -> list[Path]:
    return sorted(path for path in resource("targets").glob("*.toml") if path.stem != HOST)


def _read(path: Path) -> Target:
    if not is_name(path.stem):
        raise RecipeError(
            f"{path}: a target's file name may hold a-z, 0-9, `_` and `-`", "rename it, e.g. to my-board.toml"
        )
    fields = dataclasses.asdict(toml.read(path, _TargetFile))
    del fields["alias"]
    return Target(name=path.stem, **fields)


def _host() -> Target:
    arch, features = host_features()
    for name in toml.read(resource("targets") / f"{HOST}.toml", _HostFile).candidates:
        target = load_target(name)
        if runs_here(target):
            return dataclasses.replace(target, name=HOST)
    raise EnvironmentProblem(
        f"no target fits this machine's CPU ({arch}, {' '.join(features) or 'no known features'})",
        "compile for another machine with --target NAME; `edgebuild targets` lists them",
    )


def _cpu_flags() -> set[str]:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return set()
    rows = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    rows += [_riscv_extensions(line.partition(":")[2].strip()) for line in lines if line.startswith("isa\t")]
    return set(rows[0]).intersection(*rows) if rows else set()


def _riscv_extensions(isa: str) -> list[str]:
    """`rv64imafdcv_zba_zbb` → i, m, …, v, zba, zbb."""
    letters, *named = isa.removeprefix("rv64").split("_")
    return [*letters, *named]
