"""`edgebuild compile --release --made --expires`, and what `verify` says of what has expired."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import SAMPLES, refused, write_model

from edgebuild.core import bundle
from edgebuild.core.manifest import Manifest

RECIPE = """
[recipe]
name = "m"
release = 41

[model]
onnx = "m.onnx"

[calibration]
set = "c.npz"
"""


@pytest.fixture(autouse=True)
def model() -> None:
    write_model()
    np.savez("c.npz", x=SAMPLES)


def manifest() -> Manifest:
    return bundle.read_unverified(Path("m-1.0.0-host.ebundle").read_bytes()).manifest


def test_compile_writes_counter_and_days(edgebuild, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = home / "config" / "edgebuild" / "trust"
    arguments = ("compile", "m.onnx", "--calibration", "c.npz", "--json")
    assert edgebuild(*arguments).code == 0
    plain = manifest()
    assert (plain.release, plain.made, plain.expires) == (1, None, None)
    assert edgebuild("verify", "m-1.0.0-host.ebundle", "--trust", trust, "--json").json["expired"] == []

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1769860800")
    ran = edgebuild(*arguments, "--release", 7, "--made", "now", "--expires", "+1m")
    assert ran.code == 0, ran.err
    made = manifest()
    assert (made.release, made.made, made.expires) == (7, date(2026, 1, 31), date(2026, 2, 28))
    assert made.files == plain.files
    shown = edgebuild("inspect", "m-1.0.0-host.ebundle", "--json").json
    assert (shown["release"], shown["made"], shown["expires"]) == (7, "2026-01-31", "2026-02-28")
    assert "7, made 2026-01-31, expires 2026-02-28" in edgebuild("inspect", "m-1.0.0-host.ebundle").out

    for seconds, expired in ((1772150400, False), (1772236800, True)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(seconds))
        ran = edgebuild("verify", "m-1.0.0-host.ebundle", "--trust", trust)
        assert (ran.code, ran.err) == (0, "")
        warned = "warning: the bundle expired on 2026-02-28: devices do not install it any more\n" in ran.out
        assert warned == expired
        found = edgebuild("verify", "m-1.0.0-host.ebundle", "--trust", trust, "--json").json
        assert (found["verified"], bool(found["expired"])) == (True, expired)


def test_a_recipe_names_its_counter(edgebuild) -> None:
    Path("recipe.toml").write_text(RECIPE)
    assert edgebuild("compile", "--json").code == 0
    assert manifest().release == 41
    assert edgebuild("compile", "--release", 42, "--json").code == 0
    assert manifest().release == 42


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--release", 0), "'--release': Input should be greater than or equal to 1", "--help"),
        (("--release", 2**31), "less than or equal to 2147483647", "--help"),
        (("--made", "tomorrow"), "--made tomorrow: no day of the years 2000 to 9999", "now"),
        (("--made", "2026-02-30"), "--made 2026-02-30: no day", "now"),
        (("--made", "2026-02-03", "--expires", "2026-02-03"), "--expires 2026-02-03: is not after 2026-02-03", "+90d"),
        (("--expires", "soon"), "--expires soon: no day", "+90d"),
        (("--expires", "2020-01-01"), "--expires 2020-01-01: is not after ", "+90d"),
    ],
)
def test_a_wrong_command_line(edgebuild, arguments: tuple[object, ...], message: str, hint: str) -> None:
    ran = edgebuild("compile", "m.onnx", "--calibration", "c.npz", *arguments)
    refused(ran, 2, message, hint)


@pytest.mark.parametrize("release", [0, -1, 2**31])
def test_a_recipe_with_a_wrong_counter(edgebuild, release: int) -> None:
    Path("recipe.toml").write_text(RECIPE.replace("41", str(release)))
    refused(edgebuild("compile"), 3, f"release: {release} is not between 1 and 2147483647", "")
