"""Models that nobody can build, each made by code from a good one, and what the error has to say."""

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

Change = Callable[[ModelProto], object]
Write = Callable[[Path], object]


@dataclass(frozen=True)
class Bad:
    """`write` puts the model to a path; the message holds the path, `says` (layer and operator where it is about one),
    and the hint holds `hint`. `stage`: where it is found.
    """

    name: str
    write: Write
    says: tuple[str, ...]
    hint: str
    stage: str = "ingest"


BAD: list[Bad] = []


def good() -> ModelProto:
    """Convolution → relu → flat → dense, on x [1, 3, 8, 8]."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "b": np.zeros(4, np.float32),
        "m": rng.normal(size=(144, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "m"], ["y"], name="dense"),
    ]
    return _model(nodes, [("x", TensorProto.FLOAT, [1, 3, 8, 8])], [("y", TensorProto.FLOAT, [1, 5])], weights)


def quantized() -> ModelProto:
    """Quantize → dequantize → product, with a weight of two scales."""
    weights = {
        "s": np.float32(0.5), "z": np.uint8(3), "w": np.arange(8, dtype=np.int8).reshape(4, 2),
        "t": np.float32([0.25, 0.5]), "zero": np.zeros(2, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q0"], name="q"),
        helper.make_node("DequantizeLinear", ["q0", "s", "z"], ["d0"], name="d"),
        helper.make_node("DequantizeLinear", ["w", "t", "zero"], ["f"], name="dw", axis=1),
        helper.make_node("MatMul", ["d0", "f"], ["y"], name="product"),
    ]
    return _model(nodes, [("x", TensorProto.FLOAT, [1, 4])], [("y", TensorProto.FLOAT, [1, 2])], weights)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[int] | None]],
    outputs: list[tuple[str, int, list[int] | None]],
    weights: dict[str, np.ndarray],
    opset: int = 18,
) -> ModelProto:
    ports = ([helper.make_tensor_value_info(*value) for value in part] for part in (inputs, outputs))
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", *ports, values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(model: ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


def changed_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, set, removed, repeated or swapped in up to four places."""
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        place, size = int(rng.integers(len(made))), int(rng.integers(1, 9))
        kind = int(rng.integers(5))
        if kind == 0:
            made[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            made[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            del made[place : place + size]
        elif kind == 3:
            made[place:place] = made[place : place + size]
        else:
            other = int(rng.integers(len(made)))
            made[place], made[other] = made[other], made[place]
    return bytes(made)


# How a bad model is described


def raw(name: str, data: Callable[[], bytes], *says: str, hint: str = "again") -> None:
    BAD.append(Bad(name, lambda path: path.write_bytes(data()), says, hint))


def changed(
    name: str, change: Change, *says: str, hint: str, stage: str = "ingest", base: Callable[[], ModelProto] = good
) -> None:
    """The good model after `change`."""

    def write(path: Path) -> None:
        model = base()
        change(model)
        save(model, path)

    BAD.append(Bad(name, write, says, hint, stage))


def behind(
    name: str,
    operator: str,
    *says: str,
    hint: str,
    stage: str = "ingest",
    constants: tuple[object, ...] = (),
    outputs: int = 1,
    result: int = TensorProto.FLOAT,
    **attributes: object,
) -> None:
    """The good model whose `relu` is followed by a node `bad`, the first of whose results is an output."""

    def change(model: ModelProto) -> None:
        names = ["" if value is None else f"k{i}" for i, value in enumerate(constants)]
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in zip(names, constants, strict=True) if name
        )  # fmt: skip
        made = [f"bad{i}" for i in range(outputs)]
        node = helper.make_node(operator, ["r", *names], made, name="bad", **attributes)
        model.graph.node.insert(2, node)
        model.graph.output.append(helper.make_tensor_value_info("bad0", result, None))

    changed(name, change, *says, hint=hint, stage=stage)


# Files


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}q\x00.")
    return stream.getvalue()


