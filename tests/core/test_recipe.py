"""Recipes: what is read, what is refused, and what the digest covers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgebuild.core.errors import ModelError, RecipeError
from edgebuild.core.recipe import load_recipe

GOOD = """
[recipe]
name = "mine"
version = "2.0.0"

[model]
args = { width = 3 }
weights = "w.safetensors"
seed = 4

[function]
name = "run"

[calibration]
set = "photos"
samples = 8
observer = "percentile"
percentile = 99.9

[accept]
max_drop = 0.5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mine"
    made.mkdir()
    (made / "recipe.toml").write_text(GOOD)
    (made / "model.py").write_text("import torch\nimport blocks\n")
    (made / "blocks.py").write_text("import numpy\n")
    (made / "function.py").write_text("import edgebuild as eb\n")
    return made


def test_reads(folder: Path) -> None:
    recipe = load_recipe(folder)
    assert (recipe.name, recipe.version) == ("mine", "2.0.0")
    assert recipe.model.args == {"width": 3}
    assert recipe.calibration.observer == "percentile"
    assert recipe.accept is not None
    assert recipe.accept.max_drop == 0.5
    assert recipe.weights == folder / "w.safetensors"


def test_the_command_line_overrides(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(folder, weights=tmp_path / "other", seed=9, calibration=tmp_path / "pictures")
    assert recipe.weights == tmp_path / "other"
    assert recipe.model.seed == 9
    assert recipe.calibration.set == str(tmp_path / "pictures")


def test_single_tensors_may_have_an_observer_or_a_range_of_their_own(folder: Path) -> None:
    tensors = 'tensors = { "conv_3" = "mse", "block/add:0" = [-4, 4.5], relu = "moving-average" }'
    (folder / "recipe.toml").write_text(GOOD.replace("samples = 8", f"samples = 8\n{tensors}"))
    found = load_recipe(folder).calibration.tensors
    assert found == {"conv_3": "mse", "block/add:0": [-4, 4.5], "relu": "moving-average"}
    assert load_recipe(folder).calibration.observer == "percentile"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('"median"', "'median'"),
        ('"auto"', "'auto'"),
        ("[1.0]", r"\[1\.0\]"),
        ("[0, 1, 2]", r"\[0, 1, 2\]"),
        ("[2.0, 2.0]", r"\[2\.0, 2\.0\]"),
        ("[3, -3]", r"\[3, -3\]"),
        ("[0, inf]", r"\[0, inf\]"),
        ("[nan, 1]", r"\[nan, 1\]"),
        ("[false, true]", r"\[False, True\]"),
        ('["0", "1"]', r"\['0', '1'\]"),
        ("3.0", r"3\.0"),
        ("{ low = 0, high = 1 }", r"\{'low': 0, 'high': 1\}"),
        ("true", "True"),
    ],
)
def test_what_is_neither_observer_nor_range_is_refused(folder: Path, value: str, shown: str) -> None:
    (folder / "recipe.toml").write_text(GOOD.replace("samples = 8", f"tensors = {{ conv_3 = {value} }}"))
    known = "minmax, moving-average, percentile, entropy, mse"
    expected = rf"calibration\.tensors: 'conv_3': {shown} is no observer \({known}\) and no range \[low, high\]"
    with pytest.raises(RecipeError, match=expected) as caught:
        load_recipe(folder)
    assert str(folder / "recipe.toml") in caught.value.message


def test_digest_covers_sources_and_weights_and_seed_but_not_the_place(folder: Path, tmp_path: Path) -> None:
    digests = [load_recipe(folder).digest()]
    (folder / "blocks.py").write_text("import numpy as np\n")
    digests.append(load_recipe(folder).digest())
    (folder / "w.safetensors").write_bytes(b"1")
    digests.append(load_recipe(folder).digest())
    digests.append(load_recipe(folder, seed=5).digest())
    assert len(set(digests)) == len(digests)

    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "mine")
    for left_behind in ("mine-2.0.0-host.ebundle", "mine-2.0.0-host.report.json", "recipe.lock", ".hidden"):
        (moved / left_behind).write_text("x")
    (moved / "__pycache__").mkdir()
    (moved / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"x")
    assert load_recipe(moved, seed=5).digest() == digests[-1]


