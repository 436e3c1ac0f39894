"""Non-maximum suppression in fixed shapes against the greedy one, box by box."""

import numpy as np
import pytest
import torch

import edgebuild as eb
from edgebuild.core.errors import RecipeError


def _greedy(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, limit: int, overlap: float) -> list[int]:
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable")[:limit]:
        for j in kept:
            sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
            both = np.prod(np.maximum(sides, 0))
            if labels[i] == labels[j] and both > overlap * (areas[i] + areas[j] - both):
                break
        else:
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("seed", range(20))
def test_keeps_what_the_greedy_one_keeps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, limit = int(rng.integers(1, 400)), int(rng.integers(1, 120))
    centre = rng.uniform(0, rng.choice([60, 300]), (count, 2)).astype(np.float32)
    half = rng.uniform(2, 25, (count, 2)).astype(np.float32)
    boxes, scores = np.concatenate([centre - half, centre + half], 1), rng.uniform(0.01, 1, count).astype(np.float32)
    labels = rng.integers(0, 3, count)
    tensors = [torch.from_numpy(part) for part in (boxes, scores, labels)]
    found, best, places = eb.nms(*tensors, limit=limit, overlap=0.5)
    wanted = _greedy(boxes, scores, labels, limit, 0.5)
    size = min(limit, count)
    assert (found.shape, best.shape, places.shape) == ((size, 4), (size,), (size,))
    assert places[: len(wanted)].tolist() == wanted
    assert np.array_equal(found[: len(wanted)].numpy(), boxes[wanted])
    assert np.array_equal(best.numpy(), np.pad(scores[wanted], (0, size - len(wanted))))


def test_labels_are_optional() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [50, 50, 60, 60]])
    _, best, places = eb.nms(boxes, torch.tensor([0.5, 0.9, 0.1]))
    assert (places[:2].tolist(), best[2].item()) == ([1, 2], 0.0)


@pytest.mark.parametrize("shape", [(1, 5, 4), (5, 5), (4,)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="nms: boxes are"):
        eb.nms(torch.zeros(shape), torch.zeros(5))
