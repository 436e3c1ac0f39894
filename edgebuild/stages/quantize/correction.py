"""Bias correction: rounding weights shifts the mean of each output channel, and the bias takes the shift back.

The expected shift is E[(W_q - W) x] = (W_q - W) E[x] with the mean of the layer's input on the calibration samples
(Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.2). Depthwise
networks need it: their few products per output do not average the errors out.
"""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from edgebuild.stages.quantize.graph import Array, Graph, attributes, key


class ChannelMean:
    """The mean of each channel over all samples; an observer of a weighted operator's input."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._sum: Array | None = None
        self._count = 0

    def observe(self, values: Array, low: float, high: float) -> None:  # noqa: ARG002 - the protocol's signature
        """Adds the values of one sample."""
        rows = np.moveaxis(values, self._axis, 0).reshape(values.shape[self._axis], -1)
        total = rows.mean(axis=1, dtype=np.float64) * rows.shape[1]
        self._sum = total if self._sum is None else self._sum + total
        self._count += rows.shape[1]

    def mean(self) -> Array:
        """Float64 [channels]; at least one sample was observed."""
        assert self._sum is not None
        return np.asarray(self._sum / self._count)


@dataclass(frozen=True)
class Shift:
    """What a mean input of `mean` [groups * K] makes of an error in the weights."""

    mean: Array
    group: int

    def of(self, error: Array) -> Array:
        """The mean shift of each output [M] for a weight error [M, K, ...]."""
        rows = error.reshape(*error.shape[:2], -1).sum(axis=2).reshape(self.group, -1, error.shape[1])
        return np.asarray((rows * self.mean.reshape(self.group, 1, -1)).sum(axis=2).reshape(-1))


def channel_means(graph: Graph, quantized: frozenset[str]) -> dict[str, ChannelMean]:
    """An observer for the input of every quantized Conv and Gemm, by tensor."""
    return {n.input[0]: ChannelMean(1) for n in graph.nodes if key(n) in quantized and n.op_type in {"Conv", "Gemm"}}


def shift(node: NodeProto, means: dict[str, ChannelMean]) -> Shift | None:
    """The shift of one weighted operator; None for an operator without a bias."""
    if node.op_type not in {"Conv", "Gemm"}:
        return None
    return Shift(means[node.input[0]].mean(), int(attributes(node).get("group", 1)))
