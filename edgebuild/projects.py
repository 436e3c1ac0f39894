"""From what the command line names to a recipe: a folder, a recipe that comes with edgebuild, or a saved model."""

import dataclasses
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgebuild.core.disk import disk_errors
from edgebuild.core.errors import CalibrationError, UsageError
from edgebuild.core.manifest import is_name, is_version
from edgebuild.core.recipe import (
    RECIPE_FILE,
    SAVED,
    Calibration,
    Identity,
    Model,
    Recipe,
    load_recipe,
    saved_kind,
)
from edgebuild.core.resources import resource
from edgebuild.core.toml import did_you_mean

DEFAULT = "digits"
NO_CALIBRATION = "give real samples: --calibration FILE.npz, one array per model input, first axis = samples"


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the recipe."""

    weights: Path | None = None
    seed: int | None = None
    calibration: Path | None = None
    samples: int | None = None


def bundled_recipes() -> dict[str, Path]:
    """Name to folder of the recipes that come with edgebuild."""
    return {path.parent.name: path.parent for path in sorted(resource("recipes").glob(f"*/{RECIPE_FILE}"))}


def named_or_here(wanted: str | None) -> str:
    """What is released: never the example by default. Raises UsageError."""
    if wanted is None and not Path(RECIPE_FILE).is_file():
        raise UsageError(f"{Path.cwd()}: holds no {RECIPE_FILE}", "name the recipe's folder, or go there")
    return wanted or "."


def resolve(wanted: str | None, overrides: Overrides) -> Recipe:
    """The recipe to compile. Raises UsageError when there is none of that name, RecipeError when it is wrong."""
    if wanted is not None and _is_saved(Path(wanted)):
        return _changed(_of_saved(Path(wanted), overrides), overrides)
    if overrides.weights is not None and not overrides.weights.is_file():
        raise UsageError(f"--weights {overrides.weights}: no such file", "name a .safetensors file")
    recipe = load_recipe(
        _folder(wanted), weights=overrides.weights, seed=overrides.seed, calibration=overrides.calibration
    )
    return _changed(recipe, overrides)


def _folder(wanted: str | None) -> Path:
    known = bundled_recipes()
    if wanted is None:
        return Path() if Path(RECIPE_FILE).is_file() else known[DEFAULT]
    if Path(wanted).is_dir():
        return Path(wanted)
    if Path(wanted).is_file():
        raise UsageError(
            f"{wanted}: is a file, but neither a recipe's folder nor a model",
            "name a folder with recipe.toml, or a model: .onnx, .pt2, .keras, .h5, .tflite, a SavedModel folder",
        )
    if wanted in known:
        return known[wanted]
    raise UsageError(f"no recipe '{wanted}': no such folder or recipe", did_you_mean(wanted, known))


def _is_saved(path: Path) -> bool:
    """Whether `path` names a saved model; a folder with a recipe is a recipe."""
    return saved_kind(path) is not None and not (path / RECIPE_FILE).is_file()


def _of_saved(path: Path, overrides: Overrides) -> Recipe:
    """A recipe that stands for a saved model."""
    kind = saved_kind(path)
    assert kind is not None
    if kind != "saved_model" and not path.is_file():
        what = f"is a folder, not {SAVED[kind]}" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}", "name a model, a recipe's folder, or a recipe of `edgebuild recipes`")
    for option, given in (("--weights", overrides.weights), ("--seed", overrides.seed)):
        if given is not None:
            raise UsageError(f"{option} is for recipes; {SAVED[kind]} holds its weights", f"leave out {option}")
    if overrides.calibration is None:
        raise CalibrationError(f"{path}: no calibration data given", NO_CALIBRATION)
    resolved = path.resolve()  # `.` has a name too
    name = re.sub(r"[^a-z0-9_-]", "-", resolved.stem.lower()).lstrip("_-")[:64] or "model"
    return Recipe(
        folder=resolved.parent if path.name in ("", "..") else path.parent,
        identity=Identity(name),
        model=dataclasses.replace(Model(), **{kind: resolved.name}),  # type: ignore[arg-type]
        function=None,
        calibration=Calibration(set=str(overrides.calibration.resolve())),
        accept=None,
        weights=None,
        bare=True,
    )


def _changed(recipe: Recipe, overrides: Overrides) -> Recipe:
    if overrides.samples is None:
        return recipe
    return dataclasses.replace(recipe, calibration=dataclasses.replace(recipe.calibration, samples=overrides.samples))


def identity(recipe: Recipe, name: str | None, version: str | None) -> tuple[str, str]:
    """The bundle's name and version: the command line's, else the recipe's."""
    if name is not None and not is_name(name):
        raise UsageError(f"--name {name}: may hold a-z, 0-9, `_` and `-`, at most 64", "e.g. --name my-model")
    if version is not None and not is_version(version):
        raise UsageError(
            f"--version {version}: may hold letters, digits and . + ~ -, at most 32", "e.g. --version 1.0.0"
        )
    return name or recipe.name, version or recipe.version


def new_recipe(folder: Path) -> Path:
    """Writes a recipe like `digits` under the name of `folder`, ready to compile and to be changed."""
    if not is_name(folder.name):
        raise UsageError(f"'{folder.name}' is no name for a recipe", "use a-z, 0-9, `_` and `-`")
    if folder.exists():
        raise UsageError(f"{folder}: exists already", "choose another name")
    template = bundled_recipes()[DEFAULT]
    with disk_errors(folder):
        folder.mkdir(parents=True)
        for path in sorted(template.iterdir()):
            if path.suffix in (".py", ".toml"):
                shutil.copyfile(path, folder / path.name)
        recipe = folder / RECIPE_FILE
        recipe.write_text(recipe.read_text().replace(f'name = "{DEFAULT}"', f'name = "{folder.name}"', 1))
    return folder
