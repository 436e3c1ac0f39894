"""A recipe's Python: imported from its folder and forgotten afterwards: two recipes may both have a `model.py`."""

import importlib.util
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from edgebuild.core.errors import EdgebuildError, ModelError
from edgebuild.core.manifest import is_identifier
from edgebuild.core.recipe import Recipe
from edgebuild.core.toml import did_you_mean
from edgebuild.function import Function

FRAMEWORKS = ("torch", "tensorflow", "numpy")
_ALSO = {"keras": "tensorflow"}
NETWORKS = "return a torch.nn.Module, a keras.Model, a tf.Module or a tf.function"
STRAIGHT = (
    "a handler is straight torch code, NumPy or TensorFlow: no branch, loop length or .item() that depends on a "
    "tensor's value, no other library"
)


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


def built(recipe: Recipe) -> Any:
    """What the recipe's factory returns."""
    factory = attribute(load_module(recipe.folder / recipe.model.file), recipe.model.factory, "[model] factory")
    arguments = ", ".join(f"{name}={value!r}" for name, value in recipe.model.args.items())
    with blame(recipe.folders, f"{recipe.model.factory}({arguments}) failed"):
        return factory(**recipe.model.args)


def frameworks_of(function: Function) -> set[str]:
    """Those of FRAMEWORKS that the handler, and what it calls of the recipe's own functions, mention by name."""
    found: set[str] = set()
    waiting, seen = [function.handler], set()
    while waiting:
        current = waiting.pop()
        top = _top_package(type(current))
        if top in FRAMEWORKS:  # a tf.function is an object of TensorFlow's
            found.add(top)
        current = getattr(current, "python_function", current)
        code = getattr(current, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        for value in _mentioned(current):
            top = _top_package(value)
            if top in FRAMEWORKS:
                found.add(top)
            elif callable(value) and _is_of(value, function):
                waiting.append(value)
    return found


def _mentioned(function: Any) -> Iterator[Any]:
    """The globals, and what surrounding functions hold, that a function's code names."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [value for value in code.co_consts if isinstance(value, CodeType)]
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)
    yield from (cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _is_of(value: Any, function: Function) -> bool:
    """Whether `value` was defined in the folder that the handler lies in."""
    there, here = _file_of(value), _file_of(function.handler)
    return there is not None and here is not None and there.parent == here.parent


def _file_of(value: Any) -> Path | None:
    """The file that a function, or what a tf.function was made of, was defined in."""
    code = getattr(getattr(value, "python_function", value), "__code__", None)
    return None if code is None else Path(code.co_filename)


def _top_package(value: Any) -> str:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    top = str(name).partition(".")[0]
    return _ALSO.get(top, top)


def as_dict(result: Any, function: str) -> dict[str, Any]:
    """What a handler returned, by output name. Raises ModelError for what has no name."""
    if hasattr(result, "shape") and not isinstance(result, dict):
        return {"output": result}
    if not isinstance(result, dict) or not result:
        raise ModelError(
            f"{function}: returns {type(result).__name__}", "return a dict of tensors by output name, or a tensor"
        )
    for name, value in result.items():
        if not isinstance(name, str) or not is_identifier(name):
            raise ModelError(
                f"{function}: output name {name!r} is no identifier of letters, digits and _", "rename that key"
            )
        if not hasattr(value, "shape"):
            raise no_tensor(function, name, value)
    return result


def no_tensor(function: str, output: str, value: Any) -> ModelError:
    return ModelError(
        f"{function}: output '{output}' is {type(value).__name__}, no tensor",
        "return tensors or arrays; .item(), .tolist(), int() and float() leave the graph",
    )


@contextmanager
def blame(
    folders: Sequence[Path], what: str, hint: str | Callable[[Exception], str] = "", *, line: bool = False
) -> Iterator[None]:
    """Turns an exception of the recipe's code into a ModelError that names the file and line it came from.

    `line`: the message quotes it, for exceptions that do not say which operation they mean.
    """
    try:
        yield
    except EdgebuildError:
        raise
    except Exception as reason:
        where = location(reason, folders)
        quoted = f" in `{text}`" if line and (text := _text_at(where)) else ""
        message = f"{where}: {what}{quoted}: {_first_line(reason)}"
        raise ModelError(message, hint(reason) if callable(hint) else hint) from reason


def _text_at(where: str) -> str:
    file, _, number = where.rpartition(":")
    return linecache.getline(str(Path(file).resolve()), int(number)).strip() if number.isdigit() else ""


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
