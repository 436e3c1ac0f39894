"""The sentences of texts.txt as word ids, each text of exactly the length that the model takes."""

import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgebuild.core.errors import CalibrationError
from edgebuild.core.manifest import Tensor

COUNT = 64
START, END = 101, 102
"""BERT's ids for the beginning of a text and the end of a sentence."""

FIRST_WORD, WORDS = 1000, 29522
"""Where a BERT vocabulary's whole words begin, and how many ids follow."""


def files() -> list[Path]:
    """The text."""
    return [Path(__file__).parent / "texts.txt"]


def calibration(inputs: Sequence[Tensor]) -> Iterator[tuple[dict[str, np.ndarray], None]]:
    """COUNT texts, each beginning at another sentence. A word's id is its checksum: any vocabulary's words are alike to
    an untrained network.
    """
    if len(inputs) != 1 or inputs[0].dtype not in ("int32", "int64") or len(inputs[0].shape) != 1:
        raise CalibrationError("the sentences are word ids: they fit one int32 or int64 input [words]")
    words = inputs[0]
    sentences = [_ids(line) for line in files()[0].read_text(encoding="utf-8").splitlines() if line]
    for index in range(COUNT):
        text = [START]
        turn = index
        while len(text) < words.shape[0]:
            text += sentences[turn * (1 + index // len(sentences)) % len(sentences)]
            turn += 1
        yield {words.name: np.array([*text[: words.shape[0] - 1], END], words.dtype)}, None


def _ids(sentence: str) -> list[int]:
    words = re.findall(r"\w+|[^\w\s]", sentence.lower())
    return [*(FIRST_WORD + zlib.crc32(word.encode()) % WORDS for word in words), END]
