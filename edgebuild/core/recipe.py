"""A recipe: the folder that says which model, which function, which calibration set and what accuracy is acceptable.

    [recipe]
    name = "digits"              # names the bundle: a-z 0-9 _ -
    version = "1.0.0"
    release = 1                  # optional: the release counter, which devices never let fall
    description = "…"

    [model]                      # a function that returns the nn.Module, Keras model, tf.Module or tf.function …
    file = "model.py"            # may lie in another recipe's folder: "../resnet18/model.py"
    factory = "build"
    args = { classes = 10 }      # … called with these keyword arguments
    weights = "digits.safetensors"    # optional, relative to the folder; `--weights FILE` overrides it
    train = "train"              # optional: a function train(seed) of `file` that returns the trained nn.Module
    seed = 0
    precision = "int8"           # or "float32": nothing is quantized
    # or a model that was saved, instead of file, factory and weights; one of:
    # onnx = "model.onnx"        tflite = "model.tflite"       pt2 = "model.pt2" (torch.export.save)
    # keras = "model.keras"      saved_model = "folder"        (keras takes .h5 as well)

    [function]                   # the handler; a saved model may do without
    file = "function.py"
    name = "classify"

    [calibration]
    set = "digits"               # a folder of images, an .npz file, a folder with set.toml, or a set of edgebuild's
    samples = 64
    observer = "auto"            # or "minmax", "moving-average", "percentile", "entropy", "mse"; auto tries some and
                                 # takes what serves held-out samples best
    percentile = 99.99
    tensors = { "conv_3" = "mse", "add_7" = [-4.0, 4.0] }   # optional: an observer or a range for single tensors

    [accept]                     # optional: what INT8 may cost
    metric = "top1"              # top5, map, auc, agreement, cosine, or a function of the recipe's: "metric.py:name"
    data = "test"                # the set's held-out part, "calibration", or another set
    max_drop = 0.5               # points of the metric

Loading a recipe imports none of its code.
"""

import ast
import dataclasses
import importlib.machinery
import math
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from edgebuild.core import digest
from edgebuild.core.errors import ModelError, RecipeError
from edgebuild.core.lines import MAX_NUMBER
from edgebuild.core.manifest import is_name, is_version
from edgebuild.core.toml import read

RECIPE_FILE = "recipe.toml"
LOCK_FILE = "recipe.lock"
METRICS = ("top1", "top5", "map", "auc", "agreement", "cosine")
_WRITTEN_BY_BUILDS = (".ebundle", ".edelta", ".report.json", ".report.html", ".basis.zip")
_RELEASES = (("SHA256SUMS", "release.json"), ("oci-layout", "index.json"))
"""What a folder holds that `edgebuild release` or `edgebuild push` made."""
_MAX_SAMPLES = 1_000_000
SAVED = {
    "onnx": "an ONNX file",
    "pt2": "an exported program",
    "keras": "a Keras file",
    "saved_model": "a SavedModel",
    "tflite": "a TFLite file",
}
"""The keys of [model] that name a saved model, and what each is."""
_SAVED_SUFFIXES = {
    ".onnx": "onnx",
    ".pt2": "pt2",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".tflite": "tflite",
}
_EXTERNAL_DATA = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")


@dataclasses.dataclass(frozen=True)
class Identity:
    """`[recipe]`."""

    name: str
    version: str = "1.0.0"
    description: str = ""
    release: int = 1

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(f"name: {self.name!r} must be 1 to 64 of a-z 0-9 _ -, the first a letter or digit")
        if not is_version(self.version):
            raise ValueError(
                f"version: {self.version!r} must be 1 to 32 of letters, digits and . + ~ -, the first a letter or digit"
            )
        if not 1 <= self.release <= MAX_NUMBER:
            raise ValueError(f"release: {self.release} is not between 1 and {MAX_NUMBER}")


@dataclasses.dataclass(frozen=True)
class Model:
    """`[model]`: a factory, or a model that was saved."""

    file: str = "model.py"
    factory: str = "build"
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    train: str | None = None
    seed: int = 0
    onnx: str | None = None
    pt2: str | None = None
    keras: str | None = None
    saved_model: str | None = None
    tflite: str | None = None
    precision: Literal["int8", "float32"] = "int8"

    def __post_init__(self) -> None:
        if self.weights and self.train:
            raise ValueError("train: the weights come from a file already; keep one of 'weights' and 'train'")
        named = [key for key in SAVED if getattr(self, key)]
        if len(named) > 1:
            raise ValueError(f"{named[1]}: the model is named by '{named[0]}' already; keep one of them")
        if named and (self.weights or self.train):
            raise ValueError(f"{named[0]}: {SAVED[named[0]]} holds its weights; remove 'weights' and 'train'")

    @property
    def saved(self) -> tuple[str, str] | None:
        """A key of SAVED and the path that it names; None for a factory."""
        named = [(key, getattr(self, key)) for key in SAVED if getattr(self, key)]
        return named[0] if named else None


