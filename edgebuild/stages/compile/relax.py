"""Operators that have no kernel of ours: ONNX node → Relax → TIR → loop nests (`kernels.nest`)."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgebuild.core.plan import DTYPES, MAX_ARGS
from edgebuild.kernels.isa import ISAS
from edgebuild.kernels.nest import Nest, UnsupportedNestError, nest_kernel, touched
from edgebuild.stages.compile.graph import Graph, Node

_VECTOR = 64  # elements of the innermost loop where one loop is cut in two
_SHORT = 4
_ROOT = "root"
_SPATIAL, _REDUCED = 0, 2  # kinds of a block's axes


def _isinf(_: Graph, node: Node) -> str:
    return next((f"{sign}=0" for sign in ("detect_positive", "detect_negative") if not node.attrs.get(sign, 1)), "")


def _mod(graph: Graph, node: Node) -> str:
    return "fmod=0 on float32" if graph.dtype(node.inputs[0]) == "float32" and not node.attrs.get("fmod", 0) else ""


_IGNORED: Mapping[str, Callable[[Graph, Node], str]] = {
    "BatchNormalization": lambda _, node: "training_mode=1" if node.attrs.get("training_mode", 0) else "",
    "ConvTranspose": lambda _, node: "output_shape and computed weights" if "output_shape" in node.attrs else "",
    "IsInf": _isinf,
    "Mod": _mod,
    "RoiAlign": lambda _, node: "mode=max" if node.text("mode", "avg") == "max" else "",
}
"""What TVM's importer reads over without a word; tests/conformance/test_onnx_nodes.py finds such cases."""


@dataclass(frozen=True)
class Tensor:
    """What a nest reads or writes: a tensor of the program between two of its nests, or with a place in the model.

    `source`: the model's tensor that it is; `data`: its value, where the importer has made a constant.
    """

    dtype: str
    shape: tuple[int, ...]
    source: str = ""
    data: np.ndarray | None = None


@dataclass(frozen=True)
class Imported:
    """A node as nests: `calls` are (nest, the tensors it reads and then the one that it writes), by number."""

    tensors: tuple[Tensor, ...]
    calls: tuple[tuple[Nest, tuple[int, ...]], ...]
    outputs: tuple[int, ...]


def imported(graph: Graph, node: Node) -> Imported:
    """Raises ModelError for an operator that TVM does not import, or whose loops no kernel can hold."""
    ignored = _IGNORED[node.op](graph, node) if node.op in _IGNORED else ""
    if ignored:
        raise node.unsupported(f"with {ignored}, which TVM ignores")
    try:
        try:
            return _Importer(graph, node).run()
        except UnsupportedNestError:  # one function for each operator of Relax has fewer tensors
            return _Importer(graph, node, fused=False).run()
    except (UnsupportedNestError, RuntimeError) as error:  # TVM's own errors are RuntimeErrors
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise node.unsupported(f"TVM makes of it what no kernel can hold: {said}") from error


