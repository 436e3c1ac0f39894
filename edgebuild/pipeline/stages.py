"""Each stage: what it depends on, and how its result is made.

A stage's module, and the framework that it needs, is imported when its work has to be done.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgebuild.budget import Precision
from edgebuild.core import digest, runner
from edgebuild.core.basis import PROGRAM
from edgebuild.core.cache import Cache
from edgebuild.core.calibration import CalibrationSet, find_set, has_test, load_set
from edgebuild.core.errors import CalibrationError, CheckError, ModelError, RecipeError
from edgebuild.core.lock import Lock, read_lock
from edgebuild.core.plan import read_plan
from edgebuild.core.recipe import LOCK_FILE, RECIPE_FILE, Calibration, Recipe
from edgebuild.pipeline.cached import Cached
from edgebuild.pipeline.entries import Draft, Entry, Meta, Rival, files_in, json_bytes, model_of, weight_bytes
from edgebuild.pipeline.job import Job, Listener
from edgebuild.pipeline.update import read_old, release_of
from edgebuild.stages import check, package

if TYPE_CHECKING:
    import onnx

    from edgebuild.reference import Foreign
    from edgebuild.stages.compile import Values
    from edgebuild.stages.evaluate import Custom
    from edgebuild.stages.quantize import Calibrated, Settings, Update

NO_CALIBRATION = "a model is calibrated on real samples only: --calibration FILE.npz, one array per model input"


class Stages(Cached):
    """The stages of one build, in the precision that recipe and lock say."""

    def __init__(self, job: Job, listener: Listener, cache: Cache) -> None:
        super().__init__(job, listener, cache)
        self.tuned: dict[str, str] = {}
        self._observed: Calibrated | None = None
        self._seen: Update | None = None
        self.room: int | None = None
        recipe = job.recipe
        if recipe.calibration.set is None:
            raise CalibrationError(f"{recipe.name}: no calibration data", NO_CALIBRATION)
        self.lock = Lock() if job.of_file else read_lock(recipe.folder)
        locked = {} if job.update_lock else self.lock.precision
        whole = recipe.model.precision
        self.precision = "float32" if whole == "float32" else locked.get(job.target.isa, whole)
        self.old = read_old(job.update, job) if job.update else None
        if self.old:
            self.precision = self.old.basis.precision
        self._place = find_set(recipe.calibration.set, recipe.folder)
        self._calibration = load_set(self._place)

    def ingest(self) -> Entry:
        job = self.job
        inputs = [job.recipe.digest(), str(job.untrained), self._calibration.digest()]
        return self.entry("ingest", inputs, self._make_ingest)

    def _make_ingest(self) -> dict[str, bytes]:
        import edgebuild.stages.ingest.onnx as onnx_files  # noqa: PLC0415 - imports onnx
        from edgebuild.stages.compile import codegen  # noqa: PLC0415 - imports TVM, as the build will
        from edgebuild.stages.ingest.adapters import ingest  # noqa: PLC0415

        codegen.checked(self.job.target)  # a wrong one is refused before a training
        found = ingest(self.job.recipe, untrained=self.job.untrained)
        meta = Meta(
            function=found.entry.name,
            trigger=found.entry.trigger,
            timeout_ms=found.entry.timeout_ms,
            quality=found.quality,
            parity=found.parity,
            inputs=onnx_files.model_inputs(found.model),
            outputs=onnx_files.model_outputs(found.model),
            float_bytes=weight_bytes(found.model),
        )
        return {"model.onnx": found.model.SerializeToString(deterministic=True), "meta.json": meta.to_json()}

    def quantize(self, ingested: Entry, meta: Meta, fallback: Mapping[str, Precision]) -> Entry:
        settings, precision = self.job.recipe.calibration, self.precision

        def make() -> dict[str, bytes]:
            from edgebuild.stages import quantize  # noqa: PLC0415 - imports onnxruntime

            model = model_of(ingested)
            if quantize.is_quantized(model) and self.old:
                raise ModelError("the model came quantized, on a grid of its own", "compile without --update-of")
            if quantize.is_quantized(model) and (stale := self._stale(fallback)):
                raise self._of_lock(f"{stale}: the model came quantized, and keeps the precision of each layer")
            if precision == "float32":
                return files_in(quantize.keep_float(model))
            if quantize.is_quantized(model):
                return files_in(quantize.passed_through(model))
            if self.old and self.room is None:
                return files_in(quantize.updated(self._update(ingested, meta)))
            if self.old:
                return self._within(self._update(ingested, meta), self.room or 0)
            found = self.calibrated(ingested, meta)
            known = quantize.may_fall_back(found)
            for layer in fallback:
                if layer not in known:
                    raise self._of_lock(f"fallback: the model has no layer '{layer}'")
            return files_in(quantize.finished(found, fallback))

        inputs = [
            ingested.digest,
            self._calibration.digest(),
            repr(settings),
            precision,
            repr(sorted(fallback.items())),
            self.old.digest if self.old else "",
            str(self.room),
        ]
        return self.entry("quantize", inputs, make)

    def _within(self, update: "Update", room: int) -> dict[str, bytes]:
        """The update whose values take at most `room` bytes of the delta."""
        from edgebuild.pipeline.delta import codecs  # noqa: PLC0415
        from edgebuild.stages import quantize  # noqa: PLC0415 - imports onnxruntime

        assert self.old is not None
        plan, old = self.old.file("plan.bin"), self.old.file("weights.bin")

        def coded(model: "onnx.ModelProto") -> int:
            new = self._values(model).weights
            found = codecs().weights(plan, old, new, len(new))
            return len(new) if found is None else len(found)

        part = quantize.updated_within(update, room, coded)
        graphs = {"full.onnx": part.full, "shipped.onnx": part.shipped}
        return files_in(part.quantized) | {n: g.SerializeToString(deterministic=True) for n, g in graphs.items()}

    def whole(self, part: Entry) -> Entry:
        """The QDQ model of all of an update, of which `part` is shipped."""
        return self.entry("quantize", ["whole", part.digest], lambda: {"model.onnx": part.read("full.onnx")})

    def _update(self, ingested: Entry, meta: Meta) -> "Update":
        """What the samples showed, beside the earlier release."""
        from edgebuild.stages.quantize import Update  # noqa: PLC0415 - imports onnxruntime

        assert self.old is not None
        settings = self.job.recipe.calibration
        if self._seen is None:
            self._seen = Update(
                model_of(ingested),
                lambda: self._calibration.samples(meta.inputs, settings.samples),
                _settings(settings, rescued=False),
                self.old.for_quantizer(),
                self.progress("quantize", 2 * settings.samples),
            )
        return self._seen

    def _stale(self, fallback: Mapping[str, Precision]) -> str:
        """What recipe.lock says of precisions, and no quantized model can have."""
        if fallback:
            return "fallback"
        return "precision" if self.precision != self.job.recipe.model.precision else ""

    def _of_lock(self, what: str) -> RecipeError:
        return RecipeError(
            f"{self.job.recipe.folder / LOCK_FILE}: {what}", "measure again: edgebuild compile --update-lock"
        )

    def calibrated(self, ingested: Entry, meta: Meta) -> "Calibrated":
        """What the samples showed; kept while this build goes on."""
        from edgebuild.stages.quantize import calibration  # noqa: PLC0415 - imports onnxruntime

        settings = self.job.recipe.calibration
        if self._observed is None:
            self._observed = calibration(
                model_of(ingested),
                lambda: self._calibration.samples(meta.inputs, settings.samples),
                _settings(settings, rescued=meta.quality == "trained"),
                progress=self.progress("quantize", 2 * settings.samples),
            )
        return self._observed

    def compile(self, quantized: Entry) -> Entry:
        target = self.job.target
        locked = self.schedules(quantized)

        def make() -> dict[str, bytes]:
            from edgebuild.stages.compile import compile_model  # noqa: PLC0415 - imports TVM

            if self.old and (weights := self._in_old_form(model_of(quantized))) is not None:
                return {name: self.old.file(name) for name in ("program.so", "plan.bin")} | {"weights.bin": weights}
            made = compile_model(model_of(quantized), target, locked)
            return {"program.so": made.program_so, "plan.bin": made.plan, "weights.bin": made.weights}

        anonymous = dataclasses.replace(target, name="", description="")
        keys = [quantized.digest_of("model.onnx"), repr(anonymous), repr(sorted(locked.items()))]
        return self.entry("compile", [*keys, self.old.digest if self.old else ""], make)

    def old_program(self) -> Entry:
        """The old release's."""
        old = self.old
        assert old is not None
        return self.entry("compile", ["old", old.digest], lambda: {name: old.file(name) for name in PROGRAM})

    def _in_old_form(self, model: "onnx.ModelProto") -> bytes | None:
        """weights.bin of the model, if the old release's code serves it: both have one form, and what is compiled today
        would give the old release's values.
        """
        import onnx  # noqa: PLC0415

        assert self.old is not None
        if self.old.basis.precision == "float32":
            return None
        old = self._values(onnx.load_model_from_string(self.old.basis.model))
        new = self._values(model)
        return new.weights if old.form == new.form and old.weights == self.old.file("weights.bin") else None

    def _values(self, model: "onnx.ModelProto") -> "Values":
        from edgebuild.stages.compile import values_of  # noqa: PLC0415 - imports TVM

        assert self.old is not None
        return values_of(model, self.job.target, self.old.basis.schedules)

    def schedules(self, quantized: Entry) -> dict[str, str]:
        """Block sizes by shape: the earlier release's, else the lock's, and what a search was asked to find."""
        job = self.job
        if self.old:
            return dict(self.old.basis.schedules)
        known = {} if job.update_lock else self.lock.schedules.get(job.target.isa, {})
        if not job.tune:
            return known
        from edgebuild.stages.compile.tune import tune  # noqa: PLC0415 - imports TVM

        progress = functools.partial(self.advanced, "compile")
        shapes = known | self.tuned  # a build with fallbacks compiles more than one program
        self.tuned = tune(model_of(quantized), job.target, job.tune, shapes, progress, again=job.update_lock)
        return self.tuned

    def runtime(self) -> Path:
        from edgebuild.stages.runtime import runtime_binary  # noqa: PLC0415

        return runtime_binary(self.job.target.triple)

    def golden(self, quantized: Entry, meta: Meta) -> dict[str, bytes]:
        def make() -> dict[str, bytes]:
            from edgebuild.reference import Interpreter  # noqa: PLC0415 - imports onnx

            interpreter = Interpreter(model_of(quantized), _foreign)
            samples = self._golden_samples(meta)
            pairs = [(sample, interpreter.run(sample)) for sample in samples]
            return check.golden_files([i.name for i in meta.inputs], [o.name for o in meta.outputs], pairs)

        source = self.old.digest if self.old else self._calibration.digest()
        entry = self.entry("golden", [quantized.digest_of("model.onnx"), source], make)
        return {path.name: path.read_bytes() for path in entry.folder.iterdir()}

    def _golden_samples(self, meta: Meta) -> "Iterable[dict[str, Any]]":
        """Of an update those of the earlier release, which the device has."""
        if self.old is None:
            return self._calibration.samples(meta.inputs, check.golden_count(meta.outputs))
        import io  # noqa: PLC0415

        import numpy as np  # noqa: PLC0415 - an unchanged build does without it

        files = self.old.bundle.files
        arrays = {item.name: np.load(io.BytesIO(files[f"golden/in-{i}.npy"])) for i, item in enumerate(meta.inputs)}
        return (dict(zip(arrays, sample, strict=True)) for sample in zip(*arrays.values(), strict=True))

    def package(self, meta: Meta, program: Entry, runtime: Path, golden: dict[str, bytes]) -> package.Package:
        recipe = self.job.recipe
        contents = package.Contents(
            name=self.job.name,
            version=self.job.version,
            quality=meta.quality,
            function=meta.function,
            trigger=meta.trigger,
            timeout_ms=meta.timeout_ms,
            inputs=meta.inputs,
            outputs=meta.outputs,
            runtime=self._packed_runtime(runtime),
            program_so=program.read("program.so"),
            plan=program.read("plan.bin"),
            weights=program.read("weights.bin"),
            golden=golden,
            sources=_handler_sources(recipe),
        )
        runnable = runner.prefix_for(self.job.target)[0] is not None
        release = release_of(self.old, self.job) if self.old else self.job.release
        stamp = package.Stamp(release, self.job.made, self.job.expires)
        return package.package(contents, self.job.target, stamp, checked=runnable)

    @property
    def keeps_runtime(self) -> bool:
        """Whether the bundle carries the old release's runtime."""
        return self.job.update is not None and self.job.update.keep_runtime

    def _packed_runtime(self, built: Path) -> bytes:
        return self.old.file("edgebuild-run") if self.old and self.keeps_runtime else built.read_bytes()

    def _check_kept_runtime(self, test: Draft) -> None:
        """The old release's runtime must serve the new bundle. Raises CheckError where it does not, and where nothing
        shows that it does: it cannot run here, and code or plan are others than those that it came with.
        """
        if self.old is None or not self.keeps_runtime:
            return
        remedy = "leave out --keep-runtime: the new release then carries a runtime of its own"
        if test.prefix is None:
            for path in ("program.so", "plan.bin"):
                if test.package.files[path] != self.old.file(path):
                    raise CheckError(
                        f"--keep-runtime: {path} is another one than the old release's, and {test.reason}, so that "
                        "nothing shows whether its runtime serves it",
                        remedy,
                    )
            return
        own = test.folder / "kept-runtime"
        own.write_bytes(self.old.file("edgebuild-run"))
        own.chmod(0o755)
        try:
            check.check(dataclasses.replace(test.trial, runtime=own))
        except CheckError as error:
            version = self.old.bundle.manifest.version
            raise CheckError(f"--keep-runtime: with the runtime of {version} {error.message}", remedy) from error

    def check(self, test: Draft) -> dict[str, Any]:
        if test.prefix is None:
            self._check_kept_runtime(test)
            return {"checked": False, "reason": test.reason, "latency_us": None, "latency_reason": test.reason}

        def make() -> dict[str, bytes]:
            check.check(test.trial)
            self._check_kept_runtime(test)
            latency, reason = None, "the target is another kind of CPU"
            if test.trial.native:
                latency, reason = runner.summary(check.latency(test.trial, test.golden_inputs, test.folder)), ""
            found = {"checked": True, "reason": "", "latency_us": latency, "latency_reason": reason}
            return {"check.json": json_bytes(found)}

        keys = [test.digest, str(test.prefix), str(self.keeps_runtime)]
        found: dict[str, Any] = self.entry("check", keys, make).json("check.json")
        return found

    def diagnose(self, ingested: Entry, quantized: Entry, meta: Meta) -> dict[str, Any]:
        """Where accuracy is lost, on samples of calibration and, where there are any, held-out ones in turns."""
        parts = [self._calibration, *([load_set(self._place, "test")] if has_test(self._place) else [])]
        counted = quantized.json("report.json")["samples"] or None

        def make() -> dict[str, bytes]:
            from edgebuild.stages.diagnose import PICTURES, SAMPLES, diagnose  # noqa: PLC0415 - imports onnxruntime

            def turns(count: int) -> Iterator[dict[str, Any]]:
                streams = [part.samples(meta.inputs, count // len(parts)) for part in parts]
                return (sample for turn in itertools.zip_longest(*streams) for sample in turn if sample is not None)

            models = model_of(ingested), model_of(quantized, "float.onnx"), model_of(quantized)
            try:
                found = diagnose(*models, turns(SAMPLES), calibrated_on=counted, pictures=turns(PICTURES))
            except ModelError as error:  # a report that cannot be made stands in no bundle's way
                found = {"failed": error.message}
            return {"diagnosis.json": json_bytes(found)}

        keys = [ingested.digest, quantized.digest, *(part.digest() for part in parts)]
        found: dict[str, Any] = self.entry("diagnose", keys, make).json("diagnosis.json")
        return found

    def evaluate(
        self, test: Draft, ingested: Entry, quantized: Entry, meta: Meta, others: Mapping[str, Rival]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The accuracy of a bundle, and what others reach on the same samples."""
        accept, recipe = self.job.recipe.accept, self.job.recipe
        data, named, whole = self.judges()
        own = recipe.folder / accept.own[0] if accept and accept.own else None

        def make() -> dict[str, bytes]:
            from edgebuild.stages import evaluate  # noqa: PLC0415 - imports onnxruntime

            if test.native:
                drafts, limit = [test, *(other.draft for other in others.values())], whole
                engines = [evaluate.program(one.trial, meta.outputs, one.folder) for one in drafts]
            else:
                macs = read_plan(test.package.files["plan.bin"]).macs_total
                limit = min(whole or sys.maxsize, evaluate.interpreter_limit(macs))
                engines = [evaluate.interpreter(model_of(quantized), _foreign)]
                engines += [evaluate.graph(other.graph) for other in others.values()]
            samples = data.labelled(meta.inputs, limit)
            metric = accept.metric if accept else None
            found = evaluate.evaluate_each(model_of(ingested), engines, samples, metric, self.own_metric())
            own = found[0].to_json() | {"data": named, "engine": "edgebuild-run" if test.native else "interpreter"}
            theirs = {name: one.of_int8 for name, one in zip(others, found[1:], strict=True)}
            return {"accuracy.json": json_bytes(own), "others.json": json_bytes(theirs)}

        asked = [accept.metric if accept else "", digest.of_file(own) if own else ""]
        keys = [ingested.digest, quantized.digest, data.digest(), str(whole), named, *asked]
        keys += [test.digest if test.native else "", *(f"{name} {one.digest}" for name, one in others.items())]
        entry = self.entry("evaluate", keys, make)
        found: dict[str, Any] = entry.json("accuracy.json")
        return found | {"budget": self.judged(found, meta)}, entry.json("others.json")

    def judges(self) -> tuple[CalibrationSet, str, int | None]:
        """The samples that accuracy is measured on, what the report calls them, and how many at most."""
        recipe = self.job.recipe
        wanted = recipe.accept.data if recipe.accept else "test"
        if wanted not in ("test", "calibration"):
            place = find_set(wanted, recipe.folder)
            return load_set(place, "test" if has_test(place) else "calibration"), wanted, None
        if wanted == "test" and has_test(self._place):
            return load_set(self._place, "test"), "test", None
        return self._calibration, "calibration", recipe.calibration.samples

    def own_metric(self) -> "Custom | None":
        """The metric that the recipe brings along."""
        from edgebuild.stages.evaluate import load_metric  # noqa: PLC0415 - imports onnxruntime

        accept, folder = self.job.recipe.accept, self.job.recipe.folder
        return load_metric(folder / accept.own[0], accept.own[1]) if accept and accept.own else None

    def judged(self, accuracy: dict[str, Any], meta: Meta) -> str:
        """`none`, `met`, `missed`, or `not judged: …`."""
        accept = self.job.recipe.accept
        if accept is None:
            return "none"
        if self.room is not None:
            return "not judged: --max-delta ships a part of the update"
        if meta.quality != "trained":
            return "not judged: the weights are untrained"
        if accuracy["engine"] != "edgebuild-run":
            return "not judged: the target does not run here, and part of the samples says too little"
        if accuracy["metric"] != accept.metric:
            return f"not judged: the samples have no labels for {accept.metric}"
        if accuracy["data"] != accept.data:
            return f"not judged: the set has no held-out part, and [accept] data is '{accept.data}'"
        return "met" if accuracy["drop"] <= accept.max_drop else "missed"

    def known_fallback(self) -> dict[str, Precision]:
        """What an earlier build measured for this kind of CPU."""
        if self.job.update_lock or self.precision == "float32":
            return {}
        if self.old:
            return self.old.fallback
        return cast("dict[str, Precision]", dict(self.lock.fallback.get(self.job.target.isa, {})))


def _settings(calibration: Calibration, *, rescued: bool) -> "Settings":
    """Random weights ruin many a network, and say nothing of the time that trained ones take."""
    from edgebuild.stages.quantize import Settings  # noqa: PLC0415 - imports onnxruntime

    observers = {name: how for name, how in calibration.tensors.items() if isinstance(how, str)}
    ranges = {name: (how[0], how[1]) for name, how in calibration.tensors.items() if not isinstance(how, str)}
    return Settings(calibration.observer, calibration.percentile, observers, ranges, rescued=rescued)


def _handler_sources(recipe: Recipe) -> dict[str, bytes]:
    if recipe.function is None:
        return {}
    paths = (*recipe.folder.glob("*.py"), *recipe.code, recipe.folder / RECIPE_FILE)
    return {path.name: path.read_bytes() for path in paths}


@functools.cache
def _runner() -> "Foreign":
    from edgebuild.stages.compile.foreign import Foreign  # noqa: PLC0415 - imports TVM

    return Foreign()


def _foreign(node: "onnx.NodeProto", opset: int, inputs: list[Any], constant: list[bool]) -> list[Any]:
    """Runs an operator that TVM lowers; TVM is imported with the first of them."""
    return _runner()(node, opset, inputs, constant)
