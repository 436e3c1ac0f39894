"""Which adapter takes a recipe: by what its model is, and by what its handler is made of."""

import importlib.util
from typing import Any

from edgebuild.core.errors import EnvironmentProblem, ModelError
from edgebuild.core.manifest import Trigger
from edgebuild.core.recipe import Recipe
from edgebuild.function import Function
from edgebuild.stages.ingest import TRAINED, Entry, FloatModel, handler
from edgebuild.stages.ingest.samples import real_samples
from edgebuild.stages.ingest.seeds import TENSORFLOW, TORCH, seeded

_INSTALL = "pip install 'edgebuild[tensorflow]'"
_OF_TENSORFLOW = frozenset({"keras", "saved_model", "tflite"})


def ingest(recipe: Recipe, *, untrained: bool = False) -> FloatModel:
    """The recipe's model, with its handler if it has one, as a float32 (or already quantized) ONNX graph.

    `untrained` initialises a model that has no weights, and marks the result.
    Raises ModelError, RecipeError, CalibrationError, EnvironmentProblem.
    """
    frameworks = _frameworks(recipe)
    if recipe.function is None:
        return _saved(recipe)
    with handler.recipe_imports(recipe.folders), seeded(recipe.model.seed, frameworks):
        function = handler.load_function(recipe)
        samples = real_samples(recipe, function.inputs)
        return _bound(recipe, function, samples, frameworks, untrained=untrained)


def _frameworks(recipe: Recipe) -> set[str]:
    """Those that have to be there before the recipe's code runs."""
    kind = recipe.model.saved[0] if recipe.model.saved else None
    mentioned = recipe.imports() if recipe.function else set()
    found = {TORCH} if TORCH in mentioned or kind == "pt2" else set()
    if kind in _OF_TENSORFLOW or mentioned & {TENSORFLOW, "keras"}:
        found.add(TENSORFLOW)
        for package in ("tensorflow", "tf2onnx"):
            if importlib.util.find_spec(package) is None:
                raise EnvironmentProblem(
                    f"{recipe.saved or recipe.folder}: TensorFlow models need the package {package}", _INSTALL
                )
    return found or {TORCH}


def _saved(recipe: Recipe) -> FloatModel:
    """A saved model as it is."""
    assert recipe.model.saved is not None
    assert recipe.saved is not None
    kind, _ = recipe.model.saved
    if kind == "onnx":
        return _onnx(recipe)
    if kind == "pt2":
        from edgebuild.stages.ingest import pytorch  # noqa: PLC0415 - imports torch

        return pytorch.export_program(recipe)
    if kind == "tflite":
        from edgebuild.stages.ingest import tflite  # noqa: PLC0415 - imports TensorFlow

        return tflite.export(recipe)
    from edgebuild.stages.ingest import tensorflow  # noqa: PLC0415 - imports TensorFlow

    return tensorflow.export_saved(recipe)


def _onnx(recipe: Recipe) -> FloatModel:
    import edgebuild.stages.ingest.onnx as onnx_files  # noqa: PLC0415 - imports onnx
    from edgebuild.stages.ingest.layout import channels_first  # noqa: PLC0415
    from edgebuild.stages.ingest.unsigned import with_unsigned_activations  # noqa: PLC0415

    assert recipe.saved is not None
    found = onnx_files.ingest(recipe.saved)
    model = channels_first(with_unsigned_activations(found.model, str(recipe.saved)), str(recipe.saved))
    return FloatModel(model, found.parity, Entry(found.entry.name, Trigger(), None), TRAINED)


def _bound(
    recipe: Recipe, function: Function, samples: list[Any], frameworks: set[str], *, untrained: bool
) -> FloatModel:
    """A handler with its model: traced by TensorFlow where both are TensorFlow's, else by torch."""
    used = handler.frameworks_of(function)
    network = _tensorflow_network(recipe, frameworks)
    if TENSORFLOW in used and network is None:
        raise ModelError(
            f"{recipe.folder}: the handler is made of TensorFlow operations, the model is not TensorFlow's",
            "write the handler with torch or NumPy operations, or give a TensorFlow model",
        )
    if network is not None and (TENSORFLOW in used or not used):
        from edgebuild.stages.ingest import tensorflow  # noqa: PLC0415 - imports TensorFlow

        return tensorflow.export_bound(recipe, function, network, samples, untrained=untrained)
    from edgebuild.stages.ingest import pytorch  # noqa: PLC0415 - imports torch

    return pytorch.export_bound(recipe, function, _torch_network(recipe, network), samples, untrained=untrained)


def _tensorflow_network(recipe: Recipe, frameworks: set[str]) -> Any:
    """The recipe's network if it is TensorFlow's."""
    kind = recipe.model.saved[0] if recipe.model.saved else None
    if TENSORFLOW not in frameworks or kind not in (None, "keras", "saved_model"):
        return None
    from edgebuild.stages.ingest import tensorflow  # noqa: PLC0415 - imports TensorFlow

    return tensorflow.network_of(recipe)


def _torch_network(recipe: Recipe, network: Any) -> Any:
    """The network as torch traces it: a module, or a foreign one."""
    from edgebuild.stages.ingest import foreign, pytorch  # noqa: PLC0415 - imports torch

    if recipe.model.tflite:
        from edgebuild.stages.ingest import tflite  # noqa: PLC0415 - imports TensorFlow

        network = tflite.Network(recipe.folder / recipe.model.tflite)
    if recipe.model.onnx:
        network = foreign.OnnxFile(_onnx(recipe).model, str(recipe.saved))
    return pytorch.network_of(recipe) if network is None else foreign.Foreign(network)
