"""Edgebuild as a user runs it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MINUTES = 60.0


@dataclass(frozen=True)
class Machine:
    """A user's configuration and working folder."""

    home: Path
    cache: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        own = {"XDG_CONFIG_HOME": str(self.home / "config"), "COLUMNS": "120", "TERM": "dumb"}
        return {**os.environ, **own, **({"EDGEBUILD_CACHE": str(self.cache)} if self.cache else {})}

    @property
    def trust(self) -> Path:
        return self.home / "config" / "edgebuild" / "trust"

    def edgebuild(self, *arguments: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgebuild", *map(str, arguments)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=self.environment | environment,
            cwd=self.home,
            timeout=20 * MINUTES,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def compile(self, *arguments: object) -> "Built":
        report = json.loads(self.edgebuild("compile", *arguments, "--json").stdout)
        out = self.home / str(arguments[arguments.index("--out") + 1])
        stem = f"{report['name']}-{report['version']}-{report['target']}"
        assert json.loads((out / f"{stem}.report.json").read_text()) == report
        return Built(out / f"{stem}.ebundle", report)


@dataclass(frozen=True)
class Built:
    bundle: Path
    report: dict[str, Any]

    @property
    def data(self) -> bytes:
        return self.bundle.read_bytes()
