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
import onnx.numpy_helper
import onnx.shape_inference
import onnx.version_converter
import onnx_ir
from onnx_ir.passes import common
from onnxscript import optimizer

from edgebuild.core.errors import EdgebuildError, ModelError
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
from edgebuild.stages.ingest.simplify import spell_out, widen

MIN_OPSET = 18
MAX_OPSET = onnx.defs.onnx_opset_version()
STANDARD_DOMAINS = ("", "ai.onnx")
_TYPES = {int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name))): name for name in DTYPES}
_SCOPES = "pkg.torch.onnx.name_scopes"
_MOST_PORTS = 200
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
        model = onnx.load(path)
    except FileNotFoundError as reason:
        raise ModelError(
            f"{path}: external data is missing: {_first_line(reason)}", "keep the data file beside the model"
        ) from reason
    except onnx.checker.ValidationError as reason:
        raise ModelError(
            f"{path}: external data cannot be read: {_first_line(reason)}", "keep the data file beside the model"
        ) from reason
    except Exception as reason:
        raise ModelError(f"{path}: is cut off, or no ONNX model", "export or download the file again") from reason
    if not model.ir_version or not model.graph.output:
        raise ModelError(f"{path}: is no ONNX model (it has no graph)", "export or download the file again")
    _check_ports(model, str(path))
    _check_opset(model, str(path))
    _check_operators(model, str(path))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as reason:
        raise ModelError(f"{path}: {_validation(str(reason))}", "export the model again") from reason
    _check_values(model, str(path))
    return model


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
            f"{name}: constants cannot be folded: {_first_line(reason)}", "simplify the model where it is exported"
        ) from reason
    _name(ir)
    common.ClearMetadataAndDocStringPass()(ir)
    folded = onnx_ir.serde.serialize_model(ir)
    folded = _with_shapes(_strip(folded), name)
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


def _check_ports(model: onnx.ModelProto, name: str) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    if not any(value.name not in weights for value in model.graph.input):
        raise ModelError(f"{name}: the model has no input, so it always gives the same", "export it with its inputs")
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        twice = [value for value, count in Counter(value.name for value in values).items() if count > 1]
        if twice:
            raise ModelError(f"{name}: {kind} '{twice[0]}' is listed twice", "export the model again, each name once")
    ports = len(model.graph.input) - len(weights) + len(model.graph.output)
    if ports > _MOST_PORTS:
        raise ModelError(
            f"{name}: {ports} inputs and outputs; a bundle holds {_MOST_PORTS}", "export only the ones that are used"
        )


def _check_opset(model: onnx.ModelProto, name: str) -> None:
    for opset in model.opset_import:
        if opset.domain in STANDARD_DOMAINS and opset.version > MAX_OPSET:
            raise ModelError(
                f"{name}: opset {opset.version} is newer than this edgebuild reads ({MAX_OPSET})",
                f"export with opset_version={MIN_OPSET}, or upgrade the package onnx",
            )


def _check_operators(model: onnx.ModelProto, name: str) -> None:
    functions = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain not in STANDARD_DOMAINS:
            raise ModelError(
                f"{name}: operator {node.domain}::{node.op_type} of node '{node.name}' is not of ONNX's standard set",
                "export the model with standard operators, before any runtime's own optimization",
            )
        if not onnx.defs.has(node.op_type):
            raise ModelError(
                f"{name}: operator {node.op_type} of node '{node.name}' is unknown to ONNX",
                "export the model with standard operators",
            )


def _validation(text: str) -> str:
    first = text.strip().splitlines()[0]
    if "topological" in text:
        return f"the graph is cyclic or out of order: {first}"
    return f"is no valid ONNX model: {first}"


def _check_values(model: onnx.ModelProto, name: str) -> None:
    """NaN in weights makes every scale NaN; infinities are allowed only outside of weights (masks hold them)."""
    users = {value: node for node in model.graph.node for value in node.input}
    for tensor in model.graph.initializer:
        if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            continue
        array = onnx.numpy_helper.to_array(tensor)
        node = users.get(tensor.name)
        weight = node is not None and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        if np.isnan(array).any() or (weight and not np.isfinite(array).all()):
            user = f" of {node.op_type} '{node.name}'" if node else ""
            raise ModelError(
                f"{name}: weight '{tensor.name}'{user} holds NaN or infinity",
                "the training diverged; restore a good checkpoint",
            )


def _fix_batch(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy in which a dynamic first axis is 1, and what was inferred for the dynamic one is forgotten."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
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


def _convert(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    version = next((opset.version for opset in model.opset_import if opset.domain in STANDARD_DOMAINS), MAX_OPSET)
    if version >= MIN_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, MIN_OPSET)
    except Exception as reason:
        raise ModelError(
            f"{name}: opset {version} cannot be converted to {MIN_OPSET}: {_first_line(reason)}",
            f"export the model with opset_version={MIN_OPSET}",
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
    """ConstantOfShape as well: the compiler wants its value. The folder's other rules hold; they keep Q/DQ."""
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
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model)
    except EdgebuildError:
        raise
    except Exception as reason:
        raise ModelError(
            f"{name}: shapes do not fit: {_first_line(reason)}", "export the model again with static shapes"
        ) from reason
    known = {
        value.name for value in [*model.graph.value_info, *model.graph.output, *model.graph.input] if _static(value)
    }
    for node in model.graph.node:
        for output in node.output:
            if output and output not in known:
                raise ModelError(
                    f"{name}: the shape of {node.op_type} '{node.name}' depends on values, not on the input's shape",
                    "export the model with static shapes, without data-dependent sizes",
                )
    _check_types(model, name)
    return model


def _check_types(model: onnx.ModelProto, name: str) -> None:
    """Every value fits a plan (SPEC 5) by its type, its rank and its size."""
    makers = {output: f"{node.op_type} '{node.name}'" for node in model.graph.node for output in node.output}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        where = f"{name}: {makers.get(value.name, f'input {value.name!r}')}"
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type not in _TYPES:
            raise ModelError(
                f"{where} gives {onnx.TensorProto.DataType.Name(kind.elem_type)}, which is not supported",
                f"export the model in float32; values may be {', '.join(DTYPES)}",
            )
        if len(shape) > MAX_RANK:
            raise ModelError(f"{where} gives {len(shape)} axes; the most is {MAX_RANK}", "merge axes with a reshape")
        if math.prod(shape) * DTYPE_BYTES[_TYPES[kind.elem_type]] > MAX_TENSOR:
            raise ModelError(
                f"{where} gives a tensor of shape {shape}; the largest has {MAX_TENSOR} bytes", "use a smaller input"
            )


def _static(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)


def _first_line(reason: Exception) -> str:
    lines = [line.strip() for line in str(reason).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(reason).__name__
