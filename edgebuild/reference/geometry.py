"""Windows of convolutions and poolings: pads, strides, dilations and the views that they select."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgebuild.reference.values import Array


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes; `pads_after` already holds what ceil_mode adds (`excess`)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_before: tuple[int, ...]
    pads_after: tuple[int, ...]
    excess: tuple[int, ...]
    output: tuple[int, ...]


def window(attributes: dict[str, Any], kernel: tuple[int, ...], image: tuple[int, ...]) -> Window:
    """The window of an ONNX Conv or pool node over spatial extents `image`."""
    rank = len(image)
    strides = tuple(attributes.get("strides") or [1] * rank)
    dilations = tuple(attributes.get("dilations") or [1] * rank)
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    before, after = _pads(attributes, extent, strides, image)
    output, excess = [], []
    for i in range(rank):
        free = image[i] + before[i] + after[i] - extent[i]
        count = free // strides[i] + 1
        if attributes.get("ceil_mode") and free % strides[i] and count * strides[i] < image[i] + before[i]:
            count += 1  # a window may hang over the end, but must not start in the padding behind it
        output.append(count)
        excess.append(max(0, (count - 1) * strides[i] + extent[i] - image[i] - before[i] - after[i]))
    padded_after = tuple(a + e for a, e in zip(after, excess, strict=True))
    return Window(kernel, strides, dilations, before, padded_after, tuple(excess), tuple(output))


def _pads(
    attributes: dict[str, Any], extent: tuple[int, ...], strides: tuple[int, ...], image: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = len(image)
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode in {b"SAME_UPPER", b"SAME_LOWER"}:
        totals = [max(0, (-(-n // s) - 1) * s + e - n) for n, s, e in zip(image, strides, extent, strict=True)]
        small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        return (small, large) if mode == b"SAME_UPPER" else (large, small)
    pads = list(attributes.get("pads") or [0] * (2 * rank)) if mode == b"NOTSET" else [0] * (2 * rank)
    return tuple(pads[:rank]), tuple(pads[rank:])


def padded(x: Array, w: Window, value: float) -> Array:
    """`x` [N, C, spatial…] with the window's padding around the spatial axes."""
    pads = [(0, 0), (0, 0), *zip(w.pads_before, w.pads_after, strict=True)]
    return np.pad(x, pads, constant_values=value) if any(a or b for a, b in pads) else x


def tap(x: Array, w: Window, position: tuple[int, ...]) -> Array:
    """What the kernel's element at `position` sees of the padded `x`: [N, C, output…], a view."""
    index: list[slice] = [slice(None), slice(None)]
    for p, d, s, o in zip(position, w.dilations, w.strides, w.output, strict=True):
        index.append(slice(p * d, p * d + (o - 1) * s + 1, s))
    return x[tuple(index)]


def taps(w: Window) -> list[tuple[int, ...]]:
    """The kernel's positions in row-major order."""
    return list(np.ndindex(*w.kernel))


def counts(w: Window, image: tuple[int, ...], *, include_pad: bool) -> Array:
    """How many positions of each window count for an average: int32 [output…]."""
    ones = np.ones((1, 1, *image), np.int32)
    real = padded(ones, w, 0)
    if include_pad:
        real = np.ones_like(real)
        for axis, excess in enumerate(w.excess):
            if excess:
                np.moveaxis(real, axis + 2, 0)[-excess:] = 0
    total: Array = np.zeros((1, 1, *w.output), np.int32)
    for position in taps(w):
        total = total + tap(real, w, position)
    result: Array = total[0, 0]
    return result
