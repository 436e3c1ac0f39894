"""TensorFlow: Keras models, SavedModels, tf.functions and handlers made of TensorFlow operations, through tf2onnx.

Whatever the source is, it becomes one concrete function with static shapes, and tf2onnx turns that into ONNX.
"""

import importlib
import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgebuild.core import digest
from edgebuild.core.cache import Cache, cache_dir
from edgebuild.core.calibration import Sample
from edgebuild.core.errors import EdgebuildError, EnvironmentProblem, ModelError
from edgebuild.core.manifest import Tensor, Trigger
from edgebuild.core.recipe import Recipe
from edgebuild.function import Function
from edgebuild.stages.ingest import SPEED_ONLY, TRAINED, Entry, FloatModel, handler
from edgebuild.stages.ingest.layout import channels_first
from edgebuild.stages.ingest.onnx import identifier, model_inputs, normalize
from edgebuild.stages.ingest.parity import PARITY_SAMPLES, Array, compare
from edgebuild.stages.ingest.samples import real_samples

OPSET = 18
"""The newest that tf2onnx writes."""
INSTALL = "pip install 'edgebuild[tensorflow]'"
_UNTRAINED = "or add --untrained for a bundle that is good for measuring speed only"
_WEIGHTS = "weights.npz"
_BRANCHES = frozenset({"If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase"})
_PYTHON = frozenset({"PyFunc", "EagerPyFunc", "PyFuncStateless"})
_SIGNATURE = "serving_default"
_ROLES = {(kind, place): role for kind in ("Conv", "Gemm") for place, role in ((1, "weight"), (2, "bias"))}


@contextmanager
def quiet() -> Iterator[None]:
    """TensorFlow and tf2onnx tell of GPUs and rewrites on every channel there is; nothing of that is for the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
        logging.disable(disabled)


def _import_tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quiet():
            importlib.import_module("tf2onnx.convert")
            found = importlib.import_module("tensorflow")
            found.config.set_visible_devices([], "GPU")  # the same bits on every build machine
            return found
    except ImportError as reason:
        raise EnvironmentProblem(f"TensorFlow models need the package {reason.name}", INSTALL) from reason


tf = _import_tensorflow()


def seed_tensorflow(seed: int) -> None:
    """The same weights and the same names of layers whenever a model is built or loaded."""
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(seed % 2**32)


@dataclass(frozen=True)
class Network:
    """A TensorFlow model as a handler calls it: tensors by position in, a tensor out, or a dict where it has several.

    `specs`: name, dtype and shape of the inputs as they were saved (None where an axis is open); None where the model
    does not say. `keras`: the Keras model, whose weights can be set.
    """

    call: Callable[..., Any]
    where: str
    specs: tuple[Any, ...] | None = None
    keras: Any = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.call(*inputs, **named)

    def __getattr__(self, name: str) -> Any:
        """What else the source has: `model.embed`, `model.layers`."""
        if name.startswith("__") or self.keras is None:
            raise AttributeError(name)
        return getattr(self.keras, name)

    def graph(self, inputs: Sequence[Tensor]) -> onnx.ModelProto:
        """`foreign.Source`: the network for these inputs."""
        specs = [tf.TensorSpec(item.shape, item.dtype, name=f"x{i}") for i, item in enumerate(inputs)]
        names: list[str] = []

        def run(*tensors: Any) -> Any:
            found = _as_outputs(self.call(*tensors))
            names[:] = found
            return tuple(map(tf.identity, found.values()))

        with foreign_errors(self.where):
            concrete = tf.function(run, autograph=False).get_concrete_function(*specs)
        return graph_of(concrete, [spec.name for spec in specs], names, self.where)

    def run(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """`foreign.Source`: what TensorFlow computes."""
        return [value.numpy() for value in _as_outputs(self.call(*map(tf.constant, arrays))).values()]


@contextmanager
def foreign_errors(where: str) -> Iterator[None]:
    """TensorFlow's exceptions about a model that is no code of the recipe's."""
    try:
        yield
    except EdgebuildError:
        raise
    except Exception as reason:
        raise ModelError(f"{where}: TensorFlow cannot trace it: {_first_line(reason)}", "check its inputs") from reason


# What a model is loaded from.


def network_of(recipe: Recipe) -> Network | None:
    """The recipe's network if it is TensorFlow's: a saved one, or what the factory returned; None for another's."""
    if recipe.model.keras:
        return load_keras(recipe.folder / recipe.model.keras)
    if recipe.model.saved_model:
        return load_saved_model(recipe.folder / recipe.model.saved_model)
    return as_network(handler.built(recipe), str(recipe.folder / recipe.model.file))


