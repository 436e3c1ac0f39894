"""PyTorch: a recipe's handler and network, traced together by torch.export, as one ONNX graph."""

import io
import logging
import random
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors
import safetensors.torch
import torch
from torch import nn

from edgebuild.core import digest
from edgebuild.core.cache import Cache, cache_dir
from edgebuild.core.calibration import NEVER_RANDOM, Sample, find_set, load_set
from edgebuild.core.errors import CalibrationError, ModelError
from edgebuild.core.manifest import is_identifier
from edgebuild.core.recipe import Recipe
from edgebuild.core.toml import did_you_mean
from edgebuild.function import Function
from edgebuild.stages.ingest import SPEED_ONLY, TRAINED, Entry, FloatModel, handler
from edgebuild.stages.ingest.onnx import normalize

OPSET = 20
"""The first with GELU as one operator."""
PARITY_SAMPLES = 4
PARITY_LIMIT = 1e-4
"""Of what is float32: the largest difference, relative to the output's largest value."""
PARITY_SHARE = 1e-3
"""Of what is not: the share of values that differ. Rounding decides between two classes that are equally likely."""
ROUNDING_FACTOR = 10.0
"""How much more than rounding in the weights may change an output that rounding decides."""
STATISTICS_SAMPLES = 32
"""Samples that give an untrained network's BatchNorm layers their statistics."""
_BATCH_ELEMENTS = 1 << 25
"""Values of a network's inputs in one batch of these samples."""

_UNTRANSLATED = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'")
_TRANSLATING = re.compile(r"Error when translating node %(\w+)")

_WEIGHTS = "weights.safetensors"
_UNTRAINED = "or add --untrained for a bundle that is good for measuring speed only"


def export(recipe: Recipe, *, untrained: bool = False) -> FloatModel:
    """The recipe's handler and model as float32 ONNX, compared with the handler run eagerly on real samples.

    `untrained` initialises a model that has no weights, and marks the result.
    Raises ModelError, RecipeError, CalibrationError.
    """
    with handler.recipe_imports(recipe.folders), _deterministic(recipe.model.seed):
        function = handler.load_function(recipe)
        samples = _real_samples(recipe, function)
        bound, quality = _bound(function, recipe, samples, untrained=untrained)
        model = normalize(_to_onnx(bound, samples[0], bound.names, recipe), recipe.name)
        parity = compare(model, bound, samples[:PARITY_SAMPLES], recipe.name)
    return FloatModel(model, parity, Entry(function.name, function.manifest_trigger, function.timeout_ms), quality)


def module(recipe: Recipe, *, untrained: bool = False) -> nn.Module:
    """What `export` traces: handler and network with their weights, inputs by position, outputs as a tuple."""
    with handler.recipe_imports(recipe.folders), _deterministic(recipe.model.seed):
        function = handler.load_function(recipe)
        return _bound(function, recipe, _real_samples(recipe, function), untrained=untrained)[0]


def _bound(function: Function, recipe: Recipe, samples: list[Sample], *, untrained: bool) -> tuple["_Bound", str]:
    """The module, and the quality of its weights."""
    bound = _Bound(function, _built(recipe)).eval()
    _run_eagerly(bound, samples[0], recipe)
    return bound, _fill(bound, recipe, samples, untrained=untrained)


class _Bound(nn.Module):
    """Handler and network as one module: inputs by position, outputs as a tuple in the order of the handler's dict."""

    def __init__(self, function: Function, network: nn.Module) -> None:
        super().__init__()
        self.model = network
        network.register_forward_pre_hook(_row_major)
        self._function = function
        self.names: tuple[str, ...] = ()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip((spec.name for spec in self._function.inputs), inputs, strict=True))
        result = _as_dict(self._function(**named, model=self.model), self._function.name)
        self.names = tuple(result)
        return _distinct(tuple(result.values()), inputs)


