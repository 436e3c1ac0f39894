"""What transformers add to the integer clusters: products of two activations, softmax, layer normalization."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgebuild.kernels.batched import Batched, batched_kernel
from edgebuild.kernels.floats import collapse
from edgebuild.kernels.norm import Rows, layer_norm_kernel, softmax_table_kernel
from edgebuild.stages.compile.clusters import Cluster, quant_of
from edgebuild.stages.compile.integer import IntegerLowering, _float_bits, _quant_params, clamps
from edgebuild.stages.compile.values import Value, row_major

_LONGEST_SUM = 30  # log2 of the largest sum of exponentials
_FINEST = 23  # bits of an exponential: float32 holds it exactly


@dataclass(frozen=True)
class AttentionLowering(IntegerLowering):
    """All integer clusters."""

    def _product(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        node, name = cluster.nodes[0], cluster.name
        a, b = sources
        shape = self.graph.shape(node.outputs[0])
        quant_a, quant_b = (quant_of(self.graph, s) for s in cluster.sources)
        quant_y = self.graph.quant(cluster.end)
        if 255 * 255 * a.shape[-1] >= 2**31:
            raise node.unsupported("the sum could overflow 32 bits")
        out = self.emit.tensor(name, "uint8", shape, self._turned_later(cluster, len(shape)))
        multiplier = _float_bits(quant_a.scale * quant_b.scale / quant_y.scale)
        params = [*_quant_params(cluster, quant_a, quant_y), quant_b.zero, multiplier]
        spec = _batched(a, b, out)
        constant = self.emit.constant(f"{name}:params", np.array(params, np.int32))
        inputs = [a, b, constant]
        largest = 255.0**2 * spec.depth * quant_a.scale * quant_b.scale / quant_y.scale
        self.emit.call(
            "matmul",
            node.name,
            batched_kernel,
            spec,
            inputs,
            out,
            integer=True,
            macs=spec.macs,
            bounds=clamps(cluster, largest),
        )
        return out

    def _turned_later(self, cluster: Cluster, rank: int) -> tuple[int, ...]:
        """The memory order in which the Transpose that reads the result moves no byte, if it keeps the last axis."""
        readers = self.graph.consumers.get(cluster.name, [])
        if len(readers) == 1 and readers[0].op == "DequantizeLinear":
            turns = self.graph.consumers.get(readers[0].outputs[0], [])
            if len(turns) == 1 and turns[0].op == "Transpose":
                order = tuple(int(p) for p in turns[0].attrs.get("perm", ()))
                if len(order) == rank and order[-1] == rank - 1:
                    return order
        return row_major(rank)

    def _softmax(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        node, name, x = cluster.nodes[0], cluster.name, sources[0]
        axis = int(node.attrs.get("axis", -1)) % len(x.shape)
        x = self.mover.ordered(x, [*(a for a in x.order if a != axis), axis], node.name)
        quant_x, quant_y = quant_of(self.graph, cluster.sources[0]), self.graph.quant(cluster.end)
        spec = Rows(x.size // x.shape[axis], x.shape[axis])
        inputs = [
            x,
            self.emit.constant(f"{name}:exponentials", exponentials(quant_x.scale, spec.size)),
            self.emit.constant(f"{name}:scale", np.array([1.0 / quant_y.scale], np.float32)),
            self.emit.constant(f"{name}:params", _quant_params(cluster, quant_x, quant_y)),
        ]
        out = self.emit.tensor(name, "uint8", x.shape, x.order)
        self.emit.call("softmax", node.name, softmax_table_kernel, spec, inputs, out, integer=True)
        return out

    def _layer_norm(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        node, name, x = cluster.nodes[0], cluster.name, sources[0]
        rank = len(x.shape)
        axis = int(node.attrs.get("axis", -1)) % rank
        x = self.mover.ordered(x, [*(a for a in x.order if a < axis), *range(axis, rank)], node.name)
        quant_x, quant_y = quant_of(self.graph, cluster.sources[0]), self.graph.quant(cluster.end)
        size = int(np.prod(x.shape[axis:]))
        gain = np.broadcast_to(self.graph.need_constant(node, 1), x.shape[axis:])
        offset = self.graph.need_constant(node, 2) if node.input(2) else np.zeros((), np.float32)
        epsilon = float(np.float32(node.attrs.get("epsilon", 1e-5))) * size**2 / quant_x.scale**2
        factors = [
            (v.astype(np.float64) / quant_y.scale).astype(np.float32)
            for v in (gain, np.broadcast_to(offset, gain.shape))
        ]
        inputs = [
            x,
            *(
                self.emit.constant(f"{name}:{p}", v.reshape(-1))
                for p, v in zip(("gain", "offset"), factors, strict=True)
            ),
            self.emit.constant(
                f"{name}:params", np.array([*_quant_params(cluster, quant_x, quant_y), _float_bits(epsilon)], np.int32)
            ),
        ]
        out = self.emit.tensor(name, "uint8", x.shape, x.order)
        spec = Rows(x.size // size, size)
        self.emit.call("layer_norm", node.name, layer_norm_kernel, spec, inputs, out, integer=True)
        return out


def _batched(a: Value, b: Value, out: Value) -> Batched:
    rank = len(out.shape)
    walks = []
    for value in (a, b, out):
        lead = rank - len(value.shape)
        strides = [0] * lead + [0 if n == 1 else s for n, s in zip(value.shape, value.strides, strict=True)]
        walks.append(strides[:-2])
    batch, (a_batch, b_batch, y_batch) = collapse(out.shape[:-2], walks)
    rows, columns, depth = out.shape[-2], out.shape[-1], a.shape[-1]
    return Batched(
        batch, rows, depth, columns, a_batch, a.strides[-2], a.strides[-1], b_batch, b.strides[-2], b.strides[-1],
        y_batch, out.strides[-2],
    )  # fmt: skip


def exponentials(scale: float, size: int) -> np.ndarray:
    """SPEC section 7, softmax: E[d] for d in 0..255, int32."""
    bits = min(_FINEST, _LONGEST_SUM - math.ceil(math.log2(size)))
    steps = np.arange(256, dtype=np.float64)
    return np.asarray(np.rint(np.exp(-scale * steps) * 2.0**bits).astype(np.int32))
