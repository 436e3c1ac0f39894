"""zig's C compiler from PyPI (`ziglang`): one compiler and linker for every target."""

import importlib.util
from functools import cache
from pathlib import Path

from edgebuild.core.errors import EnvironmentProblem


@cache
def zig_program() -> Path:
    """The `zig` program of the package `ziglang`."""
    spec = importlib.util.find_spec("ziglang")
    program = Path(spec.origin).parent / "zig" if spec and spec.origin else None
    if program is None or not program.is_file():
        raise EnvironmentProblem("the C compiler zig is not installed", "pip install ziglang")
    return program


def zig_cc(triple: str, glibc: str = "2.28") -> list[str]:
    """The command that compiles and links C for `triple` (as in Target.triple) against this version of glibc."""
    return [str(zig_program()), "cc", "-target", f"{triple}.{glibc}"]
