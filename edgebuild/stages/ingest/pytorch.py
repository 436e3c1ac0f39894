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
from edgebuild.stages.ingest.onnx import MIN_OPSET, normalize

PARITY_SAMPLES = 4
PARITY_LIMIT = 1e-4
STATISTICS_SAMPLES = 32
"""Images that give an untrained network's BatchNorm layers their statistics."""

_UNTRANSLATED = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'")
_TRANSLATING = re.compile(r"Error when translating node %(\w+)")

_WEIGHTS = "weights.safetensors"
_UNTRAINED = "or add --untrained for a bundle that is good for measuring speed only"


def export(recipe: Recipe, *, untrained: bool = False) -> FloatModel:
    """The recipe's handler and model as float32 ONNX, compared with the handler run eagerly on real samples.

    `untrained` initialises a model that has no weights, and marks the result.
    Raises ModelError, RecipeError, CalibrationError.
    """
    with handler.recipe_imports(recipe.folder), _deterministic(recipe.model.seed):
        function = handler.load_function(recipe)
        samples = _real_samples(recipe, function)
        bound = _Bound(function, _built(recipe)).eval()
        names = _run_eagerly(bound, samples[0], recipe)
        quality = _fill(bound, recipe, samples, untrained=untrained)
        model = normalize(_to_onnx(bound, samples[0], names, recipe), recipe.name)
        parity = compare(model, bound, samples[:PARITY_SAMPLES], recipe.name)
    return FloatModel(model, parity, Entry(function.name, function.manifest_trigger, function.timeout_ms), quality)


class _Bound(nn.Module):
    """Handler and network as one module: inputs by position, outputs as a tuple in the order of the handler's dict."""

    def __init__(self, function: Function, network: nn.Module) -> None:
        super().__init__()
        self.model = network
        self._function = function
        self.names: tuple[str, ...] = ()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip((spec.name for spec in self._function.inputs), inputs, strict=True))
        result = _as_dict(self._function(**named, model=self.model), self._function.name)
        self.names = tuple(result)
        return _distinct(tuple(result.values()), inputs)


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
    with handler.blame(recipe.folder, f"{recipe.model.factory}({_arguments(recipe.model.args)}) failed"):
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
        with handler.blame(recipe.folder, "training failed"):
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
    for layer in layers:
        layer.train()
        layer.momentum = None
    with torch.no_grad():
        for sample in samples:
            bound(*_tensors(sample))
    for layer, value in zip(layers, momentum, strict=True):
        layer.eval()
        layer.momentum = value


def _tensors(sample: Sample) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.array(array)) for array in sample.values())


def _run_eagerly(bound: _Bound, sample: Sample, recipe: Recipe) -> tuple[str, ...]:
    with torch.no_grad(), handler.blame(recipe.folder, "the handler fails on a real sample"):
        bound(*_tensors(sample))
    return bound.names


def _to_onnx(bound: _Bound, sample: Sample, names: tuple[str, ...], recipe: Recipe) -> onnx.ModelProto:
    with _quiet(), torch.no_grad():
        hint = "a handler is straight torch code: no branch, loop length or .item() that depends on a tensor's value"
        with handler.blame(recipe.folder, "the handler cannot be traced", hint):
            program = torch.export.export(bound, _tensors(sample), strict=False)
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,  # its rules look at values: a zero bias is dropped
                opset_version=MIN_OPSET,
                input_names=list(sample),
                output_names=list(names),
                verbose=False,
            )
        except Exception as reason:
            raise _not_exported(program, reason, recipe) from reason
    assert exported is not None
    return exported.model_proto


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

    The result holds the largest error of each output, relative to its largest value.
    Raises ModelError for an output that differs by more than PARITY_LIMIT.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as reason:
        raise ModelError(
            f"{name}: ONNX Runtime refuses the exported graph: {str(reason).strip()}", "simplify the handler"
        ) from reason
    outputs = [value.name for value in model.graph.output]
    errors = dict.fromkeys(outputs, 0.0)
    for sample in samples:
        with torch.no_grad():
            wanted = [value.numpy() for value in eager(*_tensors(sample))]
        for output, got, want in zip(outputs, session.run(None, dict(sample)), wanted, strict=True):
            errors[output] = max(errors[output], _relative_error(got, want))
    for output, error in errors.items():
        if not error <= PARITY_LIMIT:
            raise ModelError(
                f"{name}: output '{output}' of the exported graph differs from the handler by {error:.2g}",
                f"at most {PARITY_LIMIT:g} is rounding; an operator changed its meaning, or the handler is random",
            )
    return {"samples": len(samples), "max_relative_error": errors}


def _relative_error(got: "np.ndarray[Any, Any]", want: "np.ndarray[Any, Any]") -> float:
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    got, want = got.astype(np.float64), want.astype(np.float64)
    largest = float(np.abs(want).max(initial=0.0))
    return float(np.abs(got - want).max(initial=0.0)) / (largest or 1.0)
