"""Orders the stages: one way through them, and others where the budget or the speed asks for it."""

import math
import tempfile
from pathlib import Path
from typing import Any

from edgebuild import report
from edgebuild.core import minisign
from edgebuild.core.bundle import signature_key_name
from edgebuild.core.cache import Cache
from edgebuild.core.errors import CheckError, UsageError
from edgebuild.core.lock import write_lock
from edgebuild.core.plan import read_plan
from edgebuild.core.signer import Signer
from edgebuild.core.target_file import runs_here
from edgebuild.pipeline.delta import make_delta
from edgebuild.pipeline.entries import Built, Entry, Meta, files_in, json_bytes, model_of
from edgebuild.pipeline.fallback import Search
from edgebuild.pipeline.job import Job, Listener, Result
from edgebuild.pipeline.stages import Stages
from edgebuild.pipeline.update import basis_of
from edgebuild.pipeline.ways import Ways
from edgebuild.stages import check, sign
from edgebuild.stages.delta import Made
from edgebuild.stages.package import Package

_FLOATING = 0.35
"""The share of the time that operators in float32 take, from which on the whole network is tried in float32."""
_CLEARLY = 0.95
"""How much faster float32 has to be, as a share of the time in INT8."""
_WORTH_US = 5.0
"""And how much faster in µs: a tiny network gains nothing that anyone would see, and which precision it gets must not
hang on the clock's noise."""
_ROUNDS = 3
_RUNTIME = "edgebuild-run"
_SLACK, _FITTINGS = 16, 5
"""A signature is as long with every key, but not coded in as many bytes."""


class Build:
    """One build."""

    def __init__(self, job: Job, listener: Listener, cache: Cache) -> None:
        _check_search(job)
        self._job = job
        self._stages = Stages(job, listener, cache)
        self._compared: dict[str, float] = {}
        self._most = job.update.max_delta if job.update else None

    def run(self, signer: Signer) -> Result:
        """What `edgebuild compile` gives."""
        stages = self._stages
        with stages.timed("ingest"):
            ingested = stages.ingest()
        if stages.old:
            stages.old.check_interface(Meta.of(ingested))
        with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
            ways = Ways(stages, ingested, Path(folder))
            if self._most is not None:
                self._fit(ways, self._most)
            first = ways.built(stages.known_fallback())
            built = Search(ways).kept(first) if stages.old else self._faster(ways, Search(ways).met(first))
            with stages.timed("diagnose"):
                diagnosis = stages.diagnose(ingested, built.quantized, ways.meta)
        self._keep(built)
        packed = built.draft.package
        with stages.timed("sign"):
            data = sign.sign(packed.manifest, packed.files, signer)
        made = self._report(ways.meta, built)
        made |= {"signer": signature_key_name(data), "bundle_bytes": len(data), "diagnosis": diagnosis}
        if self._most is not None:
            delta = self._delta(data)
            if len(delta.data) > self._most:
                raise self._too_small(self._most, delta)
            made["update"] |= {"max_delta": self._most, "delta_bytes": len(delta.data)}
            made["update"]["delta_files"] = {"manifest": delta.head} | delta.spent
        manifest = packed.manifest
        stem = f"{manifest.name}-{manifest.version}-{manifest.target}"
        basis = basis_of(built, stages.precision, stages.schedules(built.quantized))
        models = ingested.folder / "model.onnx", built.quantized.folder / "model.onnx"
        return Result(stem, data, made, *models, basis)

    def _report(self, meta: Meta, built: Built) -> dict[str, Any]:
        quantization = built.quantized.json("report.json")
        update = quantization.pop("update", None)
        made = report.of_build(
            built.draft.package.manifest,
            read_plan(built.program.read("plan.bin")),
            float_bytes=meta.float_bytes,
            quantization=quantization | {"fallback": built.fallback_rows},
            checked=built.checked,
            accuracy=built.accuracy,
        )
        chosen = {"chosen": self._stages.precision, **self._compared}
        if self._stages.old:
            accuracy = self._compared_accuracy(built)
            made["update"] = {"of": self._stages.old.named, **(update or {}), "accuracy": accuracy}
            made["update"]["runtime"] = "kept" if self._stages.keeps_runtime else "new"
        return made | {"parity": meta.parity, "seconds": self._stages.seconds, "precision": chosen}

    @staticmethod
    def _compared_accuracy(built: Built) -> dict[str, Any]:
        """The accuracy of the old release on the new one's samples, and of what is shipped."""
        now = built.accuracy
        return {key: now[key] for key in ("metric", "unit", "float")} | built.others | {"shipped": now["int8"]}

    def _fit(self, ways: Ways, most: int) -> None:
        """Finds how many bytes of the delta are left for values: what else is in it shows when it is made."""
        stages = self._stages
        if stages.precision == "float32":
            raise UsageError(
                "--max-delta: the old release is float32", "leave it out: only integers can be shipped in part"
            )
        delta = self._draft_delta(ways.unchanged())
        stages.room = most - len(delta.data) - _SLACK
        for _ in range(_FITTINGS):
            if stages.room <= 0:
                break
            with stages.timed("quantize"), stages.naming_model():
                quantized = stages.quantize(ways.ingested, ways.meta, stages.known_fallback())
            delta = self._draft_delta(ways.packed(quantized)[1].package)
            if len(delta.data) <= most - _SLACK:
                return
            stages.room -= len(delta.data) - most + 2 * _SLACK
        raise self._too_small(most, delta)

    def _draft_delta(self, packed: Package) -> Made:
        return self._delta(sign.sign(packed.manifest, packed.files, minisign.generate()))

    def _delta(self, data: bytes) -> Made:
        """From the old release to this bundle."""
        old = self._stages.old
        assert old is not None
        return make_delta(old.data, data)

    def _too_small(self, most: int, delta: Made) -> CheckError:
        """Says what takes the room that is not there for values."""
        spent = {path: cost for path, cost in delta.spent.items() if path != "weights.bin"}
        said = ", ".join(f"{path} {cost}" for path, cost in sorted(spent.items(), key=lambda row: -row[1]))
        fixed = delta.head + sum(spent.values())
        hint = "allow more: signature, golden outputs and the handler's sources travel with every release"
        if spent.get(_RUNTIME, 0) > most // 8:
            hint = f"allow more, or --keep-runtime: the old release's runtime stays, {spent[_RUNTIME]} bytes less"
        return CheckError(
            f"--max-delta: nothing fits into {most} bytes: what is not weights takes {fixed} (signature and manifest "
            f"{delta.head}{', ' + said if said else ''})",
            hint,
        )

    def _keep(self, built: Built) -> None:
        """What was measured goes to recipe.lock, where that was asked for."""
        stages, isa = self._stages, self._job.target.isa
        if self._job.update_lock:
            lock = stages.lock.with_schedules(isa, stages.tuned).with_fallback(isa, built.fallback)
            chosen = stages.precision if self._compared else None
            write_lock(self._job.recipe.folder, lock.with_precision(isa, chosen))

    def _faster(self, ways: Ways, built: Built) -> Built:
        """The same in float32, where that is faster: a network whose operators mostly have no integer form."""
        stages, quantization = self._stages, built.quantized.json("report.json")
        known = not self._job.update_lock and stages.lock.covers(self._job.target.isa)
        if known or not built.draft.native or stages.precision == "float32" or quantization["passed_through"]:
            return built
        with stages.timed("precision"), stages.naming_model():
            self._compared = _precisions(ways, built).json("precision.json")
        if self._compared and clearly_faster(**self._compared):
            stages.precision = "float32"
            return ways.built({})
        return built


