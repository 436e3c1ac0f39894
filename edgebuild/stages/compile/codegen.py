"""TIR functions → object code → `program.so` (SPEC section 6)."""

import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from edgebuild.core.errors import CompileError, RecipeError
from edgebuild.core.target import FEATURES, Target
from edgebuild.core.toml import did_you_mean
from edgebuild.core.zig import zig_cc
from edgebuild.kernels.builder import Kernel

ABI = 1
BUG = "this is a bug in edgebuild, or `cpu` and `attributes` of the target do not fit together"
MAGIC = 0x31504245
_LLVM_NAMES = {"fp16": "fullfp16"}
_BASE = {"x86_64": ("64bit", "sse2"), "aarch64": ("neon",), "riscv64": ("64bit", "m", "a", "f", "d")}
"""What every device of an architecture has, and the calling convention needs (LLVM's names)."""
_OTHER_ABI = {"soft-float", "e", "zfinx", "zdinx", "zhinx"}
"""What passes floats, or arguments, in other registers than the device's libraries and our kernels do."""


# LLVM turns copying loops into calls of the first three, fma into fmaf, and on x86-64 before SSE4.1 rounding into the
# last three; program.so has no library to take them from.
_LIBRARY = """
#include <stddef.h>
#include <stdint.h>
typedef uint8_t wide __attribute__((vector_size(32), aligned(1), may_alias));
void *memcpy(void *restrict to, const void *restrict from, size_t n) {
  uint8_t *t = to;
  const uint8_t *f = from;
  for (; n >= 32; n -= 32, t += 32, f += 32) *(wide *)t = *(const wide *)f;
  for (; n; n--) *t++ = *f++;
  return to;
}
void *memmove(void *to, const void *from, size_t n) {
  uint8_t *t = to;
  const uint8_t *f = from;
  if (t <= f || t >= f + n) {
    for (; n; n--) *t++ = *f++;
  } else {
    while (n--) t[n] = f[n];
  }
  return to;
}
void *memset(void *to, int value, size_t n) {
  uint8_t *t = to;
  for (; n; n--) *t++ = (uint8_t)value;
  return to;
}

// SPEC section 8 on a CPU without fused multiply-add: the double product is exact; the sum is rounded to odd first.
#pragma STDC FP_CONTRACT OFF
float fmaf(float x, float y, float z) {
  double product = (double)x * y, sum = product + z, part = sum - product;
  double error = (product - (sum - part)) + (z - part);
  union { double value; uint64_t bits; } odd = {sum};
  if (error != 0 && (odd.bits >> 52 & 0x7ff) != 0x7ff && !(odd.bits & 1))
    odd.bits += (error > 0) == (sum > 0) ? 1 : (uint64_t)-1;
  return (float)odd.value;
}

static float nearest(float x) {
  float shift = __builtin_copysignf(8388608.0f, x);  // from 2^23 on every float is whole; NaN stays
  return __builtin_fabsf(x) < 8388608.0f ? __builtin_copysignf((x + shift) - shift, x) : x;
}
float nearbyintf(float x) { return nearest(x); }
float floorf(float x) {
  float n = nearest(x);
  return n > x ? n - 1 : n;
}
float ceilf(float x) {
  float n = nearest(x);
  return n < x ? __builtin_copysignf(n + 1, x) : n;
}
"""


def build_program(kernels: Sequence[Kernel], target: Target) -> bytes:
    """Compile kernels for a target and link them into the bytes of program.so; kernel i is entry i of its table."""
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        obj, table, library = (Path(folder) / name for name in ("kernels.o", "table.c", "program.so"))
        _compile(kernels, target).write_to_file(str(obj), "o")
        table.write_text(_table_source(kernels, target))
        _link(obj, table, library, target)
        return library.read_bytes()


def checked(target: Target) -> Any:
    """TVM's form of a target that LLVM has code for. Raises RecipeError, where LLVM would end the process."""
    import tvm  # noqa: PLC0415

    llvm: dict[str, Any] = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu}
    if target.attributes:
        llvm["mattr"] = list(target.attributes)
    if target.arch == "riscv64":
        llvm["mabi"] = "lp64d"
    _check_cpu(target)
    _check_attributes(target)
    tvm_target = tvm.target.Target(llvm)
    _check_features(target, tvm_target)
    return tvm_target


def _compile(kernels: Sequence[Kernel], target: Target) -> Any:
    import tvm  # noqa: PLC0415

    tvm_target = checked(target)
    functions = {f"k{i}": k.func.with_attr("global_symbol", f"k{i}") for i, k in enumerate(kernels)}
    module = _lower(tvm.IRModule(functions), tvm_target)
    try:
        return tvm.get_global_func("target.build.llvm")(module, tvm_target)
    except tvm.error.InternalError as error:
        raise CompileError(f"LLVM refused the kernels for {target.name}: {str(error).splitlines()[-1]}", BUG) from error


def _check_cpu(target: Target) -> None:
    """LLVM itself would only warn, and generate code for its generic CPU."""
    import tvm  # noqa: PLC0415

    known = tvm.target.codegen.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm", "mtriple": target.triple}))
    names = [str(name) for name in known]
    if target.cpu not in names:
        raise RecipeError(
            f"target {target.name}: cpu: LLVM knows no '{target.cpu}' of {target.arch}", did_you_mean(target.cpu, names)
        )


def _check_attributes(target: Target) -> None:
    """LLVM itself would only warn, and leave it out."""
    for attribute in target.attributes:
        if attribute[1:] not in _llvm_features(target, [f"+{attribute[1:]}"]):
            raise RecipeError(
                f"target {target.name}: attributes: LLVM knows no '{attribute}' of {target.arch}",
                "write one that `llc -mattr=help` lists, or leave it out",
            )