@dataclasses.dataclass(frozen=True)
class Handler:
    """`[function]`."""

    name: str
    file: str = "function.py"


_OBSERVERS = ("minmax", "moving-average", "percentile", "entropy", "mse")


def _is_range(value: object) -> bool:
    numbers = isinstance(value, list) and [type(v) in (int, float) and math.isfinite(v) for v in value] == [True, True]
    return numbers and value[0] < value[1]  # type: ignore[index]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """`[calibration]`. `set` is resolved by `edgebuild.core.calibration`."""

    set: str | None = None
    samples: int = 64
    observer: Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse"] = "auto"
    percentile: float = 99.99
    tensors: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= _MAX_SAMPLES:
            raise ValueError(f"samples: {self.samples} is not between 1 and {_MAX_SAMPLES}")
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(f"percentile: {self.percentile} is not above 50 and at most 100")
        for name, how in self.tensors.items():
            if how not in _OBSERVERS and not _is_range(how):
                known = ", ".join(_OBSERVERS)
                raise ValueError(f"tensors: '{name}': {how!r} is no observer ({known}) and no range [low, high]")


@dataclasses.dataclass(frozen=True)
class Accept:
    """`[accept]`: the build fails if INT8 loses more than `max_drop` points of `metric` on `data`.

    A point is a hundredth of top1, top5, map, auc and agreement; `cosine` is 0..1; a metric of the recipe's own has its
    own unit.
    """

    max_drop: float
    metric: str = "top1"
    data: str = "test"

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_drop <= 100.0:
            raise ValueError(f"max_drop: {self.max_drop} is not between 0 and 100 points of the metric")
        if self.own is None and self.metric not in METRICS:
            known = ", ".join(METRICS)
            raise ValueError(f"metric: unknown metric {self.metric!r}; known: {known}, or FILE.py:FUNCTION of your own")

    @property
    def own(self) -> tuple[str, str] | None:
        """File and function of a metric that the recipe brings."""
        file, colon, name = self.metric.rpartition(":")
        return (file, name) if colon and file.endswith(".py") and name.isidentifier() else None


@dataclasses.dataclass(frozen=True)
class _File:
    recipe: Identity
    model: Model = dataclasses.field(default_factory=Model)
    function: Handler | None = None
    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    accept: Accept | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked; nothing of it is imported yet.

    `weights` is the file that is loaded into the model: the command line's, else the recipe's, else None. It may not
    exist; the ingest stage says so when it needs it.
    """

    folder: Path
    identity: Identity
    model: Model
    function: Handler | None
    calibration: Calibration
    accept: Accept | None
    weights: Path | None
    bare: bool = False
    """It stands for a saved model that was named without a recipe."""

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def version(self) -> str:
        return self.identity.version

    @property
    def saved(self) -> Path | None:
        """The saved model: a file, for a SavedModel a folder; None for a factory."""
        return self.folder / self.model.saved[1] if self.model.saved else None

    @property
    def code(self) -> tuple[Path, ...]:
        """The Python files that [model] and [function] name."""
        model = () if self.model.saved else (self.model.file,)
        return tuple(self.folder / file for file in (*model, *([self.function.file] if self.function else [])))

    @property
    def folders(self) -> tuple[Path, ...]:
        """The recipe's folder, and those that `file` of [model] and [function] lie in when they are others."""
        places = {file.parent.resolve(): file.parent for file in self.code}
        return (self.folder, *(place for root, place in places.items() if root != self.folder.resolve()))

    def sources(self) -> dict[str, Path]:
        """Everything the exported model depends on, by a name that does not depend on where the recipe lies.

        The files of the folder (without hidden ones and what builds write), the modules beside a model or function that
        lies in another folder, Python packages outside that these modules import and that are not installed, the
        weights, and the saved model with the files that hold its weights.
        """
        found = _saved_files(self.saved) if self.saved else {}
        if self.bare:
            return found
        found |= {
            str(path.relative_to(self.folder)): path
            for path in digest.files_below(self.folder)
            if not _written_by_build(path, self.folder)
        }
        for shared in self.folders[1:]:
            found |= {f"{os.path.relpath(shared, self.folder)}/{path.name}": path for path in shared.glob("*.py")}
        for path in list(found.values()):
            if path.suffix == ".py":
                found |= _imported_packages(path, path.parent)
        if self.weights and self.weights.is_file():
            found["weights"] = self.weights
        return dict(sorted(found.items()))

    def imports(self) -> set[str]:
        """Names of the packages that the recipe's Python imports."""
        return {name for path in self.sources().values() if path.suffix == ".py" for name in _imported_names(path)}

    def digest(self) -> str:
        """Digest of `sources()` and of what the command line overrides."""
        parts = [part for name, path in self.sources().items() for part in (name, digest.of_file(path))]
        stem = self.saved.stem if self.bare and self.saved else ""  # names the function
        return digest.of_parts(f"seed {self.model.seed}", stem, *parts)


