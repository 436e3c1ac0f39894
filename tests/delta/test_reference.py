"""The C codecs against a second reading of SPEC section 12."""

import random
from typing import Any

import numpy as np
import pytest
from delta import reference
from delta.releases import plan, weights, weights_bin

from edgebuild.pipeline.delta import codecs
from edgebuild.stages.delta.matches import steps


def changed(seed: int) -> dict[str, Any]:
    """Weights after an update of a kind that the seed chooses: small steps, some tensors untouched, noise."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = weights()
    for name, array in values.items():
        how = rng.integers(5)
        if how == 0:
            continue
        if array.dtype == np.float32:
            bits = array.view(np.int32)
            bits += (rng.integers(-9, 9, array.shape) << (16 * (how % 2))).astype(np.int32)
        elif how == 4:
            info = np.iinfo(array.dtype)
            values[name] = rng.integers(info.min, info.max, array.shape, array.dtype, endpoint=True)
        else:
            scale = 64 if array.itemsize > 1 else 1
            moved = array.astype(np.int64) + scale * rng.integers(-how, how + 1, array.shape)
            values[name] = moved.astype(array.dtype)
    return values


@pytest.mark.parametrize("seed", range(12))
def test_weights(seed: int) -> None:
    old, new = weights_bin(weights()), weights_bin(changed(seed))
    data = codecs().weights(plan(), old, new, 4 * len(new))
    assert data is not None
    assert reference.weights(data, plan(), old) == new


@pytest.mark.parametrize("seed", range(6))
def test_patches(seed: int) -> None:
    dice = random.Random(seed)
    old = bytes(dice.choice(b"abcdef \x00\xff") for _ in range(1500))
    new = bytearray(old[:700] + b"something new" * dice.randrange(3) + old[400:])
    for _ in range(dice.randrange(40)):
        new[dice.randrange(len(new))] = dice.randrange(256)
    data = codecs().patch(old, bytes(new), steps(old, bytes(new)), 4 * len(new))
    assert data is not None
    assert reference.patch(data, old, len(new)) == bytes(new)
