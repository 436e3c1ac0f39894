"""Handler and network as one graph: parity, names, determinism, and every way a recipe's Python can be wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ingest.recipes import CALIBRATION, write_recipe
from safetensors.torch import save_file

from edgebuild.core.calibration import find_set, load_set
from edgebuild.core.errors import CalibrationError, EdgebuildError, ModelError, RecipeError
from edgebuild.core.manifest import Tensor, Trigger
from edgebuild.core.recipe import load_recipe
from edgebuild.stages.ingest import FloatModel, parity, pytorch
from edgebuild.stages.ingest.onnx import model_inputs, model_outputs

MODEL = """
import torch
from torch import nn


class Odd(nn.Module):
    def forward(self, x):
        return {odd}


class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.odd = Odd()

    def forward(self, x):
        return self.odd(torch.relu(self.norm(self.conv(x)))).mean((2, 3))


def build(channels=4):
    return Net(channels)
"""

FUNCTION = """
import torch
import edgebuild as eb


@eb.function(trigger={trigger})
def run(frame, model):
    x = frame.float().permute(2, 0, 1)[None] / 255
    {body}
"""

CAMERA = 'eb.camera("front", fps=15, size=(20, 16))'
BODY_LINE = 9

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a recipe; each argument replaces a piece of one that works."""

    def write(
        body: str = "return model(x)",
        trigger: str = CAMERA,
        odd: str = "x",
        model: str = "",
        calibration: str = CALIBRATION,
    ) -> Path:
        write_recipe(tmp_path, model, calibration=calibration)
        (tmp_path / "model.py").write_text(MODEL.format(odd=odd))
        (tmp_path / "function.py").write_text(FUNCTION.format(trigger=trigger, body=body))
        return tmp_path

    return write


def untrained(folder: Path) -> FloatModel:
    return pytorch.export(load_recipe(folder), untrained=True)


def refused(folder: Path, message: str, hint: str = "", error: type[EdgebuildError] = ModelError) -> None:
    with pytest.raises(error, match=message) as caught:
        untrained(folder)
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


def test_graph(make: Make) -> None:
    found = untrained(make())
    assert model_inputs(found.model) == (Tensor("frame", "uint8", (16, 20, 3)),)
    assert model_outputs(found.model) == (Tensor("output", "float32", (1, 4)),)
    assert found.quality == "speed-only"
    assert (found.entry.name, found.entry.trigger) == ("run", Trigger("camera", 15))
    assert found.parity is not None
    assert found.parity["samples"] == 4
    names = [node.name for node in found.model.graph.node]
    assert "model.conv.Conv" in names
    assert "handler.Transpose" in names
    assert len(set(names)) == len(names)
    assert str(Path.cwd()) not in str(found.model)


def test_the_same_recipe_elsewhere_gives_the_same_bytes(make: Make, tmp_path: Path) -> None:
    first = untrained(make()).model.SerializeToString(deterministic=True)
    moved = tmp_path.rename(tmp_path.parent / "elsewhere")
    torch.rand(7)
    assert untrained(moved).model.SerializeToString(deterministic=True) == first


