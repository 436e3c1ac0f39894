"""Strict reading of TOML into frozen dataclasses: what the schema does not name is an error.

A schema's fields may be `str`, `int`, `float` (an integer is taken as well), `bool`, `Literal[...]`, `tuple[T, ...]`
(an array), `dict[str, T]` (a table with free keys), another frozen dataclass (a table), `Any`, and `T | None` or other
unions of these. A field without a default is required. `__post_init__` may raise
`ValueError("key: what is wrong; what to do")`.
"""

import dataclasses
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgebuild.core.errors import EdgebuildError, RecipeError

T = TypeVar("T")

_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "an array",
}


def read(path: Path, schema: type[T], error: type[EdgebuildError] = RecipeError) -> T:
    """The file `path` as `schema`, a dataclass. Raises `error`: file, dotted key, what was expected, what was found."""
    import tomllib  # noqa: PLC0415  (handlers import this module through edgebuild, which is to stay quick)

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror}", "name an existing file") from reason
    except UnicodeDecodeError as reason:
        raise error(f"{path}: is not UTF-8 text", "save the file as UTF-8") from reason
    except tomllib.TOMLDecodeError as reason:
        raise error(
            f"{path}: is not valid TOML: {reason}", "correct that line; https://toml.io shows the syntax"
        ) from reason
    try:
        return _table(table, schema, "")
    except _SchemaError as reason:
        raise error(f"{path}: {reason.message}", reason.hint) from reason


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest spelling, else the list of what is known; empty when nothing is."""
    import difflib  # noqa: PLC0415

    names = list(known)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(names)}" if names else ""


class _SchemaError(Exception):
    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def _table(table: Mapping[str, Any], schema: type[T], prefix: str) -> T:
    fields = {field.name: field for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
    hints = get_type_hints(schema)
    for key in table:
        if key not in fields:
            raise _SchemaError(f"unknown key '{prefix}{key}'", did_you_mean(key, fields))
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _value(table[name], hints[name], prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _SchemaError(f"missing key '{prefix}{name}'", f"add it; it is {_describe(hints[name])}")
    try:
        return schema(**values)
    except ValueError as reason:
        message, _, hint = str(reason).partition("; ")
        raise _SchemaError(f"{prefix}{message}", hint or "choose another value") from reason


def _value(value: Any, hint: Any, key: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union(value, hint, key)
    if origin is Literal:
        return _literal(value, hint, key)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(item, arguments[0], f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _value(item, arguments[1], f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _table(value, hint, f"{key}.")
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint is Any or (hint in (str, int, bool) and type(value) is hint):
        return value
    raise _mismatch(value, hint, key)


def _union(value: Any, hint: Any, key: str) -> Any:
    members = [member for member in get_args(hint) if member is not types.NoneType]
    if len(members) == 1:
        return _value(value, members[0], key)
    for member in members:
        try:
            return _value(value, member, key)
        except _SchemaError:
            continue
    raise _mismatch(value, hint, key)


def _literal(value: Any, hint: Any, key: str) -> Any:
    allowed = get_args(hint)
    if type(value) not in {type(item) for item in allowed}:
        raise _mismatch(value, hint, key)
    if value not in allowed:
        raise _SchemaError(
            f"{key}: expected {_describe(hint)}, found {value!r}", did_you_mean(str(value), map(str, allowed))
        )
    return value


def _mismatch(value: Any, hint: Any, key: str) -> _SchemaError:
    shown = "" if isinstance(value, dict | list) else f" {value!r}"
    return _SchemaError(
        f"{key}: expected {_describe(hint)}, found {_NAMES.get(type(value), 'a date or time')}{shown}",
        f"write {_describe(hint)}",
    )


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in arguments if member is not types.NoneType)
    if origin is Literal:
        return "one of " + ", ".join(repr(item) for item in arguments)
    if origin is tuple:
        return f"an array ({_describe(arguments[0])} each)"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a table"
    return _NAMES.get(hint, "any value")
