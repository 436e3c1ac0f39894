"""From what the command line names to a recipe: a folder, a recipe that comes with edgebuild, or an ONNX file."""

import dataclasses
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgebuild.core.disk import disk_errors
from edgebuild.core.errors import CalibrationError, UsageError
from edgebuild.core.manifest import is_name, is_version
from edgebuild.core.recipe import RECIPE_FILE, Calibration, Identity, Model, Recipe, load_recipe
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


def resolve(wanted: str | None, overrides: Overrides) -> Recipe:
    """The recipe to compile. Raises UsageError when there is none of that name, RecipeError when it is wrong."""
    if wanted is not None and wanted.endswith(".onnx"):
        return _changed(_of_file(Path(wanted), overrides), overrides)
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
            f"{wanted}: is a file, but neither a recipe's folder nor an .onnx model", "name a folder with recipe.toml"
        )
    if wanted in known:
        return known[wanted]
    raise UsageError(f"no recipe '{wanted}': no such folder or recipe", did_you_mean(wanted, known))


def _of_file(path: Path, overrides: Overrides) -> Recipe:
    """A recipe that stands for a bare ONNX file."""
    if not path.is_file():
        what = "is a folder, not an ONNX file" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}", "name an .onnx file, a recipe's folder, or a recipe of `edgebuild recipes`")
    for option, given in (("--weights", overrides.weights), ("--seed", overrides.seed)):
        if given is not None:
            raise UsageError(f"{option} is for recipes; an ONNX file holds its weights", f"leave out {option}")
    if overrides.calibration is None:
        raise CalibrationError(f"{path}: no calibration data given", NO_CALIBRATION)
    name = re.sub(r"[^a-z0-9_-]", "-", path.stem.lower()).lstrip("_-")[:64] or "model"
    return Recipe(
        folder=path.parent,
        identity=Identity(name),
        model=Model(onnx=path.name),
        function=None,
        calibration=Calibration(set=str(overrides.calibration.resolve())),
        accept=None,
        weights=None,
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