def test_sources_include_packages_that_are_not_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lib" / "teamnet"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text("width = 1\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    (folder / "model.py").write_text("from teamnet import layers\nimport torch\n")
    sources = load_recipe(folder).sources()
    assert "teamnet:layers.py" in sources
    assert not [name for name in sources if name.startswith(("torch", "numpy", "edgebuild"))]


def test_loading_imports_no_framework(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgebuild.core.recipe import load_recipe;"
        f"load_recipe(Path({str(folder)!r})).digest();"
        "print(sorted({'torch', 'onnx', 'numpy', 'tvm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_edgebuild_imports_nothing_heavy() -> None:
    code = "import edgebuild, sys; print(sorted({'torch', 'onnx', 'numpy', 'tvm', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("weights =", "weigths =", "unknown key 'model.weigths'", "did you mean 'weights'?"),
        ("[accept]", "[acept]", "unknown key 'acept'", "did you mean 'accept'?"),
        ("samples = 8", 'samples = "8"', "calibration.samples: expected an integer, found a string '8'", ""),
        ("samples = 8", "samples = 0", "calibration.samples: 0 is not between", ""),
        ('"percentile"', '"percentil"', "calibration.observer: expected one of", "did you mean 'percentile'?"),
        ("= 99.9", "= 9.9", "calibration.percentile: 9.9 is not above 50", ""),
        ('"mine"', '"Mine Own"', "recipe.name: 'Mine Own' must be", ""),
        ('"2.0.0"', '"2 0"', "recipe.version: '2 0' must be", ""),
        ("max_drop = 0.5", "max_drop = -1", "accept.max_drop: -1.0 is not between", ""),
        ("max_drop = 0.5", "", "missing key 'accept.max_drop'", "a number"),
        ("seed = 4", 'train = "train"', "model.train: the weights come from a file already", ""),
        ("seed = 4", 'file = "modle.py"', "model.file: no such file", ""),
        ("seed = 4", 'onnx = "m.onnx"', "model.onnx: an ONNX file holds its weights", ""),
        ('[function]\nname = "run"', "", r"missing table \[function\]", "[function] name"),
        ('name = "run"', 'file = "run.py"', "missing key 'function.name'", ""),
        ('name = "run"', 'name = "run"\nfile = "run.py"', "function.file: no such file", ""),
        ('weights = "w.safetensors"', 'tflite = "m.tflite"', r"model\.tflite: no such file: .*m\.tflite", ""),
        (
            'weights = "w.safetensors"',
            'saved_model = "."',
            r"model\.saved_model: .* holds no saved_model\.pb",
            "folder",
        ),
        (
            'weights = "w.safetensors"',
            'onnx = "m.onnx"\nkeras = "m.h5"',
            "keras: the model is named by 'onnx' already",
            "",
        ),
        ("seed = 4", 'keras = "m.keras"', "model.keras: a Keras file holds its weights", ""),
        ("seed = 4", 'file = "m.keras"', "model.file: 'm.keras' is a Keras file", 'keras = "m.keras"'),
    ],
)
def test_refuses(folder: Path, old: str, new: str, message: str, hint: str) -> None:
    load_recipe(folder)
    assert old in GOOD
    (folder / "recipe.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(folder)
    assert str(folder / "recipe.toml") in caught.value.message
    assert hint in caught.value.hint


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds no recipe\.toml") as caught:
        load_recipe(tmp_path)
    assert "edgebuild init" in caught.value.hint


def test_source_that_is_no_python(folder: Path) -> None:
    (folder / "blocks.py").write_text("def (")
    with pytest.raises(ModelError, match=r"blocks\.py: is not valid Python"):
        load_recipe(folder).digest()
