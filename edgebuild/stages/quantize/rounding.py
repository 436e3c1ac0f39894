"""Rounding of weights that keeps a layer's output, not each weight, close to the float one.

Rounded to the nearest, weights make independent errors e, and the output errs by e·x. Inputs are correlated (pixels
with their neighbours, channels with each other), so an error in one weight can be taken back by how the others are
rounded. The weights of a row are rounded one after the other, and what each leaves is spread over those that are still
free so that E[(e·x)²] stays least (Frantar et al., GPTQ, 2023; Hassibi and Stork, Optimal Brain Surgeon, 1993). The
mean of x is left out of it: the bias takes that part back (Nagel et al., Data-Free Quantization, 2019, section 4.2).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import NodeProto

from edgebuild.stages.quantize.graph import Array, Graph, Types, attributes
from edgebuild.stages.quantize.operators import is_weighted

_POSITIONS = 512
"""Positions of an image that a sample contributes at most; neighbours say nearly the same."""
_DAMPING = 0.01
"""Of the mean variance, added to every variance: directions that the samples do not show are not free."""
_ROWS, _ROWS_PER_TERM = 8192, 16
"""How many inputs of the sums make a covariance; more change nothing that matters."""
_TOGETHER = 256
"""So many inputs are multiplied with each other at a time: writing the products takes longer than forming them."""
_BLOCK = 64
_LARGEST = 4608
"""Products of a sum up to which covariances are kept: 512 channels of 3 × 3; beyond, weights are rounded to nearest."""


@dataclass(frozen=True)
class Geometry:
    """Which values of its input a weighted operator multiplies together: K products in each of `groups` groups."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int

    def rows(self, values: Array) -> Array:
        """Inputs of the sums, [groups, positions, K], at most _POSITIONS evenly chosen ones."""
        return self.columns(values).transpose(0, 2, 1)

    def columns(self, values: Array) -> Array:
        """The same, [groups, K, positions]."""
        if values.ndim != 4:
            flat = values.reshape(-1, values.shape[-1])
            return np.ascontiguousarray(flat[_spread(len(flat))].T)[None]
        top, left, bottom, right = self.pads
        x = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right))) if any(self.pads) else values
        n, c, height, width = x.shape
        pixels = x.transpose(1, 0, 2, 3).reshape(c, -1)
        found = np.take(pixels, self._pixels(n, height, width), axis=1)  # [C, kh * kw, P]
        return np.asarray(found.reshape(self.groups, -1, found.shape[2]))

    def _pixels(self, n: int, height: int, width: int) -> Array:
        """Which pixels of `n` padded images the chosen windows hold, int64 [kh * kw, positions]."""
        (kh, kw), (dh, dw), (sh, sw) = self.kernel, self.dilations, self.strides
        h, w = (height - (kh - 1) * dh - 1) // sh + 1, (width - (kw - 1) * dw - 1) // sw + 1
        image, y, x = np.unravel_index(_spread(n * h * w), (n, h, w))
        first = (image * height + y * sh) * width + x * sw
        inside = np.arange(kh)[:, None] * (dh * width) + np.arange(kw) * dw
        return np.asarray(inside.reshape(-1, 1) + first)


class Moments(Protocol):
    """Mean [groups, K] and covariance [groups, K, K] of the inputs of a layer's sums, float64."""

    def mean(self) -> Array:
        """The means."""

    def covariance(self) -> Array | None:
        """The covariances; None for sums of too many products, or too large ones."""


class SeenMoments:
    """A watcher of a layer's input."""

    def __init__(self, geometry: Geometry, terms: int) -> None:
        self._geometry = geometry
        self._terms = terms
        self._sum: Array | None = None
        self._products: Array | None = None
        self._waiting: list[Array] = []
        self._count = 0
        self._covered = 0
        self._covered_sum: Array = np.zeros(())

    def observe(self, values: Array, low: float, high: float) -> None:  # noqa: ARG002 - the protocol's signature
        """Adds the values of one sample."""
        columns = self._geometry.columns(values).astype(np.float32, copy=False)
        total = columns.sum(axis=2, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += columns.shape[2]
        if self._terms <= _LARGEST and self._covered < max(_ROWS, _ROWS_PER_TERM * self._terms):
            self._covered += columns.shape[2]
            self._covered_sum = self._covered_sum + total
            self._waiting.append(columns)
            if sum(c.shape[2] for c in self._waiting) >= min(_TOGETHER, self._terms):
                self._multiply()

    def _multiply(self) -> None:
        if not self._waiting:
            return
        columns = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting, axis=2)
        self._waiting = []
        with np.errstate(over="ignore", invalid="ignore"):
            products = columns @ columns.transpose(0, 2, 1)
        if self._products is None:
            self._products = products
        else:
            self._products += products

    def mean(self) -> Array:
        """Float64 [groups, K]; at least one sample was observed."""
        assert self._sum is not None
        return np.asarray(self._sum / self._count)

    def covariance(self) -> Array | None:
        """Float64 [groups, K, K], with _DAMPING; None for sums of too many products, or too large ones."""
        self._multiply()
        if self._products is None or not np.isfinite(self._products).all():
            return None
        mean = self._covered_sum / self._covered
        found = self._products.astype(np.float64) / self._covered - mean[:, :, None] * mean[:, None, :]
        each = np.einsum("gkk->gk", found).mean(axis=1)
        floor = max(float(each.max(initial=0.0)), 1.0) * 1e-9
        found += np.eye(self._terms) * np.maximum(each * _DAMPING, floor)[:, None, None]
        return np.asarray(found)


