"""The float network behind a QDQ graph whose ports are integers."""

import numpy as np
import onnx
from quantize.models import model

from edgebuild.core import ort
from edgebuild.stages.quantize.strip import without_rounding

PORTS = """(uint8[1,4] x) => (uint8[1,4] y, float[1,4] z) {
  a = DequantizeLinear(x, s, zero)
  b = Relu(a)
  c = QuantizeLinear(b, s, zero)
  d = DequantizeLinear(c, s, zero)
  e = Mul(d, d)
  y = QuantizeLinear(e, s, zero)
  z = DequantizeLinear(y, s, zero)
}"""


def test_integers_at_the_ports_stay_and_inner_rounding_goes() -> None:
    quantized = model(PORTS, s=np.float32(0.25), zero=np.uint8(4))
    stripped = without_rounding(quantized)
    onnx.checker.check_model(stripped, full_check=True)
    x = np.array([[2, 4, 5, 8]], np.uint8)
    y, z = ort.session(stripped, optimized=False).run(["y", "z"], {"x": x})
    assert y.dtype == np.uint8
    values = np.maximum((x.astype(np.float32) - 4) * 0.25, 0)
    np.testing.assert_array_equal(z, values**2)  # 0.0625 is no step of 0.25
    np.testing.assert_array_equal(y, np.rint(values**2 / 0.25) + 4)
