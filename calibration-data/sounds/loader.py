"""Synthesized sounds as the features that sound networks take: a voice for keywords, a motor for anomalies."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from edgebuild.core.errors import CalibrationError
from edgebuild.core.manifest import Tensor

COUNT = 64
RATE = 16000
"""Samples of sound a second."""

VOWELS = ((270, 2290, 3010), (530, 1840, 2480), (730, 1090, 2440), (570, 840, 2410), (300, 870, 2240))
"""Formants in Hz of i, e, a, o, u (G. Peterson, H. Barney, Control Methods Used in a Study of the Vowels, 1952)."""

BANDWIDTH = 90
"""Of a formant, in Hz."""


def files() -> list[Path]:
    """None: the sounds are computed."""
    return []


def calibration(inputs: Sequence[Tensor]) -> Iterator[tuple[dict[str, np.ndarray], None]]:
    """COUNT samples of one float32 input: MFCC of a voice [49, 10, 1], or frames of a motor's spectrogram [640]."""
    found = _FEATURES.get(inputs[0].shape) if len(inputs) == 1 and inputs[0].dtype == "float32" else None
    if found is None:
        raise CalibrationError(
            "the sounds fit one float32 input, [49, 10, 1] or [640]",
            "give features of your own: --calibration FILE.npz",
        )
    for index in range(COUNT):
        yield {inputs[0].name: found(np.random.default_rng(index)).astype(np.float32)}, None


def _keyword(random: np.random.Generator) -> np.ndarray:
    """Ten cepstral coefficients [49, 10, 1] of one second: windows of 30 ms every 20 ms, 40 mel bands."""
    frames = _spectrum(_voice(random), window=480, step=320, size=512)
    bands = np.log(frames @ _mel(40, 512, 20, 4000) + 1e-6)
    angles = np.pi / 40 * np.outer(np.arange(40) + 0.5, np.arange(10))
    return (bands @ np.cos(angles) * np.sqrt(2 / 40))[..., None]


def _motor_frames(random: np.random.Generator) -> np.ndarray:
    """128 mel bands in decibels of five frames of 64 ms, one behind the other [640]."""
    power = _spectrum(_motor(random), window=1024, step=512, size=1024)[:5] ** 2
    return (10 * np.log10(power @ _mel(128, 1024, 0, RATE / 2) + 1e-10)).reshape(-1)


def _voice(random: np.random.Generator) -> np.ndarray:
    """One second: a hiss, then two vowels that glide into each other, somewhere in silence."""
    time = np.arange(RATE) / RATE
    start, length = random.uniform(0.05, 0.3), random.uniform(0.3, 0.6)
    place = np.clip((time - start) / length, 0, 1)
    pitch = random.uniform(90, 220) * (1 + random.uniform(-0.3, 0.3) * place)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    first, second = (np.array(VOWELS[i]) for i in random.integers(0, len(VOWELS), 2))
    sound = np.zeros(RATE)
    for harmonic in range(1, 40):
        hertz = harmonic * pitch
        formants = first + place[:, None] * (second - first)
        gain = (BANDWIDTH**2 / ((hertz[:, None] - formants) ** 2 + BANDWIDTH**2)).sum(axis=1)
        sound += np.where(hertz < RATE / 2, gain, 0) * np.sin(harmonic * phase) / harmonic
    loud = np.sin(np.pi * place)
    hiss = random.uniform(-1, 1, RATE) * np.exp(-(((time - start) / random.uniform(0.03, 0.08)) ** 2))
    quiet = random.uniform(-1, 1, RATE) * 10 ** random.uniform(-4, -2)
    return 10 ** random.uniform(-1.5, -0.5) * (loud * sound + random.uniform(0, 0.5) * hiss) + quiet


def _motor(random: np.random.Generator) -> np.ndarray:
    """A fifth of a second of a turning rotor: harmonics that waver, and the rush of air."""
    time = np.arange(RATE // 5) / RATE
    turns = random.uniform(40, 90) * (1 + 0.02 * np.sin(2 * np.pi * random.uniform(2, 9) * time))
    phase = 2 * np.pi * np.cumsum(turns) / RATE
    sound = sum(random.uniform(0.2, 1) / n * np.sin(n * phase + random.uniform(0, 6)) for n in range(1, 60))
    air = np.convolve(random.uniform(-1, 1, len(time)), random.uniform(0, 1, 5), "same")
    return 10 ** random.uniform(-2, -0.5) * (sound + random.uniform(0.1, 1) * air)


def _spectrum(sound: np.ndarray, window: int, step: int, size: int) -> np.ndarray:
    """Magnitudes [frames, size / 2 + 1] of Hann windows."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::step]
    return np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1], size))


def _mel(bands: int, size: int, low: float, high: float) -> np.ndarray:
    """Triangles [size / 2 + 1, bands] whose corners lie evenly on the mel scale between two frequencies in Hz."""
    hertz = np.linspace(0, RATE / 2, size // 2 + 1)[:, None]
    corners = 700 * (np.exp(np.linspace(np.log1p(low / 700), np.log1p(high / 700), bands + 2)) - 1)
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    return np.maximum(0, np.minimum((hertz - left) / (middle - left), (right - hertz) / (right - middle)))


_FEATURES: dict[tuple[int, ...], Callable[[np.random.Generator], np.ndarray]] = {
    (49, 10, 1): _keyword,
    (640,): _motor_frames,
}
