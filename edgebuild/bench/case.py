"""What is measured: a bundle, and what the peers need of the model that it was made of."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild import pipeline, projects
from edgebuild.bench.peers import Unsupported
from edgebuild.core import digest, keys
from edgebuild.core.bundle import Bundle, read_unverified
from edgebuild.core.calibration import find_set, load_set
from edgebuild.core.errors import BundleError, EnvironmentProblem, UsageError
from edgebuild.core.minisign import PublicKey, SecretKey
from edgebuild.core.plan import Plan, read_plan
from edgebuild.core.recipe import Recipe
from edgebuild.core.target_file import host_features, load_target

if TYPE_CHECKING:
    import numpy as np

    from edgebuild.core.calibration import Sample

SAMPLES = 8
"""Real inputs that every engine runs on in turn."""
CALIBRATION_SAMPLES = 128
"""At most, for the peers' own quantizers."""

BUNDLE_ALONE = "a bundle holds no model that a peer can read: name its recipe or .onnx file to compare"


@dataclass(frozen=True)
class Asked:
    """One model of the command line, with the options that a build takes. Paths are absolute."""

    wanted: str
    target: str = "host"
    untrained: bool = False
    weights: Path | None = None
    calibration: Path | None = None
    samples: int | None = None
    trust: Path | None = None

    @property
    def is_bundle(self) -> bool:
        return self.wanted.endswith(".ebundle")

    def recipe(self) -> Recipe:
        overrides = projects.Overrides(self.weights, None, self.calibration, self.samples)
        return projects.resolve(self.wanted, overrides)


@dataclass(frozen=True)
class Case:
    """Files in a folder of their own.

    `samples`, `calibration`: .npz, an array per input, first axis = samples. `float_model` and `qdq_model` are None
    for a bundle without its model; `source` is what a peer's process restores the recipe from, None without a recipe.
    """

    name: str
    target: str
    arch: str
    needs: tuple[str, ...]
    quality: str
    plan: Plan
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    runtime: Path
    bundle: Path
    trust: Path
    samples: Path
    calibration: Path
    float_model: Path | None
    qdq_model: Path | None
    source: dict[str, Any] | None

    @property
    def folder(self) -> Path:
        return self.samples.parent

    @property
    def quantized(self) -> bool:
        return self.plan.macs_integer > 0

    def digest(self) -> str:
        """Of all that a peer's conversion depends on."""
        assert self.float_model is not None
        assert self.qdq_model is not None
        files = (self.float_model, self.qdq_model, self.calibration)
        return digest.of_parts(*(digest.of_file(path) for path in files))


def of_asked(asked: Asked, folder: Path, key: SecretKey, listener: pipeline.Listener) -> Case:
    """Builds what was asked for, if it is no bundle, and lays everything out in `folder`."""
    if asked.is_bundle:
        return of_bundle(asked, folder)
    recipe, target = asked.recipe(), load_target(asked.target)
    check_runs_here(f"{recipe.name} for {target.name}", target.arch, target.features)
    job = pipeline.Job(recipe, target, recipe.name, recipe.version, untrained=asked.untrained)
    return of_result(pipeline.build(job, key, listener), recipe, folder, key.public, _source(asked, recipe))


def of_result(
    result: pipeline.Result, recipe: Recipe, folder: Path, key: PublicKey, source: dict[str, Any] | None = None
) -> Case:
    """A finished build, signed with `key`, and real samples of its calibration set."""
    bundle, trust = folder / "bench.ebundle", folder / "trust"
    bundle.write_bytes(result.bundle)
    trust.write_bytes(key.file())
    read = read_unverified(result.bundle)
    assert recipe.calibration.set is not None
    chosen = load_set(find_set(recipe.calibration.set, recipe.folder))
    limit = min(CALIBRATION_SAMPLES, recipe.calibration.samples)
    calibration = list(islice(chosen.samples(read.manifest.inputs, limit), limit))
    _save(folder / "calibration.npz", calibration)
    _save(folder / "samples.npz", _spread(calibration, SAMPLES))
    models = result.float_model, result.qdq_model
    return _case(read, folder, bundle, trust, models, source)


def of_bundle(asked: Asked, folder: Path) -> Case:
    """A finished bundle, on its own golden inputs. Raises EnvironmentProblem, BundleError."""
    path = Path(asked.wanted)
    try:
        read = read_unverified(path.read_bytes())
    except OSError as error:
        raise EnvironmentProblem(f"{path}: {error.strerror}", "name an .ebundle file of `edgebuild compile`") from error
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error
    golden = [_npy(read, f"golden/in-{index}.npy") for index in range(len(read.manifest.inputs))]
    names = [item.name for item in read.manifest.inputs]
    rows = [dict(zip(names, arrays, strict=True)) for arrays in zip(*golden, strict=True)]
    _save(folder / "samples.npz", rows)
    _save(folder / "calibration.npz", rows)
    return _case(read, folder, path.resolve(), asked.trust or keys.user_trust_path(), (None, None), None)


def _case(
    read: Bundle,
    folder: Path,
    bundle: Path,
    trust: Path,
    models: tuple[Path | None, Path | None],
    source: dict[str, Any] | None,
) -> Case:
    manifest = read.manifest
    check_runs_here(f"{manifest.name} for {manifest.target}", manifest.arch, manifest.needs)
    runtime = folder / "edgebuild-run"
    runtime.write_bytes(read.files["edgebuild-run"])
    runtime.chmod(0o755)
    return Case(
        name=manifest.name,
        target=manifest.target,
        arch=manifest.arch,
        needs=manifest.needs,
        quality=manifest.quality,
        plan=read_plan(bytes(read.files["plan.bin"])),
        inputs=tuple(item.name for item in manifest.inputs),
        outputs=tuple(item.name for item in manifest.outputs),
        runtime=runtime,
        bundle=bundle,
        trust=trust,
        samples=folder / "samples.npz",
        calibration=folder / "calibration.npz",
        float_model=models[0],
        qdq_model=models[1],
        source=source,
    )


def check_runs_here(what: str, arch: str, needs: Sequence[str]) -> None:
    """Raises UsageError unless this machine runs code for `arch` with the CPU features `needs`."""
    here, features = host_features()
    missing = [feature for feature in needs if feature not in features]
    if here == arch and not missing:
        return
    lacks = f"this machine's CPU lacks {', '.join(missing)}" if here == arch else f"this machine is {here}"
    raise UsageError(f"{what}: {lacks}", "only what runs here can be measured: --target host")


def _spread(rows: "list[Sample]", count: int) -> "list[Sample]":
    """`count` of the rows, evenly over all of them: neighbours in a set are often alike."""
    wanted = min(count, len(rows))
    return [rows[index * len(rows) // wanted] for index in range(wanted)]


def _save(path: Path, rows: "list[Sample]") -> None:
    import numpy as np  # noqa: PLC0415

    arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(path, **arrays)


def _npy(read: Bundle, name: str) -> "np.ndarray[Any, Any]":
    import io  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    array: np.ndarray[Any, Any] = np.load(io.BytesIO(read.files[name]))
    return array


def _source(asked: Asked, recipe: Recipe) -> dict[str, Any] | None:
    """What `restore_recipe` needs; plain values, for another process. None where there is no PyTorch module."""
    if recipe.model.saved or recipe.imports() & {"tensorflow", "keras"}:
        return None
    paths = {"weights": asked.weights, "calibration": asked.calibration}
    return {
        "wanted": asked.wanted if asked.wanted in projects.bundled_recipes() else str(recipe.folder.resolve()),
        **{name: str(path.resolve()) if path else None for name, path in paths.items()},
        "samples": asked.samples,
        "untrained": asked.untrained,
    }


def restore_recipe(source: dict[str, Any]) -> tuple[Recipe, bool]:
    """The recipe that `Case.source` stands for, and whether it may be untrained."""
    weights, calibration = (Path(source[name]) if source[name] else None for name in ("weights", "calibration"))
    asked = Asked(source["wanted"], weights=weights, calibration=calibration, samples=source["samples"])
    return asked.recipe(), source["untrained"]


def write_source(case: Case, path: Path) -> None:
    """The file that a peer's process reads its `Source` from."""
    fields = {name: str(getattr(case, name)) for name in ("float_model", "qdq_model", "calibration")}
    path.write_text(json.dumps({**fields, "recipe": case.source}))


def restore_module(source: dict[str, Any] | None) -> Any:
    """The recipe's torch.nn.Module, as ingest traces it. Raises Unsupported for a model that is no recipe."""
    from edgebuild.stages.ingest import pytorch  # noqa: PLC0415 - imports torch

    if source is None:
        raise Unsupported("it starts from a PyTorch module: name a recipe")
    recipe, untrained = restore_recipe(source)
    return pytorch.module(recipe, untrained=untrained)