def _row_major(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Images in row-major order. A handler's `permute` makes them channels last; torch's exporter loses that on its
    way, and then refuses every `reshape` that was a view.
    """
    return tuple(value.contiguous() if isinstance(value, torch.Tensor) else value for value in inputs)


def _distinct(outputs: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """`outputs`, with a copy where one is an input or an earlier output: a graph's value has one name."""
    taken = {id(value) for value in inputs}
    distinct = []
    for value in outputs:
        distinct.append(value.clone() if id(value) in taken else value)
        taken.add(id(value))
    return tuple(distinct)


def _as_dict(result: Any, function: str) -> dict[str, torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return {"output": result}
    if not isinstance(result, dict) or not result:
        raise ModelError(
            f"{function}: returns {type(result).__name__}", "return a dict of tensors by output name, or a tensor"
        )
    for name, value in result.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{function}: output '{name}' is {type(value).__name__}, no tensor",
                "return tensors; .item(), .tolist() and .numpy() leave the graph",
            )
        if not isinstance(name, str) or not is_identifier(name):
            raise ModelError(
                f"{function}: output name {name!r} is no identifier of letters, digits and _", "rename that key"
            )
    return result


def _real_samples(recipe: Recipe, function: Function) -> list[Sample]:
    if recipe.calibration.set is None:
        raise CalibrationError(f"{recipe.folder}: the recipe names no calibration set", NEVER_RANDOM)
    chosen = load_set(find_set(recipe.calibration.set, recipe.folder))
    return list(islice(chosen.samples(function.inputs, STATISTICS_SAMPLES), STATISTICS_SAMPLES))


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """One thread, fixed seeds, deterministic kernels: the same weights whenever the same recipe is built."""
    threads, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  (recipes may use the global generator)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(algorithms)


def _fill(bound: _Bound, recipe: Recipe, samples: list[Sample], *, untrained: bool) -> str:
    """Gives the network its weights and returns the quality that they have."""
    if recipe.weights is not None and (recipe.weights.is_file() or not untrained):
        load_weights(bound.model, recipe.weights, f"{recipe.folder}: [model] weights")
    elif recipe.model.train is not None:
        load_weights(bound.model, _trained(recipe), str(recipe.folder))
    elif untrained:
        _set_statistics(bound, samples)
        return SPEED_ONLY
    else:
        raise ModelError(
            f"{recipe.folder}: the recipe '{recipe.name}' has no weights",
            f"name a .safetensors file with --weights FILE or [model] weights, {_UNTRAINED}",
        )
    return TRAINED


def _built(recipe: Recipe) -> nn.Module:
    path = recipe.folder / recipe.model.file
    factory = handler.attribute(handler.load_module(path), recipe.model.factory, "[model] factory")
    with handler.blame(recipe.folders, f"{recipe.model.factory}({_arguments(recipe.model.args)}) failed"):
        network = factory(**recipe.model.args)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{path}: {recipe.model.factory} returns {type(network).__name__}", "return a torch.nn.Module")
    return network.float()


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _trained(recipe: Recipe) -> Path:
    """The weights that the recipe's own training gives, made once."""
    cache = Cache(cache_dir() / "recipes" / recipe.name)
    key = digest.of_parts(recipe.digest(), torch.__version__, np.__version__)
    folder = cache.get(key)
    if folder is None:
        train = handler.attribute(
            handler.load_module(recipe.folder / recipe.model.file), str(recipe.model.train), "[model] train"
        )
        with handler.blame(recipe.folders, "training failed"):
            network = train(recipe.model.seed)
        state = {name: value.contiguous() for name, value in network.state_dict().items()}
        folder = cache.put(key, {_WEIGHTS: safetensors.torch.save(state)})
    return folder / _WEIGHTS


def load_weights(network: nn.Module, path: Path, where: str) -> None:
    """Fills `network` from a .safetensors file (float16 becomes float32); ModelError names what does not fit."""
    if not path.is_file():
        raise ModelError(
            f"{where}: no such file: {path}", f"put the file there, name another with --weights FILE, {_UNTRAINED}"
        )
    try:
        found = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as reason:
        raise ModelError(
            f"{path}: is cut off, or no safetensors file: {reason}",
            "convert it: safetensors.torch.save_file(model.state_dict(), FILE)",
        ) from reason
    wanted = network.state_dict()
    for name, value in wanted.items():
        if name not in found:
            if name.endswith("num_batches_tracked"):
                continue
            raise ModelError(f"{path}: holds no weights for '{name}'", did_you_mean(name, set(found) - set(wanted)))
        if found[name].shape != value.shape:
            raise ModelError(
                f"{path}: '{name}' has shape {list(found[name].shape)}, the model wants {list(value.shape)}",
                "the file belongs to another model, or [model] args differ from the training's",
            )
    for name in found:
        if name not in wanted:
            raise ModelError(f"{path}: '{name}' is nothing of the model", did_you_mean(name, wanted))
    network.load_state_dict({name: value.to(wanted[name].dtype) for name, value in found.items()}, strict=False)


def _set_statistics(bound: _Bound, samples: list[Sample]) -> None:
    """Runs real samples through fresh BatchNorm layers: with the initial ones, outputs collapse to a constant."""
    bound.eval()
    layers = [layer for layer in bound.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momentum = [layer.momentum for layer in layers]
    calls = _network_calls(bound, samples) if layers else []
    for layer in layers:
        layer.train()
        layer.momentum = None
    with torch.no_grad():
        if not _run_in_batches(bound.model, calls):
            for layer in layers:
                layer.reset_running_stats()
            for sample in samples:
                bound(*_tensors(sample))
    for layer, value in zip(layers, momentum, strict=True):
        layer.eval()
        layer.momentum = value


def _network_calls(bound: _Bound, samples: list[Sample]) -> list[tuple[torch.Tensor, ...]]:
    """What the handler hands to the network on each sample."""
    calls: list[tuple[torch.Tensor, ...]] = []
    hook = bound.model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    with torch.no_grad():
        for sample in samples:
            bound(*_tensors(sample))
    hook.remove()
    return calls


def _run_in_batches(network: nn.Module, calls: list[tuple[torch.Tensor, ...]]) -> bool:
    """Runs the network on the calls, joined along the first axis as far as memory allows; False where that fails.

    BatchNorm then sees how samples differ from each other. Normalized one by one, the samples' spread is missing from
    its variances, and deep networks blow up what they then meet.
    """
    try:
        size = max(1, _BATCH_ELEMENTS // sum(value.numel() for value in calls[0]))
        for start in range(0, len(calls), size):
            network(*(torch.cat(values) for values in zip(*calls[start : start + size], strict=True)))
    except Exception:  # a handler may call parts of the network, and a network may take one sample only
        return False
    return True


def _tensors(sample: Sample) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.array(array)) for array in sample.values())


def _run_eagerly(bound: _Bound, sample: Sample, recipe: Recipe) -> None:
    with torch.no_grad(), handler.blame(recipe.folders, "the handler fails on a real sample"):
        bound(*_tensors(sample))
    for name in bound.names:
        if name in sample:
            raise ModelError(f"{recipe.folder}: output '{name}' is called like an input", "rename that key")


def _to_onnx(bound: _Bound, sample: Sample, names: tuple[str, ...], recipe: Recipe) -> onnx.ModelProto:
    with _quiet(), torch.no_grad():
        hint = "a handler is straight torch code: no branch, loop length or .item() that depends on a tensor's value"
        with handler.blame(recipe.folders, "the handler cannot be traced", hint):
            program = torch.export.export(bound, _tensors(sample), strict=False)
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,  # its rules look at values: a zero bias is dropped
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as reason:
            raise _not_exported(program, reason, recipe) from reason
    assert exported is not None
    _name_ports(exported.model.graph, tuple(sample), names)
    return exported.model_proto


def _name_ports(graph: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Names an onnx_ir graph's inputs and outputs. The exporter names inner values after operators, and a user may
    call an output `add` or `embedding` too; a dot sets the inner ones apart.
    """
    for node in graph:
        for value in node.outputs:
            value.name = f"{value.name}.inner"
    for value, name in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name


def _not_exported(program: Any, reason: Exception, recipe: Recipe) -> ModelError:
    """Names the operator and the module that the exporter has no ONNX for."""
    chain: list[BaseException] = [reason]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    text = "\n".join(str(link) for link in chain)
    operator, node = _UNTRANSLATED.search(text), _TRANSLATING.search(text)
    if operator is None:
        reason_line = str(chain[-1]).strip().splitlines()[0]
        return ModelError(
            f"{recipe.folder}: the model cannot be exported: {reason_line}", "torch.onnx.export(dynamo=True) says more"
        )
    place = _module_of(program, node.group(1)) if node else ""
    return ModelError(
        f"{recipe.folder}: operator {operator.group(1)} in {place or 'the handler'} has no ONNX form",
        "write it with other torch operations",
    )


def _module_of(program: Any, name: str) -> str:
    """The path of the module (`model.features.0`) that holds node `name` of the decomposed program; empty for none."""
    for node in program.run_decompositions().graph.nodes:
        if name in node.name and (stack := node.meta.get("nn_module_stack")):
            return str(list(stack.values())[-1][0])
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about packages that nobody needs; nothing of that is for the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)


def compare(
    model: onnx.ModelProto, eager: Callable[..., tuple[torch.Tensor, ...]], samples: list[Sample], name: str
) -> dict[str, object]:
    """The graph in ONNX Runtime against `eager` on real samples.

    `max_relative_error` holds the largest error of each output, as PARITY_LIMIT and PARITY_SHARE count it;
    `decided_by_rounding` lists outputs that differ by more, but change as much when every weight moves by one unit in
    the last place: the order of boxes that score alike, say. Raises ModelError for any other that differs.
    """
    outputs = {value.name: value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in model.graph.output}
    found = _answers(model, samples, name)
    with torch.no_grad():
        wanted = [[value.numpy() for value in eager(*_tensors(sample))] for sample in samples]
    errors = _errors(list(outputs), found, wanted)
    limits = {output: PARITY_LIMIT if floating else PARITY_SHARE for output, floating in outputs.items()}
    wrong = [output for output, error in errors.items() if not error <= limits[output]]
    moved = _errors(list(outputs), found, _answers(_nudged(model), samples, name)) if wrong else {}
    for output in wrong:
        if not errors[output] <= ROUNDING_FACTOR * moved[output]:
            raise ModelError(
                f"{name}: output '{output}' of the exported graph differs from the handler by {errors[output]:.2g}",
                f"at most {limits[output]:g} is rounding; an operator changed its meaning, or the handler is random",
            )
    return {"samples": len(samples), "max_relative_error": errors, "decided_by_rounding": wrong}


def _answers(model: onnx.ModelProto, samples: list[Sample], name: str) -> "list[list[np.ndarray[Any, Any]]]":
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as reason:
        raise ModelError(
            f"{name}: ONNX Runtime refuses the exported graph: {str(reason).strip()}", "simplify the handler"
        ) from reason
    return [session.run(None, dict(sample)) for sample in samples]


def _errors(
    outputs: list[str],
    found: "list[list[np.ndarray[Any, Any]]]",
    wanted: "list[list[np.ndarray[Any, Any]]]",
) -> dict[str, float]:
    """The largest error of each output over all samples."""
    errors = dict.fromkeys(outputs, 0.0)
    for mine, theirs in zip(found, wanted, strict=True):
        for output, got, want in zip(outputs, mine, theirs, strict=True):
            errors[output] = max(errors[output], _error(got, want))
    return errors


def _nudged(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every weight, a constant of at least two dimensions, one unit in the last place away."""
    rng, moved = np.random.default_rng(0), onnx.ModelProto()
    moved.CopyFrom(model)
    for weight in moved.graph.initializer:
        value = onnx.numpy_helper.to_array(weight)
        if value.dtype == np.float32 and value.ndim >= 2:
            towards = rng.choice(np.array([-np.inf, np.inf], np.float32), value.shape)
            weight.CopyFrom(onnx.numpy_helper.from_array(np.nextafter(value, towards), weight.name))
    return moved


def _error(got: "np.ndarray[Any, Any]", want: "np.ndarray[Any, Any]") -> float:
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if got.dtype.kind != "f":
        return float((got != want).mean())
    got, want = got.astype(np.float64), want.astype(np.float64)
    largest = float(np.abs(want).max(initial=0.0))
    return float(np.abs(got - want).max(initial=0.0)) / (largest or 1.0)