def _check_features(target: Target, tvm_target: Any) -> None:
    """What LLVM may use must be in the manifest's `needs`, or a device without it dies of an illegal instruction.

    And what `features` lists must be there: for kernels written for it LLVM would end this process, or never end.
    """
    used = _enabled(tvm_target)
    if other := sorted(used & _OTHER_ABI):
        raise RecipeError(
            f"target {target.name}: attributes: {', '.join(other)} is another calling convention than its triple's",
            "leave it out, or take another cpu",
        )
    spelled = {feature: _LLVM_NAMES.get(feature, feature) for feature in FEATURES[target.arch]}
    lacking = [name for name in _BASE[target.arch] if name not in used]
    if lacking:
        raise RecipeError(
            f"target {target.name}: cpu '{target.cpu}' with these attributes has no {', '.join(lacking)}, without "
            f"which there is no code for {target.triple}",
            f"take another cpu, or switch it on: attributes = [{_switches('+', lacking)}]",
        )
    extra = [feature for feature in target.features if spelled[feature] not in used]
    if extra:
        raise RecipeError(
            f"target {target.name}: features: cpu '{target.cpu}' with these attributes has no {', '.join(extra)}",
            "leave it out, take another cpu, or switch it on: attributes = "
            f"[{_switches('+', (spelled[feature] for feature in extra))}]",
        )
    missing = [feature for feature, name in spelled.items() if name in used and feature not in target.features]
    if missing:
        raise RecipeError(
            f"target {target.name}: features: code for cpu '{target.cpu}' uses {', '.join(missing)}, not listed",
            f"list it, or switch it off: attributes = [{_switches('-', (spelled[feature] for feature in missing))}]",
        )


def _switches(sign: str, names: Iterable[str]) -> str:
    return ", ".join(f'"{sign}{name}"' for name in names)


def _llvm_features(target: Target, attributes: list[str]) -> set[str]:
    """What LLVM's generic CPU of the architecture has with these attributes."""
    import tvm  # noqa: PLC0415

    return _enabled(tvm.target.Target({"kind": "llvm", "mtriple": target.triple, "mattr": attributes}))


def _enabled(tvm_target: Any) -> set[str]:
    import tvm  # noqa: PLC0415

    return {str(name) for name in tvm.target.codegen.llvm_get_cpu_features(tvm_target)}


def _lower(module: Any, tvm_target: Any) -> Any:
    """The passes that raw-pointer kernels over flat buffers need.

    Two passes of TVM's own pipeline are left out on purpose. StmtSimplify rewrites (x + c) − c to x in floating point
    too, and its range analysis gives up on some index expressions with an internal error. FlattenBuffer turns the
    index of a flat buffer from a ramp into arithmetic on a ramp, which the code generator then loads lane by lane.
    """
    import tvm  # noqa: PLC0415
    from tvm import tirx  # noqa: PLC0415

    passes = [
        tirx.transform.BindTarget(tvm_target.with_host(tvm_target)),
        tirx.transform.RemoveNoOp(),
        tirx.transform.LowerIntrin(),
    ]
    return tvm.ir.transform.Sequential(passes)(module)


def _table_source(kernels: Sequence[Kernel], target: Target) -> str:
    """C that adapts each kernel to the table's one signature and exports the table."""
    lines = [_LIBRARY]
    if any(kernel.functions for kernel in kernels):
        lines.append((resources.files(__package__) / "functions.c").read_text(encoding="utf-8"))
    for i, kernel in enumerate(kernels):
        pointers = ", ".join(["void *"] * (len(kernel.args) + 1))
        call = ", ".join(f"a[{j}]" for j in range(len(kernel.args)))
        lines.append(f"extern void k{i}({pointers}, int32_t, int32_t);")
        lines.append(f"static void e{i}(void *const *a, void *s, int32_t b, int32_t e) {{ k{i}({call}, s, b, e); }}")
    needs = sum(1 << FEATURES[target.arch].index(name) for name in target.features)
    entries = ", ".join(f"e{i}" for i in range(len(kernels)))
    lines.append(
        '__attribute__((visibility("default"))) const struct { uint32_t magic, abi, count, zero; uint64_t needs; '
        f"void (*kernels[{len(kernels)}])(void *const *, void *, int32_t, int32_t); }} eb_program = "
        f"{{ {MAGIC:#x}u, {ABI}, {len(kernels)}, 0, {needs:#x}ull, {{ {entries} }} }};"
    )
    return "\n".join(lines) + "\n"


def _link(obj: Path, table: Path, library: Path, target: Target) -> None:
    """Link without any library: an undefined symbol, such as a call of libm, is an error."""
    flags = ["-shared", "-nostdlib", "-fPIC", "-O2", "-fvisibility=hidden", "-s"]
    flags += ["-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fno-sanitize=all"]
    linker = [
        "-Wl,--build-id=none",
        "-Wl,-z,defs",
        "-Wl,--gc-sections",
        "-Wl,--hash-style=gnu",
        "-Wl,-soname,program.so",
    ]
    version = library.with_suffix(".map")
    version.write_text("{ global: eb_program; local: *; };\n")
    command = [
        *zig_cc(target.triple),
        *flags,
        *linker,
        f"-Wl,--version-script={version.name}",
        table.name,
        obj.name,
        "-o",
        library.name,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=library.parent, check=False)
    if done.returncode:
        raise CompileError(f"linking program.so for {target.name} failed: {done.stderr.strip()}", BUG)