def as_network(value: Any, where: str) -> Network | None:
    """A Keras model, tf.Module, tf.function or concrete function as a network; None for anything else."""
    if isinstance(value, tf.keras.Model):
        return _of_keras(value, where)
    if isinstance(value, tf.Module | tf.keras.layers.Layer) and callable(value):
        return Network(value, where)
    if type(value).__module__.partition(".")[0] == "tensorflow" and callable(value):
        return Network(value, where, _signature_of(value))
    return None


def _signature_of(value: Any) -> tuple[Any, ...] | None:
    """The input signature of a tf.function, if it has one."""
    given = getattr(value, "input_signature", None)
    if given is None:
        return None
    return tuple(tf.TensorSpec(s.shape, s.dtype, name=s.name or f"input_{i}") for i, s in enumerate(given))


def load_keras(path: Path) -> Network:
    """A `.keras` or `.h5` file. Raises ModelError."""
    try:
        with quiet():
            model = tf.keras.models.load_model(path, compile=False, custom_objects=_OLDER_LAYERS)
    except Exception as reason:
        raise ModelError(
            f"{path}: Keras cannot load it: {_first_line(reason)}",
            "layers of your own: return the model from a recipe's factory instead; a damaged file: save it again",
        ) from reason
    return _of_keras(model, str(path))


def _of_keras(model: Any, where: str) -> Network:
    def call(*inputs: Any, **named: Any) -> Any:
        options = {"training": False, **named}
        return model(inputs[0] if len(inputs) == 1 else list(inputs), **options)

    try:
        specs = tuple(tf.TensorSpec(i.shape, i.dtype, name=_input_name(i)) for i in model.inputs or ()) or None
    except (AttributeError, ValueError):  # a subclassed model that was never called
        specs = None
    return Network(call, where, specs, model)


def _input_name(tensor: Any) -> str:
    """The input layer's name, which files keep and `model.summary()` shows; Keras numbers tensors anew."""
    history = getattr(tensor, "_keras_history", None)
    return str(history.operation.name if history is not None else tensor.name)


class _OlderDepthwise(tf.keras.layers.DepthwiseConv2D):  # type: ignore[misc, name-defined]
    """Keras 2 stored a key `groups` that Keras 3 does not know; it was always 1 in effect."""

    def __init__(self, *args: Any, groups: int = 1, **named: Any) -> None:  # noqa: ARG002
        super().__init__(*args, **named)


_OLDER_LAYERS = {"DepthwiseConv2D": _OlderDepthwise}


def load_saved_model(path: Path) -> Network:
    """A SavedModel's folder. Raises ModelError.

    What `tf.saved_model.load` refuses (an optimizer's state of other versions) TensorFlow 1's loader still takes.
    """
    try:
        with quiet():
            loaded = tf.saved_model.load(str(path))
    except Exception as reason:
        return _load_frozen(path, reason)
    signature = _signature(dict(loaded.signatures), path)
    if signature is None:
        if not callable(loaded):
            raise ModelError(f"{path}: has no signature and cannot be called", "save it with signatures=…")
        return Network(loaded, str(path))
    specs = tuple(
        tf.TensorSpec(spec.shape, spec.dtype, name=name)
        for name, spec in signature.structured_input_signature[1].items()
    )
    names = [spec.name for spec in specs]

    def call(*inputs: Any) -> Any:
        loaded.signatures  # noqa: B018 - the variables live as long as what loaded them
        return signature(**dict(zip(names, inputs, strict=True)))

    return Network(lambda *inputs: _single(call(*inputs)), str(path), specs)


def _signature(signatures: dict[str, Any], path: Path) -> Any:
    if _SIGNATURE in signatures or not signatures:
        return signatures.get(_SIGNATURE)
    if len(signatures) > 1:
        known = ", ".join(sorted(signatures))
        raise ModelError(f"{path}: has signatures {known}, but no {_SIGNATURE}", f"save one of them as {_SIGNATURE}")
    return next(iter(signatures.values()))