def _within(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph …"""
    data = b""
    for _ in range(depth):
        for tag in (0x0A, 0x2A, 0x32):  # node of a graph, attribute of a node, graph of an attribute
            size = len(data)
            length = bytearray()
            while size > 0x7F:
                length.append(size & 0x7F | 0x80)
                size >>= 7
            data = bytes([tag, *length, size]) + data
    return b"\x08\x08\x3a" + data[1:]


raw("empty file", lambda: b"", "no ONNX model")
raw("text", lambda: b"ir_version: 8\ngraph { }\n", "no ONNX model")
raw("half a file", lambda: good().SerializeToString()[:700], "cut off")
raw("random bytes", lambda: np.random.default_rng(0).bytes(5000), "no ONNX model")
raw("zeros", lambda: bytes(4096), "no ONNX model")
raw("archive of torch.save", _zip, "no ONNX model")
raw(
    "pointer of Git LFS",
    lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "no ONNX model",
)
raw("flatbuffer of TFLite", lambda: b"\x1c\0\0\0TFL3" + bytes(200), "no ONNX model")
raw("messages within messages", lambda: _within(5000), "no ONNX model")
raw("only a version", lambda: ModelProto(ir_version=8).SerializeToString(), "no ONNX model", "no graph")
raw("no version", lambda: ModelProto(graph=good().graph).SerializeToString(), "no ONNX model")

# The graph


def clear(field: str) -> Change:
    return lambda model: model.graph.ClearField(field)


def repeat(field: str) -> Change:
    return lambda model: getattr(model.graph, field).append(getattr(model.graph, field)[0])


def inputs_of(index: int, place: int, name: str) -> Change:
    def change(model: ModelProto) -> None:
        model.graph.node[index].input[place] = name

    return change


def outputs_of(index: int, name: str) -> Change:
    def change(model: ModelProto) -> None:
        model.graph.node[index].output[0] = name

    return change


def reverse(model: ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


def port(field: str, elem: int | None = None, shape: list[object] | None = None) -> Change:
    """Another type or shape of the first input or output."""

    def change(model: ModelProto) -> None:
        value = getattr(model.graph, field)[0]
        kind = value.type.tensor_type
        value.CopyFrom(helper.make_tensor_value_info(
            value.name, kind.elem_type if elem is None else elem,
            [d.dim_value for d in kind.shape.dim] if shape is None else shape))  # fmt: skip

    return change


def shapeless(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def typeless(model: ModelProto) -> None:
    model.graph.input[0].ClearField("type")


def sequence(model: ModelProto) -> None:
    value = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    model.graph.input[0].CopyFrom(value)


def ordinary_input_too(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.INT64, [1]))


def no_nodes(model: ModelProto) -> None:
    model.graph.ClearField("node")


changed("no input", clear("input"), "no input", hint="inputs")
changed("no output", clear("output"), "no graph|no output", hint="again")
changed("no nodes", no_nodes, "output 'y'", hint="again")
changed("input twice", ordinary_input_too, "input 'x' is listed twice", hint="once")
changed("output twice", repeat("output"), "output 'y' is listed twice", hint="once")
changed("weight twice", repeat("initializer"), "'w'", hint="again")
changed("two makers", outputs_of(1, "c"), "'c'", "Relu 'relu'", hint="again")
changed("overwrites an input", outputs_of(1, "x"), "'x'", "Relu 'relu'", hint="again")
changed("reads what nobody makes", inputs_of(1, 0, "nowhere"), "'nowhere'", "Relu 'relu'", hint="again")
changed("gives what nobody makes", outputs_of(3, "elsewhere"), "output 'y'", hint="again")
changed("cycle", inputs_of(0, 0, "r"), "cyclic", "Conv 'conv'", hint="again")
changed("cycle of one node", inputs_of(1, 0, "r"), "cyclic", "Relu 'relu'", hint="again")
changed("reversed order", reverse, "order", "Gemm 'dense'", hint="again")
changed("input without a shape", shapeless, "input 'x' has no shape", hint="static")
changed("input without a type", typeless, "input 'x'", hint="again")
changed("input that is a sequence", sequence, "input 'x'", hint="tensor")
changed("dynamic height", port("input", shape=["n", 3, "height", 8]), "input 'x' is dynamic in axis 2", hint="static")
changed("input without elements", port("input", shape=[1, 3, 0, 8]), "input 'x'", "axis 2", hint="static")
changed("negative size", port("input", shape=[1, 3, -8, 8]), "input 'x'", "axis 2", hint="static")
changed("seven axes", port("input", shape=[1] * 6 + [3]), "Conv 'conv'|input 'x'", hint="again|reshape")
changed("float16", port("input", elem=TensorProto.FLOAT16), "Conv 'conv'|input 'x'", hint="float32|again")
changed("strings", port("input", elem=TensorProto.STRING), "Conv 'conv'|input 'x'", hint="float32|again")
changed("complex numbers", port("input", elem=TensorProto.COMPLEX64), "Conv 'conv'|input 'x'", hint="float32|again")
changed("integers into Conv", port("input", elem=TensorProto.INT32), "Conv 'conv'", hint="float32|again")
changed("undefined type", port("input", elem=TensorProto.UNDEFINED), "input 'x'", hint="again")
changed("output of another shape", port("output", shape=[1, 7]), "output 'y'|Gemm 'dense'", hint="again")
changed("output of another type", port("output", elem=TensorProto.INT64), "output 'y'|Gemm 'dense'", hint="again")

# Versions, operators, functions


def opset(version: int | None, domain: str = "") -> Change:
    def change(model: ModelProto) -> None:
        if not domain:
            model.ClearField("opset_import")
        if version is not None:
            model.opset_import.append(helper.make_opsetid(domain, version))

    return change


def operator(kind: str, domain: str = "") -> Change:
    def change(model: ModelProto) -> None:
        model.graph.node[1].op_type, model.graph.node[1].domain = kind, domain

    return change


def both(*changes: Change) -> Change:
    return lambda model: [change(model) for change in changes]


def calls_itself(model: ModelProto) -> None:
    body = [helper.make_node("Again", ["a"], ["b"], domain="mine")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    model.functions.append(helper.make_function("mine", "Again", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    operator("Again", "mine")(model)


def calls_in_a_ring(model: ModelProto) -> None:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    for one, other in (("Ping", "Pong"), ("Pong", "Ping")):
        body = [helper.make_node(other, ["a"], ["b"], domain="mine")]
        model.functions.append(helper.make_function("mine", one, ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    operator("Ping", "mine")(model)


changed("opset of the future", opset(999), "opset 999 is newer", hint="opset_version=18")
changed("opset 0", opset(0), "opset 0", hint="opset_version=18|again")
changed("negative opset", opset(-3), "opset -3", hint="opset_version=18|again")
changed("no opset", opset(None), "opset", hint="again|opset_version")
changed("version of the format of the future", lambda m: setattr(m, "ir_version", 4000), "4000", hint="again|upgrade")
changed("operator of another domain", both(operator("FusedThing", "com.example"), opset(1, "com.example")),
        "com.example::FusedThing", "'relu'", hint="standard operators")  # fmt: skip
changed("unknown operator", operator("Frobnicate"), "Frobnicate", "'relu'", hint="standard operators")
changed("operator newer than the opset", operator("Gelu"), "Gelu", "'relu'", hint="opset|again")
changed("function that calls itself", calls_itself, "mine::Again", hint="again")
changed("functions that call each other", calls_in_a_ring, "mine::P", hint="again")

behind("operator that is not supported", "Det", "Det", "'bad'", hint="replace", stage="quantize")
behind("several values of unknown number", "NonZero", "NonZero 'bad'", hint="static", result=TensorProto.INT64)
behind("sequence inside", "SplitToSequence", "SplitToSequence 'bad'", hint="static|supported", axis=1)
behind("random numbers", "RandomNormalLike", "RandomNormalLike", "'bad'", hint="replace", stage="quantize")
behind("training mode of Dropout", "Dropout", "Dropout", "'bad'", hint="evaluation",
       constants=(np.float32(0.5), np.bool_(True)))  # fmt: skip
behind("training mode of BatchNormalization", "BatchNormalization", "BatchNormalization", "'bad'", hint="evaluation",
       constants=tuple(np.ones(4, np.float32) for _ in range(4)), outputs=3, training_mode=1)  # fmt: skip


def lstm(model: ModelProto) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("lw", (1, 16, 36)), ("lr", (1, 16, 4))):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    shape = numpy_helper.from_array(np.array([4, 1, 36]), "steps")
    model.graph.initializer.append(shape)
    model.graph.node.insert(2, helper.make_node("Reshape", ["r", "steps"], ["rows"], name="rows"))
    model.graph.node.insert(3, helper.make_node("LSTM", ["rows", "lw", "lr"], ["l"], name="bad", hidden_size=4))
    model.graph.output.append(helper.make_tensor_value_info("l", TensorProto.FLOAT, [4, 1, 1, 4]))


def branch(model: ModelProto) -> None:
    outs = [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 4, 6, 6])]
    one, other = (
        helper.make_graph([helper.make_node(op, ["r"], ["o"], name="in")], op, [], outs) for op in ("Neg", "Abs")
    )
    model.graph.node.insert(2, helper.make_node("ReduceMax", ["r"], ["top"], name="top", keepdims=0))
    model.graph.node.insert(3, helper.make_node("Cast", ["top"], ["yes"], name="yes", to=TensorProto.BOOL))
    node = helper.make_node("If", ["yes"], ["bad0"], name="bad", then_branch=one, else_branch=other)
    model.graph.node.insert(4, node)
    model.graph.output.append(helper.make_tensor_value_info("bad0", TensorProto.FLOAT, [1, 4, 6, 6]))


def loop(model: ModelProto) -> None:
    ports = [("i", TensorProto.INT64), ("more", TensorProto.BOOL)]
    inputs = [*(helper.make_tensor_value_info(n, t, []) for n, t in ports),
              helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 4, 6, 6])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
               helper.make_tensor_value_info("v2", TensorProto.FLOAT, [1, 4, 6, 6])]  # fmt: skip
    body = [helper.make_node("Identity", ["more"], ["on"]), helper.make_node("Add", ["v", "v"], ["v2"])]
    graph = helper.make_graph(body, "body", inputs, outputs)
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**40), "trips"))
    model.graph.node.insert(2, helper.make_node("Loop", ["trips", "", "r"], ["bad0"], name="bad", body=graph))
    model.graph.output.append(helper.make_tensor_value_info("bad0", TensorProto.FLOAT, [1, 4, 6, 6]))


def strings(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, [2]))
    model.graph.node.append(helper.make_node("StringNormalizer", ["text"], ["bad0"], name="bad"))
    model.graph.output.append(helper.make_tensor_value_info("bad0", TensorProto.STRING, [2]))


changed("LSTM", lstm, "LSTM", "'bad'", hint="replace", stage="quantize")
changed("If", branch, "If", "'bad'", hint="replace", stage="quantize")
changed("Loop", loop, "Loop", "'bad'", hint="replace|static", stage="quantize")
changed("strings inside", strings, "STRING", hint="float32")

# Values of weights


def weight(name: str, change: Callable[[np.ndarray], object]) -> Change:
    def apply(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        made = change(array)
        tensor.CopyFrom(numpy_helper.from_array(array if made is None else np.asarray(made), name))

    return apply


def first(value: object) -> Callable[[np.ndarray], None]:
    return lambda array: array.reshape(-1).__setitem__(0, value)


def normalization(**values: object) -> Change:
    def change(model: ModelProto) -> None:
        for part in ("scale", "bias", "mean", "var"):
            array = np.full(4, values.get(part, 1.0), np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, part))
        model.graph.node[1].input[0] = "n"
        model.graph.node.insert(1, helper.make_node(
            "BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["n"], name="norm"))  # fmt: skip

    return change


changed("NaN in a weight", weight("w", first(np.nan)), "weight 'w' of Conv 'conv' holds NaN", hint="checkpoint")
changed("infinity in a weight", weight("m", first(np.inf)), "weight 'm' of Gemm 'dense'", hint="checkpoint")
changed("NaN in a bias", weight("b", first(np.nan)), "weight 'b' of Conv 'conv'", hint="checkpoint")
changed("NaN in a variance", normalization(var=np.nan), "BatchNormalization 'norm'", hint="checkpoint")
changed("negative variance", normalization(var=-1.0), "BatchNormalization 'norm'", "variance", hint="again")
changed("infinite scale", normalization(scale=np.inf), "BatchNormalization 'norm'", hint="checkpoint")
changed("weights of float64", weight("w", lambda a: a.astype(np.float64)), "Conv 'conv'", hint="float32|again")
changed("weights of float16", weight("w", lambda a: a.astype(np.float16)), "Conv 'conv'", hint="float32|again")
changed("weights of integers", weight("w", lambda a: a.astype(np.int32)), "Conv 'conv'", hint="float32|again")
behind("division by 0", "Div", "Div 'bad'", "by a constant 0", hint="again", constants=(np.float32(0),))

# Shapes

changed("channels that do not fit", weight("w", lambda a: a[:, :2]), "Conv 'conv'", hint="again")
changed("kernel of another rank", weight("w", lambda a: a[..., 0]), "Conv 'conv'", hint="again")
changed("flat weight", weight("w", lambda a: a.reshape(-1)), "Conv 'conv'", hint="again")
changed("bias of another length", weight("b", lambda a: np.zeros(7, np.float32)), "Conv 'conv'", hint="again")
changed("matrix of another depth", weight("m", lambda a: a[:100]), "Gemm 'dense'", hint="again")
changed("matrix of another rank", weight("m", lambda a: a[None]), "Gemm 'dense'", hint="again")


def attribute(index: int, **values: object) -> Change:
    def change(model: ModelProto) -> None:
        for name, value in values.items():
            made = value if isinstance(value, AttributeProto) else helper.make_attribute(name, value)
            model.graph.node[index].attribute.append(made)

    return change


changed("groups that do not divide", attribute(0, group=2), "Conv 'conv'", hint="again")
changed("no group", attribute(0, group=0), "Conv 'conv'", hint="again")
changed("stride 0", attribute(0, strides=[0, 1]), "Conv 'conv'", hint="again")
changed("negative stride", attribute(0, strides=[-1, 1]), "Conv 'conv'", hint="again")
changed("dilation 0", attribute(0, dilations=[1, 0]), "Conv 'conv'", hint="again")
changed("pads of one side", attribute(0, pads=[1, 1]), "Conv 'conv'", hint="again")
changed("pads that leave nothing", attribute(0, pads=[-3, -3, -3, -3]), "Conv 'conv'", hint="again")
changed("kernel larger than the picture", attribute(0, dilations=[5, 5]), "Conv 'conv'", hint="again|larger")
changed("kernel_shape of another weight", attribute(0, kernel_shape=[5, 5]), "Conv 'conv'", hint="again")
changed("unknown auto_pad", attribute(0, auto_pad="MIDDLE"), "Conv 'conv'", hint="again")
changed("attribute of another type", attribute(0, strides=helper.make_attribute("strides", "two")), "Conv", "strides",
        hint="again")  # fmt: skip
changed("attribute that does not exist", attribute(1, slope=0.1), "Relu", "slope", hint="again")
behind("attribute that is missing", "Concat", "Concat", "'bad'", hint="again")
behind("shapes that do not broadcast", "Add", "Add 'bad'", hint="again", constants=(np.ones((1, 4, 5, 5), np.float32),))
behind("types that do not fit", "Add", "Add 'bad'", hint="again", constants=(np.ones((1, 4, 6, 6), np.int64),))
behind("too few inputs", "Add", "Add", "'bad'", hint="again")
behind("input that is absent", "Max", "Max 'bad'", "input 1", hint="again", constants=(None, np.float32(1)))
behind(
    "window of 2^31",
    "MaxPool",
    "MaxPool 'bad'",
    "kernel_shape",
    hint="again",
    kernel_shape=[1, 2**31],
    auto_pad="SAME_UPPER",
)
behind("gain of another size", "LayerNormalization", "LayerNormalization 'bad'", hint="again",
       constants=(np.ones((2, 1, 6), np.float32),))  # fmt: skip
behind("axis beyond all reason", "LayerNormalization", "LayerNormalization 'bad'", "axis", hint="again", axis=2**31,
       constants=(np.ones((4, 6, 6), np.float32),))  # fmt: skip
behind("groups of channels that do not divide", "GroupNormalization", "GroupNormalization 'bad'", hint="again",
       constants=(np.ones(4, np.float32), np.ones(4, np.float32)), num_groups=3)  # fmt: skip
raw("name that is no UTF-8", lambda: good().SerializeToString().replace(b"relu", b"re\xffu"), "no UTF-8")
behind("scales of too few axes", "Resize", "Resize", "'bad'|bad:", hint="again|static|replace", stage="any",
       constants=(None, np.float32([2, 2])))  # fmt: skip
behind("reshape to another number", "Reshape", "Reshape 'bad'", hint="again", constants=(np.array([7, 7]),))
behind("reshape to a negative size", "Reshape", "Reshape 'bad'", hint="again", constants=(np.array([-2, 72]),))
behind("concatenation of what does not fit", "Concat", "Concat 'bad'", hint="again", axis=1,
       constants=(np.ones((1, 4, 5, 6), np.float32),))  # fmt: skip
behind("axis outside", "Softmax", "Softmax 'bad'", hint="again", axis=9)
behind("permutation of other axes", "Transpose", "Transpose 'bad'", hint="again", perm=[0, 1, 2, 2])
behind("step 0", "Slice", "Slice 'bad'", hint="again",
       constants=(np.array([0]), np.array([4]), np.array([1]), np.array([0])))  # fmt: skip
behind("split into other sizes", "Split", "Split 'bad'", hint="again", constants=(np.array([1, 1]),), outputs=2, axis=1)
behind("index outside", "Gather", "Gather 'bad'", hint="again", constants=(np.array([99]),))
behind("more than there is", "TopK", "TopK", "'bad'|bad:", hint="again|replace", stage="any",
       constants=(np.array([99]),), outputs=2)  # fmt: skip
behind("resize by 0", "Resize", "Resize 'bad'", hint="again|static",
       constants=(None, np.float32([1, 1, 0, 1])))  # fmt: skip
behind("resize by a negative number", "Resize", "Resize 'bad'", hint="again|static",
       constants=(None, np.float32([1, 1, -2, 1])))  # fmt: skip
behind("blocks that do not divide", "DepthToSpace", "DepthToSpace 'bad'", hint="again", blocksize=3)
behind("squeeze of more than one", "Squeeze", "Squeeze 'bad'", hint="again", constants=(np.array([1]),))
behind("equation without sense", "Einsum", "Einsum 'bad'", hint="again", equation="abc,->?")

# Sizes

_BIG = 2**40
behind("expanded to terabytes", "Expand", "Expand 'bad'", hint="smaller", constants=(np.array([_BIG, 1, 1, 1]),))
behind("tiled to terabytes", "Tile", "Tile 'bad'", hint="smaller", constants=(np.array([_BIG, 1, 1, 1]),))
behind("padded to terabytes", "Pad", "Pad 'bad'", hint="smaller", constants=(np.array([0, 0, 0, 0, _BIG, 0, 0, 0]),))
behind("resized to terabytes", "Resize", "Resize 'bad'", hint="smaller",
       constants=(None, None, np.array([1, 4, 2**31, 2**31])))  # fmt: skip
behind(
    "size beyond 64 bits", "Expand", "Expand 'bad'", hint="smaller|again", constants=(np.array([2**62, 2**62, 6, 6]),)
)
changed("input of terabytes", port("input", shape=[1, 3, 2**31, 2**31]), "input 'x'|Conv 'conv'", hint="smaller")
changed(
    "input beyond 64 bits", port("input", shape=[2**40, 3, 2**40, 8]), "input 'x'|Conv 'conv'", hint="smaller|again"
)


def constant(kind: str, *values: object, **attributes: object) -> Change:
    """A constant that the graph computes, added to `relu`."""

    def change(model: ModelProto) -> None:
        names = [f"k{i}" for i in range(len(values))]
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(v), n) for v, n in zip(values, names, strict=True)
        )
        model.graph.node.insert(2, helper.make_node(kind, names, ["big"], name="big", **attributes))
        model.graph.node.insert(3, helper.make_node("ReduceMax", ["big"], ["top"], name="top", keepdims=0))
        model.graph.node.insert(4, helper.make_node("Cast", ["top"], ["one"], name="one", to=TensorProto.FLOAT))
        model.graph.node.insert(5, helper.make_node("Add", ["r", "one"], ["bad0"], name="sum"))
        model.graph.output.append(helper.make_tensor_value_info("bad0", TensorProto.FLOAT, None))

    return change


changed("constant of terabytes", constant("ConstantOfShape", np.array([_BIG])), "ConstantOfShape 'big'", hint="smaller")
changed("range of 10^12", constant("Range", 0, 10**12, 1), "Range 'big'", hint="smaller|static")
changed("range without an end", constant("Range", 0, 10, 0), "Range 'big'", hint="again|static|step")
changed("one-hot of 10^12", constant("OneHot", np.array([1, 2]), np.array(10**12), np.float32([0, 1])),
        "OneHot 'big'", hint="smaller|static")  # fmt: skip
changed(
    "constant of a negative size", constant("ConstantOfShape", np.array([-4])), "ConstantOfShape 'big'", hint="again"
)

# What initializers hold


def tensor(index: int = 0, **fields: object) -> Change:
    def change(model: ModelProto) -> None:
        for name, value in fields.items():
            target = model.graph.initializer[index]
            if name in ("dims", "float_data"):
                target.ClearField(name)
                getattr(target, name).extend(value)
            else:
                setattr(target, name, value)

    return change


changed("weight cut short", tensor(raw_data=bytes(40)), "'w'", "40", hint="again")
changed("weight too long", tensor(raw_data=bytes(4000)), "'w'", hint="again")
changed("weight without a value", tensor(raw_data=b""), "'w'", hint="again")
changed("weight with two values", tensor(float_data=[1.0]), "'w'", hint="again")
changed("weight of no type", tensor(data_type=0), "'w'", hint="again")
changed("weight of an unknown type", tensor(data_type=77), "'w'", hint="again")
changed("weight of a negative size", tensor(dims=[4, 3, -3, 3]), "'w'", hint="again")
changed("weight of a size beyond 64 bits", tensor(dims=[2**40, 2**40]), "'w'", hint="again")
changed("weight of terabytes that are not there", tensor(dims=[_BIG]), "'w'", hint="again")
changed("weight without a name", tensor(name=""), "name", hint="again")

# External data


def external(prepare: Callable[[Path], object] = lambda _: None, **entries: str) -> Write:
    def write(path: Path) -> None:
        prepare(path.parent)
        model = good()
        rows = [onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items()]
        kept = TensorProto(name="w", dims=[4, 3, 3, 3], data_type=TensorProto.FLOAT,
                           data_location=TensorProto.EXTERNAL, external_data=rows)  # fmt: skip
        model.graph.initializer[0].CopyFrom(kept)
        save(model, path)

    return write


def _data(folder: Path) -> None:
    (folder / "net.data").write_bytes(np.ones((4, 3, 3, 3), np.float32).tobytes())


def _link(folder: Path) -> None:
    folder.parent.joinpath("secret").write_bytes(np.ones((4, 3, 3, 3), np.float32).tobytes())
    (folder / "net.data").symlink_to("../secret")


def _folder(folder: Path) -> None:
    (folder / "net.data").mkdir()


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "net.data")


for _name, _write in {
    "that is missing": external(location="net.data"),
    "outside of the folder": external(location="../../etc/passwd"),
    "at an absolute path": external(location="/etc/passwd"),
    "behind a symbolic link": external(_link, location="net.data"),
    "that is a folder": external(_folder, location="net.data"),
    "that is a pipe": external(_pipe, location="net.data"),
    "without a place": external(_data, offset="0"),
    "behind its end": external(_data, location="net.data", offset="1000000"),
    "longer than it is": external(_data, location="net.data", length="1000000"),
    "shorter than its shape": external(_data, location="net.data", length="8"),
    "at a negative offset": external(_data, location="net.data", offset="-8"),
    "at an offset that is no number": external(_data, location="net.data", offset="eight"),
}.items():
    BAD.append(Bad(f"external data {_name}", _write, ("external data|'w'",), "beside the model|again"))

# Models that are quantized already

_QDQ: list[tuple[str, Change, tuple[str, ...], str, str]] = [
    ("scale 0", weight("s", lambda a: np.float32(0)), ("QuantizeLinear 'q'", "positive"), "uint8", "quantize"),
    ("negative scale", weight("s", lambda a: np.float32(-1)), ("QuantizeLinear 'q'", "positive"), "uint8", "quantize"),
    ("NaN as a scale", weight("s", lambda a: np.float32(np.nan)), ("QuantizeLinear 'q'", "NaN"), "checkpoint",
     "ingest"),
    ("scale of a weight 0", weight("t", first(0)), ("DequantizeLinear 'dw'", "positive"), "uint8", "quantize"),
    ("zero point of another type", weight("zero", lambda a: a.astype(np.uint8)), ("DequantizeLinear 'dw'",),
     "uint8|again", "any"),
    ("activations of int8", weight("z", lambda a: np.int8(0)), ("QuantizeLinear 'q'", "int8"), "uint8", "quantize"),
    ("scales of another number", weight("t", lambda a: np.float32([1, 1, 1])), ("DequantizeLinear 'dw'",),
     "uint8|again", "any"),
    ("zero points of another number", weight("zero", lambda a: np.zeros(3, np.int8)), ("DequantizeLinear 'dw'",),
     "uint8|again", "any"),
    ("axis outside of a weight", lambda m: setattr(m.graph.node[2].attribute[0], "i", 5), ("DequantizeLinear 'dw'",),
     "uint8|again", "any"),
    ("weight that is not symmetric", weight("zero", first(3)), ("DequantizeLinear 'dw'", "symmetric"), "uint8",
     "quantize"),
    ("scale computed at run time", inputs_of(0, 1, "x0"), ("'x0'",), "again|static", "any"),
]  # fmt: skip
for _title, _change, _says, _hint, _stage in _QDQ:
    changed(_title, _change, *_says, hint=_hint, stage=_stage, base=quantized)

# Names


def named(name: str) -> Change:
    """The layer that is wrong bears the name."""

    def change(model: ModelProto) -> None:
        model.graph.node[0].name = name
        attribute(0, group=2)(model)

    return change


changed("name of two lines", named("first\nsecond"), "Conv", "first", hint="again")
changed("name with control characters", named("a\x1b[31mred\x07\r\x00b"), "Conv", "red", hint="again")
changed("name with markup", named("[bold]x[/bold] [/] [link=file:///]"), r"Conv '\[bold\]x\[/bold\]", hint="again")
changed("name of 100,000 letters", named("n" * 100_000), "Conv", "nnnn", hint="again")
changed("name that turns the line around", named("a\u202eb\u2028c"), "Conv", "a", hint="again")
