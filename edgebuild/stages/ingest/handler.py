"""A recipe's Python: imported from its folder and forgotten afterwards: two recipes may both have a `model.py`."""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgebuild.core.errors import EdgebuildError, ModelError
from edgebuild.core.recipe import Recipe
from edgebuild.core.toml import did_you_mean
from edgebuild.function import Function


@contextmanager
def recipe_imports(folders: Sequence[Path]) -> Iterator[None]:
    """Inside, `import model` finds the recipe's own modules, those of the first folder first; afterwards none of them
    is left in `sys.modules`.
    """
    roots = [folder.resolve() for folder in folders]
    before = set(sys.modules)
    names = {name for root in roots for name in _module_names(root)}
    hidden = {name: sys.modules.pop(name) for name in sorted(names) if name in sys.modules}
    sys.path[:0] = map(str, roots)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        for root in roots:
            sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            if any(_lies_in(sys.modules[name], root) for root in roots):
                del sys.modules[name]
        sys.modules.update(hidden)


def load_module(path: Path) -> ModuleType:
    """Imports one file of the recipe. Raises ModelError, naming the line, when it fails."""
    path = path.resolve()
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) == str(path):
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: is no Python file", "name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with blame([path.parent], "cannot be imported"):
        spec.loader.exec_module(module)
    return module


def attribute(module: ModuleType, name: str, key: str) -> Any:
    """`module.name`, where the recipe's `key` names it."""
    found = getattr(module, name, None)
    if found is None:
        public = [known for known in vars(module) if not known.startswith("_")]
        raise ModelError(f"{module.__file__}: has no '{name}', which {key} names", did_you_mean(name, public))
    return found


def load_function(recipe: Recipe) -> Function:
    """The recipe's decorated handler."""
    assert recipe.function is not None
    path = recipe.folder / recipe.function.file
    found = attribute(load_module(path), recipe.function.name, "[function] name")
    if not isinstance(found, Function):
        raise ModelError(
            f"{path}: {recipe.function.name} is no function of edgebuild", "decorate it with @eb.function(...)"
        )
    if found.model is not None and found.model != recipe.name:
        raise ModelError(
            f"{path}: {found.name} wants the model '{found.model}'", did_you_mean(found.model, [recipe.name])
        )
    return found


@contextmanager
def blame(folders: Sequence[Path], what: str, hint: str | Callable[[Exception], str] = "") -> Iterator[None]:
    """Turns an exception of the recipe's code into a ModelError that names the file and line it came from."""
    try:
        yield
    except EdgebuildError:
        raise
    except Exception as reason:
        message = f"{location(reason, folders)}: {what}: {_first_line(reason)}"
        raise ModelError(message, hint(reason) if callable(hint) else hint) from reason


def location(reason: BaseException, folders: Sequence[Path]) -> str:
    """`FILE:LINE` of the innermost frame of `reason` that lies in one of `folders`, else the first of them."""
    if isinstance(reason, SyntaxError) and reason.filename:
        return f"{reason.filename}:{reason.lineno}"
    for frame in reversed(traceback.extract_tb(reason.__traceback__)):
        file = Path(frame.filename)
        for folder in folders:
            if file.is_relative_to(folder.resolve()):
                return f"{folder / file.relative_to(folder.resolve())}:{frame.lineno}"
    return str(folders[0])


def _first_line(reason: Exception) -> str:
    text = str(reason).strip()
    return f"{type(reason).__name__}: {text.splitlines()[0]}" if text else type(reason).__name__


def _module_names(root: Path) -> list[str]:
    return [path.stem for path in root.iterdir() if path.suffix == ".py" or path.is_dir()]


def _lies_in(module: ModuleType, root: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and Path(str(file)).resolve().is_relative_to(root)
