"""Orders the stages, caches each by the digest of all that it depends on, and tells a listener how far it is.

    ingest → quantize → compile → runtime → package → check → evaluate → diagnose → sign

Between evaluate and diagnose, `fallback` and `precision` may send it through quantize to evaluate once more.

Nothing here imports a framework: the keys are made of files, of versions of packages and of edgebuild's own sources,
so an unchanged build is answered from the cache. A stage's module is imported when its work has to be done.
"""

from pathlib import Path

from edgebuild import page
from edgebuild.core import disk
from edgebuild.core.basis import SUFFIX
from edgebuild.core.cache import CACHE_VARIABLE, Cache
from edgebuild.core.signer import Signer
from edgebuild.pipeline.build import Build
from edgebuild.pipeline.entries import json_bytes
from edgebuild.pipeline.job import STAGES, Job, Listener, Result, UpdateOf

__all__ = ["STAGES", "Job", "Listener", "Result", "UpdateOf", "build", "output_files", "write_output"]


def build(job: Job, signer: Signer, listener: Listener, cache: Cache | None = None) -> Result:
    """Runs the stages. Raises an EdgebuildError for whatever is wrong with what was given; writes to the cache only."""
    cache = cache or Cache()
    disk.prepare_folder(cache.root, f"name another folder for the cache: {CACHE_VARIABLE}=FOLDER")
    with disk.disk_errors():
        return Build(job, listener, cache).run(signer)


def write_output(result: Result, out: Path) -> Path:
    """Writes bundle, report, the report's page and the basis of later releases into `out`, all or none; returns the
    bundle's path.
    """
    bundle = f"{result.stem}.ebundle"
    disk.write_together(out, {bundle: result.bundle, **output_files(result)})
    return out / bundle


def output_files(result: Result) -> dict[str, bytes]:
    """What lies beside a bundle, by name: the report, its page and the basis of later releases."""
    shown = page.render(result.report).encode()
    basis = {} if result.basis is None else {f"{result.stem}{SUFFIX}": result.basis}
    return basis | {f"{result.stem}.report.json": json_bytes(result.report), f"{result.stem}.report.html": shown}