def test_untrained_outputs_vary(make: Make) -> None:
    import onnxruntime

    folder = make()
    session = onnxruntime.InferenceSession(
        untrained(folder).model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    outputs = [session.run(None, {"frame": rng.integers(0, 256, (16, 20, 3), np.uint8)})[0] for _ in range(3)]
    assert np.std(outputs, axis=0).max() > 1e-3


def test_untrained_statistics_are_those_of_all_samples_together(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its BatchNorm, every channel has mean 0 and variance 1 over the samples, not within each of them."""
    monkeypatch.setattr(pytorch, "_BATCH_ELEMENTS", 1 << 30)
    recipe = load_recipe(make(odd="x"))
    bound = pytorch.module(recipe, untrained=True)
    seen: list[torch.Tensor] = []
    bound.model.norm.register_forward_hook(lambda _, __, output: seen.append(output))
    for sample in load_set(find_set("photos")).samples(model_inputs(untrained(recipe.folder).model), 32):
        bound(torch.from_numpy(sample["frame"].copy()))
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(values.var(1), torch.ones(4), rtol=0, atol=1e-2)


@pytest.mark.parametrize("body", ["return model(x)", "return model.norm(model.conv(x)).mean((2, 3))"])
def test_untrained_networks_that_take_one_sample_only(make: Make, body: str) -> None:
    bound = pytorch.module(load_recipe(make(body, odd="x.reshape(1, 4, -1, 1)")), untrained=True)
    assert (bound.model.norm.running_var != 1).all()


@pytest.mark.parametrize("name", ["relu", "add", "mean", "permute"])
def test_an_output_may_be_called_like_an_operator(make: Make, name: str) -> None:
    found = untrained(make(f'y = torch.relu(model(x) + 1); return {{"{name}": y, "other": y * 2}}'))
    assert [value.name for value in found.model.graph.output] == [name, "other"]
    assert len({value for node in found.model.graph.node for value in node.output}) == sum(
        len(node.output) for node in found.model.graph.node
    )


def test_a_graph_that_means_something_else_is_refused(make: Make) -> None:
    folder = make("y = model(x); return {'best': y, 'places': y[0].topk(3)[1]}")
    found, bound = untrained(folder), pytorch.module(load_recipe(folder), untrained=True)
    samples = [{"frame": np.random.default_rng(i).integers(0, 256, (16, 20, 3)).astype(np.uint8)} for i in range(3)]
    assert parity.compare(found.model, bound.eager, samples, "tiny")["decided_by_rounding"] == []
    for node in found.model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Neg"
    with pytest.raises(ModelError, match="output 'best' of the exported graph differs from the handler"):
        parity.compare(found.model, bound.eager, samples, "tiny")


def test_outputs_among_equals_are_listed(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    """What changes when the last digit of a weight does may differ from the handler's answer as well."""
    folder = make("return model(x)")
    found, bound = untrained(folder), pytorch.module(load_recipe(folder), untrained=True)
    sample = {"frame": np.random.default_rng(0).integers(0, 256, (16, 20, 3)).astype(np.uint8)}
    with torch.no_grad():
        (answer,) = (value.numpy() for value in bound(torch.from_numpy(sample["frame"])))
    answers = iter([[[answer[:, ::-1]]], [[answer]]])
    monkeypatch.setattr(parity, "answers", lambda *_: next(answers))
    listed = parity.compare(found.model, bound.eager, [sample], "tiny")
    assert listed["decided_by_rounding"] == ["output"]


def test_a_head_that_reshapes_what_it_permuted(make: Make) -> None:
    found = untrained(make("return model(x)", odd="x.permute(0, 2, 3, 1).reshape(1, -1, 2)[..., None, None]"))
    assert found.parity is not None


def test_gelu_and_layer_norm_stay_one_operator(make: Make) -> None:
    odd = "nn.functional.gelu(nn.functional.layer_norm(x, x.shape[3:]))"
    kinds = [node.op_type for node in untrained(make(odd=odd)).model.graph.node]
    assert kinds.count("Gelu") == kinds.count("LayerNormalization") == 1
    assert "Erf" not in kinds


def test_files_of_another_recipe(make: Make, tmp_path: Path) -> None:
    other = make()
    folder = tmp_path / "second"
    folder.mkdir()
    write_recipe(folder, model='file = "../model.py"', function='file = "../function.py"')
    assert untrained(folder).model == untrained(other).model
    (other / "model.py").write_text(MODEL.format(odd="x.nothing"))
    refused(folder, r"\.\./model\.py:\d+: the handler fails on a real sample: AttributeError")


def test_timer_with_stated_input(make: Make) -> None:
    folder = make(trigger='eb.timer(seconds=0.5), inputs={"frame": eb.tensor("uint8", 16, 20, 3)}, timeout_ms=40')
    found = untrained(folder)
    assert found.entry.trigger == Trigger("timer", 500)
    assert found.entry.timeout_ms == 40


def test_outputs_are_named_after_the_dict_in_its_order(make: Make) -> None:
    found = untrained(make('y = model(x); return {"zebra": y, "ape": y.argmax(), "frame_out": frame, "again": y}'))
    assert [value.name for value in found.model.graph.output] == ["zebra", "ape", "frame_out", "again"]


@pytest.mark.parametrize("antialias", [True, False])
def test_resize_keeps_antialias(make: Make, antialias: bool) -> None:
    body = f'x = torch.nn.functional.interpolate(x, (7, 9), mode="bilinear", antialias={antialias}); return model(x)'
    found = untrained(make(body))
    resize = next(node for node in found.model.graph.node if node.op_type == "Resize")
    attributes = {attribute.name: attribute.i for attribute in resize.attribute}
    assert attributes.get("antialias", 0) == int(antialias)


def test_two_recipes_do_not_share_modules(make: Make, tmp_path: Path) -> None:
    import sys

    untrained(make())
    make(odd="x + 1")
    assert any(node.op_type == "Add" for node in untrained(tmp_path).model.graph.node)
    assert "function" not in sys.modules


@pytest.mark.parametrize(
    "body",
    [
        "return model(x) if x.sum() > 0 else model(-x)",
        "return model(x)[:, : int(x.sum())]",
        "return torch.from_numpy(model(x).numpy() * 2)",
    ],
)
def test_handler_that_cannot_be_traced_is_named_by_line(
    make: Make, body: str, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(make(body), rf"function\.py:{BODY_LINE}: the handler cannot be traced", "straight torch code")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return modle(x)", rf"function\.py:{BODY_LINE}: the handler fails on a real sample: NameError"),
        ("return model(x[:, :2])", r"model\.py:\d+: the handler fails on a real sample: RuntimeError"),
        ("return None", "run: returns NoneType"),
        ('return {"a": 1.0}', "output 'a' is float"),
        ('return {"a b": x}', "output name 'a b'"),
        ('return {"frame": model(x)}', "output 'frame' is called like an input"),
        ("return torch.nonzero(model(x))", "the shape of NonZero 'handler.NonZero'"),
        ("return model(x) + torch.rand(4)", "output 'output' of the exported graph differs from the handler"),
    ],
)
def test_wrong_handlers(make: Make, body: str, message: str) -> None:
    refused(make(body), message)


def test_unsupported_operator_names_operator_and_module(make: Make) -> None:
    refused(
        make(odd="torch.linalg.svd(x)[0]"), "operator aten._linalg_svd in model.odd has no ONNX form", "other torch"
    )
    refused(make("return torch.linalg.svd(x)[0]"), "operator aten._linalg_svd in the handler has no ONNX form")


@pytest.mark.parametrize(
    ("trigger", "message", "hint"),
    [
        ('eb.camera("front", fps=15)', "the shape of input 'frame' is not stated", "eb.tensor"),
        ('eb.camera("front", fps=0, size=(4, 4))', "fps must be an integer", ""),
        ('eb.camera("front", fps=15, size=(4, -4))', "size must be", ""),
        ("eb.timer(seconds=-1)", "seconds must be", ""),
        (CAMERA + ', inputs={"fram": eb.tensor("uint8", 1)}', "inputs names 'fram'", "did you mean 'frame'?"),
        (CAMERA + ', inputs={"frame": eb.tensor("uint", 1)}', "unknown dtype 'uint'", "did you mean 'uint8'?"),
        (CAMERA + ', model="tinny"', "wants the model 'tinny'", "did you mean 'tiny'?"),
        (CAMERA + ", timeout_ms=0", "timeout_ms must be", ""),
    ],
)
def test_wrong_decorators(make: Make, trigger: str, message: str, hint: str) -> None:
    refused(make(trigger=trigger), message, hint, EdgebuildError)


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ('factory = "biuld"', "has no 'biuld', which .model. factory names", "did you mean 'build'?"),
        ("args = { channel = 3 }", r"build\(channel=3\) failed: TypeError", ""),
        ('factory = "Odd"\nargs = { x = 1 }', "failed: TypeError", ""),
        ('train = "learn"', "has no 'learn', which .model. train names", ""),
    ],
)
def test_wrong_factories(make: Make, model: str, message: str, hint: str) -> None:
    refused(make(model=model), message, hint)


