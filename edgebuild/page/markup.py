"""HTML from values: everything that comes out of a model or a file is escaped here, and nowhere else."""

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as HTML; Markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(escape(str(value), quote=True))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; an attribute's trailing underscore is dropped, `_` within its name becomes `-`."""
    given = "".join(f' {k.rstrip("_").replace("_", "-")}="{text(v)}"' for k, v in attributes.items() if v is not None)
    return Markup(f"<{name}{given}>{''.join(text(item) for item in content)}</{name}>")


def joined(items: Iterable[object]) -> Markup:
    """One after the other."""
    return Markup("".join(text(item) for item in items))


def table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[object]]]) -> Markup:
    """A table; a head that starts with `#` stands over numbers. Each row is (class, cells)."""
    numeric = [head.startswith("#") for head in heads]
    top = tag("tr", *(tag("th", head.lstrip("#"), class_="n" if n else None)
                      for head, n in zip(heads, numeric, strict=True)))  # fmt: skip
    body = [
        tag("tr", *(tag("td", cell, class_="n" if n else "name") for cell, n in zip(cells, numeric, strict=True)),
            class_=kind or None)
        for kind, cells in rows
    ]  # fmt: skip
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="scroll")


def pairs(items: Iterable[tuple[str, object]]) -> Markup:
    """Names with what they mean."""
    return tag("dl", *(joined([tag("dt", name), tag("dd", value)]) for name, value in items))
