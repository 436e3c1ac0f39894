"""16 bits for the tensors without which a network is ruined, and for no others."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from quantize.models import model, normal

from edgebuild.stages.quantize import Settings, quantize
from edgebuild.stages.quantize.search import decibels

SILU = """(float[1,8,12,12] x) => (float[1,8,12,12] y) {
  a = Conv<pads=[1,1,1,1]>(x, k1) s = Sigmoid(a) b = Mul(a, s)
  c = Conv(b, k2) t = Sigmoid(c) d = Mul(c, t)
  y = Conv(d, k3)
}"""


def network(loud: float) -> onnx.ModelProto:
    """Its first activation has a channel `loud` times as large as the others; behind it, it counts like the others."""
    rng = np.random.default_rng(3)
    k1, k2 = normal(rng, 8, 8, 3, 3, scale=0.2), normal(rng, 8, 8, 1, 1, scale=0.4)
    k1[0] *= loud
    k2[:, 0] /= loud
    return model(SILU, k1=k1, k2=k2, k3=normal(rng, 8, 8, 1, 1, scale=0.4))


def stream() -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return iter([{"x": rng.normal(size=(1, 8, 12, 12)).astype(np.float32)} for _ in range(16)])


def quality(proto: onnx.ModelProto, settings: Settings) -> tuple[float, list[str]]:
    from edgebuild.core import ort

    found = quantize(proto, stream, settings)
    floating, integer = ort.session(proto), ort.session(found.model)
    pairs = [(floating.run(["y"], s)[0], integer.run(["y"], s)[0]) for s in stream()]
    error = sum(float(np.square(a - b).sum()) for a, b in pairs) / sum(float(np.square(a).sum()) for a, _ in pairs)
    return decibels(error), found.report["rescued"]


def test_a_network_whose_channels_drown_gets_16_bits_where_they_do() -> None:
    ruined, none = quality(network(200.0), Settings(rescued=False))
    assert ruined < 18
    assert none == []
    saved, groups = quality(network(200.0), Settings())
    assert saved > ruined + 10
    assert {"a", "b"} & set(groups)
    assert "d" not in groups


@pytest.mark.parametrize("settings", [Settings(), Settings(rescued=False)])
def test_a_healthy_network_keeps_8_bits(settings: Settings) -> None:
    healthy, groups = quality(network(1.0), settings)
    assert healthy > 25
    assert groups == []