class _Importer:
    def __init__(self, graph: Graph, node: Node, *, fused: bool = True) -> None:
        self.graph, self.node, self.fused = graph, node, fused
        self.tensors: list[Tensor] = []
        self.calls: list[tuple[Nest, tuple[int, ...]]] = []
        self.numbers: dict[Any, Any] = {}

    def run(self) -> Imported:
        self.module = self._legalized()
        main = self.module["main"]
        params = list(main.attrs["params"]) if "params" in main.attrs else []
        given = len(main.params) - len(params)
        for var, name in zip(main.params[:given], self._varying(), strict=True):
            self.numbers[var] = self._tensor(var.ty, source=name)
        for var, value in zip(main.params[given:], params, strict=True):
            self.numbers[var] = self._tensor(var.ty, data=value.numpy())
        body = main.body
        for block in body.blocks:
            for binding in block.bindings:
                self.numbers[binding.var] = self._value(binding.value)
        result = self._value(body.body)
        outputs = tuple(result) if isinstance(result, list) else (result,)
        return Imported(tuple(self.tensors), tuple(self.calls), outputs)

    def _model(self) -> onnx.ModelProto:
        """The node alone, under names that are the same for all such nodes. Constants are initializers: the importer
        reads those that decide on the structure.
        """
        graph, node = self.graph, self.node
        names = {name: f"x{i}" for i, name in enumerate(dict.fromkeys(n for n in node.inputs if n))}
        names |= {name: f"y{i}" for i, name in enumerate(node.outputs) if name}
        alone = onnx.NodeProto()
        alone.CopyFrom(node.proto)
        alone.name = node.op
        alone.input[:] = [names[name] if name else "" for name in node.inputs]
        alone.output[:] = [names[name] if name else "" for name in node.outputs]
        inputs, outputs = (
            [
                helper.make_tensor_value_info(
                    names[n], helper.np_dtype_to_tensor_dtype(np.dtype(graph.dtype(n))), graph.shape(n)
                )
                for n in part
            ]
            for part in (self._varying(), filter(None, node.outputs))
        )
        fixed = {name: value for name in node.inputs if name and (value := graph.constant(name)) is not None}
        initializers = [numpy_helper.from_array(np.ascontiguousarray(v), names[n]) for n, v in fixed.items()]
        proto = helper.make_graph([alone], "node", inputs, outputs, initializers)
        return helper.make_model(proto, opset_imports=[helper.make_opsetid("", graph.opset)])

    def _varying(self) -> list[str]:
        """The node's inputs, each once, that are no constants."""
        return [n for n in dict.fromkeys(self.node.inputs) if n and self.graph.constant(n) is None]

    def _legalized(self) -> Any:
        import tvm  # noqa: PLC0415
        from tvm import relax  # noqa: PLC0415
        from tvm.relax.frontend.onnx import from_onnx  # noqa: PLC0415

        passes = [relax.transform.DecomposeOpsForInference(), relax.transform.LegalizeOps()]
        if self.fused:
            passes += [relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps(), relax.transform.FuseTIR()]
        passes.append(relax.transform.DeadCodeElimination())
        try:
            module = from_onnx(self._model(), opset=self.graph.opset, keep_params_in_input=True)
            with tvm.target.Target("llvm"):
                return tvm.ir.transform.Sequential(passes)(module)
        except Exception as error:  # whatever the importer raises, it is about this node
            said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise self.node.unsupported(f"TVM cannot import it: {said}") from error

    # Relax

    def _value(self, value: Any) -> Any:
        """Number of a tensor, or a list of them."""
        kind = type(value).__name__
        if kind == "GenericConst":
            return self._tensor(value.ty, data=value.value.numpy())
        if kind == "Tuple":
            return [self._value(part) for part in value.fields]
        if kind == "TupleGetItem":
            return self._value(value.tuple_value)[value.index]
        if value in self.numbers:
            return self.numbers[value]
        name = getattr(getattr(value, "op", None), "name", type(value).__name__)
        if name != "relax.call_tir":
            raise UnsupportedNestError(f"a call of {name}")
        return self._call(value)

    def _call(self, call: Any) -> Any:
        function, operands = call.args[0], [self._value(argument) for argument in call.args[1].fields]
        kind = call.ty_args[0]
        many = hasattr(kind, "fields")
        made = [self._tensor(part) for part in (kind.fields if many else [kind])]
        self._nests(self.module[function], [*operands, *made])
        return made if many else made[0]

    def _tensor(self, kind: Any, source: str = "", data: np.ndarray | None = None) -> int:
        if getattr(kind, "shape", None) is None:
            raise UnsupportedNestError("a value that is no tensor of known shape")
        return self._add(str(kind.dtype), kind.shape, source, data)

    def _add(self, dtype: str, shape: Sequence[Any], source: str = "", data: np.ndarray | None = None) -> int:
        if dtype not in DTYPES:
            raise UnsupportedNestError(f"a tensor of {dtype}")
        self.tensors.append(Tensor(dtype, tuple(int(dim) for dim in shape), source, data))
        return len(self.tensors) - 1

    # TIR

    def _nests(self, function: Any, operands: Sequence[int]) -> None:
        """The loop nests of a function whose parameters are the tensors `operands`."""
        lowered = _lowered(function)
        known = dict(zip(lowered.params, operands, strict=True))
        text = lowered.script(show_meta=True)
        zeros = tuple(p.elem_offset for p in lowered.params if type(p.elem_offset).__name__ == "Var")
        parts = list(lowered.body.seq) if type(lowered.body).__name__ == "SeqStmt" else [lowered.body]
        for place, part in enumerate(parts):
            kind = type(part).__name__
            if kind == "DeclBuffer":
                known[part.buffer] = known[part.data.args[0]]
            elif kind == "AllocBuffer":
                known[part.buffer] = self._add(str(part.buffer.dtype), part.buffer.shape)
            else:
                self._nest(part, known, f"{place} of {text}", zeros)

    def _nest(self, loops: Any, known: dict[Any, int], key: str, zeros: tuple[Any, ...]) -> None:
        read, written = touched(loops)
        if any(name not in known for name in (*read, *written)):
            raise UnsupportedNestError("memory of its own")
        results = sorted({known[name] for name in written})
        sources = sorted({known[name] for name in read}.difference(results))
        order = (*sources, *results)
        if len(order) > MAX_ARGS:
            raise UnsupportedNestError(f"loops over more than {MAX_ARGS} tensors")
        buffers = tuple((self.tensors[n].dtype, max(1, int(np.prod(self.tensors[n].shape)))) for n in order)
        places = {name: order.index(number) for name, number in known.items() if number in order}
        which = [places.get(name) for name in known]
        nest = Nest(f"{which}, {key}", buffers, len(sources), loops, places, zeros)
        nest_kernel(nest, ISAS["plain"])  # what it refuses is refused here
        self.calls.append((nest, order))