def clearly_faster(*, float32_us: float, int8_us: float) -> bool:
    """Whether float32's latency is worth its four times as many bytes."""
    return float32_us < min(_CLEARLY * int8_us, int8_us - _WORTH_US)


def _precisions(ways: Ways, built: Built) -> Entry:
    """The latencies of both, in turns; nothing where integers take most of the time anyway."""

    def make() -> dict[str, bytes]:
        from edgebuild.stages.quantize import keep_float  # noqa: PLC0415 - imports onnxruntime

        draft, plan = built.draft, read_plan(built.program.read("plan.bin"))
        lines = check.profile(draft.trial, draft.golden_inputs, draft.folder)
        spent = [line["latency_us"] for line in lines]
        floating = sum(us for us, op in zip(spent, plan.ops, strict=True) if not op.integer)
        if floating < max(_FLOATING * sum(spent), _WORTH_US):
            return {"precision.json": json_bytes({})}
        model = model_of(ways.ingested)
        entry = ways.stages.entry("quantize", ["whole", ways.ingested.digest], lambda: files_in(keep_float(model)))
        _, other = ways.packed(entry)
        found = {"int8_us": math.inf, "float32_us": math.inf}
        for _ in range(_ROUNDS):
            for name, one in (("int8_us", draft), ("float32_us", other)):
                found[name] = min(found[name], *check.latency(one.trial, one.golden_inputs, one.folder))
        return {"precision.json": json_bytes(found)}

    return ways.stages.measured("precision", [ways.ingested.digest, built.draft.digest], make)


def _check_search(job: Job) -> None:
    """Refuses a search that cannot be made, before anything else is done."""
    if job.update and (job.update_lock or job.tune):
        option = "--update-lock" if job.update_lock else "--tune"
        raise UsageError(
            f"{option}: an update keeps the schedules of the old release", f"leave out {option}, or --update-of"
        )
    if job.update_lock and job.of_file:
        raise UsageError("--update-lock: a model file has no recipe.lock", "compile a recipe's folder")
    if job.tune and not runs_here(job.target):
        raise UsageError(
            f"--tune: code for {job.target.name} does not run on this machine, so nothing can be measured",
            "leave it out: a cost model chooses for other CPUs",
        )
