"""ONNX's own cases for each operator (`onnx.backend.test`), through the float path: ingest, keep_float, compile, run.

The list is generated: every case whose operators are claimed, minus what a rule of `excluded` leaves out. Many cases
share one program.so, since starting the linker takes longer than a kernel; each has a plan and weights of its own,
which are executed here as SPEC section 5 says.
"""

import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from edgebuild.core.errors import CompileError, EdgebuildError, ModelError
from edgebuild.core.manifest import DTYPES, MAX_RANK
from edgebuild.core.operators import OPERATORS, THROUGH_TVM
from edgebuild.core.plan import Plan, read_plan, write_plan
from edgebuild.core.target import Target
from edgebuild.kernels.builder import Kernel
from edgebuild.kernels.isa import ISAS
from edgebuild.reference import Interpreter
from edgebuild.stages.compile import assemble
from edgebuild.stages.compile.fuse import fuse
from edgebuild.stages.compile.lower import lower
from edgebuild.stages.compile.native import Array, Program, aligned
from edgebuild.stages.compile.schedule import schedule
from edgebuild.stages.ingest.onnx import load, normalize
from edgebuild.stages.quantize import keep_float, quantize
from edgebuild.stages.quantize.verify import is_quantized

CLAIMED = OPERATORS | THROUGH_TVM
SEVERAL = "several operators"
_BATCH = 400
_KINDS = {int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name))) for name in DTYPES}


@dataclass(frozen=True)
class Case:
    """One case: `operator` is what it is about, in `arrays` the inputs and what they should give."""

    name: str
    operator: str
    model: onnx.ModelProto
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """`kind`: passed, refused (with a ModelError), excluded (by a rule) or wrong."""

    case: Case
    kind: str
    why: str = ""


@dataclass(frozen=True)
class _Compiled:
    case: Case
    model: onnx.ModelProto
    """In float32, as it was compiled."""
    plan: Plan
    weights: bytes
    kernels: tuple[object, ...]
    """Keys of the plan's kernels in the batch's."""
    kept: tuple[int, ...]
    """Places of the case's inputs that the program still takes."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the outputs; a plan knows memory only, in which axes of one element may stand anywhere."""


@cache
def cases() -> tuple[Case, ...]:
    """Every case of one operator that is claimed, and ONNX's functions spelled out as several operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    found = []
    for item in collected:
        nodes = [] if item.model is None else [n for n in item.model.graph.node if n.op_type != "Constant"]
        operator = nodes[0].op_type if len(nodes) == 1 else SEVERAL
        if nodes and (operator in CLAIMED or operator == SEVERAL) and nodes[0].domain in ("", "ai.onnx"):
            arrays = (tuple(map(_single, part)) for part in item.data_sets[0])
            found.append(Case(item.name, operator, _singles(item.model), *arrays, item.rtol, item.atol))
    return tuple(found)


def _single(value: object) -> Array:
    if isinstance(value, list):
        return np.empty(0)  # a sequence, which is excluded
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _singles(model: onnx.ModelProto) -> onnx.ModelProto:
    """The case in float32 where it is written in float64: for some operators ONNX has no other."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.DOUBLE:
            kind.elem_type = onnx.TensorProto.FLOAT
    for node in single.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.DOUBLE:
                attribute.i = onnx.TensorProto.FLOAT
    return single


def excluded(case: Case) -> str:
    """Why a case lies outside of what a bundle can hold; empty where it does not."""
    graph = case.model.graph
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if value.type.WhichOneof("value") != "tensor_type" or kind.elem_type not in _KINDS:
            return "a value's type is not one of a bundle's"
        if any(not dim.HasField("dim_value") for dim in kind.shape.dim):
            return "a dynamic shape"
        if any(dim.dim_value == 0 for dim in kind.shape.dim):
            return "a tensor without elements"
        if len(kind.shape.dim) > MAX_RANK:
            return f"more than {MAX_RANK} axes"
    if not graph.input:
        return "no input"
    return "training mode" if any(_trains(node, case) for node in graph.node) else ""


def _trains(node: onnx.NodeProto, case: Case) -> bool:
    if node.op_type == "Dropout" and len(node.input) > 2:
        values = dict(zip((value.name for value in case.model.graph.input), case.inputs, strict=True))
        return bool(np.any(values.get(node.input[2], False)))
    return any(a.name == "training_mode" and a.i for a in node.attribute)


def forms(case: Case) -> Iterator[tuple[onnx.ModelProto, tuple[int, ...]]]:
    """The case with more and more of its inputs as constants, and the places of those that stay inputs.

    A model hands an axis or a shape over as a constant, where a case makes an input of it.
    """
    inputs = case.model.graph.input
    integers = [i for i in range(1, len(inputs)) if case.inputs[i].dtype.kind in "iub"]
    seen = set()
    for fixed in ((), tuple(integers), tuple(range(1, len(inputs)))):
        if fixed in seen:
            continue
        seen.add(fixed)
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        del model.graph.input[:]
        kept = [i for i in range(len(inputs)) if i not in fixed]
        model.graph.input.extend(inputs[i] for i in kept)
        model.graph.initializer.extend(numpy_helper.from_array(case.inputs[i], inputs[i].name) for i in fixed)
        yield model, tuple(kept)


