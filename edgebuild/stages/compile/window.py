"""The sliding window of Conv and pooling nodes: kernel, stride, padding, dilation as ONNX gives them."""

from dataclasses import dataclass

import numpy as np

from edgebuild.stages.compile.graph import Graph, Node


@dataclass(frozen=True)
class Window:
    """All pairs are (rows, columns); `before` and `after` are the padding."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    include_pad: bool

    def counts(self, size: tuple[int, int], out: tuple[int, int]) -> np.ndarray:
        """How many positions of the window count in an average, float64 [out rows, out columns]."""
        rows, columns = (
            _count(
                size[i],
                out[i],
                self.kernel[i],
                self.stride[i],
                self.dilation[i],
                self.before[i],
                self.after[i],
                self.include_pad,
            )
            for i in (0, 1)
        )
        return np.outer(rows, columns).astype(np.float64)


def _count(
    size: int, out: int, kernel: int, stride: int, dilation: int, before: int, after: int, include_pad: bool
) -> np.ndarray:
    taps = np.arange(out)[:, None] * stride - before + np.arange(kernel) * dilation
    low, high = (-before, size + after) if include_pad else (0, size)
    return np.asarray(((taps >= low) & (taps < high)).sum(axis=1))


def window_of(graph: Graph, node: Node) -> Window:
    in_space = list(graph.shape(node.inputs[0])[2:])
    out_space = list(graph.shape(node.outputs[0])[2:])
    rank = len(in_space)
    if rank not in (1, 2):
        raise node.unsupported(f"{rank} spatial dimensions; 1 and 2 are supported")
    kernel = list(node.attrs.get("kernel_shape") or graph.shape(node.inputs[1])[2:])
    stride = list(node.attrs.get("strides") or [1] * rank)
    dilation = list(node.attrs.get("dilations") or [1] * rank)
    pads = list(node.attrs.get("pads") or [0] * (2 * rank))
    before, after = pads[:rank], pads[rank:]
    mode = node.text("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        for i in range(rank):
            total = max(0, (out_space[i] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 - in_space[i])
            small, large = total // 2, total - total // 2
            before[i], after[i] = (small, large) if mode == "SAME_UPPER" else (large, small)

    if node.attrs.get("ceil_mode", 0) and any(
        (o - 1) * s >= n + b for o, s, n, b in zip(out_space, stride, in_space, before, strict=True)
    ):
        raise node.unsupported(
            "with this ceil_mode ONNX's shapes count a window that starts behind the input, and runtimes do not"
        )

    def pair(values: list[int], fill: int) -> tuple[int, int]:
        first, second = ([fill] * (2 - rank) + [int(v) for v in values])[:2]
        return first, second

    include = bool(node.attrs.get("count_include_pad", 0))
    return Window(pair(kernel, 1), pair(stride, 1), pair(dilation, 1), pair(before, 0), pair(after, 0), include)