def load_recipe(
    folder: Path, *, weights: Path | None = None, seed: int | None = None, calibration: Path | None = None
) -> Recipe:
    """Reads `folder/recipe.toml`. `weights`, `seed` and `calibration` override it, as the command line's options do.

    Raises RecipeError. Imports no code of the recipe.
    """
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise RecipeError(
            f"{folder}: holds no {RECIPE_FILE}", "name a recipe's folder, or make one: edgebuild init NAME"
        )
    content = read(path, _File)
    _check_files(path, content)
    model = content.model if seed is None else dataclasses.replace(content.model, seed=seed)
    measured = content.calibration
    if calibration is not None:
        measured = dataclasses.replace(measured, set=str(calibration.resolve()))
    stated = folder / model.weights if model.weights else None
    return Recipe(folder, content.recipe, model, content.function, measured, content.accept, weights or stated)


def _check_files(path: Path, content: _File) -> None:
    model, function = content.model, content.function
    if model.saved is None and function is None:
        raise RecipeError(f"{path}: missing table [function]", 'name the handler: [function] name = "…"')
    kind = saved_kind(path.parent / model.file)
    if kind is not None:
        raise RecipeError(
            f"{path}: model.file: '{model.file}' is {SAVED[kind]}, no Python file", f'write {kind} = "{model.file}"'
        )
    key, name = model.saved or ("file", model.file)
    stated = {f"model.{key}": name} | ({"function.file": function.file} if function else {})
    own = content.accept.own if content.accept else None
    stated |= {"accept.metric": own[0]} if own else {}
    for where, file in stated.items():
        place = path.parent / file
        if where == "model.saved_model" and place.exists() and not is_saved_model(place):
            raise RecipeError(f"{path}: {where}: {place} holds no saved_model.pb", "name the folder that holds it")
        if not place.is_file() and not is_saved_model(place):
            raise RecipeError(f"{path}: {where}: no such file: {place}", "paths are relative to the recipe")


def saved_kind(path: Path) -> str | None:
    """The key of SAVED that fits a file (by its suffix) or a folder; None for what is no saved model."""
    return "saved_model" if is_saved_model(path) else _SAVED_SUFFIXES.get(path.suffix.lower())


def is_saved_model(folder: Path) -> bool:
    """Whether TensorFlow saved a model in that folder."""
    return any((folder / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))


def _saved_files(path: Path) -> dict[str, Path]:
    """The files that a saved model is made of, by a name that does not depend on where it lies."""
    if path.is_dir():
        return {f"model:{file.relative_to(path)}": file for file in digest.files_below(path)}
    data = _external_data(path) if path.suffix == ".onnx" and path.is_file() else []
    return {f"model:{file.relative_to(path.parent)}": file for file in (path, *data) if file.is_file()}


def _external_data(path: Path) -> list[Path]:
    """Files that an ONNX file keeps weights in, found without the package onnx: values of the key `location`."""
    data = path.read_bytes()
    ends = ((match.end(), match.group(1)[0]) for match in _EXTERNAL_DATA.finditer(data))
    names = {data[end : end + length].decode(errors="replace") for end, length in ends}
    return [path.parent / name for name in sorted(names)]


def _written_by_build(path: Path, folder: Path) -> bool:
    if path.name == LOCK_FILE or path.name.endswith(_WRITTEN_BY_BUILDS):
        return True
    inside = path.relative_to(folder).parents
    return any(_is_release(folder / place) for place in inside if place != Path())


def _is_release(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in _RELEASES)


def _imported_packages(module: Path, folder: Path) -> dict[str, Path]:
    """Sources of packages that `module` imports from outside `folder`, unless they are installed or edgebuild's."""
    found: dict[str, Path] = {}
    for name in _imported_names(module):
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is None or name == "edgebuild" or (folder / name).exists() or (folder / f"{name}.py").exists():
            continue
        if spec.submodule_search_locations:
            for root in map(Path, spec.submodule_search_locations):
                if not _installed(root):
                    found |= {
                        f"{name}:{path.relative_to(root)}": path
                        for path in digest.files_below(root)
                        if path.suffix == ".py"
                    }
        elif spec.origin and spec.has_location and not _installed(Path(spec.origin)):
            found[f"{name}:"] = Path(spec.origin)
    return found


def _imported_names(module: Path) -> Iterator[str]:
    try:
        tree = ast.parse(module.read_bytes())
    except (SyntaxError, ValueError) as reason:
        raise ModelError(f"{module}: is not valid Python: {reason}", "correct it") from reason
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def _installed(path: Path) -> bool:
    """Whether a package manager put it there, for this Python or for another one that this one looks into too."""
    roots = {Path(sys.prefix), Path(sys.base_prefix), *map(Path, sysconfig.get_paths().values())}
    if {"site-packages", "dist-packages"} & set(path.resolve().parts):
        return True
    return any(path.resolve().is_relative_to(root.resolve()) for root in roots)