@dataclass
class _Batch:
    """Cases that share a program.so."""

    target: Target
    kernels: dict[object, Kernel] = field(default_factory=dict)
    cases: list[_Compiled] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Raises ModelError where every form of the case is refused."""
        refusals: list[ModelError] = []
        for model, kept in forms(case):
            try:
                self.cases.append(self._compiled(case, model, kept))
            except ModelError as error:
                refusals.append(error)
            else:
                return
        raise refusals[-1]

    def _compiled(self, case: Case, model: onnx.ModelProto, kept: tuple[int, ...]) -> _Compiled:
        model = _float(model)
        emitted = lower(model, ISAS[self.target.isa])
        fuse(emitted.emitter, emitted.kept)
        schedule(emitted.emitter, {})
        kernels, of_step = emitted.emitter.kernels()
        plan, weights = assemble(emitted, kernels, of_step)
        keys = dict(zip(of_step, ((s.make, s.spec, s.options) for s in emitted.emitter.steps), strict=True))
        used = tuple(keys[i] for i in range(len(kernels)))
        self.kernels |= dict(zip(used, kernels, strict=True))
        shapes = tuple(value.shape for _, value in emitted.outputs)
        return _Compiled(case, model, read_plan(write_plan(plan)), weights, used, kept, shapes)

    def outcomes(self) -> list[Outcome]:
        """Half of the cases at a time where the kernels cannot be compiled together, to find whose fault that is."""
        try:
            program = Program(list(self.kernels.values()), self.target) if self.kernels else None
        except CompileError as error:
            if len(self.cases) == 1:
                return [Outcome(self.cases[0].case, "wrong", error.message)]
            middle = len(self.cases) // 2
            return [o for part in (self.cases[:middle], self.cases[middle:]) for o in self._part(part).outcomes()]
        numbers = {key: number for number, key in enumerate(self.kernels)}
        return [_judged(compiled, numbers, program) for compiled in self.cases]

    def _part(self, chosen: list[_Compiled]) -> "_Batch":
        kernels = {key: self.kernels[key] for compiled in chosen for key in compiled.kernels}
        return _Batch(self.target, kernels, chosen)


def _float(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model behind the stages ingest and quantize."""
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        path = Path(folder) / "case.onnx"
        path.write_bytes(model.SerializeToString())
        normal = normalize(load(path), str(path))
    return (quantize(normal, list) if is_quantized(normal) else keep_float(normal)).model


def _judged(compiled: _Compiled, numbers: Mapping[object, int], program: Program | None) -> Outcome:
    case = compiled.case
    found = execute(compiled, numbers, program)
    for got, wanted in zip(found, case.outputs, strict=True):
        if got.dtype != wanted.dtype or got.shape != np.shape(wanted):
            return Outcome(case, "wrong", f"{got.dtype} {got.shape} instead of {wanted.dtype} {np.shape(wanted)}")
        try:
            np.testing.assert_allclose(got, wanted, rtol=case.rtol, atol=case.atol)
        except AssertionError as error:
            return Outcome(case, "wrong", " ".join(str(error).split()))
    differing = _other_than_interpreted(compiled, found)
    if differing:
        return Outcome(case, "wrong", f"the interpreter gives other bits for {differing}")
    return Outcome(case, "passed")


def _other_than_interpreted(compiled: _Compiled, found: Sequence[Array]) -> str:
    """Outputs that are not the interpreter's bits; it has no formula for what TVM lowers."""
    if any(node.op_type in THROUGH_TVM for node in compiled.model.graph.node):
        return ""
    given = {value.name: compiled.case.inputs[place]
             for value, place in zip(compiled.model.graph.input, compiled.kept, strict=True)}  # fmt: skip
    wanted = Interpreter(compiled.model).run(given)
    equal = {name: np.array_equal(got, right, equal_nan=got.dtype.kind == "f")
             for (name, right), got in zip(wanted.items(), found, strict=True)}  # fmt: skip
    return ", ".join(name for name, same in equal.items() if not same)


def execute(compiled: _Compiled, numbers: Mapping[object, int], program: Program | None) -> list[Array]:
    """What the plan gives, by SPEC section 5: each call on its places in arena and weights."""
    plan = compiled.plan
    spaces = {
        "arena": aligned(np.full(plan.arena_bytes, 0x5A, np.uint8)),
        "weights": aligned(np.frombuffer(compiled.weights, np.uint8)),
    }
    views = [spaces[t.space][t.offset : t.offset + t.nbytes].view(t.dtype).reshape(t.shape) for t in plan.tensors]
    for number, place in zip(plan.inputs, compiled.kept, strict=True):
        views[number][...] = compiled.case.inputs[place].reshape(views[number].shape)
    for op in plan.ops:
        assert program is not None
        number = numbers[compiled.kernels[op.kernel]]
        program.run(number, [views[i] for i, _ in op.args], [(0, op.work)])
    return [views[n].reshape(shape) for n, shape in zip(plan.outputs, compiled.shapes, strict=True)]


def table(found: Sequence[Outcome]) -> dict[str, Counter[str]]:
    """How many cases of each operator passed, were refused, excluded or wrong."""
    counts: dict[str, Counter[str]] = {operator: Counter() for operator in (*sorted(CLAIMED), SEVERAL)}
    for outcome in found:
        counts[outcome.case.operator][outcome.kind] += 1
    return counts


def outcomes(target: Target, chosen: Sequence[Case]) -> list[Outcome]:
    """What becomes of each case."""
    found: list[Outcome] = []
    batches = [_Batch(target)]
    for case in chosen:
        why = excluded(case)
        if why:
            found.append(Outcome(case, "excluded", why))
            continue
        try:
            batches[-1].add(case)
        except ModelError as error:
            found.append(Outcome(case, "refused", f"{error.message} | {error.hint}"))
        except EdgebuildError as error:
            found.append(Outcome(case, "wrong", f"{type(error).__name__}: {error}"))
        if len(batches[-1].kernels) >= _BATCH:
            batches.append(_Batch(target))
    for batch in batches:
        found += batch.outcomes()
    return found
