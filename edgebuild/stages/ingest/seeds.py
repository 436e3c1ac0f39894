"""The same weights whenever the same recipe is built: fixed seeds, one thread, deterministic kernels."""

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np

TORCH, TENSORFLOW = "torch", "tensorflow"


@contextmanager
def seeded(seed: int, frameworks: Collection[str]) -> Iterator[None]:
    """Inside, whatever the `frameworks` draw is decided by `seed`. Imports them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (recipes may use the global generator)
    if TENSORFLOW in frameworks:
        from edgebuild.stages.ingest.tensorflow import seed_tensorflow  # noqa: PLC0415 - imports TensorFlow

        seed_tensorflow(seed)
    if TORCH not in frameworks:
        yield
        return
    with _seeded_torch(seed):
        yield


@contextmanager
def _seeded_torch(seed: int) -> Iterator[None]:
    import torch  # noqa: PLC0415 - a TensorFlow recipe does without it

    threads, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(algorithms)