@dataclass(frozen=True)
class ScaledMoments:
    """What moments become when the channels of the layer's input are multiplied by `factors` [C]."""

    seen: SeenMoments
    factors: Array

    def mean(self) -> Array:
        """The means."""
        mean = self.seen.mean()
        return np.asarray(mean * self._each(mean.shape))

    def covariance(self) -> Array | None:
        """The covariances."""
        found = self.seen.covariance()
        if found is None:
            return None
        each = self._each(found.shape[:2])
        return np.asarray(found * each[:, :, None] * each[:, None, :])

    def _each(self, shape: tuple[int, ...]) -> Array:
        """The factor of every input of the sums [groups, K]: channels are the slowest axis."""
        channels = self.factors.astype(np.float64).reshape(shape[0], -1)
        return np.repeat(channels, shape[1] // channels.shape[1], axis=1)


def moments(graph: Graph, types: Types, quantized: frozenset[str]) -> dict[str, SeenMoments]:
    """A watcher of the input of every quantized weighted node, by the node's key."""
    found = {}
    for node in graph.nodes:
        if node.output[0] in quantized and is_weighted(graph, node):
            weight = graph.constants[node.input[1]]
            terms = weight.shape[0] if node.op_type == "MatMul" else weight[0].size
            found[node.output[0]] = SeenMoments(_geometry(node, weight, types), terms)
    return found


def _geometry(node: NodeProto, weight: Array, types: Types) -> Geometry:
    given = attributes(node)
    if node.op_type != "Conv":
        return Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    kernel = (weight.shape[2], weight.shape[3])
    strides, dilations = tuple(given.get("strides", (1, 1))), tuple(given.get("dilations", (1, 1)))
    pads = tuple(given.get("pads", (0, 0, 0, 0)))
    mode = given.get("auto_pad", b"NOTSET")
    if mode in {b"SAME_UPPER", b"SAME_LOWER"}:
        shape = types.shape(node.input[0]) or (1, 1, 1, 1)
        total = [max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
                 for n, s, k, d in zip(shape[2:], strides, kernel, dilations, strict=True)]  # fmt: skip
        small = [t // 2 if mode == b"SAME_UPPER" else t - t // 2 for t in total]
        pads = (*small, *(t - s for t, s in zip(total, small, strict=True)))
    return Geometry(kernel, strides, pads, dilations, int(given.get("group", 1)))


def rounded(steps: Array, covariance: Array) -> Array:
    """Integers in [-127, 127] near `steps` [groups, O, K], weights in units of their scale; float64 [groups, O, K].

    A covariance of [groups, K, K] says which errors matter. Scales do not: each row has one.
    """
    order = np.argsort(-np.einsum("gkk->gk", covariance), axis=1, kind="stable")
    h = np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2)
    left = np.take_along_axis(steps.transpose(0, 2, 1), order[:, :, None], 1).astype(np.float64)  # [groups, K, O]
    spread = factor(h)
    found = np.empty_like(left)
    terms = left.shape[1]
    for start in range(0, terms, _BLOCK):
        stop = min(start + _BLOCK, terms)
        errors = np.empty((left.shape[0], stop - start, left.shape[2]))
        for i in range(start, stop):
            np.clip(np.rint(left[:, i]), -127, 127, out=found[:, i])
            error = (left[:, i] - found[:, i]) / spread[:, i, i, None]
            errors[:, i - start] = error
            left[:, i + 1 : stop] -= spread[:, i, i + 1 : stop, None] * error[:, None]
        left[:, stop:] -= spread[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    back = np.argsort(order, axis=1, kind="stable")
    return np.take_along_axis(found, back[:, :, None], 1).transpose(0, 2, 1)


def factor(h: Array) -> Array:
    """The upper triangular U with Uᵀ·U = inverse of h, for each group; h gets more damping while rounding errors of
    its own make it indefinite.

    With rows and columns in reverse order h = L·Lᵀ; the inverse of L, turned back, is U.
    """
    each = np.einsum("gkk->gk", h).mean(axis=1)[:, None, None] * np.eye(h.shape[1])
    for damping in (0.0, 0.01, 0.1, 1.0):
        try:
            lower = np.linalg.cholesky((h + damping * each)[:, ::-1, ::-1])
            return np.ascontiguousarray(_triangular_inverse(lower)[:, ::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
    return np.broadcast_to(np.eye(h.shape[1]), h.shape)


def _triangular_inverse(lower: Array) -> Array:
    """The inverse of lower triangular matrices [groups, K, K], by halves: most of it is products of matrices."""
    size = lower.shape[1]
    if size <= _BLOCK:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    found = np.zeros_like(lower)
    found[:, :half, :half] = first = _triangular_inverse(lower[:, :half, :half])
    found[:, half:, half:] = last = _triangular_inverse(lower[:, half:, half:])
    found[:, half:, :half] = -last @ (lower[:, half:, :half] @ first)
    return found


def _spread(count: int) -> Array:
    """At most _POSITIONS of `count` numbers, evenly chosen."""
    return np.linspace(0, count - 1, min(count, _POSITIONS)).astype(np.int64)
