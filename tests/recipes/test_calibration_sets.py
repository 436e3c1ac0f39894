"""Sets that are computed: the right shape, the same every time, and no two samples alike."""

import numpy as np
import pytest

from edgebuild.core.calibration import find_set, load_set
from edgebuild.core.errors import CalibrationError
from edgebuild.core.manifest import Tensor

INPUTS = {
    "photos": Tensor("x", "uint8", (32, 48, 3)),
    "sounds": Tensor("x", "float32", (49, 10, 1)),
    "sentences": Tensor("x", "int32", (128,)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_samples(name: str) -> None:
    first, again = ([s["x"] for s in load_set(find_set(name)).samples([INPUTS[name]], 40)] for _ in range(2))
    assert np.array_equal(first, again)
    assert len(np.unique(np.reshape(first, (40, -1)), axis=0)) == 40
    with pytest.raises(CalibrationError, match=f"the {name}"):
        next(load_set(find_set(name)).samples([Tensor("x", "float32", (3,))]))


def test_a_voice_has_the_range_of_real_features() -> None:
    """MLPerf Tiny's features of speech lie in -123.1 .. 25.7."""
    voices = np.stack([s["x"] for s in load_set(find_set("sounds")).samples([INPUTS["sounds"]])])
    assert -123.1 < voices.min() < -40
    assert 5 < voices.max() < 30
    assert (voices[..., 1:, 0].std(axis=(0, 1)) > 0.5).all()


def test_a_motor_s_spectrum_is_in_decibels() -> None:
    spectra = np.stack([s["x"] for s in load_set(find_set("sounds")).samples([Tensor("x", "float32", (640,))], 64)])
    assert -80 < spectra.min() < spectra.max() < 60
    assert spectra.std(axis=0).min() > 1


def test_words_fit_bert_s_vocabulary() -> None:
    texts = np.stack([s["x"] for s in load_set(find_set("sentences")).samples([INPUTS["sentences"]])])
    assert (texts[:, 0] == 101).all()
    assert (texts[:, -1] == 102).all()
    assert 101 <= texts.min() <= texts.max() < 30522