def _load_frozen(path: Path, first: Exception) -> Network:
    """The serving signature by TensorFlow 1's loader, its variables made constants."""
    from tensorflow.python.framework.convert_to_constants import (  # noqa: PLC0415
        convert_variables_to_constants_from_session_graph,
    )

    v1 = tf.compat.v1
    try:
        with quiet(), tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
            meta = v1.saved_model.loader.load(session, ["serve"], str(path))
            signature = _signature({k: v for k, v in meta.signature_def.items() if v.inputs}, path)
            feeds = {name: info.name for name, info in sorted(signature.inputs.items())}
            fetches = {name: info.name for name, info in sorted(signature.outputs.items())}
            frozen = convert_variables_to_constants_from_session_graph(
                session, graph.as_graph_def(), [name.partition(":")[0] for name in fetches.values()]
            )
        with quiet():
            imported = v1.wrap_function(lambda: tf.graph_util.import_graph_def(frozen, name=""), [])
            pruned = imported.prune(list(feeds.values()), fetches)
    except EdgebuildError:
        raise
    except Exception as reason:
        raise ModelError(
            f"{path}: TensorFlow cannot load it: {_first_line(first)}", "save the model again, or check the folder"
        ) from reason
    specs = tuple(
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in zip(feeds, pruned.inputs, strict=True)
    )
    return Network(lambda *inputs: _single(pruned(*inputs)), str(path), specs)


def _single(outputs: dict[str, Any]) -> Any:
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


# Models without a handler.


def export_saved(recipe: Recipe) -> FloatModel:
    """A Keras file or a SavedModel without a handler, compared with TensorFlow. Raises ModelError."""
    seed_tensorflow(recipe.model.seed)
    path = recipe.saved
    network = network_of(recipe)
    assert network is not None
    assert path is not None
    if network.specs is None:
        raise ModelError(f"{path}: says nothing of its inputs", "write a recipe whose handler calls it")
    specs = [_static(spec, path) for spec in network.specs]
    named = _unique([identifier(str(spec.name)) for spec in specs])
    graph = network.graph([Tensor("", spec.dtype.name, tuple(spec.shape)) for spec in specs])
    _rename_inputs(graph, named)
    samples = real_samples(recipe, model_inputs(graph), PARITY_SAMPLES)
    parity = compare(graph, lambda sample: network.run(list(sample.values())), samples, str(path))
    return FloatModel(graph, parity, Entry(identifier(path.stem), Trigger(), None), TRAINED)


def _static(spec: Any, path: Path) -> Any:
    """The spec for one sample. Raises ModelError where another axis than the first is open."""
    if spec.shape.rank is None:
        raise ModelError(f"{path}: input '{spec.name}' has no shape", "save the model with static shapes")
    dims = spec.shape.as_list()
    if None in dims[1:]:
        raise ModelError(
            f"{path}: input '{spec.name}' is open in axis {dims[1:].index(None) + 1}; only a batch, axis 0, is fixed",
            "save the model with static shapes: keras.Input(shape=(224, 224, 3)), or call it from a recipe's handler",
        )
    return tf.TensorSpec([dims[0] or 1, *dims[1:]] if dims else [], spec.dtype, name=spec.name)


def _unique(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def _rename_inputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Gives the graph's inputs the names that the model was saved with."""
    taken = {output for node in model.graph.node for output in node.output}
    taken |= {tensor.name for tensor in model.graph.initializer}
    pairs = zip(model.graph.input, names, strict=True)
    new = {value.name: f"{name}_" if name in taken else name for value, name in pairs}
    for value in model.graph.input:
        value.name = new[value.name]
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]


# Handlers.


