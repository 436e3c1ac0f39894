"""A metric that the recipe brings: `[accept] metric = "metric.py:name"`."""

import importlib.util
from pathlib import Path
from typing import cast

from edgebuild.core.errors import EdgebuildError, RecipeError
from edgebuild.core.toml import did_you_mean
from edgebuild.stages.evaluate.metrics import Custom


def load_metric(path: Path, name: str) -> Custom:
    """The function `name(outputs, labels)` of `path`: a list of dicts of arrays and a list of labels in, a number out;
    more is better. Raises RecipeError.
    """
    spec = importlib.util.spec_from_file_location(f"_edgebuild_metric_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except EdgebuildError:
        raise
    except Exception as reason:
        raise RecipeError(
            f"{path}: cannot be imported: {type(reason).__name__}: {reason}", "this is the recipe's code; correct it"
        ) from reason
    found = getattr(module, name, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RecipeError(f"{path}: has no function '{name}', which [accept] metric names", did_you_mean(name, public))
    return cast("Custom", found)
