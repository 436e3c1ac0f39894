"""What the link of program.so refuses, and that targets mean what they say."""

import subprocess
from pathlib import Path

import pytest

from edgebuild.core.errors import CompileError
from edgebuild.core.target_file import list_targets, load_target
from edgebuild.core.zig import zig_cc
from edgebuild.stages.compile import codegen

TABLE = """
extern float k(float);
__attribute__((visibility("default"))) float (*const eb_program)(float) = k;
"""


@pytest.mark.parametrize("name", ["x86_64-avx2", "aarch64-generic"])
def test_a_call_of_libm_does_not_link(tmp_path: Path, name: str) -> None:
    """SPEC 6: no undefined symbol. A kernel that needs a library fails here, not on the device."""
    target = load_target(name)
    source, obj, table = tmp_path / "k.c", tmp_path / "k.o", tmp_path / "table.c"
    table.write_text(TABLE)
    for body, links in (("x + x", True), ("sinf(x)", False)):
        source.write_text(f"float sinf(float);\nfloat k(float x) {{ return {body}; }}\n")
        command = [*zig_cc(target.triple), "-c", "-fPIC", "-O1", "-fno-builtin", "-fno-sanitize=all"]
        subprocess.run([*command, str(source), "-o", str(obj)], check=True)
        if links:
            codegen._link(obj, table, tmp_path / "program.so", target)
            continue
        with pytest.raises(CompileError, match="undefined symbol: sinf"):
            codegen._link(obj, table, tmp_path / "program.so", target)


@pytest.mark.parametrize("name", [target.name for target in list_targets()])
def test_targets_list_every_feature_that_their_code_may_use(name: str) -> None:
    import tvm

    target = load_target(name)
    codegen._check_cpu(target)
    settings = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu}
    if target.attributes:
        settings["mattr"] = list(target.attributes)
    codegen._check_features(target, tvm.target.Target(settings))
