"""The recipe.toml of a test whose model and handler lie in files beside it."""

from pathlib import Path

CALIBRATION = 'set = "photos"'


def write_recipe(folder: Path, model: str = "", function: str = "", calibration: str = CALIBRATION) -> None:
    """Each argument: the lines of its table; the function is called `run`."""
    tables = {
        "recipe": 'name = "tiny"',
        "model": model,
        "function": f'{function}\nname = "run"',
        "calibration": calibration,
    }
    (folder / "recipe.toml").write_text("".join(f"[{name}]\n{lines}\n\n" for name, lines in tables.items()))