def export_bound(
    recipe: Recipe, function: Function, network: Network, samples: list[Sample], *, untrained: bool
) -> FloatModel:
    """A handler of TensorFlow operations and its network as float32 ONNX, compared with the handler run eagerly.

    Raises ModelError, RecipeError, CalibrationError.
    """
    bound = _Bound(function, network)
    with handler.blame(recipe.folders, "the handler fails on a real sample"):
        bound.eager(samples[0])
    for name in bound.names:
        if name in samples[0]:
            raise ModelError(f"{recipe.folder}: output '{name}' is called like an input", "rename that key")
    quality = fill(recipe, network, bound.eager, samples, untrained=untrained)
    concrete = _traced(bound, recipe)
    _check_straight(concrete, recipe)
    inputs = [spec.name for spec in function.inputs]
    model = graph_of(concrete, inputs, bound.names, recipe.name, recipe.folders)
    parity = compare(model, bound.eager, samples[:PARITY_SAMPLES], recipe.name)
    return FloatModel(model, parity, Entry(function.name, function.manifest_trigger, function.timeout_ms), quality)


class _Bound:
    """Handler and network: inputs by position, outputs as a tuple in the order of the handler's dict."""

    def __init__(self, function: Function, network: Network) -> None:
        self.function = function
        self._network = network
        self.names: tuple[str, ...] = ()

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        named = dict(zip((spec.name for spec in self.function.inputs), inputs, strict=True))
        result = handler.as_dict(self._called(named), self.function.name)
        self.names = tuple(result)
        return tuple(map(tf.identity, result.values()))

    def _called(self, named: dict[str, Any]) -> Any:
        """A tf.function beneath the decorator takes the network only as something that it can tell apart."""
        return self.function(**named, model=self._network)

    def eager(self, sample: Sample) -> Sequence[Array]:
        return [value.numpy() for value in self(*map(tf.constant, sample.values()))]


def _traced(bound: _Bound, recipe: Recipe) -> Any:
    specs = [tf.TensorSpec(item.shape, item.dtype, name=item.name) for item in bound.function.inputs]
    with handler.blame(recipe.folders, "the handler cannot be traced", handler.STRAIGHT, line=True):
        return tf.function(bound, autograph=False).get_concrete_function(*specs)


def _check_straight(concrete: Any, recipe: Recipe) -> None:
    """Branches, loops and calls of Python that a tf.function made operators of have no place in a static graph."""
    graphs = [concrete.graph]
    while graphs:
        graph = graphs.pop()
        for operation in graph.get_operations():
            if operation.type in _BRANCHES | _PYTHON:
                what = "calls Python" if operation.type in _PYTHON else "branches or loops on a tensor's value"
                raise ModelError(
                    f"{_place(operation, recipe.folders)}: the handler cannot be traced: {operation.type} {what}",
                    handler.STRAIGHT,
                )
            graphs += _called_graphs(operation, graph)


def _called_graphs(operation: Any, graph: Any) -> list[Any]:
    """The graph of the function that a call operation runs."""
    if operation.type not in {"PartitionedCall", "StatefulPartitionedCall"}:
        return []
    name = operation.get_attr("f").name
    function = graph._functions.get(name) if hasattr(graph, "_functions") else None
    inner = getattr(function, "graph", None)
    return [inner] if inner is not None else []


def _place(operation: Any, folders: Sequence[Path]) -> str:
    """`FILE:LINE` of the recipe's code that made an operation, and that line."""
    roots = [(folder, folder.resolve()) for folder in folders]
    for frame in reversed(list(operation.traceback or ())):
        for folder, root in roots:
            file = Path(frame.filename)
            if file.is_relative_to(root):
                return f"{folder / file.relative_to(root)}:{frame.lineno}"
    return f"{folders[0]}: operator {operation.name}"


def fill(
    recipe: Recipe, network: Network, eager: Callable[[Sample], Any], samples: list[Sample], *, untrained: bool
) -> str:
    """Gives a Keras model its weights, and returns the quality that they have."""
    given = recipe.weights is not None and (recipe.weights.is_file() or not untrained)
    if recipe.model.saved or (network.keras is None and not given and recipe.model.train is None):
        return TRAINED  # a tf.Module or tf.function holds what it computes with
    if given and recipe.weights is not None:
        _load_weights(network, recipe.weights, f"{recipe.folder}: [model] weights")
    elif recipe.model.train is not None:
        _set_weights(network, _trained(recipe), str(recipe.folder))
    elif not untrained and not _draws(recipe, network):
        return TRAINED
    elif untrained:
        _set_statistics(network.keras, eager, samples)
        return SPEED_ONLY
    else:
        raise ModelError(
            f"{recipe.folder}: the recipe '{recipe.name}' has no weights",
            f"name a .weights.h5 or .keras file with --weights FILE or [model] weights, {_UNTRAINED}",
        )
    return TRAINED


