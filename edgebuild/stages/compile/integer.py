"""Integer clusters → kernel calls, with the constants of SPEC section 7."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgebuild.core.errors import ModelError
from edgebuild.kernels.conv import Conv, ConvPlan, conv_kernel, fold_bias
from edgebuild.kernels.copy import Table, table_kernel
from edgebuild.kernels.depthwise import DepthwisePlan, depthwise_kernel, is_depthwise
from edgebuild.kernels.elementwise import Binary, binary_kernel
from edgebuild.kernels.epilogue import ROUNDED, Bounds, Types
from edgebuild.kernels.pool import Pool, average_pool_kernel, max_pool_kernel
from edgebuild.stages.compile.clusters import Bound, Cluster, fits, integer_bias, layer_bias, quant_of, reduce_axes
from edgebuild.stages.compile.graph import Graph, Node, Quant, stored
from edgebuild.stages.compile.moves import Mover, expanded
from edgebuild.stages.compile.tables import unary_table
from edgebuild.stages.compile.values import Emitter, Value, row_major
from edgebuild.stages.compile.window import Window, window_of
from edgebuild.stages.compile.words import Target, combined

if TYPE_CHECKING:
    from edgebuild.kernels.builder import Kernel

_NARROW_DEPTH, _NARROW_BIAS = 128, 2**30
"""Products of a 16-bit activation and a weight, and a bias, whose sum 32 bits hold."""


@dataclass(frozen=True)
class IntegerLowering:
    """Lowers clusters; their sources are the quantized values in front of each DequantizeLinear."""

    graph: Graph
    emit: Emitter
    mover: Mover

    def lower(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        """The value that the cluster gives: that of its QuantizeLinear, or float32."""
        result: Value = getattr(self, f"_{cluster.kind}")(cluster, sources)
        return result

    def constant_operand(self, name: str) -> Value:
        """A quantized constant behind a DequantizeLinear."""
        node = self.graph.producers[name]
        array = self.graph.need_constant(node, 0)
        return self.emit.constant(node.inputs[0], stored(array))

    # operators with weights

    def _conv(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        node, x = cluster.nodes[0], sources[0]
        window = window_of(self.graph, node)
        weights, w_scale = self._weights(node, axis=0)
        if weights.ndim == 3:
            weights = weights[:, :, None, :]
        x = self._nhwc(x, node)
        batch, channels, height, width = four_dims(x.shape)
        out_shape = self.graph.shape(node.outputs[0])
        _, outputs, out_height, out_width = four_dims(out_shape)
        conv = Conv(batch, height, width, channels, out_height, out_width, outputs, window.kernel, window.stride,
                    window.before, window.dilation, int(node.attrs.get("group", 1)))  # fmt: skip
        order = channels_last(len(out_shape))
        return self._weighted(cluster, conv, x, weights.transpose(0, 2, 3, 1), w_scale, out_shape, order)

    def _gemm(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        node = cluster.nodes[0]
        transposed = bool(node.attrs.get("transB", 0))
        weights, scale = self._weights(node, axis=0 if transposed else 1)
        return self._dense(cluster, sources[0], weights if transposed else weights.T, scale)

    def _matmul(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        node = cluster.nodes[0]
        weights, scale = self._weights(node, axis=1)
        return self._dense(cluster, sources[0], weights.T, scale)

    def _dense(self, cluster: Cluster, x: Value, weights: np.ndarray, scale: np.ndarray) -> Value:
        """Weights [N, K]."""
        node = cluster.nodes[0]
        x = self.mover.ordered(x, row_major(len(x.shape)), node.name)
        outputs, depth = weights.shape
        rows = x.size // depth
        conv = Conv(1, rows, 1, depth, rows, 1, outputs)
        shape = self.graph.shape(node.outputs[0])
        return self._weighted(cluster, conv, x, weights[:, None, None, :], scale, shape, row_major(len(shape)))

    def _weights(self, node: Node, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """(int8 weights, float64 scale of each output channel)."""
        dq = self.graph.producers[node.inputs[1]]
        weights, scale = self.graph.need_constant(dq, 0), self.graph.need_constant(dq, 1).astype(np.float64).reshape(-1)
        if dq.input(2) and np.any(self.graph.need_constant(dq, 2)):
            raise node.unsupported("weights must be symmetric (zero point 0)")
        return weights, np.broadcast_to(scale, (weights.shape[axis],))

    def _weighted(
        self,
        cluster: Cluster,
        conv: Conv,
        x: Value,
        weights: np.ndarray,
        w_scale: np.ndarray,
        shape: Sequence[int],
        order: Sequence[int],
    ) -> Value:
        """`weights` int8 [O, kh, kw, I/groups]."""
        node, name = cluster.nodes[0], cluster.name
        quant_x = quant_of(self.graph, cluster.sources[0])
        bias = integer_bias(layer_bias(self.graph, cluster), quant_x.scale * w_scale, conv.out_channels)
        if not fits(quant_x, conv.depth, bias):
            raise node.unsupported("the sum could overflow")
        integers = np.broadcast_to(bias.astype(np.int64), (conv.out_channels,))
        multipliers = self._multipliers(cluster, quant_x, w_scale)
        params = self.emit.constant(f"{name}:quant", self._output_params(cluster, quant_x))
        wide = quant_x.wide and (conv.depth > _NARROW_DEPTH or np.abs(integers).max() >= _NARROW_BIAS)
        types = Types(quant_x.dtype, "float32" if cluster.floating else self.graph.quant(cluster.end).dtype, wide)
        plan: ConvPlan | DepthwisePlan
        make: Callable[..., Kernel]
        if is_depthwise(conv) and not wide:
            plan, make, kind = DepthwisePlan(conv, types.depthwise(self.emit.isa)), depthwise_kernel, "depthwise"
            packed = plan.pack_weights(weights[..., 0])
        else:
            plan, make, kind = ConvPlan(conv, types.gemm(self.emit.isa)), conv_kernel, cluster.kind
            packed = plan.pack_weights(weights)
        folded = fold_bias(plan.isa, integers, weights, quant_x.zero, types)
        constants = [packed, plan.pack_channels(folded), plan.pack_channels(multipliers)]
        inputs = [self.emit.constant(f"{name}:{part}", array.reshape(-1))
                  for part, array in zip(("weights", "bias", "multiplier"), constants, strict=True)]  # fmt: skip
        sums = np.abs(weights.reshape(len(weights), -1).astype(np.int64)).sum(axis=1) * quant_x.span + np.abs(integers)
        bounds = clamps(cluster, float((sums * multipliers).max(initial=0.0)))
        for part, values in self._limits(cluster, conv.out_channels).items():
            inputs.append(self.emit.constant(f"{name}:{part}", plan.pack_channels(values).reshape(-1)))
        out = self.emit.tensor(name, types.result, shape, order)
        self.emit.call(
            kind,
            node.name,
            make,
            conv,
            [x, *inputs[:3], params, *inputs[3:]],
            out,
            integer=True,
            macs=conv.macs,
            bounds=bounds,
            types=types,
            limits=cluster.limited,
        )
        return out

    def _limits(self, cluster: Cluster, channels: int) -> dict[str, np.ndarray]:
        """The kernel's `limits`: lo − z_y and hi − z_y of each channel."""
        if not cluster.limited:
            return {}
        quant = self.graph.quant(cluster.end)
        ends = {"low": _levels(cluster.low, quant), "high": _levels(cluster.high, quant)}
        return {k: np.broadcast_to(v - quant.zero, (channels,)).astype(np.float32) for k, v in ends.items()}

    def _multipliers(self, cluster: Cluster, quant_x: Quant, w_scale: np.ndarray) -> np.ndarray:
        """What a unit of the accumulator is worth, in steps of the output or in float32."""
        with np.errstate(over="ignore"):
            found = np.float32(quant_x.scale) * w_scale.astype(np.float32)
            if not cluster.floating:
                found = found / np.float32(self.graph.quant(cluster.end).scale)
        if not np.isfinite(found).all():
            raise ModelError(
                f"{cluster.nodes[0].name}: its scales give no finite multiplier",
                "check the model's quantization parameters",
            )
        return np.asarray(found)

    def _output_params(self, cluster: Cluster, quant_x: Quant) -> np.ndarray:
        """The kernel's `quant`; of a float32 result only z_x counts."""
        if cluster.floating:
            return np.array([0, 0, 0, 0, quant_x.zero], np.int32)
        return _quant_params(cluster, quant_x, self.graph.quant(cluster.end))

    # operators on two or more activations

    def _add(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        return self._words(cluster, sources) or self._binary(cluster, sources, _add_params)

    def _mul(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        return self._words(cluster, sources) or self._binary(cluster, sources, _mul_params)

    def _words(self, cluster: Cluster, sources: Sequence[Value]) -> Value | None:
        """A sum or product where anything has 16 bits."""
        quants, quant_y = [quant_of(self.graph, s) for s in cluster.sources], self.graph.quant(cluster.end)
        if not any(quant.wide for quant in (*quants, quant_y)):
            return None
        low, high = _clip_range(cluster, quant_y)
        target = Target(cluster.name, self.graph.shape(cluster.name), quant_y, low, high)
        return combined(self.emit, cluster.kind, cluster.nodes[0].name, list(zip(sources, quants, strict=True)), target)

    def _binary(self, cluster: Cluster, sources: Sequence[Value], parameters) -> Value:  # type: ignore[no-untyped-def]
        node, name = cluster.nodes[0], cluster.name
        shape = self.graph.shape(node.outputs[0])
        quants = [quant_of(self.graph, s) for s in cluster.sources]
        a, b = sources
        if a.shape != shape:
            (a, b), quants = (b, a), quants[::-1]
        if a.shape != shape:
            a = expanded(self.mover, f"{name}:a", a, shape)
        quant_y = self.graph.quant(cluster.end)
        params = parameters(quants[0], quants[1], quant_y)
        head = _quant_params(cluster, quants[0], quant_y)
        constant = self.emit.constant(f"{name}:params", np.concatenate([head, np.array(params, np.int32)]))
        b, inner = self._second(name, a, b)
        spec = Binary(cluster.kind, a.size // inner, inner, broadcast=b.size != a.size)
        out = self.emit.tensor(name, "uint8", shape, a.order)
        scales = [q.scale for q in quants]
        largest = 255.0 * (sum(scales) if cluster.kind == "add" else 255.0 * math.prod(scales)) / quant_y.scale
        bounds = clamps(cluster, largest)
        self.emit.call(cluster.kind, node.name, binary_kernel, spec, [a, b, constant], out, integer=True, bounds=bounds)
        return out

    def _second(self, name: str, a: Value, b: Value) -> tuple[Value, int]:
        """The second operand as the kernel wants it: all of it, or one row that repeats; and the row's length."""
        if b.shape == a.shape:
            return self.mover.ordered(b, a.order, name), a.size
        lead = len(a.shape) - len(b.shape)
        shape = (1,) * lead + b.shape
        b = b.seen(shape, (*range(lead), *(o + lead for o in b.order)))
        inner = [axis for axis in a.order if a.shape[axis] > 1]
        while inner and shape[inner[0]] == 1:
            inner.pop(0)
        if inner and all(shape[axis] == a.shape[axis] for axis in inner):
            return self.mover.ordered(b, a.order, name), b.size
        return expanded(self.mover, f"{name}:b", b, a.shape, a.order), a.size

    def _concat(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        node, name = cluster.nodes[0], cluster.name
        shape = self.graph.shape(node.outputs[0])
        axis = int(node.attrs["axis"]) % len(shape)
        out = self.emit.tensor(name, self.graph.quant(cluster.end).dtype, shape, sources[0].order)
        place = 0
        for i, (source, given) in enumerate(zip(cluster.sources, sources, strict=True)):
            value, table = given, None
            if quant_of(self.graph, source).wide:
                value = self._requantized(cluster, given, source, f"{name}:{i}")
            elif not self._unchanged(cluster, source):
                table = self.emit.constant(f"{name}:{i}:table", self._requant(cluster, source))
            into = [place if a == axis else 0 for a in range(len(shape))]
            self.mover.copy("concat", f"{node.name}:{i}", value, out, into=into, table=table)
            place += value.shape[axis]
        return out

    # operators on one activation

    def _average(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        node, name = cluster.nodes[0], cluster.name
        shape = self.graph.shape(node.outputs[0])
        quant_x, quant_y = quant_of(self.graph, cluster.sources[0]), self.graph.quant(cluster.end)
        pool, counts, x, order = self._average_shape(node, sources[0], shape)
        multipliers = (quant_x.scale / (quant_y.scale * counts)).astype(np.float32)
        types = Types(quant_x.dtype, quant_y.dtype)
        out = self.emit.tensor(name, quant_y.dtype, shape, order)
        inputs = [
            x,
            self.emit.constant(f"{name}:multiplier", multipliers.reshape(-1)),
            self.emit.constant(f"{name}:quant", _quant_params(cluster, quant_x, quant_y)),
        ]
        self.emit.call("average_pool", node.name, average_pool_kernel, pool, inputs, out, integer=True, types=types)
        return out

    def _average_shape(
        self, node: Node, x: Value, shape: tuple[int, ...]
    ) -> tuple[Pool, np.ndarray, Value, tuple[int, ...]]:
        """(pool, how many positions count at each output, input, memory order of the output)."""
        if node.op != "AveragePool":
            return self._mean_shape(node, x, shape)
        x = self._nhwc(x, node)
        window = window_of(self.graph, node)
        pool = pool_of(window, x.shape, shape)
        counts = window.counts((pool.height, pool.width), (pool.out_height, pool.out_width))
        return pool, counts, x, channels_last(len(shape))

    def _mean_shape(
        self, node: Node, x: Value, shape: tuple[int, ...]
    ) -> tuple[Pool, np.ndarray, Value, tuple[int, ...]]:
        """A mean over whole axes as a pool: what lies behind the last of them in memory are the channels."""
        rank = len(x.shape)
        axes = list(range(2, rank)) if node.op == "GlobalAveragePool" else reduce_axes(self.graph, node)
        before, behind = _around(x.order, axes)
        x = self.mover.ordered(x, (*before, *(a for a in x.order if a in axes), *behind), node.name)
        outer, count, inner = (math.prod(x.shape[a] for a in part) for part in (before, axes, behind))
        pool = Pool(outer, count, 1, inner, 1, 1, (count, 1))
        left = [*before, *behind]
        keep = len(shape) == rank
        order = (*axes, *left) if keep else tuple(sorted(left).index(a) for a in left)
        return pool, np.full((1, 1), float(count)), x, order

    def _max(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        node, name = cluster.nodes[0], cluster.name
        x = self._nhwc(sources[0], node)
        shape = self.graph.shape(node.outputs[0])
        out = self.emit.tensor(name, x.dtype, shape, channels_last(len(shape)))
        pool = pool_of(window_of(self.graph, node), x.shape, shape) if node.op == "MaxPool" else whole_pool(x.shape)
        self.emit.call("max_pool", node.name, max_pool_kernel, pool, [x], out, integer=True, dtype=x.dtype)
        return self._requantized(cluster, out, cluster.sources[0], name)

    def _moves(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        value, quant = sources[0], quant_of(self.graph, cluster.sources[0])
        for node in cluster.nodes:
            value = self.mover.move(node, value, self._padding(node, quant))[_next(cluster, node)]
        return self._requantized(cluster, value, cluster.sources[0], cluster.name)

    def _padding(self, node: Node, quant: Quant) -> np.ndarray:
        """Q(padding value)."""
        value = self.graph.constant(node.input(2)) if node.op == "Pad" and node.input(2) else None
        number = 0.0 if value is None else float(np.float64(value.reshape(())))
        return np.array([np.clip(np.rint(number / quant.scale) + quant.zero, quant.least, quant.most)]).astype(
            quant.dtype
        )

    def _table(self, cluster: Cluster, sources: Sequence[Value]) -> Value:
        quant_x, quant_y = quant_of(self.graph, cluster.sources[0]), self.graph.quant(cluster.end)
        table = unary_table(self.graph, cluster.end.inputs[0], cluster.sources[0], quant_x, quant_y)
        return self._apply_table(cluster.name, cluster.end.name, sources[0], table)

    def _requantized(self, cluster: Cluster, value: Value, source: str, name: str) -> Value:
        """The value in the output's parameters, clipped: itself when nothing changes."""
        if self._unchanged(cluster, source):
            return value
        quant_x, quant_y = quant_of(self.graph, source), self.graph.quant(cluster.end)
        if quant_x.wide:
            target = Target(name, value.shape, quant_y, *_clip_range(cluster, quant_y))
            return combined(self.emit, "requantize", cluster.end.name, [(value, quant_x)], target)
        return self._apply_table(name, cluster.end.name, value, self._requant(cluster, source))

    def _unchanged(self, cluster: Cluster, source: str) -> bool:
        """Equal by name, never by value: the code must not depend on what training changes."""
        unclipped = cluster.low == -math.inf and cluster.high == math.inf
        return unclipped and self.graph.producers[source].inputs[1:3] == cluster.end.inputs[1:3]

    def _requant(self, cluster: Cluster, source: str) -> np.ndarray:
        x, y = quant_of(self.graph, source), self.graph.quant(cluster.end)
        real = x.scale * (np.arange(256, dtype=np.float64) - x.zero)
        q = np.rint(np.minimum(np.maximum(real, cluster.low), cluster.high) / y.scale) + y.zero
        return np.asarray(np.clip(q, y.least, y.most).astype(y.dtype))

    def _apply_table(self, name: str, label: str, value: Value, table: np.ndarray) -> Value:
        constant = self.emit.constant(f"{name}:table", table)
        out = self.emit.tensor(name, constant.dtype, value.shape, value.order)
        spec = Table(value.size, dtype=constant.dtype)
        self.emit.call("table", label, table_kernel, spec, [value, constant], out, integer=True)
        return out

    def _nhwc(self, x: Value, node: Node) -> Value:
        return self.mover.ordered(x, channels_last(len(x.shape)), node.name)


def channels_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def four_dims(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """[N, C, (H,) (W)] as N, C, H, W."""
    n, c, *space = shape
    height, width = (1, 1, *space)[-2:]
    return n, c, height, width


def _around(order: Sequence[int], axes: Sequence[int]) -> tuple[list[int], list[int]]:
    """The other axes in memory order: those before the last of `axes`, and those behind it."""
    last = max(order.index(a) for a in axes)
    before = [a for a in order[:last] if a not in axes]
    return before, list(order[last + 1 :])


def whole_pool(in_shape: Sequence[int]) -> Pool:
    """One window over all of the image."""
    n, c, h, w = four_dims(in_shape)
    return Pool(n, h, w, c, 1, 1, (h, w))


def pool_of(window: Window, in_shape: Sequence[int], out_shape: Sequence[int]) -> Pool:
    n, c, h, w = four_dims(in_shape)
    _, _, oh, ow = four_dims(out_shape)
    return Pool(n, h, w, c, oh, ow, window.kernel, window.stride, window.before, window.dilation)


def _next(cluster: Cluster, node: Node) -> str:
    """The output of a chain's node that the chain goes on with."""
    following = cluster.nodes[cluster.nodes.index(node) + 1 :]
    return str(following[0].inputs[0] if following else cluster.end.inputs[0])


def _clip_range(cluster: Cluster, quant: Quant) -> tuple[int, int]:
    """SPEC section 7: lo and hi of an activation clip; of one that differs by channel the ends of the type."""
    if cluster.limited:
        return quant.least, quant.most
    low, high = (int(_levels(bound, quant)) for bound in (cluster.low, cluster.high))
    return low, high


def _levels(bound: Bound, quant: Quant) -> np.ndarray:
    """A bound as integers of the type."""
    level = np.rint(np.asarray(bound, np.float64) / quant.scale) + quant.zero
    return np.asarray(np.clip(level, quant.least, quant.most))


def clamps(cluster: Cluster, largest: float) -> Bounds:
    """The clamps that an operator needs whose steps are not above `largest`.

    Scales that reach ROUNDED are absurd; only then does the code depend on values.
    """
    low, high = bool(np.any(cluster.low > -math.inf)), bool(np.any(cluster.high < math.inf))
    return Bounds(low and not cluster.limited, high and not cluster.limited, largest >= ROUNDED / 2)


def _float_bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


def _quant_params(cluster: Cluster, quant_x: Quant, quant_y: Quant) -> np.ndarray:
    low, high = _clip_range(cluster, quant_y)
    return np.array([_float_bits(high - quant_y.zero), quant_y.zero, low, high, quant_x.zero], np.int32)


def _add_params(a: Quant, b: Quant, y: Quant) -> list[int]:
    """Multiplier 2^−k as bits, A, B, constant, and two unused."""
    ratio_a, ratio_b = a.scale / y.scale, b.scale / y.scale
    k = 24
    while np.rint(max(ratio_a, ratio_b) * 2.0**k) > 2**21:
        k -= 1
    factor_a, factor_b = int(np.rint(ratio_a * 2.0**k)), int(np.rint(ratio_b * 2.0**k))
    return [_float_bits(2.0**-k), factor_a, factor_b, -(factor_a * a.zero + factor_b * b.zero), 0, 0]


def _mul_params(a: Quant, b: Quant, y: Quant) -> list[int]:
    return [_float_bits(a.scale * b.scale / y.scale), 0, 0, 0, a.zero, b.zero]
