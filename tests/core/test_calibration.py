"""Calibration sets: the three kinds, streaming, and every way the data can be wrong."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgebuild.core.calibration import CalibrationSet, find_set, has_test, load_set
from edgebuild.core.errors import CalibrationError, EdgebuildError
from edgebuild.core.manifest import Tensor

FRAME = Tensor("frame", "uint8", (8, 6, 3))
X = Tensor("x", "float32", (1, 4))
N = Tensor("n", "int64", ())


def refused(chosen: CalibrationSet, inputs: list[Tensor], message: str, hint: str = "") -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        list(chosen.samples(inputs))
    assert hint in caught.value.hint


def test_digits() -> None:
    place = find_set("digits")
    assert has_test(place)
    frame = Tensor("frame", "uint8", (64, 64, 3))
    training, held_out = (list(load_set(place, split).labelled([frame])) for split in ("calibration", "test"))
    assert (len(training), len(held_out)) == (1348, 449)
    assert {label for _, label in held_out} == set(range(10))
    trained_on = {sample["frame"].tobytes() for sample, _ in training}
    assert not [1 for sample, _ in held_out if sample["frame"].tobytes() in trained_on]
    assert all((sample["frame"][..., :1] == sample["frame"]).all() for sample, _ in held_out[:10])


def test_digits_digest_notices_other_data(tmp_path: Path) -> None:
    import shutil

    place = shutil.copytree(find_set("digits"), tmp_path / "digits")
    load_set(place)
    text = (place / "set.toml").read_text()
    digest = next(line for line in text.splitlines() if line.startswith("digest"))
    (place / "set.toml").write_text(text.replace(digest, 'digest = "' + "0" * 64 + '"'))
    with pytest.raises(CalibrationError, match=r"calibration\.digest: the data has changed: expected 0000") as caught:
        load_set(place)
    assert "restore the data" in caught.value.hint


def test_photos_are_different_crops_of_the_size_that_is_asked_for() -> None:
    samples = [sample["frame"] for sample in load_set(find_set("photos")).samples([FRAME])]
    assert len(samples) == 64
    assert len({sample.tobytes() for sample in samples}) == 64
    assert not has_test(find_set("photos"))


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for index in range(count):
        array = np.full((20 + index, 40, 3), index * 40, np.uint8)
        array[:, :5] = 255
        Image.fromarray(array).save(folder / f"{index}.png")
    return folder


def test_folder_of_images(tmp_path: Path) -> None:
    samples = list(load_set(pictures(tmp_path / "p")).samples([FRAME]))
    assert [sample["frame"].shape for sample in samples] == [(8, 6, 3)] * 3
    assert [int(sample["frame"].max()) for sample in samples] == [0, 40, 80]  # the white margin was cut off
    assert len(list(load_set(tmp_path / "p").samples([FRAME], 2))) == 2


def test_described_images_with_labels(tmp_path: Path) -> None:
    pictures(tmp_path / "p")
    (tmp_path / "labels.csv").write_text("file,label\np/0.png,7\np/2.png,3\n")
    (tmp_path / "set.toml").write_text(
        '[set]\nname = "mine"\nlicence = "own"\nkind = "images"\n[calibration]\npath = "p"\n'
        '[test]\npath = "p"\nlabels = "labels.csv"\nresize = "stretch"\n'
    )
    test = list(load_set(tmp_path, "test").labelled([FRAME]))
    assert [label for _, label in test] == [7, 3]
    assert test[0][0]["frame"].max() > 100  # nothing was cut off
    (tmp_path / "labels.csv").write_text("file,label\np/0.png,seven\n")
    refused(load_set(tmp_path, "test"), [FRAME], r"labels\.csv: is no list of labels", "file,label")


def test_wrong_images(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p")
    refused(load_set(folder), [X], "images fit one uint8 input.*the model takes x float32", ".npz")
    data = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(data[: len(data) // 2])
    refused(load_set(folder), [FRAME], r"1\.png: is no readable image", "repair")
    (folder / "1.png").write_bytes(b"no picture")
    refused(load_set(folder), [FRAME], r"1\.png: is no readable image")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(load_set(empty), [FRAME], "holds no samples", "--calibration")


def npz(tmp_path: Path, **arrays: np.ndarray) -> CalibrationSet:
    path = tmp_path / "c.npz"
    np.savez(path, **arrays)
    return load_set(path)


def test_npz(tmp_path: Path) -> None:
    x, n = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(3)
    samples = list(npz(tmp_path, n=n, x=x).samples([X, N]))
    assert [list(sample) for sample in samples] == [["x", "n"]] * 3
    np.testing.assert_array_equal(samples[2]["x"], x[2:3])
    assert samples[2]["n"] == 2
    labelled = list(npz(tmp_path, x=x, labels=np.array([5, 6, 7])).labelled([X]))
    assert [label for _, label in labelled] == [5, 6, 7]
    np.savez_compressed(tmp_path / "c.npz", x=x[:, None])
    assert len(list(load_set(tmp_path / "c.npz").samples([X], 2))) == 2


def test_npz_streams(tmp_path: Path) -> None:
    big = Tensor("x", "float32", (1000, 100))
    chosen = npz(tmp_path, x=np.zeros((50, 1000, 100), np.float32))
    tracemalloc.start()
    for _ in chosen.samples([big]):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 400_000


GOOD = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message", "hint"),
    [
        ({"y": GOOD}, "array 'y' is no input of the model", "known: x"),
        ({"xx": GOOD}, "array 'xx' is no input of the model", "did you mean 'x'?"),
        ({"labels": np.zeros(3, np.int64)}, "there is no array for input 'x'", "named 'x'"),
        ({"x": GOOD.astype(np.float64)}, "input 'x' is float64, the model takes float32", "astype('float32')"),
        ({"x": np.zeros((3, 5), np.float32)}, r"input 'x' has shape \[5\], the model takes \[1, 4\]", "first axis"),
        ({"x": np.zeros((3, 2, 4), np.float32)}, r"has shape \[2, 4\], the model takes \[1, 4\]", "first axis"),
        ({"x": np.full((3, 4), np.nan, np.float32)}, "input 'x' holds NaN", "remove"),
        ({"x": np.full((3, 4), np.inf, np.float32)}, "input 'x' holds NaN or infinity", "remove"),
        ({"x": GOOD[:0]}, "holds no samples", "--calibration"),
        ({}, "holds no samples", "--calibration"),
        ({"x": GOOD, "labels": np.zeros(2, np.int64)}, "different numbers of samples: x 3, labels 2", ""),
        ({"x": np.float32(1)}, "array 'x.npy' is a scalar", "first axis"),
        ({"x": np.array([{}])}, "array 'x.npy' holds Python objects", "numeric"),
        ({"x": np.asfortranarray(np.ones((3, 4), np.float32))}, "Fortran order", "ascontiguousarray"),
    ],
)
def test_wrong_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str, hint: str) -> None:
    assert len(list(npz(tmp_path, x=GOOD).samples([X]))) == 3
    refused(npz(tmp_path, **arrays), [X], message, hint)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_cut_npz(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(load_set(path), [X], r"c\.npz: is no readable \.npz file", "numpy.savez")


def test_npz_with_something_else_inside(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "c.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    refused(load_set(path), [X], r"c\.npz: is no readable \.npz file")


def test_places(tmp_path: Path) -> None:
    assert find_set("digits") == find_set("digits", tmp_path)
    assert find_set("p", pictures(tmp_path / "p").parent) == tmp_path / "p"
    with pytest.raises(CalibrationError, match="calibration set 'digit'") as caught:
        find_set("digit")
    assert caught.value.hint == "did you mean 'digits'?"
    with pytest.raises(CalibrationError, match="no such file"):
        load_set(tmp_path / "none")
    (tmp_path / "c.txt").write_text("")
    with pytest.raises(CalibrationError, match=r"neither a folder of images nor an \.npz"):
        load_set(tmp_path / "c.txt")
    with pytest.raises(CalibrationError, match="has no held-out part"):
        load_set(tmp_path / "p", "test")


LOADER = '[set]\nname = "m"\nlicence = "own"\nkind = "python"\n[calibration]\npath = "loader.py"\n'


@pytest.mark.parametrize(
    ("toml", "loader", "message"),
    [
        (LOADER.replace("python", "pyhton"), "", "set.kind: expected one of"),
        (LOADER.replace("licence", "license"), "", "unknown key 'set.license'"),
        (LOADER.replace("loader.py", "lodaer.py"), "", r"\[calibration\] path: no such file or folder"),
        (LOADER, "", r"\[calibration\]: missing key 'function'"),
        (LOADER + 'function = "f"', "def files(): return []", r"loader\.py: has no function 'f'"),
        (LOADER + 'function = "f"', "def files(): return []\ndef f(inputs): 1 / 0", "f: ZeroDivisionError"),
        (LOADER + 'function = "f"', "def files(): return []\ndef f(inputs):\n yield 1 / 0", "f: ZeroDivisionError"),
        (LOADER + 'function = "f"', "def files(): return []\ndef f(inputs): return []", "holds no samples"),
        (LOADER + 'function = "f"', "import nothing_like_this", "ModuleNotFoundError"),
    ],
)
def test_wrong_sets(tmp_path: Path, toml: str, loader: str, message: str) -> None:
    (tmp_path / "set.toml").write_text(toml)
    (tmp_path / "loader.py").write_text(loader)
    with pytest.raises(EdgebuildError, match=message) as caught:
        list(load_set(tmp_path).samples([X]))
    assert isinstance(caught.value, CalibrationError)
    assert str(tmp_path) in caught.value.message


def test_digest_covers_data_and_description(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p")
    digests = [load_set(folder).digest()]
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "9.png")
    digests.append(load_set(folder).digest())
    assert len(set(digests)) == 2
