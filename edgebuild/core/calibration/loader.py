"""Sets that a Python module of their own makes."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgebuild.core.calibration.sources import Items
from edgebuild.core.errors import CalibrationError, EdgebuildError
from edgebuild.core.manifest import Tensor
from edgebuild.core.toml import did_you_mean


@dataclasses.dataclass(frozen=True)
class Loader:
    """A Python module of the set: `files()` names the data, `function(inputs)` yields (sample, label or None)."""

    path: Path
    function: str

    def files(self) -> list[Path]:
        with self._blame("files"):
            return [self.path, *self._load("files")()]

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Items:  # noqa: ARG002
        with self._blame(self.function):
            yield from self._load(self.function)(inputs)

    def _load(self, name: str) -> Any:
        unique = f"_edgebuild_loader_{self.path.parent.name}"
        spec = importlib.util.spec_from_file_location(unique, self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, name, None)
        if found is None:
            raise CalibrationError(f"{self.path}: has no function '{name}'", did_you_mean(name, _public(module)))
        return found

    @contextmanager
    def _blame(self, name: str) -> Iterator[None]:
        try:
            yield
        except EdgebuildError:
            raise
        except Exception as reason:
            raise CalibrationError(
                f"{self.path}: {name}: {type(reason).__name__}: {reason}", "this is the set's own code; correct it"
            ) from reason


def _public(module: Any) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]
