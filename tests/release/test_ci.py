"""`action.yml` and the GitLab template: their scripts are run as those services run them."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from releases import KEY, OTHER, TARGETS, Home, write_recipe

import edgebuild
from edgebuild.core import scrypt
from edgebuild.core.trust import Trust
from edgebuild.release import folder as release_folder

ROOT = Path(edgebuild.__file__).resolve().parents[1]
TRUST = Trust([KEY.public])
pytestmark = pytest.mark.skipif(
    not (ROOT / "action.yml").is_file() or shutil.which("bash") is None, reason="needs a checkout and bash"
)


@dataclass(frozen=True)
class Runner:
    """A machine of a CI service: a folder with a recipe, and programs in front of the others."""

    folder: Path
    environment: dict[str, str]

    def bash(self, script: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """With the flags that both services use."""
        path = self.folder / "script.sh"
        path.write_text(script)
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(path)]
        environment = {**self.environment, **variables}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def runner(home: Home, tmp_path: Path) -> Runner:
    """`edgebuild` is this checkout's; `python3 -m pip` would fail, so that nothing is installed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, line in {
        "edgebuild": f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m edgebuild "$@"',
        "python3": "echo 'python3 was called' >&2; exit 1",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    write_recipe(work / "recipe", 0.5)
    environment = {**home.variables, "PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)}
    environment |= {"OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "1772236800"}
    del environment["EDGEBUILD_KEY"]
    return Runner(work, environment)


def action() -> Any:
    return yaml.safe_load((ROOT / "action.yml").read_text())


def run_action(runner: Runner, given: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], str]:
    """All steps; inputs become variables of the environment, as in a composite action. Gives what it outputs, too."""
    inputs = {name: str(one.get("default", "")) for name, one in action()["inputs"].items()} | {"commit": ""} | given
    output = runner.folder / "output"
    output.write_text("")
    done = None
    for step in action()["runs"]["steps"]:
        assert step["shell"] == "bash"
        variables = {"GITHUB_ACTION_PATH": str(ROOT), "GITHUB_OUTPUT": str(output)}
        variables["GITHUB_STEP_SUMMARY"] = str(runner.folder / "summary")
        for name, value in step.get("env", {}).items():
            (key,) = re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", value).groups()  # type: ignore[union-attr]
            variables[name] = inputs[key]
        done = runner.bash(step["run"], variables)
        if done.returncode:
            break
    assert done is not None
    return done, output.read_text()


def test_no_expression_is_in_a_script() -> None:
    """What `${{ }}` expands to in a script is run: a branch's name could hold a command."""
    steps = action()["runs"]["steps"]
    assert len(steps) == 2
    for step in steps:
        assert "${{" not in step["run"]
        assert "edgebuild release" in step["run"] or "edgebuild" in step["run"]
    for line in gitlab()["edgebuild-release"]["script"]:
        assert "$[[" not in line


def test_the_action_makes_the_release(home: Home, runner: Runner) -> None:
    key = home.key.read_text()
    given = {"recipe": "recipe", "targets": TARGETS, "previous": f"{home.first}\n", "version": "1.1.0", "key": key}
    done, output = run_action(runner, {**given, "expires": "+90d"})
    assert done.returncode == 0, done.stderr
    assert output == "folder=release\n"
    assert "python3 was called" not in done.stderr
    found = release_folder.read(runner.folder / "release", TRUST)
    assert (found.index.release, str(found.index.made)) == (2, "2026-02-28")
    listed = (runner.folder / "release" / "SHA256SUMS").read_bytes()
    assert listed == (home.second / "SHA256SUMS").read_bytes()
    assert key.splitlines()[1] not in done.stdout + done.stderr
    assert "1.0.0 (release 1)" in done.stdout
    assert (runner.folder / "summary").read_text() == f"```\n{done.stdout}```\n"


def test_the_actions_password_opens_the_key(runner: Runner) -> None:
    key = KEY.file(b"swordfish", scrypt.Limits(32768, 1 << 24)).decode()
    given = {"recipe": "recipe", "targets": "host", "key": key}
    done, _ = run_action(runner, {**given, "password": "shark"})
    assert (done.returncode, "wrong password" in done.stderr) == (8, True)
    done, _ = run_action(runner, {**given, "password": "swordfish"})
    assert done.returncode == 0, done.stderr


def test_an_action_without_a_key_signs_nothing(runner: Runner) -> None:
    done, output = run_action(runner, {"recipe": "recipe", "targets": "host"})
    assert (done.returncode, output) == (1, "")
    assert "no signing key: pass a secret as the input key" in done.stderr
    assert not (runner.folder / "release").exists()


@pytest.mark.parametrize(
    "name", ["recipe", "targets", "previous", "version", "release", "out", "update", "trust", "made", "commit"]
)
def test_what_an_input_says_is_never_run(home: Home, runner: Runner, name: str) -> None:
    given = {"recipe": "recipe", "targets": "host", "key": home.key.read_text()}
    done, _ = run_action(runner, {**given, name: "$(touch pwned)`touch pwned`; touch pwned #' \" --help"})
    assert (done.returncode == 0) == (name in ("out", "update")), done.stderr
    assert done.returncode == 0 or "error: " in done.stderr
    assert not (runner.folder / "pwned").exists()


def test_the_first_release_under_another_key(home: Home, runner: Runner) -> None:
    """Nobody vouches for the counter of before: it is said once, and the hint says so."""
    given = {"recipe": "recipe", "targets": "host", "previous": str(home.first), "version": "1.1.0", "update": "true"}
    given["key"] = OTHER.file().decode()
    done, _ = run_action(runner, given)
    assert (done.returncode, "say a larger counter with --release, this once" in done.stderr) == (8, True)
    done, _ = run_action(runner, {**given, "release": "2"})
    assert done.returncode == 0, done.stderr
    assert release_folder.read(runner.folder / "release", Trust([OTHER.public])).index.release == 2
    assert "and is new; `edgebuild sign` puts those that are yours under the new key\n" in done.stderr


def gitlab() -> Any:
    """The jobs of the component; the part before `---` declares its inputs."""
    _, jobs = yaml.safe_load_all((ROOT / "templates" / "release.yml").read_text())
    return jobs


def run_gitlab(runner: Runner, given: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Inputs are put into the YAML's strings, variables that do not expand reach the script as they are."""
    spec, jobs = yaml.safe_load_all((ROOT / "templates" / "release.yml").read_text())
    declared = spec["spec"]["inputs"]
    inputs = {name: (one or {}).get("default") for name, one in declared.items()} | given
    assert set(inputs) == set(declared)
    for name, value in jobs["edgebuild-release"]["variables"].items():
        assert value["expand"] is False
        variables[name] = re.sub(r"\$\[\[ inputs\.(\w+) \]\]", lambda found: str(inputs[found[1]]), value["value"])
    return runner.bash("\n".join(jobs["edgebuild-release"]["script"]), variables)


def test_the_gitlab_template_makes_the_release(home: Home, runner: Runner) -> None:
    given = {"recipe": "recipe", "targets": TARGETS, "previous": str(home.first), "version": "1.1.0", "out": "made"}
    done = run_gitlab(runner, {**given, "expires": "+90d"}, EDGEBUILD_KEY=str(home.key))
    assert done.returncode == 0, done.stderr
    assert (runner.folder / "made" / "SHA256SUMS").read_bytes() == (home.second / "SHA256SUMS").read_bytes()
    updated = run_gitlab(runner, {**given, "out": "updated", "update": "true"}, EDGEBUILD_KEY=str(home.key))
    assert updated.returncode == 0, updated.stderr
    assert json.loads((runner.folder / "updated" / "dense-1.1.0-host.report.json").read_text())["update"]
    without = run_gitlab(runner, given)
    assert (without.returncode, "no signing key" in without.stderr) == (1, True)


def test_what_a_gitlab_input_says_is_never_run(home: Home, runner: Runner) -> None:
    evil = "$(touch pwned)`touch pwned`; touch pwned"
    done = run_gitlab(runner, {"recipe": evil, "targets": evil, "previous": evil}, EDGEBUILD_KEY=str(home.key))
    assert done.returncode == 2
    assert not (runner.folder / "pwned").exists()
