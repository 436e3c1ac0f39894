"""Random QDQ graphs as other tools write them: with Q/DQ in some places and not in others, constants of either kind,
operators that the quantizer of edgebuild never leaves that way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from conformance.graphs import Builder
from onnx import numpy_helper

from edgebuild.reference import float32
from edgebuild.reference.model import Node

LENGTH = 9
"""Operators of a graph."""
_UNARY: dict[str, dict[str, object]] = {
    "Relu": {}, "Sigmoid": {}, "HardSigmoid": {}, "HardSwish": {}, "Tanh": {}, "LeakyRelu": {"alpha": 0.3}, "Elu": {},
    "Selu": {}, "Celu": {"alpha": 0.7}, "Softplus": {}, "Softsign": {}, "Mish": {}, "Gelu": {"approximate": "tanh"},
    "ThresholdedRelu": {"alpha": 0.4}, "Erf": {}, "Exp": {}, "Abs": {}, "Neg": {}, "Floor": {},
}  # fmt: skip


@dataclass
class RandomGraph:
    """Grows a graph by `step`. `tensors`: what operators may read, with its values for one sample; `constants`: what
    they read of dequantized constants.
    """

    b: Builder
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def rng(self) -> np.random.Generator:
        return self.b.rng

    def choose(self, *options):  # type: ignore[no-untyped-def]
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def input(self, *shape: int) -> None:
        name = self.b.input(*shape)
        self.tensors[name] = self.rng.normal(0.3, 1.5, shape).astype(np.float32)
        self.quantize(name)

    def constant(self, value: object, dtype: object = np.float32) -> str:
        return self.b.constant(value, dtype)

    def quantize(self, name: str) -> str:
        """Value → Q → one DQ or two, in 8 or 16 bits."""
        value = self.tensors[name]
        low, high = min(float(value.min()), 0.0), max(float(value.max()), 1e-3)
        dtype = self.choose(np.uint8, np.uint8, np.uint16)
        most = int(np.iinfo(dtype).max)
        scale = np.float32((high - low) / most * self.rng.uniform(0.7, 1.1))
        zero = int(np.clip(round(-low / scale), 0, most))
        parameters = self.constant(scale), self.constant(zero, dtype)
        q = self.b.node("QuantizeLinear", name, *parameters)
        integers = np.clip(np.rint(value / scale) + zero, 0, most)
        for _ in range(self.choose(1, 1, 1, 2)):
            dq = self.b.node("DequantizeLinear", q, *parameters)
            self.tensors[dq] = ((integers - zero) * scale).astype(np.float32)
        return dq

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        """One operator, behind it often an activation and mostly Q/DQ."""
        name = self.emit(op, *inputs, **attributes)
        if self.chance(0.25):
            low, high = self.constant(self.rng.uniform(-1, 0)), self.constant(self.rng.uniform(0.2, 3))
            name = self.emit("Relu", name) if self.chance(0.5) else self.emit("Clip", name, low, high)
        return self.quantize(name) if self.chance(0.8) else name

    def emit(self, op: str, *inputs: str, **attributes: object) -> str:
        name = self.b.node(op, *inputs, **attributes)
        read = {k: v.encode() if isinstance(v, str) else v for k, v in attributes.items()}
        node = Node(op, name, inputs, (name,), read)
        self.tensors[name] = float32.run(node, [self.value(i) if i else None for i in inputs])[0]
        return name

    def value(self, name: str) -> np.ndarray:
        if name in self.tensors:
            return self.tensors[name]
        if name in self.constants:
            return self.constants[name]
        return next(numpy_helper.to_array(t) for t in self.b.initializers if t.name == name)

    def weights(self, *shape: int, axis: int) -> str:
        """int8 with a scale for each index of `axis`, or one scale."""
        q = self.rng.integers(-127, 128, shape).astype(np.int8)
        count = shape[axis] if self.chance(0.7) else 1
        scale = self.rng.uniform(0.002, 0.01, count if count > 1 else ()).astype(np.float32)
        zero = [self.constant(np.zeros_like(scale), np.int8)] if self.chance(0.8) else []
        name = self.b.node("DequantizeLinear", self.constant(q, np.int8), self.constant(scale), *zero, axis=axis)
        along = scale.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))]) if count > 1 else scale
        self.constants[name] = q.astype(np.float32) * along
        return name

    def pick(self, *ranks: int) -> str | None:
        """A tensor of one of these ranks, rather a late one."""
        fitting = [n for n, v in self.tensors.items() if v.ndim in ranks and np.ptp(v) > 0 and v.size <= 3000]
        return fitting[-1 - min(int(self.rng.exponential(2)), len(fitting) - 1)] if fitting else None

    def like(self, name: str) -> str:
        """Another tensor of the same shape where there is one, else the same."""
        shape = self.tensors[name].shape
        same = [n for n, v in self.tensors.items() if v.shape == shape and np.ptp(v) > 0]
        return str(self.rng.choice(same))

    def step(self) -> None:
        _STEPS[int(self.rng.integers(len(_STEPS)))](self)

    # operators

    def conv(self) -> None:
        x = self.pick(4)
        if x is None:
            return
        channels, height, width = self.tensors[x].shape[1:]
        groups = self.choose(1, 1, channels)
        outputs = channels if groups > 1 else self.choose(1, 5, 33)
        k = min(self.choose(1, 3, 3, 5), height, width)
        pad = self.choose(0, k // 2)
        bias = self.bias(outputs)
        weights = self.weights(outputs, channels // groups, k, k, axis=0)
        stride = self.choose(1, 1, 2)
        self.add("Conv", x, weights, *bias, strides=[stride] * 2, pads=[pad] * 4, group=groups)

    def bias(self, count: int) -> list[str]:
        return [self.constant(self.rng.normal(0, 0.5, count))] if self.chance(0.7) else []

    def gemm(self) -> None:
        x = self.pick(2)
        if x is None:
            return
        inner, outputs, turned = self.tensors[x].shape[1], self.choose(1, 7, 24), self.chance(0.5)
        shape, axis = ((outputs, inner), 0) if turned else ((inner, outputs), 1)
        self.add("Gemm", x, self.weights(*shape, axis=axis), *self.bias(outputs), transB=int(turned))

    def matmul(self) -> None:
        x = self.pick(2, 3, 4)
        if x is None:
            return
        outputs = self.choose(3, 8, 17)
        product = self.emit("MatMul", x, self.weights(self.tensors[x].shape[-1], outputs, axis=1))
        if self.chance(0.7):
            shape = self.choose((outputs,), (1, outputs), (), (1,) * self.tensors[product].ndim)
            bias = self.constant(self.rng.normal(0, 0.5, shape))
            self.add("Add", *((product, bias) if self.chance(0.5) else (bias, product)))
        else:
            self.quantize(product)

    def product(self) -> None:
        x = self.pick(2, 3, 4)
        if x is None:
            return
        perm = [*range(self.tensors[x].ndim - 2), self.tensors[x].ndim - 1, self.tensors[x].ndim - 2]
        turned = self.quantize(self.emit("Transpose", self.like(x), perm=perm))
        self.add("MatMul", x, turned)

    def binary(self) -> None:
        x = self.pick(2, 3, 4)
        if x is None:
            return
        op = self.choose("Add", "Mul", "Sub", "Max", "Min", "Add", "Mul")
        kind = self.choose("same", "scalar", "channel", "quantized")
        rank = self.tensors[x].ndim
        if kind == "same":
            other = self.like(x)
        elif kind == "scalar":
            other = self.constant(self.rng.normal(0, 1, self.choose((), (1,), (1,) * rank)))
        else:
            shape = [n if a == 1 else 1 for a, n in enumerate(self.tensors[x].shape)]
            other = self.constant(self.rng.normal(0, 1, shape))
            if kind == "quantized":
                q = self.rng.integers(0, 256, shape).astype(np.uint8)
                other = self.b.node(
                    "DequantizeLinear",
                    self.constant(q, np.uint8),
                    self.constant(np.float32(0.01)),
                    self.constant(100, np.uint8),
                )
                self.constants[other] = ((q.astype(np.int32) - 100) * np.float32(0.01)).astype(np.float32)
        self.add(op, *((x, other) if self.chance(0.7) else (other, x)))

    def variadic(self) -> None:
        x = self.pick(2, 3, 4)
        if x is not None:
            others = [self.like(x), self.constant(self.rng.normal(0, 1)), x]
            self.add(self.choose("Max", "Min", "Sum"), x, *others[: self.choose(1, 2, 3)])

    def unary(self) -> None:
        x = self.pick(1, 2, 3, 4)
        for _ in range(self.choose(1, 1, 2, 6)):
            if x is None or not np.isfinite(self.tensors[x]).all() or np.abs(self.tensors[x]).max() > 20:
                return
            op = self.choose(*_UNARY, "PRelu")
            if op == "PRelu":
                x = self.emit("PRelu", x, self.constant(np.full([1] * self.tensors[x].ndim, 0.2)))
            else:
                x = self.emit(op, x, **_UNARY[op])
        self.add("Mul", x, self.constant(self.rng.uniform(0.5, 1.5)))

    def pool(self) -> None:
        x = self.pick(4)
        if x is None:
            return
        if self.chance(0.4):
            self.add(self.choose("GlobalAveragePool", "GlobalMaxPool"), x)
            return
        k = min(self.choose(2, 3), *self.tensors[x].shape[2:])
        more = {"count_include_pad": self.choose(0, 1)}
        op = self.choose("MaxPool", "AveragePool")
        pad, stride = self.choose(0, k // 2), self.choose(1, 2)
        attributes = {"kernel_shape": [k, k], "strides": [stride] * 2, "pads": [pad] * 4}
        # ONNX's own shapes count a window of ceil_mode that starts behind the input, which the compiler refuses
        attributes["ceil_mode"] = int(pad == 0 and k >= stride and self.chance(0.5))
        self.add(op, x, **attributes, **(more if op == "AveragePool" else {}))

    def reduce(self) -> None:
        x = self.pick(2, 3, 4)
        if x is None:
            return
        rank = self.tensors[x].ndim
        axes = sorted({int(a) for a in self.rng.integers(0, rank, self.choose(1, 2, 3))})
        op = self.choose("ReduceMean", "ReduceMean", "ReduceMax", "ReduceSum")
        keep = 1 if len(axes) == rank else self.choose(0, 1)
        self.add(op, x, self.constant(axes, np.int64), keepdims=keep)

    def rows(self) -> None:
        x = self.pick(2, 3, 4)
        if x is None:
            return
        if self.chance(0.5):
            self.add("Softmax", x, axis=int(self.rng.integers(self.tensors[x].ndim)))
            return
        width = self.tensors[x].shape[-1]
        gain, offset = (self.constant(self.rng.normal(m, 0.3, width)) for m in (1, 0))
        self.add("LayerNormalization", x, gain, offset, axis=-1)

    def concat(self) -> None:
        x = self.pick(2, 3, 4)
        if x is not None:
            self.add("Concat", x, self.like(x), axis=int(self.rng.integers(self.tensors[x].ndim)))

    def move(self) -> None:
        """One or two moves, with or without Q/DQ between and behind them."""
        x = self.pick(2, 3, 4)
        for _ in range(self.choose(1, 2)):
            if x is not None:
                x = self.moved(x)
                x = self.quantize(x) if self.chance(0.4) else x

    def moved(self, x: str) -> str:
        shape = self.tensors[x].shape
        kind = self.choose("Transpose", "Reshape", "Slice", "Pad", "Flatten", "Unsqueeze")
        if kind == "Transpose":
            return self.emit(kind, x, perm=self.rng.permutation(len(shape)).tolist())
        if kind == "Reshape":
            target = self.choose([1, -1], [-1, shape[-1]], [shape[0], -1, 1])
            return self.emit(kind, x, self.constant(target, np.int64))
        if kind == "Slice":
            axis = int(self.rng.integers(len(shape)))
            bounds = (self.constant([v], np.int64) for v in (0, max(1, shape[axis] - 1), axis))
            return self.emit(kind, x, *bounds)
        if kind == "Pad":
            pads = [0] * (2 * len(shape) - 1) + [2]
            return self.emit(kind, x, self.constant(pads, np.int64), self.constant(0.5))
        if kind == "Unsqueeze" and len(shape) < 4:
            return self.emit(kind, x, self.constant([0], np.int64))
        return self.emit("Flatten", x, axis=int(self.rng.integers(len(shape))))


_STEPS: tuple[Callable[[RandomGraph], None], ...] = (
    RandomGraph.conv, RandomGraph.conv, RandomGraph.gemm, RandomGraph.matmul, RandomGraph.product, RandomGraph.binary,
    RandomGraph.binary, RandomGraph.variadic, RandomGraph.unary, RandomGraph.unary, RandomGraph.pool,
    RandomGraph.reduce, RandomGraph.rows, RandomGraph.concat, RandomGraph.move, RandomGraph.move,
)  # fmt: skip


def random_graph(b: Builder) -> str:
    """Writes a graph; gives a vector of all that nothing else reads."""
    graph = RandomGraph(b)
    with np.errstate(all="ignore"):
        graph.input(1, graph.choose(3, 17), graph.choose(5, 8), graph.choose(4, 7))
        graph.input(graph.choose(1, 6), graph.choose(8, 20))
        for _ in range(LENGTH):
            graph.step()
    read = {name for node in b.nodes for name in node.input}
    ends = [name for name in graph.tensors if name not in read]
    flat = b.constant([-1], np.int64)
    parts = [b.node("Reshape", name, flat) for name in ends]
    return b.node("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
