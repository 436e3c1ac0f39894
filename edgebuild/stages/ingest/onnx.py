"""ONNX files: read with suspicion, brought to one form.

The form that `normalize` gives: opset ≥ 18 of the standard domain, no functions, one batch, static shapes known for
every value, constants as inline initializers, no Identity, Dropout or dead node, unique node names, inputs and outputs
named by identifiers, nothing but the graph (no documentation, no metadata). No step looks at the weights' values: two
trainings of one network give one structure.
"""

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.external_data_helper
import onnx.numpy_helper
import onnx.shape_inference
import onnx.version_converter
import onnx_ir
from onnx_ir.passes import common
from onnxscript import optimizer

from edgebuild.core.errors import ModelError
from edgebuild.core.manifest import (
    DTYPE_BYTES,
    DTYPES,
    MAX_RANK,
    MAX_TENSOR,
    Tensor,
    Trigger,
    is_identifier,
)
from edgebuild.stages.ingest import TRAINED, Entry, FloatModel
from edgebuild.stages.ingest.checks import (
    CONVERTED,
    MAX_OPSET,
    STANDARD_DOMAINS,
    check_graph,
    check_layers,
    check_text,
    first_line,
    inference_error,
    where,
)
from edgebuild.stages.ingest.simplify import spell_out, widen

_TYPES = {int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name))): name for name in DTYPES}
_BESIDE = "keep the data file beside the model"
_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTED = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})
_MOST_NODES = 50_000
_LARGEST_CONSTANT = 1 << 28
"""Elements of a constant that is computed while folding; a short file can ask for any size."""


def ingest(path: Path) -> FloatModel:
    """An ONNX file as the next stages take it; it has no handler, no trigger and nothing to compare it with."""
    name = identifier(path.stem)
    return FloatModel(normalize(load(path), str(path)), None, Entry(name, Trigger(), None), TRAINED)


def load(path: Path) -> onnx.ModelProto:
    """The model in `path`, checked, with external data read in. Raises ModelError for whatever is wrong with it."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "name an existing .onnx file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as reason:
        raise ModelError(f"{path}: is cut off, or no ONNX model", "export or download the file again") from reason
    if not model.ir_version or not model.graph.output:
        raise ModelError(f"{path}: is no ONNX model (it has no graph)", "export or download the file again")
    check_text(model, str(path))
    _load_external(model, path)
    check_graph(model, str(path))
    _check_values(model, str(path))
    return model


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Weights that lie in other files of the same folder."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, path)
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as reason:  # the checker's own, OSError, ValueError
        missing = " is missing" if isinstance(reason, FileNotFoundError) else " cannot be read"
        raise ModelError(f"{path}: external data{missing}: {first_line(reason)}", _BESIDE) from reason


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    given = {entry.key: entry.value for entry in tensor.external_data}
    what = f"{path}: external data of weight '{tensor.name}'"
    if not given.get("location"):
        raise ModelError(f"{what}: it is not said in which file", "export the model again")
    place = path.parent / given["location"]
    if place.exists() and not place.is_file():
        raise ModelError(f"{what}: '{given['location']}' is no file", _BESIDE)
    numbers = [given.get(key) or "0" for key in ("offset", "length")]
    if not all(number.isdecimal() for number in numbers):
        raise ModelError(f"{what}: offset or length is no number ({', '.join(numbers)})", "export the model again")
    end = sum(map(int, numbers))
    if place.is_file() and end > place.stat().st_size:
        raise ModelError(
            f"{what}: '{given['location']}' has {place.stat().st_size} bytes, the weight ends at {end}",
            f"{_BESIDE}; the file may be cut off",
        )


def normalize(model: onnx.ModelProto, name: str = "model") -> onnx.ModelProto:
    """`model` in the form that this module's docstring states. `name` starts the messages.

    Raises ModelError: a dynamic dimension other than the batch, an opset that cannot be converted, a value whose shape
    stays unknown.
    """
    model = _convert(_fix_batch(model, name), name)
    ir = onnx_ir.serde.deserialize_model(model)
    try:
        _fold(ir)
    except Exception as reason:
        raise ModelError(
            f"{name}: constants cannot be folded: {first_line(reason)}", "simplify the model where it is exported"
        ) from reason
    _name(ir)
    common.ClearMetadataAndDocStringPass()(ir)
    folded = onnx_ir.serde.serialize_model(ir)
    folded = _with_shapes(_strip(folded), name)
    _check_output_types(model, folded, name)
    _check_values(folded, name)
    return folded


def model_inputs(model: onnx.ModelProto) -> tuple[Tensor, ...]:
    """The inputs of a normalized model."""
    return tuple(_tensor(value) for value in model.graph.input)


def model_outputs(model: onnx.ModelProto) -> tuple[Tensor, ...]:
    """The outputs of a normalized model."""
    return tuple(_tensor(value) for value in model.graph.output)


def identifier(name: str) -> str:
    """`name` with what a manifest's names cannot hold replaced by `_`."""
    if is_identifier(name):
        return name
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", name)[:63]
    return cleaned if cleaned[:1].isalpha() else f"_{cleaned}"


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return Tensor(value.name, dtype, tuple(dim.dim_value for dim in kind.shape.dim))


