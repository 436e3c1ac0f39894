"""Builds a release: a bundle for every target, deltas from the releases of before, and what belongs to them."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from edgebuild import pipeline
from edgebuild.core import bundle as bundles
from edgebuild.core import minisign
from edgebuild.core.digest import sha256
from edgebuild.core.errors import EdgebuildError, UsageError
from edgebuild.core.lock import Lock, read_lock
from edgebuild.core.manifest import Manifest, serialize
from edgebuild.core.recipe import LOCK_FILE, Recipe
from edgebuild.core.signer import Signer
from edgebuild.core.target import Target
from edgebuild.core.target_file import runs_here
from edgebuild.core.trust import Trust
from edgebuild.release import folder, index, inputs, names, provenance, sbom, sums
from edgebuild.release.index import Bundle, Delta, Index, Item, TrustItem
from edgebuild.release.inputs import Inputs
from edgebuild.release.previous import Old, Previous, Skipped, next_release, scan
from edgebuild.release.sbom import Subject


@dataclass(frozen=True)
class Order:
    """What is released. `previous`: folders with bundles of before; `release`: the counter, None for the next one.

    `update`: keep the grid and the schedules of the newest release in `previous`, target by target;
    `max_delta`: ship what fits into so many bytes of the delta from that one.
    `trust_file`: a trust file with roles that goes along, and its version. `commit`: the git commit that the recipe is.
    """

    recipe: Recipe
    name: str
    version: str
    targets: tuple[Target, ...]
    out: Path
    previous: tuple[Path, ...] = ()
    release: int | None = None
    made: date | None = None
    expires: date | None = None
    trust_file: tuple[bytes, int] | None = None
    commit: str | None = None
    update: bool = False
    max_delta: int | None = None


class Progress(Protocol):
    """Hears which target is built (the first is 1), and gives the listener for its stages."""

    def __call__(self, target: str, number: int, count: int) -> AbstractContextManager[pipeline.Listener]: ...


@dataclass(frozen=True)
class Row:
    """A target of a release that was made; `bases` are in the order of the bundle's deltas."""

    bundle: Bundle
    report: dict[str, Any]
    bases: tuple[Old, ...]
    old_report: dict[str, Any] | None


@dataclass(frozen=True)
class Release:
    """What was made. `existed`: `--out` held the same before."""

    out: Path
    index: Index
    signer: str
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    existed: bool


def make(order: Order, signer: Signer, trusted: Trust, progress: Progress) -> Release:
    """Everything into `order.out`, or nothing. All targets are tried before one that failed fails the release.

    `trusted`: the keys whose old bundles are believed; the new ones must be signed by one of them.
    """
    _check(order)
    found = scan(order.previous, order.name, trusted)
    if order.max_delta is not None and not any(_updated(found, target.name) for target in order.targets):
        raise UsageError(
            "--max-delta: --previous has no release for these targets that a trusted key signed, so there is no delta",
            "name the folder of the last release with --previous, or leave out --max-delta",
        )
    counter = next_release(found, order.release, order.recipe.identity.release)
    went_in = inputs.of(order.recipe)
    with folder.staged(order.out) as stage:
        made = _Made(order, counter, stage, signer, trusted, found, went_in)
        made.build(progress)
        made.describe()
        existed = not folder.publish(stage, order.out)
    return made.released(existed=existed)


def _check(order: Order) -> None:
    folder.check_free(order.out)
    inputs.check_commit(order.commit, order.recipe.folder)
    targets = [target.name for target in order.targets]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"--targets: '{target}' occurs twice", "name each target once")


