"""A stage's result comes from the cache, where the digest of all that it depends on finds it; else it is made.

Keys are made of files, of versions of packages and of edgebuild's own sources.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from edgebuild.core import digest
from edgebuild.core.cache import Cache
from edgebuild.core.errors import ModelError
from edgebuild.pipeline.entries import Entry
from edgebuild.pipeline.job import Job, Listener

# Edgebuild's own sources (core aside, which counts everywhere) and the packages that a stage's result depends on.
_FOREIGN = ("stages/compile", "kernels")  # what the interpreter takes from TVM
_SOURCES = {
    "ingest": ("stages/ingest", "function"),
    "quantize": ("stages/quantize",),
    "compile": ("stages/compile", "kernels"),
    "golden": ("stages/check", "reference", *_FOREIGN),
    "check": ("stages/check",),
    "precision": ("stages/check", "stages/quantize", *_FOREIGN),
    "fallback": ("budget", "stages/check", "stages/evaluate", "stages/quantize", *_FOREIGN),
    "diagnose": ("stages/diagnose",),
    "evaluate": ("stages/evaluate", "reference", *_FOREIGN),
}
_DATA_PACKAGES = ("numpy", "pillow", "scikit-learn")
_PACKAGES = {
    "ingest": (
        *("torch", "tensorflow", "keras", "tf2onnx"),
        *("onnx", "onnx-ir", "onnxscript", "onnxruntime", "safetensors", *_DATA_PACKAGES),
    ),
    "quantize": ("onnx", "onnxruntime", *_DATA_PACKAGES),
    "compile": ("apache-tvm", "numpy", "onnx", "ziglang"),
    "golden": ("apache-tvm", "onnx", "onnxruntime", "ziglang", *_DATA_PACKAGES),
    "check": (),
    "precision": ("apache-tvm", "onnx", "onnxruntime", "ziglang"),
    "fallback": ("apache-tvm", "onnx", "onnxruntime", "ziglang", *_DATA_PACKAGES),
    "diagnose": ("onnx", "onnxruntime", *_DATA_PACKAGES),
    "evaluate": ("apache-tvm", "onnx", "onnxruntime", "ziglang", *_DATA_PACKAGES),
}


class Cached:
    """Runs stages, keeps the time and tells the listener."""

    def __init__(self, job: Job, listener: Listener, cache: Cache) -> None:
        self.job = job
        self.seconds: dict[str, float] = {}
        self._listener = listener
        self._cache = cache
        self._nested = 0.0
        self._cached = False

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """A stage, which may come more than once, and within another one: each second counts once."""
        self._listener.started(stage)
        outside, self._nested, self._cached = self._nested, 0.0, False
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        own = seconds - self._nested
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + own, 3)
        self._listener.finished(stage, round(own, 3), cached=self._cached)
        self._nested, self._cached = outside + seconds, False

    @contextmanager
    def naming_model(self) -> Iterator[None]:
        """Stages behind ingest know layers, not the file that they come from."""
        recipe = self.job.recipe
        try:
            yield
        except ModelError as error:
            where = recipe.saved or recipe.name
            raise ModelError(f"{where}: {error.message}", error.hint) from error

    def measured(self, stage: str, inputs: Iterable[str], make: Callable[[], dict[str, bytes]]) -> Entry:
        """The result of a stage that measures: with --update-lock what was measured before does not count."""
        now = [str(time.time_ns())] if self.job.update_lock else []
        return self.entry(stage, [*inputs, *now], make)

    def entry(self, stage: str, inputs: Iterable[str], make: Callable[[], dict[str, bytes]]) -> Entry:
        """The cached result of a stage, made when it is missing."""
        own = digest.of_modules(("core", *_SOURCES[stage]))
        key = digest.of_parts(stage, sys.version, own, digest.of_packages(_PACKAGES[stage]), *inputs)
        folder = self._cache.get(key)
        self._cached = folder is not None
        return Entry(folder or self._cache.put(key, make()))

    def advanced(self, stage: str, done: int, total: int | None) -> None:
        """Tells the listener."""
        self._listener.advanced(stage, done, total)

    def progress(self, stage: str, total: int | None) -> Callable[[int], None]:
        return lambda done: self.advanced(stage, done, total)
