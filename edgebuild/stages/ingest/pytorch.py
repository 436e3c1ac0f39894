"""PyTorch: a handler and its network, traced together by torch.export, as one ONNX graph; exported programs.

The handler may be written in NumPy (`arrays.py`), and the network may come from elsewhere (`foreign.py`).
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors
import safetensors.torch
import torch
import torch.utils._pytree as pytree
from torch import nn

from edgebuild.core import digest
from edgebuild.core.cache import Cache, cache_dir
from edgebuild.core.calibration import Sample
from edgebuild.core.errors import ModelError
from edgebuild.core.manifest import Trigger
from edgebuild.core.recipe import Recipe
from edgebuild.core.toml import did_you_mean
from edgebuild.function import Function
from edgebuild.stages.ingest import SPEED_ONLY, TRAINED, Entry, FloatModel, arrays, foreign, handler
from edgebuild.stages.ingest.onnx import identifier, model_inputs, normalize
from edgebuild.stages.ingest.parity import PARITY_SAMPLES, Array, compare
from edgebuild.stages.ingest.samples import real_samples
from edgebuild.stages.ingest.seeds import TORCH, seeded

OPSET = 20
"""The first with GELU as one operator."""
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
    with handler.recipe_imports(recipe.folders), seeded(recipe.model.seed, {TORCH}):
        function = handler.load_function(recipe)
        samples = real_samples(recipe, function.inputs)
        return export_bound(recipe, function, network_of(recipe), samples, untrained=untrained)


def module(recipe: Recipe, *, untrained: bool = False) -> nn.Module:
    """What `export` traces: handler and network with their weights, inputs by position, outputs as a tuple."""
    with handler.recipe_imports(recipe.folders), seeded(recipe.model.seed, {TORCH}):
        function = handler.load_function(recipe)
        samples = real_samples(recipe, function.inputs)
        return _bound(function, network_of(recipe), recipe, samples, untrained=untrained)[0]


def export_bound(
    recipe: Recipe, function: Function, network: nn.Module, samples: list[Sample], *, untrained: bool
) -> FloatModel:
    """`export`, of what was loaded already."""
    bound, quality = _bound(function, network, recipe, samples, untrained=untrained)
    model = normalize(_to_onnx(bound, samples[0], recipe), recipe.name)
    parity = compare(model, bound.eager, samples[:PARITY_SAMPLES], recipe.name)
    return FloatModel(model, parity, Entry(function.name, function.manifest_trigger, function.timeout_ms), quality)


def export_program(recipe: Recipe) -> FloatModel:
    """An exported program (`.pt2`) without a handler, compared with the program run by torch."""
    assert recipe.saved is not None
    path = recipe.saved
    with seeded(recipe.model.seed, {TORCH}):
        program = _program(path)
        with _quiet(), torch.no_grad():
            exported = _exported(program, str(path))
        _name_ports(exported.model.graph, _program_inputs(program), _program_outputs(program))
        model = normalize(exported.model_proto, str(path))
        network = program.module()

        def eager(sample: Sample) -> Sequence[Array]:
            flat = [torch.from_numpy(np.array(array)) for array in sample.values()]
            args, named = pytree.tree_unflatten(flat, program.call_spec.in_spec)
            with torch.no_grad():
                return [value.numpy() for value in pytree.tree_leaves(network(*args, **named))]

        samples = real_samples(recipe, model_inputs(model), PARITY_SAMPLES)
        parity = compare(model, eager, samples, str(path))
    return FloatModel(model, parity, Entry(identifier(path.stem), Trigger(), None), TRAINED)


def network_of(recipe: Recipe) -> nn.Module:
    """The network that the recipe's handler calls: its factory's, or the saved exported program."""
    if recipe.model.pt2:
        return _Program(_program(recipe.folder / recipe.model.pt2).module())
    found = handler.built(recipe)
    if not isinstance(found, nn.Module):
        file = recipe.folder / recipe.model.file
        raise ModelError(f"{file}: {recipe.model.factory} returns {type(found).__name__}", handler.NETWORKS)
    return found.float()


def _bound(
    function: Function, network: nn.Module, recipe: Recipe, samples: list[Sample], *, untrained: bool
) -> tuple["_Bound", str]:
    """The module, and the quality of its weights."""
    bound = _Bound(function, network).eval()
    bound.numpy = _runs_with_arrays(bound, samples[0], recipe)
    if bound.numpy:
        with (
            torch.no_grad(),
            handler.blame(recipe.folders, "the handler cannot be traced", handler.STRAIGHT, line=True),
        ):
            bound(*_tensors(samples[0]))
    for name in bound.names:
        if name in samples[0]:
            raise ModelError(f"{recipe.folder}: output '{name}' is called like an input", "rename that key")
    return bound, _fill(bound, recipe, samples, untrained=untrained)


class _Bound(nn.Module):
    """Handler and network as one module: inputs by position, outputs as a tuple in the order of the handler's dict.

    `numpy`: the handler takes arrays instead of tensors.
    """

    def __init__(self, function: Function, network: nn.Module) -> None:
        super().__init__()
        self.model = network
        network.register_forward_pre_hook(_row_major)
        self.numpy = False
        self._function = function
        self.names: tuple[str, ...] = ()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip((spec.name for spec in self._function.inputs), inputs, strict=True))
        if self.numpy:
            result = handler.as_dict(arrays.traced(self._function, named, self.model), self._function.name)
        else:
            result = handler.as_dict(self._function(**named, model=self.model), self._function.name)
        for name, value in result.items():
            if not isinstance(value, torch.Tensor):
                raise handler.no_tensor(self._function.name, name, value)
        self.names = tuple(result)
        return _distinct(tuple(result.values()), inputs)

    def eager(self, sample: Sample) -> Sequence[Array]:
        """The handler on a real sample, as its author runs it."""
        with torch.no_grad():
            if not self.numpy:
                return [value.numpy() for value in self(*_tensors(sample))]
            result = handler.as_dict(arrays.eager(self._function, sample, self.model), self._function.name)
        self.names = tuple(result)
        return [arrays.as_array(value) for value in result.values()]


class _Program(nn.Module):
    """An exported program as a network: its mode was decided when it was exported."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.program(*inputs, **named)

    def train(self, mode: bool = True) -> "_Program":  # noqa: ARG002
        return self


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


