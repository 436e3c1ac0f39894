"""Folders are layers: no import points up, and stages do not import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import edgebuild

ROOT = Path(edgebuild.__file__).parent
# What each layer may import besides itself; a stage is a layer of its own.
ALLOWED = {
    "core": set(),
    "boxes": {"core"},
    "function": {"core"},
    "kernels": {"core"},
    "reference": {"core"},
    "stages": {"core", "function", "kernels", "reference"},
    "report": {"core"},
    "views": {"report"},
    "page": {"core", "report"},
    "projects": {"core"},
    "budget": set(),
    "pipeline": {"core", "stages", "reference", "report", "page", "budget"},
    "release": {"core", "stages", "pipeline"},
    "bench": {"core", "stages", "pipeline", "projects"},
    "demo": {"core", "stages", "pipeline", "projects", "views", "bench"},
    "cli": {"core", "stages", "pipeline", "projects", "demo", "report", "views", "page", "bench", "release"},
    "__main__": {"cli"},
    "__init__": {"boxes", "function"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if "_resources" not in path.parts]


def own_imports() -> Iterator[tuple[Path, tuple[str, ...], tuple[str, ...]]]:
    """(file, its place, the place of what it imports) for imports of edgebuild itself."""
    for path in modules():
        place = path.relative_to(ROOT).with_suffix("").parts
        for name in imports(path):
            parts = tuple(name.split("."))
            if parts[0] == "edgebuild" and len(parts) > 1:
                yield path, place, parts[1:]


def test_every_module_has_a_layer() -> None:
    assert {path.relative_to(ROOT).with_suffix("").parts[0] for path in modules()} <= set(ALLOWED)


def test_no_import_points_up() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {'.'.join(there)}"
        for path, here, there in own_imports()
        if there[0] in ALLOWED and there[0] != here[0] and there[0] not in ALLOWED[here[0]]
    ]
    assert wrong == []


def test_stages_do_not_import_each_other() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {'.'.join(there)}"
        for path, here, there in own_imports()
        if here[0] == there[0] == "stages" and len(there) > 1 and there[1] != here[1]
    ]
    assert wrong == []


def test_nothing_below_the_command_line_prints_or_exits() -> None:
    names = {"print", "exit", "quit"}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        if path.relative_to(ROOT).parts[0] != "cli"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names
    ]
    assert wrong == []