def _draws(recipe: Recipe, network: Network) -> bool:
    """Whether the factory's weights are random, or loaded by itself: built with another seed, random ones differ."""
    seed_tensorflow(recipe.model.seed + 1)
    again = as_network(handler.built(recipe), "")
    seed_tensorflow(recipe.model.seed)
    if again is None or again.keras is None:
        return False
    pairs = zip(network.keras.get_weights(), again.keras.get_weights(), strict=True)
    return any(not np.array_equal(first, second) for first, second in pairs)


def _load_weights(network: Network, path: Path, where: str) -> None:
    if not path.is_file():
        raise ModelError(
            f"{where}: no such file: {path}", f"put the file there, name another with --weights FILE, {_UNTRAINED}"
        )
    if network.keras is None:
        raise ModelError(f"{where}: only a keras.Model takes weights", "let the factory load them")
    if path.suffix == ".keras":
        _set_weights(network, load_keras(path).keras.get_weights(), str(path))
        return
    try:
        with quiet():
            network.keras.load_weights(path)
    except Exception as reason:
        raise ModelError(
            f"{path}: does not fit the model: {_first_line(reason)}", "write it with model.save_weights(FILE)"
        ) from reason


def _set_weights(network: Network, values: Sequence[Array], where: str) -> None:
    wanted = network.keras.weights if network.keras is not None else ()
    if len(wanted) != len(values):
        raise ModelError(f"{where}: {len(values)} weights; the model has {len(wanted)}", "it is another model's")
    for variable, value in zip(wanted, values, strict=True):
        if tuple(variable.shape) != value.shape:
            raise ModelError(
                f"{where}: '{variable.path}' has shape {list(value.shape)}, the model wants {list(variable.shape)}",
                "the file belongs to another model, or [model] args differ from the training's",
            )
    network.keras.set_weights(values)


def _trained(recipe: Recipe) -> list[Array]:
    """The weights that the recipe's own training gives, made once."""
    cache = Cache(cache_dir() / "recipes" / recipe.name)
    folder = cache.get(key := digest.of_parts(recipe.digest(), tf.__version__, np.__version__))
    if folder is None:
        module = handler.load_module(recipe.folder / recipe.model.file)
        train = handler.attribute(module, str(recipe.model.train), "[model] train")
        with quiet(), handler.blame(recipe.folders, "training failed"):
            values = train(recipe.model.seed).get_weights()
        buffer = _npz({f"{i:05}": value for i, value in enumerate(values)})
        folder = cache.put(key, {_WEIGHTS: buffer})
    with np.load(folder / _WEIGHTS) as stored:
        return [stored[name] for name in sorted(stored.files)]