def _fill(bound: _Bound, recipe: Recipe, samples: list[Sample], *, untrained: bool) -> str:
    """Gives the network its weights and returns the quality that they have."""
    if recipe.model.saved or isinstance(bound.model, foreign.Foreign):
        return TRAINED
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


def _runs_with_arrays(bound: _Bound, sample: Sample, recipe: Recipe) -> bool:
    """Whether the handler is written for arrays. It is run on a real sample: as its names suggest first, then the
    other way; what goes wrong the first way is what its author hears of.
    """
    used = handler.frameworks_of(bound._function)
    ways = (True, False) if "numpy" in used and TORCH not in used else (False, True)
    failed: list[ModelError] = []
    for way in ways:
        bound.numpy = way
        try:
            with handler.blame(recipe.folders, "the handler fails on a real sample"):
                bound.eager(sample)
        except ModelError as reason:
            failed.append(reason)
        else:
            return way
    raise failed[0]


def _to_onnx(bound: _Bound, sample: Sample, recipe: Recipe) -> onnx.ModelProto:
    with _quiet(), torch.no_grad(), foreign.calls(bound.model) as called:
        with handler.blame(recipe.folders, "the handler cannot be traced", handler.STRAIGHT, line=True):
            program = torch.export.export(bound, _tensors(sample), strict=False)
        exported = _exported(program, str(recipe.folder), called.translations)
    _name_ports(exported.model.graph, tuple(sample), bound.names)
    return called.inlined(exported.model_proto)


def _exported(program: Any, where: str, translations: Any = None) -> Any:
    """The program as an onnx_ir model, wrapped. Raises ModelError, naming the operator that ONNX has not."""
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,  # its rules look at values: a zero bias is dropped
            opset_version=OPSET,
            verbose=False,
            custom_translation_table=translations,
        )
    except Exception as reason:
        raise _not_exported(program, reason, where) from reason
    assert exported is not None
    return exported


def _program(path: Path) -> Any:
    """The exported program in a file. Raises ModelError."""
    with _quiet():
        try:
            return torch.export.load(path)
        except Exception as reason:
            raise ModelError(
                f"{path}: is cut off, or no exported program of this torch ({torch.__version__})",
                "write it with torch.export.save(torch.export.export(model.eval(), inputs), FILE)",
            ) from reason


def _program_inputs(program: Any) -> tuple[str, ...]:
    return tuple(identifier(name) for name in program.graph_signature.user_inputs)


def _program_outputs(program: Any) -> tuple[str, ...]:
    """The keys of the dict that the program returns; else `output`, numbered where there are several."""
    spec, count = program.call_spec.out_spec, len(program.graph_signature.user_outputs)
    if spec.type is dict and spec.num_children == count:
        return tuple(identifier(str(key)) for key in spec.context)
    return ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))


def _name_ports(graph: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Names an onnx_ir graph's inputs and outputs. The exporter names inner values after operators, and a user may
    call an output `add` or `embedding` too; a dot sets the inner ones apart.
    """
    for node in graph:
        for value in node.outputs:
            value.name = f"{value.name}.inner"
    for value, name in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name


def _not_exported(program: Any, reason: Exception, where: str) -> ModelError:
    """Names the operator and the module that the exporter has no ONNX for."""
    chain: list[BaseException] = [reason]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    text = "\n".join(str(link) for link in chain)
    operator, node = _UNTRANSLATED.search(text), _TRANSLATING.search(text)
    if operator is None:
        reason_line = str(chain[-1]).strip().splitlines()[0]
        return ModelError(
            f"{where}: the model cannot be exported: {reason_line}", "torch.onnx.export(dynamo=True) says more"
        )
    place = _module_of(program, node.group(1)) if node else ""
    return ModelError(
        f"{where}: operator {operator.group(1)} in {place or 'the handler'} has no ONNX form",
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
