"""What detectors need behind the network, for handlers: written in operations that are traced like the rest."""

from typing import TYPE_CHECKING, Any

from edgebuild.core.errors import RecipeError

if TYPE_CHECKING:
    import torch

ROUNDS = 8


def nms(
    boxes: "torch.Tensor",
    scores: "torch.Tensor",
    labels: "torch.Tensor | None" = None,
    *,
    limit: int = 100,
    overlap: float = 0.45,
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Non-maximum suppression: of boxes that overlap, the one with the best score stays.

    `boxes` float32 [N, 4] (left, top, right, bottom), `scores` float32 [N] ≥ 0, `labels` [N]: only boxes of one label
    suppress each other. Gives the `limit` best by score: boxes [limit, 4], scores [limit], and their places in `boxes`,
    int64 [limit]; those that were suppressed stand behind with score 0. `overlap`: intersection over union from which a
    box gives way. All shapes are fixed, so that it compiles.

    The rounds of Cluster-NMS (Zheng et al., 2020): a box goes when a better one that stays covers it. The result is the
    greedy one where no chain of boxes, each covering the next, is longer than ROUNDS.
    """
    import torch  # noqa: PLC0415 - heavy; a handler that calls this has it

    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise RecipeError(
            f"nms: boxes are {list(boxes.shape)} and scores {list(scores.shape)}",
            "boxes are [N, 4] and scores [N]; take one picture, and the best class of each box",
        )
    count = min(limit, boxes.shape[0])
    best, places = scores.topk(count)
    found = boxes.index_select(0, places)
    covers = _covers(found, overlap)
    if labels is not None:
        mine = labels.index_select(0, places).to(found.dtype)
        covers = covers * (mine[:, None] == mine).to(found.dtype)
    later = torch.tensor([[float(i < j) for j in range(count)] for i in range(count)])
    covers = covers * later
    stays = torch.ones(count)
    for _ in range(ROUNDS):
        stays = 1 - (covers * stays[:, None]).amax(0)
    best, order = (best * stays).topk(count)
    return found.index_select(0, order), best, places.index_select(0, order)


def _covers(boxes: "torch.Tensor", overlap: float) -> Any:
    """1.0 where the boxes i and j overlap that much, else 0.0: float32 [N, N]."""
    left, top, right, bottom = boxes.unbind(1)
    width = (right[:, None].minimum(right) - left[:, None].maximum(left)).clamp(min=0)
    height = (bottom[:, None].minimum(bottom) - top[:, None].maximum(top)).clamp(min=0)
    both = width * height
    area = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    return (both > overlap * (area[:, None] + area - both)).to(boxes.dtype)
