"""Biases of graphs that came quantized are in units of input scale times weight scale."""

import numpy as np
import onnx
from onnx import numpy_helper
from quantize.models import model, normal, run, samples

from edgebuild.reference import Interpreter
from edgebuild.stages.quantize import quantize
from edgebuild.stages.quantize.biases import with_fitting_biases

LAYERS = """(float[1,4,6,6] x) => (float[1,5] y) {
  a = Conv(x, k, b)
  r = Relu(a)
  f = Flatten(r)
  y = Gemm<transB=1>(f, w, c)
}"""


def quantized() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    float_model = model(LAYERS, k=normal(rng, 8, 4, 3, 3), b=normal(rng, 8), w=normal(rng, 5, 128), c=normal(rng, 5))
    return quantize(float_model, lambda: iter(samples(rng, (1, 4, 6, 6)))).model


def larger(qdq: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(qdq)
    tensor = next(t for t in result.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return result


def test_a_graph_that_fits_stays_as_it_is() -> None:
    qdq = quantized()
    assert with_fitting_biases(qdq).SerializeToString(deterministic=True) == qdq.SerializeToString(deterministic=True)


def test_a_scale_that_was_changed_keeps_the_value_of_the_bias() -> None:
    qdq = quantized()
    scale = next(n for n in qdq.graph.node if n.op_type == "QuantizeLinear").input[1]
    planted = larger(qdq, scale, 3)
    mended = with_fitting_biases(planted)
    (sample,) = samples(np.random.default_rng(4), (1, 4, 6, 6), 1)
    expected, found = run(planted, sample, optimized=False)["y"], run(mended, sample, optimized=False)["y"]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    np.testing.assert_allclose(Interpreter(mended).run(sample)["y"], found, atol=0.02 * np.abs(expected).max())
