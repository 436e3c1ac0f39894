from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgebuild import projects
from edgebuild.core.errors import CalibrationError, UsageError
from edgebuild.projects import Overrides


def test_the_recipe_of_the_current_folder_comes_first() -> None:
    assert projects.resolve(None, Overrides()).name == "digits"
    projects.new_recipe(Path("mine"))
    Path("mine/recipe.toml").rename("recipe.toml")
    for name in ("model.py", "function.py"):
        (Path("mine") / name).rename(name)
    assert projects.resolve(None, Overrides()).name == "mine"


def test_options_override_the_recipe(tmp_path: Path) -> None:
    recipe = projects.resolve("digits", Overrides(seed=7, samples=3))
    assert (recipe.model.seed, recipe.calibration.samples) == (7, 3)
    assert projects.identity(recipe, None, None) == ("digits", "1.0.0")
    assert projects.identity(recipe, "other", "2.0") == ("other", "2.0")


def test_an_onnx_file_is_named_after_itself() -> None:
    Path("My Model.onnx").write_bytes(b"")
    recipe = projects.resolve("My Model.onnx", Overrides(calibration=Path("c.npz")))
    assert recipe.name == "my-model"
    assert recipe.function is None
    with pytest.raises(CalibrationError, match="no calibration data given"):
        projects.resolve("My Model.onnx", Overrides())
    with pytest.raises(UsageError, match="--seed is for recipes"):
        projects.resolve("My Model.onnx", Overrides(calibration=Path("c.npz"), seed=1))


def test_weights_beside_an_onnx_file_count() -> None:
    """A cached result must not outlive the external data that it was made of."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64], np.zeros(64, np.float32).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])],
        [weight],
    )
    model = helper.make_model(graph)
    onnx.save(model, "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    recipe = projects.resolve("m.onnx", Overrides(calibration=Path("c.npz")))
    before = recipe.digest()
    assert before == recipe.digest()
    Path("weights.bin").write_bytes(np.ones(64, np.float32).tobytes())
    assert recipe.digest() != before