def _npz(arrays: dict[str, Array]) -> bytes:
    import io  # noqa: PLC0415

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _set_statistics(model: Any, eager: Callable[[Sample], Any], samples: list[Sample]) -> None:
    """Runs real samples through fresh BatchNorm layers: with the initial statistics, outputs collapse to a constant."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, tf.keras.layers.BatchNormalization)]
    if not layers:
        return
    calls: list[tuple[Any, ...]] = []
    original = model.call

    def listen(*inputs: Any, **named: Any) -> Any:
        calls.append(inputs)
        return original(*inputs, **named)

    model.call = listen
    tf.config.run_functions_eagerly(True)  # a tf.function that was traced before calls no Python
    try:
        for sample in samples:
            eager(sample)
    finally:
        model.call = original
        tf.config.run_functions_eagerly(False)
    momentum = [layer.momentum for layer in layers]
    batch = [tf.concat(values, 0) for values in zip(*(tf.nest.flatten(call) for call in calls), strict=True)]
    for layer in layers:
        layer.momentum = 0.0
    model(batch if len(batch) > 1 else batch[0], training=True)
    for layer, value in zip(layers, momentum, strict=True):
        layer.momentum = value


# Conversion.


def graph_of(
    concrete: Any, inputs: Sequence[str], outputs: Sequence[str], where: str, folders: Sequence[Path] = ()
) -> onnx.ModelProto:
    """A concrete function with static shapes as normalized ONNX, its ports named. Raises ModelError."""
    return channels_first(normalize(_to_onnx(concrete, inputs, outputs, where, folders), where), where)


def _to_onnx(
    concrete: Any, inputs: Sequence[str], outputs: Sequence[str], where: str, folders: Sequence[Path]
) -> onnx.ModelProto:
    import tf2onnx  # noqa: PLC0415 - it imports TensorFlow

    function = _frozen(concrete)
    graph = function.graph.as_graph_def(add_shapes=True)
    try:
        with quiet(), tf.Graph().as_default() as static:
            taken = [tensor.name for tensor in function.inputs if tensor.dtype != tf.resource]
            given = [tensor.name for tensor in function.outputs]
            optimized = tf2onnx.tf_loader.tf_optimize(taken, given, graph)
            tf.import_graph_def(optimized, name="")
            found = tf2onnx.tfonnx.process_tf_graph(static, opset=OPSET, input_names=taken, output_names=given)
            model = tf2onnx.optimizer.optimize_graph(found).make_model("model")
    except Exception as reason:
        raise ModelError(f"{where}: tf2onnx cannot convert it: {_first_line(reason)}", "simplify the model") from reason
    _check_converted(model, concrete, where, folders)
    return tidied(model, inputs, outputs)


def _frozen(concrete: Any) -> Any:
    from tensorflow.python.framework.convert_to_constants import (  # noqa: PLC0415
        convert_variables_to_constants_v2,
    )

    with quiet():
        return convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)


def _check_converted(model: onnx.ModelProto, concrete: Any, where: str, folders: Sequence[Path]) -> None:
    """ModelError for the first operator that tf2onnx left as it was."""
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
            place = where
            for operation in concrete.graph.get_operations():
                if folders and (operation.name == node.name or operation.type == node.op_type):
                    place = _place(operation, folders)
            raise ModelError(
                f"{place}: TensorFlow operator {node.op_type} of '{node.name}' has no ONNX form",
                "write it with other TensorFlow operations",
            )


def tidied(model: onnx.ModelProto, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> onnx.ModelProto:
    """tf2onnx's graph with names that are readable and always the same: nodes after their layer, values and constants
    after their node, ports as given. tf2onnx numbers them through for as long as the process lives.
    """
    graph = model.graph
    seen: Counter[str] = Counter()
    new = {value.name: value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        name = _layer_name(node)
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        for place, value in enumerate(node.output):
            new.setdefault(value, node.name if place == 0 else f"{node.name}:{place}")
        for place, value in enumerate(node.input):
            if value in constants:
                new.setdefault(value, f"{node.name}/{_ROLES.get((node.op_type, place), f'in{place}')}")
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for ports, names in ((graph.input, inputs), (graph.output, outputs)):
        if names is not None:
            _rename_ports(graph, ports, names)
    return model


def _layer_name(node: onnx.NodeProto) -> str:
    """The layer that a node comes from: TFLite joins the names of all layers that it fused."""
    first = node.name.split(";")[0]
    first = re.sub(r"(__\d+|:\d+)+$", "", first).replace("StatefulPartitionedCall/", "").replace("PartitionedCall/", "")
    return first if first.endswith(node.op_type) else f"{first}/{node.op_type}"


def _rename_ports(graph: onnx.GraphProto, ports: Any, names: Sequence[str]) -> None:
    """Positions decide. Values inside that are called like a port make room."""
    new = {value.name: name for value, name in zip(ports, names, strict=True)}
    inner = {output for node in graph.node for output in node.output} | {tensor.name for tensor in graph.initializer}
    inner |= {value.name for value in (*graph.input, *graph.output)}
    new |= {name: f"{name}.inner" for name in names if name in inner and name not in new}
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = new.get(value.name, value.name)


def _as_outputs(result: Any) -> dict[str, Any]:
    """What a model returned, by name: a dict's keys, else `output`, numbered where there are several."""
    if isinstance(result, dict):
        return {identifier(str(key)): value for key, value in result.items()}
    flat = tf.nest.flatten(result)
    return {"output": flat[0]} if len(flat) == 1 else {f"output_{i}": value for i, value in enumerate(flat)}


def _first_line(reason: Exception) -> str:
    lines = [line.strip() for line in str(reason).strip().splitlines() if line.strip()]
    return f"{type(reason).__name__}: {lines[0]}" if lines else type(reason).__name__
