"""The judge loads what is written, and computes it exactly."""

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

from edgebuild.core import ort
from edgebuild.core.errors import ModelError


def two_products(weights: str, zero_point: str) -> ModelProto:
    """Two layers of int8 weights, the second one's as named: those of the first are `w` and `z`."""
    model = parser.parse_model(f"""<ir_version: 9, opset_import: ["": 18]> g (float[1,8] x) => (float[1,8] y) {{
      q = QuantizeLinear(x, s, a)
      d = DequantizeLinear(q, s, a)
      dw = DequantizeLinear<axis=1>(w, sw, z)
      m = MatMul(d, dw)
      q2 = QuantizeLinear(m, s, a)
      d2 = DequantizeLinear(q2, s, a)
      dv = DequantizeLinear<axis=1>({weights}, sw, {zero_point})
      n = MatMul(d2, dv)
      q3 = QuantizeLinear(n, s, a)
      y = DequantizeLinear(q3, s, a)
    }}""")
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (8, 8)).astype(np.int8)
    same = {"z": np.zeros(8, np.int8), "z2": np.zeros(8, np.int8), "w": w, "w2": w}
    constants = same | {"s": np.float32(0.1), "a": np.uint8(128), "sw": np.full(8, 0.002, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return model


@pytest.mark.parametrize(("weights", "zero_point"), [("w2", "z"), ("w", "z2"), ("w", "z")])
def test_layers_that_share_int8_constants(weights: str, zero_point: str) -> None:
    """Which ONNX Runtime's exact products do not take; the model itself stays as it is."""
    model = two_products(weights, zero_point)
    before = model.SerializeToString(deterministic=True)
    x = np.random.default_rng(1).uniform(-12, 12, (1, 8)).astype(np.float32)
    found = ort.session(model).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, ort.session(two_products("w2", "z2")).run(None, {"x": x})[0])
    assert len(np.unique(found)) > 4
    assert model.SerializeToString(deterministic=True) == before


def test_what_cannot_be_loaded_is_named() -> None:
    model = two_products("w2", "z2")
    model.graph.node[3].op_type = "Odd"
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load the sum: .*Odd"):
        ort.session(model, "the sum")