def test_syntax_error_and_missing_decorator(make: Make) -> None:
    folder = make()
    (folder / "function.py").write_text("def run(frame, model):\n    return (\n")
    refused(folder, r"function\.py:2: cannot be imported: SyntaxError")
    (folder / "function.py").write_text("def run(frame, model):\n    return frame\n")
    refused(folder, "run is no function of edgebuild", "@eb.function")
    (folder / "function.py").write_text("import edgebuld\n")
    refused(folder, r"function\.py:1: cannot be imported: ModuleNotFoundError")


def test_without_weights_it_refuses(make: Make) -> None:
    with pytest.raises(ModelError, match="the recipe 'tiny' has no weights") as caught:
        pytorch.export(load_recipe(make()))
    assert "--untrained" in caught.value.hint


def test_without_real_samples_it_refuses(make: Make) -> None:
    folder = make(calibration="")
    refused(folder, "names no calibration set", "--calibration", CalibrationError)


def state() -> dict[str, torch.Tensor]:
    ones = torch.ones(4)
    norm = {f"norm.{key}": ones.clone() for key in ("weight", "bias", "running_mean", "running_var")}
    return {"conv.weight": torch.ones(4, 3, 3, 3).half(), **norm}


def test_weights_from_a_file(make: Make, tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    found = pytorch.export(load_recipe(make(model='weights = "w.safetensors"')))
    assert found.quality == "trained"
    weights = {tensor.name: tensor for tensor in found.model.graph.initializer}
    assert weights["model.conv.weight"].data_type == 1
    folder = make()
    assert pytorch.export(load_recipe(folder, weights=tmp_path / "w.safetensors")).quality == "trained"


def wrong_weights(folder: Path, message: str, hint: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        pytorch.export(load_recipe(folder))
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_wrong_weights(make: Make, tmp_path: Path) -> None:
    folder, path = make(model='weights = "w.safetensors"'), tmp_path / "w.safetensors"
    wrong_weights(folder, r"\[model\] weights: no such file: .*w\.safetensors", "--weights FILE")

    save_file(state() | {"conv.weight": torch.ones(8, 3, 3, 3)}, path)
    wrong_weights(folder, r"'conv.weight' has shape \[8, 3, 3, 3\], the model wants \[4, 3, 3, 3\]", "args")

    save_file({("konv.weight" if key == "conv.weight" else key): value for key, value in state().items()}, path)
    wrong_weights(folder, "holds no weights for 'conv.weight'", "did you mean 'konv.weight'?")

    save_file(state() | {"extra": torch.ones(1)}, path)
    wrong_weights(folder, "'extra' is nothing of the model", "")

    save_file(state() | {"conv.weight": torch.full((4, 3, 3, 3), torch.nan)}, path)
    wrong_weights(folder, "holds NaN", "diverged")

    save_file(state(), path)
    data = path.read_bytes()
    for content in (data[: len(data) // 2], b"text", b""):
        path.write_bytes(content)
        wrong_weights(folder, "is cut off, or no safetensors file", "save_file")


def test_recipe_errors_come_first(make: Make) -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'model\.weigths'"):
        load_recipe(make(model='weigths = "w"'))
