"""Releases of a tiny recipe, made by the command line."""

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Ran
from onnx import TensorProto, helper

from edgebuild import cli
from edgebuild.core import cache, digest, minisign
from edgebuild.core.minisign import SecretKey
from edgebuild.release import names, sums
from edgebuild.stages.runtime import delta_encoder, runtime_binary

KEY = SecretKey(b"released", b"r" * 32)
OTHER = SecretKey(b"another.", b"o" * 32)
TARGETS = "host,aarch64-generic"
FAR = "aarch64-generic"


def write_recipe(folder: Path, change: float = 0.0, name: str = "dense") -> Path:
    """A dense layer with four outputs; `change` moves one of its columns, as a fine-tuned head would."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    weight = random.normal(size=(16, 4)).astype(np.float32)
    samples = random.normal(size=(48, 16)).astype(np.float32)
    weight[:, 1] += np.float32(change) * np.abs(weight[:, 1])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), folder / "model.onnx")
    data = folder / "samples"
    data.mkdir(exist_ok=True)
    np.save(data / "x.npy", samples)
    (data / "set.toml").write_text(
        '[set]\nname = "noise"\nlicence = "CC0-1.0"\nkind = "arrays"\n[calibration]\npath = "x.npy"\n'
    )
    (folder / "recipe.toml").write_text(
        f'[recipe]\nname = "{name}"\n[model]\nonnx = "model.onnx"\n[calibration]\nset = "samples"\nsamples = 32\n'
    )
    return folder


def stage_cache(root: Path) -> Path:
    """A cache of its own in which nothing is built yet but the native runtime, which takes long."""
    runtime_binary("x86_64-linux-gnu")
    runtime_binary("aarch64-linux-gnu")
    delta_encoder()
    root.mkdir(parents=True)
    for name in ("runtime", "libsodium", "zstd"):
        (root / name).symlink_to(cache.cache_dir() / name)
    return root


def run(*arguments: object, **variables: str) -> Ran:
    """The command line in this process, under other variables of the environment."""
    out, err, argv, before = io.StringIO(), io.StringIO(), sys.argv, dict(os.environ)
    os.environ.update(variables)
    sys.argv = ["edgebuild", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)
    assert "Traceback" not in err.getvalue()
    return Ran(int(caught.value.code or 0), out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Home:
    """Where the two releases lie, and what made them."""

    folder: Path
    variables: dict[str, str]
    recipe: Path
    tuned: Path
    key: Path
    trust: Path
    first: Path
    second: Path
    said: Ran

    def run(self, *arguments: object, **variables: str) -> Ran:
        return run(*arguments, **{**self.variables, **variables})


def resigned(folder: Path, name: str, key: SecretKey = KEY) -> None:
    """Signs a file again after it was changed, and lists it in SHA256SUMS anew, as somebody with the key could."""
    listed = sums.parse((folder / names.SUMS).read_bytes())
    if name != names.SUMS:
        if (folder / (name + names.SIGNATURE)).exists():
            signature = minisign.sign((folder / name).read_bytes(), key, "test")
            (folder / (name + names.SIGNATURE)).write_bytes(signature)
        listed = {one: digest.of_file(folder / one) for one in (*listed, name) if (folder / one).exists()}
        (folder / names.SUMS).write_bytes(sums.serialize(listed))
    signature = minisign.sign((folder / names.SUMS).read_bytes(), key, "test")
    (folder / (names.SUMS + names.SIGNATURE)).write_bytes(signature)