def _check_values(model: onnx.ModelProto, name: str) -> None:
    """NaN in weights makes every scale NaN; infinities are allowed only outside of layers (masks hold them)."""
    users = {value: node for node in reversed(model.graph.node) for value in node.input}
    for tensor in model.graph.initializer:
        if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            continue
        array = onnx.numpy_helper.to_array(tensor)
        node = users.get(tensor.name)
        weight = node is not None and node.op_type in _WEIGHTED
        if np.isnan(array).any() or (weight and not np.isfinite(array).all()):
            user = f" of {where(node)}" if node else ""
            raise ModelError(
                f"{name}: weight '{tensor.name}'{user} holds NaN or infinity",
                "the training diverged; restore a good checkpoint",
            )


def _fix_batch(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy in which a dynamic first axis is 1, and what was inferred for the dynamic one is forgotten."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    _drop_copies(fixed.graph)
    if len(fixed.graph.node) > _MOST_NODES:
        raise ModelError(
            f"{name}: the graph has {len(fixed.graph.node)} nodes; the most is {_MOST_NODES}", "use a smaller model"
        )
    for node in fixed.graph.node:
        node.name = node.name or node.op_type
    weights = {tensor.name for tensor in fixed.graph.initializer}
    inputs = [value for value in fixed.graph.input if value.name not in weights]
    del fixed.graph.input[:]
    fixed.graph.input.extend(inputs)
    dynamic = False
    for value in fixed.graph.input:
        if not value.type.tensor_type.HasField("shape"):
            raise ModelError(f"{name}: input '{value.name}' has no shape", "export the model with static shapes")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if axis > 0:
                shown = f" ('{dim.dim_param}')" if dim.dim_param else ""
                raise ModelError(
                    f"{name}: input '{value.name}' is dynamic in axis {axis}{shown}; only a batch, axis 0, is fixed",
                    "export the model with static shapes, without dynamic_axes or dynamic_shapes",
                )
            dim.dim_value = 1
            dynamic = True
    if dynamic:
        del fixed.graph.value_info[:]
        for output in fixed.graph.output:
            output.type.tensor_type.ClearField("shape")
    return fixed


def _drop_copies(graph: onnx.GraphProto) -> None:
    """Identity nodes behind which nobody but nodes of this graph reads: the passes below take long for each node."""
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    if any(attribute.type in kinds for node in graph.node for attribute in node.attribute):
        return
    outputs = {value.name for value in graph.output}
    copies: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read in copies:
                node.input[place] = copies[read]
        if node.op_type == "Identity" and not node.domain and node.output[0] not in outputs:
            copies[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    if copies:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        graph.ClearField("node")
        graph.node.extend(nodes)


def _convert(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    version = next((opset.version for opset in model.opset_import if opset.domain in STANDARD_DOMAINS), MAX_OPSET)
    if version >= CONVERTED:
        return model
    try:
        return onnx.version_converter.convert_version(model, CONVERTED)
    except Exception as reason:
        raise ModelError(
            f"{name}: opset {version} cannot be converted to {CONVERTED}: {first_line(reason)}",
            f"export the model with opset_version={CONVERTED}",
        ) from reason


def _fold(model: onnx_ir.Model) -> None:
    common.InlinePass()(model)
    spell_out(model)
    optimizer.fold_constants_ir(
        model,
        onnx_shape_inference=True,
        input_size_limit=_LARGEST_CONSTANT,
        output_size_limit=_LARGEST_CONSTANT,
        should_fold=_should_fold,
    )
    _drop_identities(model.graph)
    widen(model)
    for step in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
    ):
        step(model)


def _drop_identities(graph: onnx_ir.Graph) -> None:
    """Every Identity, but those that give an input, a constant or an output a second name."""
    for node in list(graph):
        if node.op_type != "Identity" or node.domain or node.inputs[0] is None:
            continue
        source, copy = node.inputs[0], node.outputs[0]
        if copy.is_graph_output():
            if source.is_graph_input() or source.is_initializer() or source.is_graph_output():
                continue
            source.name = copy.name
        onnx_ir.convenience.replace_all_uses_with(copy, source, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _should_fold(node: onnx_ir.Node) -> bool | None:
    """ConstantOfShape as well: the compiler wants its value; nothing that is too large to be computed first.

    The folder's other rules hold; they keep Q/DQ.
    """
    shapes = [o.shape for o in node.outputs if isinstance(o.shape, onnx_ir.Shape) and o.shape.is_static()]
    if any(math.prod(shape.numpy()) > _LARGEST_CONSTANT for shape in shapes):
        return False
    if node.op_type != "ConstantOfShape" or node.inputs[0] is None or node.inputs[0].const_value is None:
        return None
    return bool(math.prod(node.inputs[0].const_value.numpy().tolist()) <= _LARGEST_CONSTANT)


def _name(model: onnx_ir.Model) -> None:
    """Nodes are named after their layer (`model.features.0.Conv`), and numbered where a layer has several."""
    graph = model.graph
    seen: Counter[str] = Counter()
    kept = Counter(str(node.name) for node in graph)
    for node in graph:
        scope = _scope(node)
        own = str(node.name) if kept[str(node.name)] == 1 else node.op_type
        name = f"{scope}.{node.op_type}" if scope is not None else own
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        if scope is not None:
            _name_values(node)
    _name_ports(graph)


def _scope(node: onnx_ir.Node) -> str | None:
    """The module that a node of torch's exporter belongs to, `handler` outside of all, None for other exporters."""
    noted = node.metadata_props.get(_SCOPES)
    if noted is None:
        return None
    modules = [scope for scope in re.findall(r"'([^']*)'", noted)[:-1] if scope]
    return modules[-1] if modules else "handler"


def _name_values(node: onnx_ir.Node) -> None:
    """Values that torch's exporter numbered through take their node's name; weights and ports keep theirs."""
    for index, output in enumerate(node.outputs):
        if not output.is_graph_output():
            output.name = node.name if index == 0 else f"{node.name}.{index}"
    for index, value in enumerate(node.inputs):
        if value is not None and value.is_initializer() and "." not in str(value.name):
            value.name = f"{node.name}.in{index}"


def _name_ports(graph: onnx_ir.Graph) -> None:
    """Inputs and outputs get names that a manifest can hold, and that no other value has."""
    taken = {str(output.name) for node in graph for output in node.outputs} | set(graph.initializers)
    for port in (*graph.inputs, *graph.outputs):
        if is_identifier(str(port.name)):
            taken.add(str(port.name))
            continue
        name = identifier(str(port.name))
        while name in taken:
            name = f"{name[:62]}_"
        taken.add(name)
        port.name = name


def _strip(model: onnx.ModelProto) -> onnx.ModelProto:
    kept = onnx.helper.make_model(model.graph, opset_imports=model.opset_import, ir_version=min(model.ir_version, 10))
    kept.producer_name = "edgebuild"
    kept.graph.name = "model"
    kept.graph.doc_string = ""
    for part in (*kept.graph.input, *kept.graph.output, *kept.graph.initializer, *kept.graph.node):
        del part.metadata_props[:]
    return kept


def _with_shapes(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    del model.graph.value_info[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as reason:
        check_layers(_guessed(model), name)
        raise inference_error(reason, name) from reason
    check_layers(model, name)
    known = {
        value.name for value in [*model.graph.value_info, *model.graph.output, *model.graph.input] if _static(value)
    }
    for node in model.graph.node:
        for output in node.output:
            if output and output not in known:
                raise ModelError(
                    f"{name}: the shape of {where(node)} depends on values, not on the input's shape",
                    "export the model with static shapes, without data-dependent sizes",
                )
    _check_types(model, name)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as reason:
        raise ModelError(f"{name}: is no valid ONNX model: {first_line(reason)}", "export the model again") from reason
    return model


def _guessed(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the shapes that inference finds in spite of what is wrong: the first wrong layer is often not the one that
    it complains of.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:
        return model


def _check_output_types(given: onnx.ModelProto, made: onnx.ModelProto, name: str) -> None:
    """An output is of the type that the model says it is of."""
    for declared, found in zip(given.graph.output, made.graph.output, strict=True):
        types = [value.type.tensor_type.elem_type for value in (declared, found)]
        if types[0] not in (onnx.TensorProto.UNDEFINED, types[1]):
            said, gives = (onnx.TensorProto.DataType.Name(code) for code in types)
            raise ModelError(f"{name}: output '{declared.name}' is {said} by its type and {gives} by its maker",
                             "export the model again")  # fmt: skip


def _check_types(model: onnx.ModelProto, name: str) -> None:
    """Every value fits a plan (SPEC 5) by its type, its rank and its size."""
    makers = {output: where(node) for node in model.graph.node for output in node.output}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        maker = f"{name}: {makers.get(value.name, f'input {value.name!r}')}"
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type not in _TYPES:
            raise ModelError(
                f"{maker} gives {onnx.TensorProto.DataType.Name(kind.elem_type)}, which is not supported",
                f"export the model in float32; values may be {', '.join(DTYPES)}",
            )
        if len(shape) > MAX_RANK:
            raise ModelError(f"{maker} gives {len(shape)} axes; the most is {MAX_RANK}", "merge axes with a reshape")
        if math.prod(shape) * DTYPE_BYTES[_TYPES[kind.elem_type]] > MAX_TENSOR:
            raise ModelError(
                f"{maker} gives a tensor of shape {shape}; the largest has {MAX_TENSOR} bytes", "use a smaller input"
            )


def _static(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
