"""Every error says what to do about it."""

import ast
from pathlib import Path

import edgebuild
from edgebuild.core import errors

ROOT = Path(edgebuild.__file__).parent
TYPES = {name for name, item in vars(errors).items() if isinstance(item, type)} - {"EdgebuildError"}


def test_every_error_has_a_hint() -> None:
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TYPES
        if len(node.args) + len(node.keywords) < 2
    ]
    assert missing == []
