"""Sets of sounds, of arrays, and of pictures with boxes or in an .npz."""

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgebuild.core.calibration import Label, Sample, load_set
from edgebuild.core.errors import CalibrationError
from edgebuild.core.manifest import Tensor

SOUND = Tensor("sound", "float32", (8,))
FRAME = Tensor("frame", "uint8", (40, 80, 3))
RATE = 16000


def described(folder: Path, kind: str, *lines: str) -> Path:
    head = f'[set]\nname = "mine"\nlicence = "own"\nkind = "{kind}"\n[calibration]\n'
    (folder / "set.toml").write_text(head + "\n".join(lines) + "\n")
    return folder


def items(folder: Path, spec: Tensor, limit: int | None = None) -> list[tuple[Sample, Label]]:
    return list(load_set(folder).labelled([spec], limit))


def refused(folder: Path, spec: Tensor, message: str, hint: str = "") -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        items(folder, spec)
    assert hint in caught.value.hint
    assert str(folder) in caught.value.message


def sound(path: Path, data: bytes, *, channels: int = 1, width: int = 2, rate: int = RATE) -> None:
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)


def sounds(folder: Path, *lines: str) -> Path:
    sound(folder / "wav" / "a.wav", struct.pack("<4h", 0, 16384, -32768, 32767))
    sound(folder / "wav" / "b.wav", struct.pack("<20h", *range(20)))
    return described(folder, "audio", 'path = "wav"', f"sample_rate = {RATE}", *lines)


def test_sounds_are_cut_to_the_input_and_filled_with_silence(tmp_path: Path) -> None:
    (first, _), (second, _) = items(sounds(tmp_path), SOUND)
    np.testing.assert_allclose(first["sound"], [0, 0.5, -1, 1, 0, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(second["sound"] * 32768, range(8))
    assert second["sound"].dtype == np.float32


def test_all_windows_of_a_sound(tmp_path: Path) -> None:
    found = items(sounds(tmp_path, 'windows = "all"'), Tensor("sound", "int16", (1, 8)))
    assert [sample["sound"].tolist()[0] for sample, _ in found[1:]] == [list(range(8)), list(range(8, 16))]
    assert len(found) == 3
    assert len(items(tmp_path, SOUND, 2)) == 2


def test_sounds_without_a_description(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"holds sounds, and no set\.toml") as caught:
        load_set(sounds(tmp_path) / "wav")
    assert "sample_rate" in caught.value.hint


def test_sounds_with_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("\ufefffile,label\nb.wav,3\n", encoding="utf-8")
    assert [label for _, label in items(sounds(tmp_path, 'labels = "labels.csv"'), SOUND)] == [3]


@pytest.mark.parametrize(
    ("width", "data", "wanted"),
    [(1, b"\x80\xc0\x00", [0, 0.5, -1]), (3, b"\0\0\x40", [0.5]), (4, b"\0\0\0\xc0", [-0.5])],
)
def test_other_widths(tmp_path: Path, width: int, data: bytes, wanted: list[float]) -> None:
    sound(tmp_path / "wav" / "a.wav", data, width=width)
    ((found, _),) = items(described(tmp_path, "audio", 'path = "wav"', f"sample_rate = {RATE}"), SOUND)
    np.testing.assert_allclose(found["sound"][: len(wanted)], wanted)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"\0" * 8, {"channels": 2}, "has 2 channels; a sample is mono"),
        (b"\0" * 8, {"rate": 8000}, "has 8000 values a second; sample_rate says 16000"),
        (b"", {}, "is empty"),
    ],
)
def test_wrong_sounds(tmp_path: Path, data: bytes, options: dict[str, int], message: str) -> None:
    assert len(items(sounds(tmp_path), SOUND)) == 2
    sound(tmp_path / "wav" / "a.wav", data, **options)
    refused(tmp_path, SOUND, rf"a\.wav: .*{message}", "ffmpeg -i IN.wav -ac 1 -ar 16000")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_cut_sounds(tmp_path: Path, share: float) -> None:
    path = sounds(tmp_path) / "wav" / "b.wav"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(tmp_path, SOUND, r"b\.wav: is no readable \.wav file", "ffmpeg")


def test_sounds_that_no_input_takes(tmp_path: Path) -> None:
    refused(sounds(tmp_path), FRAME, "sounds fit one float32 or int16 input", "spectrum")
    refused(sounds(tmp_path), Tensor("x", "float32", (4, 8)), "the model takes x float32")
    refused(described(tmp_path, "audio", 'path = "wav"'), SOUND, "missing key 'sample_rate'", "16000")


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(24, dtype=np.float32).reshape(3, 8))
    np.save(tmp_path / "y.npy", np.array([2, 0, 1]))
    found = items(described(tmp_path, "arrays", 'path = "x.npy"', 'labels = "y.npy"'), SOUND)
    assert [label for _, label in found] == [2, 0, 1]
    np.testing.assert_array_equal(found[2][0]["sound"], range(16, 24))
    assert len(list(load_set(tmp_path / "x.npy").samples([SOUND], 2))) == 2
    with pytest.raises(CalibrationError, match=r"an \.npy file holds one array; the model takes a .*, b "):
        list(load_set(tmp_path / "x.npy").samples([Tensor("a", "float32", (8,)), Tensor("b", "float32", (8,))]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1]), "different numbers of samples: sound 3, labels 2"),
        (np.array([0.5, 1, 2]), "array 'labels' is float64"),
    ],
)
def test_wrong_labels_of_npy(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8), np.float32))
    np.save(tmp_path / "y.npy", labels)
    refused(described(tmp_path, "arrays", 'path = "x.npy"', 'labels = "y.npy"'), SOUND, message)


