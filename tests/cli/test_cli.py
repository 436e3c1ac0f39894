import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

ENVIRONMENT = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}


def spawn(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgebuild", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**ENVIRONMENT, **environment}, timeout=60
    )


def test_help_imports_nothing_heavy() -> None:
    """`make bench` measures the time; what would make it slow is an import."""
    command = [sys.executable, "-X", "importtime", "-m", "edgebuild", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "tvm", "onnx", "onnxruntime", "numpy", "sklearn"}


def test_help_names_commands_and_exit_codes() -> None:
    text = " ".join(spawn("--help").stdout.split())
    for command in (
        "init",
        "compile",
        "inspect",
        "verify",
        "sign",
        "keys",
        "targets",
        "recipes",
        "runtime",
        "demo",
        "bench",
        "profile",
        "report",
    ):
        assert command in text
    assert "Exit codes: 0 done, 2 wrong command line, 3 recipe or target, 4 model" in text


def test_the_light_commands_load_no_framework() -> None:
    code = (
        "import sys; sys.argv = ['edgebuild', 'targets']\n"
        "import edgebuild.pipeline, edgebuild.projects, edgebuild.report\n"
        "from edgebuild.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'tvm', 'onnx', 'onnxruntime', 'tensorflow'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


def test_version() -> None:
    assert spawn("--version").stdout.startswith("edgebuild ")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("edgebuild compile --target je", ["jetson-orin", "jetson"]),
        ("edgebuild release --targets host,je", ["host,jetson-orin", "host,jetson"]),
        ("edgebuild trust sh", ["show"]),
    ],
)
def test_shell_completion(typed: str, offered: list[str]) -> None:
    asked = {"_EDGEBUILD_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    code = "import sys; sys.argv = ['edgebuild']; from edgebuild.cli import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**ENVIRONMENT, **asked})
    assert done.stdout.split() == offered


def test_without_a_command_it_shows_help(edgebuild) -> None:
    ran = edgebuild()
    assert (ran.code, "Usage: " in ran.out) == (0, True)


@pytest.mark.parametrize("command", [["targets"], ["recipes"]])
def test_lists(edgebuild, command: list[str]) -> None:
    plain, machine = edgebuild(*command), edgebuild(*command, "--json")
    assert plain.code == machine.code == 0
    for item in machine.json:
        assert item["name"] in plain.out
        assert item["description"]


def test_recipes_that_come_along(edgebuild) -> None:
    assert {item["name"] for item in edgebuild("recipes", "--json").json} >= {"digits", "mobilenetv2"}


def test_keys_are_made_once_and_shown(edgebuild, home: Path) -> None:
    made = edgebuild("keys", "new")
    assert made.code == 0
    shown = edgebuild("keys", "show", "--json").json
    assert shown["public"] in (home / "config/edgebuild/trust").read_text()
    assert shown["key_id"] in made.out
    again = edgebuild("keys", "new")
    assert (again.code, "exists already" in again.err) == (2, True)


def test_a_key_of_ones_own(edgebuild, home: Path) -> None:
    path = home / "release.key"
    assert edgebuild("keys", "new", "--out", path).code == 0
    secret, public = edgebuild("keys", "show", path), edgebuild("keys", "show", f"{path}.pub")
    assert secret.out.splitlines()[1] == public.out.splitlines()[1]
    assert not (home / "config").exists()