@dataclass
class _Made:
    """A release on its way."""

    order: Order
    counter: int
    stage: Path
    signer: Signer
    trusted: Trust
    previous: Previous
    inputs: Inputs
    rows: list[Row] = field(default_factory=list)
    subjects: list[Subject] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    key: str = ""

    def build(self, progress: Progress) -> None:
        """Bundle, report and deltas of every target; raises what failed, naming the targets."""
        failures: list[tuple[str, EdgebuildError]] = []
        targets = self.order.targets
        for number, target in enumerate(targets, start=1):
            try:
                with progress(target.name, number, len(targets)) as listener:
                    self._target(target, listener)
            except EdgebuildError as error:
                failures.append((target.name, error))
        if failures:
            raise _failed(failures, len(targets))

    def _target(self, target: Target, listener: pipeline.Listener) -> None:
        order = self.order
        job = pipeline.Job(
            order.recipe,
            target,
            order.name,
            order.version,
            release=self.counter,
            made=order.made,
            expires=order.expires,
            update=self._update(target.name),
        )
        result = pipeline.build(job, self.signer, listener)
        read = bundles.read_bundle(result.bundle, self.trusted)
        assert read.signer is not None
        self.key = read.signer.name
        for name, data in pipeline.output_files(result).items():
            folder.write(self.stage, name, data)
        item = self._keep(names.bundle(order.name, order.version, target.name), result.bundle)
        with _stage(listener, "delta"):
            deltas = list(self._deltas(target.name, result.bundle))
        row = Bundle(target.name, _id(read.manifest), item, tuple(delta for delta, _ in deltas))
        newest = next(self.previous.of(target.name), None)
        self.rows.append(Row(row, result.report, tuple(old for _, old in deltas), newest.report() if newest else None))
        self.subjects.append(Subject(item.file, item.sha256, read.manifest))

    def _update(self, target: str) -> pipeline.UpdateOf | None:
        """The release whose grid is kept; one under an unknown key is not built on."""
        if not self.order.update:
            return None
        old = _updated(self.previous, target)
        if old is None:
            return None
        if old.basis.is_file():
            self.bases[old.id] = sha256(old.basis.read_bytes())
        return pipeline.UpdateOf(old.path, self.counter, self.order.max_delta)

    def _deltas(self, target: str, new: bytes) -> Iterator[tuple[Delta, Old]]:
        """The deltas that are worth having, the smallest first."""
        order, found = self.order, []
        for old in self.previous.of(target):
            try:
                data = _make_delta(old.read(), new)
            except EdgebuildError as error:
                self.skipped.append(Skipped(old.path.name, f"no delta: {error.message}"))
                continue
            if len(data) >= len(new):
                reason = f"no delta: it has {len(data)} bytes, and the bundle {len(new)}"
                self.skipped.append(Skipped(old.path.name, reason))
                continue
            found.append((len(data), names.delta(order.name, order.version, target, old.id), data, old))
        for _, name, data, old in sorted(found, key=lambda one: one[:2]):
            yield Delta(old.id, self._keep(name, data)), old

    def _keep(self, name: str, data: bytes) -> Item:
        folder.write(self.stage, name, data)
        self.digests[name] = sha256(data)
        return Item(name, len(data), self.digests[name])

    def describe(self) -> None:
        """Index, SBOM, provenance and sums, each signed."""
        order = self.order
        self._keep(names.INDEX, index.serialize(self._index()))
        made = sbom.make(order.name, order.version, order.made, self.subjects, self.inputs)
        self._keep(names.sbom(order.name, order.version), made)
        self._provenance()
        self._sign(names.INDEX, kept=True)
        folder.write(self.stage, names.SUMS, sums.serialize(self.digests))
        self._sign(names.SUMS, kept=False)

    def _index(self) -> Index:
        order, trust = self.order, None
        if order.trust_file is not None:
            data, version = order.trust_file
            trust = TrustItem(self._keep(names.TRUST, data), version)
        rows = tuple(row.bundle for row in self.rows)
        return Index(order.name, order.version, self.counter, order.made, order.expires, trust, rows)

    def _provenance(self) -> None:
        payload = provenance.statement(self._built())
        name = names.provenance(self.order.name, self.order.version)
        if isinstance(self.signer, minisign.SecretKey):
            self._keep(name, provenance.envelope(payload, self.signer))
        else:
            self._keep(name, provenance.envelope(payload, None))
            self._sign(name, kept=True)

    def _built(self) -> provenance.Built:
        order, went_in = self.order, self.inputs
        bases = {old.sha256: old for row in self.rows for old in row.bases}
        return provenance.Built(
            subjects=dict(self.digests),
            external={
                "recipe": order.recipe.name,
                "name": order.name,
                "version": order.version,
                "release": self.counter,
                "made": str(order.made) if order.made else None,
                "expires": str(order.expires) if order.expires else None,
                "samples": order.recipe.calibration.samples,
                "update": order.update,
                "maxDelta": order.max_delta,
                "targets": [inputs.stated(target) for target in order.targets],
            },
            internal={"recipeDigest": went_in.recipe},
            dependencies=[
                *([{"name": "source", "digest": {"gitCommit": order.commit}}] if order.commit else []),
                *({"name": f"recipe/{name}", "digest": {"sha256": one}} for name, one in went_in.sources.items()),
                *(
                    {
                        "name": f"{part.part}/{part.name}",
                        "digest": {"edgebuildSet": part.digest},
                        "annotations": {"licence": part.licence},
                    }
                    for part in went_in.data
                ),
                {
                    "uri": inputs.package_url("edgebuild", went_in.edgebuild),
                    "digest": {"edgebuildSources": went_in.own},
                },
                *({"uri": inputs.package_url(name, version)} for name, version in went_in.packages.items()),
                *({"name": f"previous/{old.id}", "digest": {"sha256": one}} for one, old in sorted(bases.items())),
                *({"name": f"basis/{name}", "digest": {"sha256": one}} for name, one in sorted(self.bases.items())),
            ],
            edgebuild=went_in.edgebuild,
        )

    def _sign(self, name: str, *, kept: bool) -> None:
        """Signs a file that is written; `kept`: SHA256SUMS lists the signature."""
        order = self.order
        message = (self.stage / name).read_bytes()
        signature = self.signer.sign(message, f"edgebuild {order.name} {order.version} {name}")
        if kept:
            self._keep(name + names.SIGNATURE, signature)
        else:
            folder.write(self.stage, name + names.SIGNATURE, signature)

    def released(self, *, existed: bool) -> Release:
        order = self.order
        read = index.parse((order.out / names.INDEX).read_bytes())
        skipped = (*self.previous.skipped, *self._unused(), *self.skipped)
        return Release(order.out, read, self.key, tuple(self.rows), skipped, tuple(self._warnings()), existed)

    def _unused(self) -> Iterator[Skipped]:
        targets = {target.name for target in self.order.targets}
        for old in self.previous.bases:
            if old.target not in targets:
                yield Skipped(old.path.name, f"is for {old.target}, which is not in this release")

    def _warnings(self) -> Iterator[str]:
        recipe = self.order.recipe
        lock = Lock() if recipe.bare else read_lock(recipe.folder)
        for target in self.order.targets:
            if runs_here(target) and not (recipe.bare or lock.covers(target.isa)):
                yield (
                    f"{recipe.name} has no {LOCK_FILE} for {target.name}: what this machine measured decided on "
                    f"precision; `edgebuild compile --target {target.name} --update-lock` keeps it"
                )
            if self.order.update and _updated(self.previous, target.name) is None:
                remedy = "; `edgebuild sign` puts those that are yours under the new key"
                yield (
                    f"--update: {target.name} has no release in --previous that a trusted key signed, and is new"
                    f"{remedy if any(self.previous.of(target.name)) else ''}"
                )
        if same := [old for old in self.previous.bases if old.version == self.order.version]:
            yield f"release {same[0].release} in --previous has the version {self.order.version}, too; raise --version"
        for key in dict.fromkeys(old.key for old in self.previous.unknown):
            files = ", ".join(old.path.name for old in self.previous.unknown if old.key == key)
            yield f"signed by key {key}, which is not trusted here: {files}; deltas start from them, and no more"


def _updated(previous: Previous, target: str) -> Old | None:
    """The release that --update builds on: the newest that can be believed."""
    return next((old for old in previous.of(target) if old.trusted), None)


def _failed(failures: list[tuple[str, EdgebuildError]], count: int) -> EdgebuildError:
    """The first failure's kind (and exit code), with what every target said."""
    said = "; ".join(f"target {name}: {error.message}" for name, error in failures)
    more = f" ({len(failures)} of {count} targets failed)" if count > 1 else ""
    return type(failures[0][1])(f"{said}{more}", failures[0][1].hint)


@contextmanager
def _stage(listener: pipeline.Listener, name: str) -> Iterator[None]:
    start = time.perf_counter()
    listener.started(name)
    yield
    listener.finished(name, round(time.perf_counter() - start, 3), cached=False)


def _id(manifest: Manifest) -> str:
    return sha256(serialize(manifest))


def _make_delta(old: bytes, new: bytes) -> bytes:
    from edgebuild.pipeline.delta import make_delta  # noqa: PLC0415 - imports its codecs

    return make_delta(old, new).data
