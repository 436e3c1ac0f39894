"""Where the files that come with edgebuild lie: the checkout's top level, or the wheel's `edgebuild/_resources`."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def resource(name: str) -> Path:
    """Path of a folder that comes with edgebuild: `targets`, `recipes`, `calibration-data` or `runtime-min`."""
    installed = _PACKAGE / "_resources" / name
    return installed if installed.exists() else _PACKAGE.parent / name