def test_init_writes_a_recipe_under_the_new_name(edgebuild) -> None:
    ran = edgebuild("init", "my-reader")
    assert ran.code == 0
    assert 'name = "my-reader"' in Path("my-reader/recipe.toml").read_text()
    assert "edgebuild compile my-reader" in ran.out
    again = edgebuild("init", "my-reader")
    assert (again.code, again.err) == (2, "error: my-reader: exists already\nhint: choose another name\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["compile", "--target", "jetsen"], 2, "unknown target 'jetsen'", "did you mean 'jetson'?"),
        (["compile", "digit"], 2, "no recipe 'digit'", "did you mean 'digits'?"),
        (["compile", "nothing.onnx"], 2, "nothing.onnx: no such file", ""),
        (["compile", "--key", "nothing.key"], 8, "nothing.key: no such key file", "edgebuild keys new"),
        (["compile", "--name", "Ä"], 2, "--name Ä: may hold a-z", ""),
        (["compile", "--version", "1 0"], 2, "--version 1 0: may hold letters", ""),
        (["compile", "--samples", "0"], 2, "Invalid value for '--samples'", ""),
        (["compile", "--calibration", "nothing.npz"], 5, "nothing.npz", ""),
        (["compile", "--colour"], 2, "No such option: --colour", "edgebuild --help"),
        (["compyle"], 2, "No such command 'compyle'", "edgebuild --help"),
        (["init", "Big Name"], 2, "'Big Name' is no name for a recipe", "use a-z"),
        (["inspect", "nothing.ebundle"], 9, "nothing.ebundle: No such file", ""),
        (["verify", "nothing.ebundle"], 2, "Missing option '--trust'", ""),
        (["keys", "show"], 8, "no such key file", "edgebuild keys new"),
        (["runtime"], 2, "name one place for edgebuild-run", "-o FILE"),
        (["targets", "more"], 2, "unexpected extra argument", ""),
    ],
)
def test_a_wrong_command_line(edgebuild, arguments: list[str], code: int, message: str, hint: str) -> None:
    ran = edgebuild(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert hint in ran.err.partition("\nhint: ")[2]


def test_errors_as_json(edgebuild) -> None:
    ran = edgebuild("compile", "--target", "jetsen", "--json")
    assert (ran.code, ran.out) == (2, "")
    assert json.loads(ran.err) == {
        "error": "unknown target 'jetsen'",
        "hint": "did you mean 'jetson'?",
        "exit_code": 2,
    }


def test_a_key_file_of_a_wrong_format(edgebuild, home: Path) -> None:
    key = home / "key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\n")
    ran = edgebuild("compile", "--key", key)
    assert ran.code == 8
    assert f"error: {key}: not a minisign secret key" in ran.err
    assert "hint: expected a minisign secret key" in ran.err


def test_an_output_folder_that_cannot_be_written(edgebuild, home: Path) -> None:
    """Said before any work: nothing is cached, and no stage starts."""
    blocked = home / "file"
    blocked.write_text("")
    ran = edgebuild("compile", "--out", blocked / "out")
    assert ran.code == 9
    assert ran.err == f"error: {blocked / 'out'}: cannot be written: Not a directory\nhint: choose another folder\n"


def test_a_recipe_with_an_unknown_key(edgebuild) -> None:
    edgebuild("init", "mine")
    path = Path("mine/recipe.toml")
    path.write_text(path.read_text().replace("samples =", "sample ="))
    ran = edgebuild("compile", "mine")
    assert ran.code == 3
    assert "unknown key 'calibration.sample'" in ran.err
    assert "did you mean 'samples'?" in ran.err


def small_model(path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.arange(8, dtype=np.float32))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)


def test_an_onnx_file_is_never_calibrated_on_random_data(edgebuild) -> None:
    small_model(Path("m.onnx"))
    ran = edgebuild("compile", "m.onnx")
    assert ran.code == 5
    assert "m.onnx: no calibration data given" in ran.err
    assert "hint: give real samples: --calibration FILE.npz" in ran.err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((3, 4), np.float32)}, "array 'z' is no input of the model"),
        ({"x": np.zeros((3, 5), np.float32)}, "has shape"),
        ({"x": np.zeros((3, 4), np.float64)}, "is float64, the model takes float32"),
        ({"x": np.full((3, 4), np.nan, np.float32)}, "NaN or infinity"),
        ({"x": np.zeros((0, 4), np.float32)}, "no samples"),
    ],
)
def test_calibration_that_does_not_fit(edgebuild, arrays: dict[str, np.ndarray], message: str) -> None:
    small_model(Path("m.onnx"))
    np.savez("c.npz", **arrays)
    ran = edgebuild("compile", "m.onnx", "--calibration", "c.npz")
    assert ran.code == 5
    assert message in ran.err
    assert list(Path().glob("*.ebundle")) == []


def test_an_onnx_file_cut_in_half(edgebuild) -> None:
    small_model(Path("m.onnx"))
    data = Path("m.onnx").read_bytes()
    Path("half.onnx").write_bytes(data[: len(data) // 2])
    Path("text.onnx").write_text("not a model")
    np.savez("c.npz", x=np.zeros((3, 4), np.float32))
    for name in ("half.onnx", "text.onnx"):
        ran = edgebuild("compile", name, "--calibration", "c.npz")
        assert ran.code == 4
        assert f"error: {name}: " in ran.err
