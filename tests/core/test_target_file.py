import platform
from pathlib import Path

import pytest

from edgebuild.core import target_file
from edgebuild.core.errors import EnvironmentProblem, RecipeError, UsageError
from edgebuild.core.target import FEATURES
from edgebuild.core.target_file import list_targets, load_target

CPUINFO = {
    "x86_64": "flags\t\t: fpu sse2 avx2 fma bmi1 bmi2 f16c abm movbe \n",
    "aarch64": "Features\t: fp asimd \n",
    "riscv64": "isa\t\t: rv64imafdc\n",
}
GOOD = """
description = "a board"
triple = "aarch64-linux-gnu"
cpu = "cortex-a53"
features = ["neon", "crc"]
isa = "neon"
engines = ["tvm"]
"""


def test_every_target_that_is_promised() -> None:
    names = {target.name for target in list_targets()}
    assert names >= {"x86_64-avx2", "aarch64-generic", "raspberry-pi-5", "jetson-orin"}
    assert names >= {"x86_64-generic", "x86_64-avxvnni", "riscv64-generic", "riscv64-v"}
    assert all(target.description for target in list_targets())
    assert {target.name for target in list_targets() if not target.features} == {"x86_64-generic", "riscv64-generic"}


def test_an_alias_is_the_same_device_under_the_name_asked_for() -> None:
    alias, real = load_target("jetson"), load_target("jetson-orin")
    assert alias.name == "jetson"
    assert (alias.triple, alias.cpu, alias.features) == (real.triple, real.cpu, real.features)


def test_host_fits_this_machine() -> None:
    host = load_target("host")
    arch, features = target_file.host_features()
    assert host.name == "host"
    assert host.arch == arch == platform.machine()
    assert set(host.features) <= set(features)
    assert target_file.runs_here(host)


@pytest.mark.parametrize(
    ("machine", "more", "isa"),
    [
        ("x86_64", "", "avx2"),
        ("x86_64", "avx_vnni", "avxvnni"),
        ("x86_64", "avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni", "avx512vnni"),
        ("aarch64", "", "neon"),
        ("aarch64", "asimddp atomics asimdrdm crc32 fphp asimdhp lrcpc", "dotprod"),
        ("riscv64", "", "plain"),
        ("riscv64", "v_zicbom_zba_zbb", "rvv"),
    ],
)
def test_host_is_the_best_that_the_cpu_can_do(
    machine: str, more: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO[machine].rstrip("\n") + more + "\n")
    monkeypatch.setattr(target_file, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert load_target("host").isa == isa


def test_a_cpu_of_which_nothing_is_known_gets_the_plainest_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_file, "_CPUINFO", tmp_path / "nothing")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert load_target("host").isa == "sse2"


def test_host_without_a_fitting_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "mips64")
    with pytest.raises(EnvironmentProblem, match="no target fits this machine's CPU"):
        load_target("host")


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown target 'raspbery-pi5'") as caught:
        load_target("raspbery-pi5")
    assert caught.value.hint == "did you mean 'raspberry-pi-5'?"


def test_a_target_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "my-board.toml"
    path.write_text(GOOD)
    target = load_target(str(path))
    assert (target.name, target.arch, target.features) == ("my-board", "aarch64", ("neon", "crc"))


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("engines =", "engine =", "unknown key 'engine'", "did you mean 'engines'?"),
        ("cpu =", "cpus =", "unknown key 'cpus'", "did you mean 'cpu'?"),
        ('"cortex-a53"', "53", "cpu: expected a string, found an integer 53", ""),
        ('["tvm"]', '["tvn"]', "found 'tvn'", "did you mean 'tvm'?"),
        ('["tvm"]', "[]", "engines: at least one is needed", ""),
        ('"neon", "crc"', '"neon", "crypto"', "unknown CPU feature 'crypto'", ""),
        ('"neon", "crc"', '"crc", "neon"', "features: must be in this order", ""),
        ('"neon"\n', '"noen"\n', "isa: expected one of", "did you mean 'neon'?"),
        ('isa = "neon"', 'isa = "sse2"', "isa: 'sse2' is a part of x86-64", ""),
        ('cpu = "cortex-a53"\n', "", "missing key 'cpu'", "add it; it is a string"),
    ],
)
def test_one_mistake_in_a_target(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    path = tmp_path / "board.toml"
    assert GOOD.count(old) == 1
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_target(str(path))
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_features_stay_in_the_order_of_their_bits() -> None:
    assert FEATURES["x86_64"].index("avx512vnni") == 12
    assert FEATURES["x86_64"].index("avx512vbmi") == 14
    assert FEATURES["aarch64"].index("rcpc") == 9
    assert FEATURES["riscv64"].index("v") == 4