def _lowered(function: Any) -> Any:
    """Blocks scheduled, then loops over flat buffers."""
    import tvm  # noqa: PLC0415
    from tvm import s_tir, tirx  # noqa: PLC0415

    schedule = s_tir.Schedule(function)
    if function.body.block.name_hint == _ROOT:
        for arrange in (_inline, _arrange):
            for block in schedule.get_child_blocks(schedule.get_sblock(_ROOT)):
                with contextlib.suppress(s_tir.ScheduleError):  # what it has done before is still right
                    arrange(schedule, block)
    passes = [
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
    ]
    return tvm.ir.transform.Sequential(passes)(schedule.mod)["main"]


def _inline(schedule: Any, block: Any) -> None:
    """Elementwise into elementwise; in front of a sum it would be computed again for each of its terms."""
    consumers = schedule.get_consumers(block)
    if not consumers or any(set(_kinds(schedule, b)) != {_SPATIAL} for b in (block, *consumers)):
        return
    schedule.compute_inline(block)


def _kinds(schedule: Any, block: Any) -> list[int]:
    return [int(axis.iter_type) for axis in schedule.get(block).iter_vars]


def _arrange(schedule: Any, block: Any) -> None:
    """Work for threads outside, what lies side by side in memory inside; sums keep their order."""
    loops, kinds = schedule.get_loops(block), _kinds(schedule, block)
    if len(kinds) != len(loops) or not {_SPATIAL, _REDUCED}.issuperset(kinds):
        return
    spatial, reduced = (
        [loop for loop, k in zip(loops, kinds, strict=True) if k == kind] for kind in (_SPATIAL, _REDUCED)
    )
    if not spatial:
        return
    *outer, last = spatial
    if not outer and int(schedule.get(last).extent) > _VECTOR:
        first, last = schedule.split(last, [None, _VECTOR])
        outer = [first]
    if not outer or (reduced and int(schedule.get(last).extent) < _SHORT):
        outer.append(last)
        schedule.reorder(*outer, *reduced)
    else:
        schedule.reorder(*outer, *reduced, last)
    whole = schedule.fuse(*outer) if len(outer) > 1 else outer[0]
    schedule.parallel(whole)
    if reduced:
        schedule.decompose_reduction(block, reduced[0])
