"""The cache on disk: results of stages by the digest of everything they depend on.

An entry is a folder of files. It appears by one rename, so a reader sees a whole entry or none, and two
writers of one key leave one of their (equal) results.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

CACHE_VARIABLE = "EDGEBUILD_CACHE"


def cache_dir() -> Path:
    """$EDGEBUILD_CACHE, else $XDG_CACHE_HOME/edgebuild, else ~/.cache/edgebuild. It may not exist yet."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "edgebuild"
    return Path.home() / ".cache" / "edgebuild"


class Cache:
    """Entries below `root`; keys are hex digests."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_dir() / "stages" if root is None else root

    def _folder(self, key: str) -> Path:
        return self.root / key[:2] / key

    def get(self, key: str) -> Path | None:
        """The folder of an entry, or None."""
        folder = self._folder(key)
        return folder if folder.is_dir() else None

    def put(self, key: str, files: Mapping[str, bytes]) -> Path:
        """Stores `files` (name to bytes) under `key` and returns their folder."""
        folder = self._folder(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        try:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder
