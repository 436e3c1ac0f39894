"""`--update-of`: what an earlier release left behind, and what this one leaves for the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgebuild.core import digest
from edgebuild.core.basis import BasisFile, basis_path, read_basis
from edgebuild.core.bundle import Bundle, read_unverified
from edgebuild.core.bundle import head as bundle_head
from edgebuild.core.errors import ModelError, UsageError
from edgebuild.core.manifest import Tensor
from edgebuild.pipeline.entries import Built, Entry, Meta
from edgebuild.pipeline.job import Job, UpdateOf

if TYPE_CHECKING:
    from edgebuild.budget import Precision
    from edgebuild.stages.quantize import Basis

_REMEDY = (
    "compile the old release again from its recipe and weights (the same bytes come out), and keep what it writes; a "
    "model that came quantized has none, since it keeps its own grid: compile it without --update-of"
)


@dataclass(frozen=True)
class Old:
    """The earlier release: its bundle's bytes, parsed, and its basis."""

    data: bytes
    bundle: Bundle
    basis: BasisFile

    @property
    def digest(self) -> str:
        """Of all that a later build takes from it."""
        basis = self.basis
        parts = (basis.rule, *basis.rescued, basis.precision, repr(basis.fallback), repr(sorted(basis.factors.items())))
        return digest.of_parts(
            digest.sha256(self.data), digest.sha256(basis.model), digest.sha256(basis.floating), *parts
        )

    def file(self, path: str) -> bytes:
        """One of the bundle's files."""
        return bytes(self.bundle.files[path])

    @property
    def named(self) -> dict[str, Any]:
        """For the report; `id` as in SPEC section 11."""
        manifest = self.bundle.manifest
        return {
            "version": manifest.version,
            "release": manifest.release,
            "id": digest.sha256(bundle_head(self.data)[0]),
        }

    def check_interface(self, meta: Meta) -> None:
        """ModelError where the new function takes or gives something else than the old one: goldens would not fit."""
        manifest = self.bundle.manifest
        for what, old, new in (("inputs", manifest.inputs, meta.inputs), ("outputs", manifest.outputs, meta.outputs)):
            if old != new:
                raise ModelError(
                    f"--update-of: not the network that the old bundle was made of: its {what} were {_listed(old)}, "
                    f"and are now {_listed(new)}",
                    "compile without --update-of to ship another network in full",
                )

    @property
    def fallback(self) -> "dict[str, Precision]":
        """Layers that left 8 bits."""
        return {name: "int16" if kind == "int16" else "float32" for name, kind in self.basis.fallback.items()}

    def for_quantizer(self) -> "Basis":
        """As graphs and arrays."""
        import numpy as np  # noqa: PLC0415 - an unchanged build does without it
        import onnx  # noqa: PLC0415

        from edgebuild.stages.quantize import Basis, Choices  # noqa: PLC0415 - imports onnxruntime

        basis = self.basis
        factors = {name: np.frombuffer(data, "<f4") for name, data in basis.factors.items()}
        choices = Choices(basis.rule, factors, frozenset(basis.rescued), self.fallback)
        model, floating = (onnx.load_model_from_string(data) for data in (basis.model, basis.floating))
        return Basis(model, floating, choices)


def _listed(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in tensors)


def read_old(update: UpdateOf, job: Job) -> Old:
    """The release that is updated. Raises UsageError for another name, target or the same version, BundleError."""
    path = update.bundle
    if not path.is_file():
        raise UsageError(f"--update-of {path}: no such file", "name the bundle that devices have")
    data = path.read_bytes()
    bundle = read_unverified(data)
    manifest = bundle.manifest
    for what, old, new in (("name", manifest.name, job.name), ("target", manifest.target, job.target.name)):
        if old != new:
            raise UsageError(
                f"--update-of {path}: its {what} is '{old}', the new one's '{new}'", f"give {what} '{old}'"
            )
    if manifest.version == job.version:
        raise UsageError(
            f"--update-of {path}: it has version {job.version} already", "give the new release another: --version"
        )
    if update.release is not None and update.release <= manifest.release:
        raise UsageError(
            f"--release {update.release}: the old bundle is release {manifest.release} already",
            "leave it out: the counter goes up by one",
        )
    place = basis_path(path)
    if not place.is_file():
        raise UsageError(f"--update-of {path}: {place.name} is not beside it", _REMEDY)
    basis = read_basis(place.read_bytes(), bundle, str(place))
    if basis.precision != "float32" and job.recipe.model.precision == "float32":
        raise UsageError(
            f"--update-of {path}: it is {basis.precision}, and float32 is asked for",
            "compile without --update-of to ship float32, or leave out --float or [model] precision to stay at int8",
        )
    return Old(data, bundle, basis)


def release_of(old: Old, job: Job) -> int:
    """The release counter: larger than the old one's."""
    before = old.bundle.manifest.release
    return job.release if job.release > before else before + 1


def basis_of(built: Built, precision: str, schedules: Mapping[str, str]) -> bytes | None:
    """What a later release of this one needs; None where the model came quantized."""
    report = built.quantized.json("report.json")
    if report["passed_through"]:
        return None
    factors = {name: bytes.fromhex(data) for name, data in built.quantized.json("factors.json").items()}
    found = BasisFile(
        model=built.quantized.read("model.onnx"),
        floating=built.quantized.read(
            "shipped.onnx" if "update" in report and "price" in report["update"] else "float.onnx"
        ),
        rule=report["observer"],
        rescued=tuple(report.get("rescued", ())),
        fallback=built.fallback,
        precision=precision,
        schedules=schedules,
        factors=factors,
    )
    return found.to_bytes(_program(built.program))


def _program(entry: Entry) -> dict[str, bytes]:
    return {name: entry.read(name) for name in ("program.so", "plan.bin", "weights.bin")}