def test_cut_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8), np.float32))
    data = (tmp_path / "x.npy").read_bytes()
    for share in (0.2, 0.9):
        (tmp_path / "x.npy").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CalibrationError, match=r"x\.npy: is no readable \.npy file"):
            list(load_set(tmp_path / "x.npy").samples([SOUND]))


def picture(folder: Path, name: str = "a.png", size: tuple[int, int] = (160, 40)) -> Image.Image:
    """Grey, with a white box from (40, 10) to (80, 30)."""
    array = np.full((size[1], size[0], 3), 50, np.uint8)
    array[10:30, 40:80] = 255
    made = Image.fromarray(array)
    (folder / "p").mkdir(exist_ok=True)
    made.save(folder / "p" / name)
    return made


YOLO = "3 0.375 0.5 0.25 0.5\n"
"""The white box."""


@pytest.mark.parametrize(
    ("resize", "wanted"),
    [
        ("stretch", [3, 20, 10, 40, 30]),
        ("letterbox", [3, 20, 5, 40, 15]),
        ("center-crop", [3, 0, 10, 40, 30]),
    ],
)
def test_boxes_follow_the_picture(tmp_path: Path, resize: str, wanted: list[float]) -> None:
    picture(tmp_path)
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "a.txt").write_text(YOLO)
    folder = described(tmp_path, "images", 'path = "p"', 'labels = "l"', f'resize = "{resize}"')
    ((sample, label),) = items(folder, FRAME)
    np.testing.assert_allclose(label, [wanted])
    white = np.argwhere(sample["frame"][..., 0] > 240)
    (top, left), (bottom, right) = white.min(axis=0), white.max(axis=0) + 1
    np.testing.assert_allclose([left, top, right, bottom], wanted[1:], atol=1.5)
    if resize == "letterbox":
        assert (sample["frame"][20:] == 114).all()


def test_boxes_of_a_csv_and_pictures_without_any(tmp_path: Path) -> None:
    picture(tmp_path)
    picture(tmp_path, "b.png")
    (tmp_path / "l.csv").write_text("file,label,left,top,right,bottom\na.png,3,40,10,80,30\na.png,1,0,0,160,40\n")
    folder = described(tmp_path, "images", 'path = "p"', 'labels = "l.csv"', 'resize = "stretch"')
    ((_, label),) = items(folder, FRAME)
    np.testing.assert_allclose(label, [[3, 20, 10, 40, 30], [1, 0, 0, 80, 40]])
    (tmp_path / "l").mkdir()
    folder = described(tmp_path, "images", 'path = "p"', 'labels = "l"')
    assert [np.shape(label) for _, label in items(folder, FRAME)] == [(0, 5), (0, 5)]


@pytest.mark.parametrize("line", ["3 0.5 0.5 0.5", "3.5 0.5 0.5 0.5 0.5", "-1 0.5 0.5 0.5 0.5", "3 40 10 80 30", "dog"])
def test_wrong_yolo_files(tmp_path: Path, line: str) -> None:
    picture(tmp_path)
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "a.txt").write_text(YOLO + line)
    folder = described(tmp_path, "images", 'path = "p"', 'labels = "l"')
    refused(folder, FRAME, r"a\.txt: is no YOLO label file", "class x y width height")


def test_pictures_of_one_name_in_two_folders(tmp_path: Path) -> None:
    picture(tmp_path)
    (tmp_path / "p" / "sub").mkdir()
    picture(tmp_path, "sub/a.png")
    (tmp_path / "l.csv").write_text("file,label\nsub/a.png,1\n")
    folder = described(tmp_path, "images", 'path = "p"', 'labels = "l.csv"')
    assert [label for _, label in items(folder, FRAME)] == [1]
    (tmp_path / "l.csv").write_text("file,label\nx/a.png,1\n")
    refused(folder, FRAME, r"'x/a.png' may be a.png or sub/a.png", "relative to the set's folder")


def test_cropping_is_pillows(tmp_path: Path) -> None:
    made = picture(tmp_path, size=(161, 43))
    ((sample, _),) = items(tmp_path / "p", FRAME)
    np.testing.assert_array_equal(sample["frame"], np.asarray(ImageOps.fit(made, (80, 40), Image.Resampling.BILINEAR)))


def test_pictures_in_an_npz(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(3, 20, 40), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([4, 5, 6]))
    folder = described(tmp_path, "images", 'path = "x.npz"')
    found = items(folder, Tensor("frame", "uint8", (20, 40, 3)))
    assert [label for _, label in found] == [4, 5, 6]
    np.testing.assert_array_equal(found[1][0]["frame"], np.repeat(images[1][..., None], 3, axis=2))
    grey = items(folder, Tensor("frame", "uint8", (20, 40, 1)))
    np.testing.assert_array_equal(grey[2][0]["frame"][..., 0], images[2])
    assert items(folder, FRAME, 2)[1][0]["frame"].shape == (40, 80, 3)
    np.savez(tmp_path / "x.npz", images=images.astype(np.float32))
    refused(folder, FRAME, "array 'images' is float32", "uint8")
    np.savez(tmp_path / "x.npz", frame=images)
    refused(folder, FRAME, "holds the arrays frame", 'kind = "arrays"')
    (tmp_path / "x.txt").write_text("")
    refused(described(tmp_path, "images", 'path = "x.txt"'), FRAME, "neither a folder nor an .npz file")


def test_the_digest_covers_labels(tmp_path: Path) -> None:
    picture(tmp_path)
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "a.txt").write_text(YOLO)
    folder = described(tmp_path, "images", 'path = "p"', 'labels = "l"')
    before = load_set(folder).digest()
    (tmp_path / "l" / "a.txt").write_text(YOLO * 2)
    assert load_set(folder).digest() != before
