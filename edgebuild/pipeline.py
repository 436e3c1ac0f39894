"""Orders the stages, caches each by the digest of all that it depends on, and tells a listener how far it is.

    ingest → quantize → compile → runtime → package → check → evaluate → diagnose → sign

Between evaluate and diagnose, `fallback` and `precision` may send it through quantize to evaluate once more.

Nothing here imports a framework: the keys are made of files, of versions of packages and of edgebuild's own sources,
so an unchanged build is answered from the cache. A stage's module is imported when its work has to be done.
"""

import dataclasses
import functools
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgebuild import page, report
from edgebuild.budget import Precision, Profile, Step, alone, fallback_of, fewest, ordered, turns
from edgebuild.core import digest, disk, minisign, runner
from edgebuild.core.cache import CACHE_VARIABLE, Cache
from edgebuild.core.calibration import CalibrationSet, find_set, has_test, load_set
from edgebuild.core.errors import CalibrationError, CheckError, ModelError, RecipeError, UsageError
from edgebuild.core.lock import Lock, read_lock, write_lock
from edgebuild.core.manifest import Tensor, Trigger
from edgebuild.core.minisign import SecretKey
from edgebuild.core.plan import read_plan
from edgebuild.core.recipe import LOCK_FILE, RECIPE_FILE, Calibration, Recipe
from edgebuild.core.runner import Trial
from edgebuild.core.target import Target
from edgebuild.core.target_file import runs_here
from edgebuild.stages import check, package, sign

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from edgebuild.reference import Foreign
    from edgebuild.stages.evaluate import Custom
    from edgebuild.stages.quantize import Calibrated, Quantized, Rounding, Settings

STAGES = (
    "ingest",
    "quantize",
    "compile",
    "runtime",
    "package",
    "check",
    "evaluate",
    "fallback",
    "precision",
    "diagnose",
    "sign",
)
NO_CALIBRATION = "a model is calibrated on real samples only: --calibration FILE.npz, one array per model input"

# Edgebuild's own sources (core aside, which counts everywhere) and the packages that a stage's result depends on.
_FOREIGN = ("stages/compile", "kernels")  # what the interpreter takes from TVM
_SOURCES = {
    "ingest": ("stages/ingest", "function"),
    "quantize": ("stages/quantize",),
    "compile": ("stages/compile", "kernels"),
    "golden": ("stages/check", "reference", *_FOREIGN),
    "check": ("stages/check",),
    "precision": ("stages/check", "stages/quantize", *_FOREIGN),
    "fallback": ("budget", "stages/check", "stages/evaluate", "stages/quantize", *_FOREIGN),
    "diagnose": ("stages/diagnose",),
    "evaluate": ("stages/evaluate", "reference", *_FOREIGN),
}
_DATA_PACKAGES = ("numpy", "pillow", "scikit-learn")
_PACKAGES = {
    "ingest": (
        *("torch", "tensorflow", "keras", "tf2onnx"),
        *("onnx", "onnx-ir", "onnxscript", "onnxruntime", "safetensors", *_DATA_PACKAGES),
    ),
    "quantize": ("onnx", "onnxruntime", *_DATA_PACKAGES),
    "compile": ("apache-tvm", "numpy", "onnx", "ziglang"),
    "golden": ("apache-tvm", "onnx", "onnxruntime", "ziglang", *_DATA_PACKAGES),
    "check": (),
    "precision": ("apache-tvm", "onnx", "onnxruntime", "ziglang"),
    "fallback": ("apache-tvm", "onnx", "onnxruntime", "ziglang", *_DATA_PACKAGES),
    "diagnose": ("onnx", "onnxruntime", *_DATA_PACKAGES),
    "evaluate": ("apache-tvm", "onnx", "onnxruntime", "ziglang", *_DATA_PACKAGES),
}
_FLOATING = 0.35
"""The share of the time that operators in float32 take, from which on the whole network is tried in float32."""
_CLEARLY = 0.95
"""How much faster float32 has to be, as a share of the time in INT8."""
_ROUNDS = 3
_ATTEMPTS = 4
"""How often layers are chosen anew when the compiled program misses a budget that ONNX Runtime's integers meet."""


class Listener(Protocol):
    """Hears how far a build is; `seconds` is wall time."""

    def started(self, stage: str) -> None: ...

    def advanced(self, stage: str, done: int, total: int | None) -> None: ...

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None: ...


@dataclass(frozen=True)
class Job:
    """What is built, under which name. `recipe` may stand for a bare model file.

    `tune`: seconds for measuring block sizes on this machine; `update_lock`: measure again, and write recipe.lock.
    """

    recipe: Recipe
    target: Target
    name: str
    version: str
    untrained: bool = False
    tune: float = 0.0
    update_lock: bool = False

    @property
    def of_file(self) -> bool:
        """Whether it is a bare model file, which has no recipe.toml and no recipe.lock."""
        return self.recipe.bare


@dataclass(frozen=True)
class Result:
    """`stem` is NAME-VERSION-TARGET; `report` is the report file's content; the models are ONNX files in the cache."""

    stem: str
    bundle: bytes
    report: dict[str, Any]
    float_model: Path
    qdq_model: Path


@dataclass(frozen=True)
class _Entry:
    """A stage's result: a folder of files in the cache."""

    folder: Path

    @property
    def digest(self) -> str:
        return digest.of_folder(self.folder)

    def digest_of(self, name: str) -> str:
        return digest.of_file(self.folder / name)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))


@dataclass(frozen=True)
class _Meta:
    """What the later stages need to know of the graph without reading it."""

    function: str
    trigger: Trigger
    timeout_ms: int | None
    quality: str
    parity: dict[str, object] | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    float_bytes: int

    @classmethod
    def of(cls, entry: _Entry) -> "_Meta":
        fields = entry.json("meta.json")
        fields["trigger"] = Trigger(**fields["trigger"])
        for key in ("inputs", "outputs"):
            fields[key] = tuple(Tensor(item["name"], item["dtype"], tuple(item["shape"])) for item in fields[key])
        return cls(**fields)

    def to_json(self) -> bytes:
        return _json(dataclasses.asdict(self))


def build(job: Job, key: SecretKey, listener: Listener, cache: Cache | None = None) -> Result:
    """Runs the stages. Raises an EdgebuildError for whatever is wrong with what was given; writes to the cache only."""
    cache = cache or Cache()
    disk.prepare_folder(cache.root, f"name another folder for the cache: {CACHE_VARIABLE}=FOLDER")
    with disk.disk_errors():
        return _Build(job, listener, cache).run(key)


class _Build:
    """One build; each method is a stage."""

    def __init__(self, job: Job, listener: Listener, cache: Cache) -> None:
        self._job = job
        self._listener = listener
        self._cache = cache
        self._seconds: dict[str, float] = {}
        self._nested = 0.0
        self._cached = False
        self._tuned: dict[str, str] = {}
        self._observed: Calibrated | None = None
        self._compared: dict[str, float] = {}
        recipe = job.recipe
        if recipe.calibration.set is None:
            raise CalibrationError(f"{recipe.name}: no calibration data", NO_CALIBRATION)
        _check_search(job)
        self._lock = Lock() if job.of_file else read_lock(recipe.folder)
        locked = {} if job.update_lock else self._lock.precision
        whole = recipe.model.precision
        self._precision = "float32" if whole == "float32" else locked.get(job.target.isa, whole)
        self._place = find_set(recipe.calibration.set, recipe.folder)
        self._calibration = load_set(self._place)

    def run(self, key: SecretKey) -> Result:
        with self._timed("ingest"):
            ingested = self._ingest()
        meta = _Meta.of(ingested)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgebuild-")))
            built = self._built(ingested, meta, folder, self._known_fallback())
            if self._misses(ingested, built, meta):
                built = self._within_budget(ingested, meta, folder, built)
            built = self._faster(ingested, meta, folder, built)
            with self._timed("diagnose"):
                diagnosis = self._diagnose(ingested, built.quantized, meta)
        self._keep(built)
        packed = built.test.package
        with self._timed("sign"):
            data = sign.sign(packed.manifest, packed.files, key)
        made = report.of_build(
            packed.manifest,
            read_plan(built.program.read("plan.bin")),
            float_bytes=meta.float_bytes,
            quantization=built.quantized.json("report.json") | {"fallback": built.fallback_rows},
            checked=built.checked,
            accuracy=built.accuracy,
        )
        made |= {"parity": meta.parity, "signer": key.public.name, "bundle_bytes": len(data), "seconds": self._seconds}
        made |= {"diagnosis": diagnosis, "precision": {"chosen": self._precision, **self._compared}}
        manifest = packed.manifest
        stem = f"{manifest.name}-{manifest.version}-{manifest.target}"
        return Result(stem, data, made, ingested.folder / "model.onnx", built.quantized.folder / "model.onnx")

    def _built(
        self, ingested: _Entry, meta: _Meta, folder: Path, fallback: Mapping[str, Precision], rows: Sequence[Step] = ()
    ) -> "_Built":
        """Everything from quantization to accuracy, with some layers at a higher precision."""
        with self._timed("quantize"), self._naming_model():
            quantized = self._quantize(ingested, meta, fallback)
        program, test = self._packed(quantized, meta, folder)
        with self._timed("check"):
            checked = self._check(test)
        with self._timed("evaluate"):
            accuracy = self._evaluate(test, ingested, quantized, meta)
        return _Built(quantized, program, test, checked, accuracy, dict(fallback), tuple(rows))

    def _packed(self, quantized: _Entry, meta: _Meta, folder: Path) -> tuple[_Entry, "_Test"]:
        with self._timed("compile"), self._naming_model():
            program = self._compile(quantized)
        with self._timed("runtime"):
            runtime = self._runtime()
        with self._timed("package"):
            packed = self._package(meta, program, runtime, self._golden(quantized, meta))
        place = Path(tempfile.mkdtemp(dir=folder))
        return program, _Test(place, packed, runtime, self._job.target)

    def _known_fallback(self) -> dict[str, Precision]:
        """What an earlier build measured for this kind of CPU."""
        if self._job.update_lock or self._precision == "float32":
            return {}
        return cast("dict[str, Precision]", dict(self._lock.fallback.get(self._job.target.isa, {})))

    def _keep(self, built: "_Built") -> None:
        """What was measured goes to recipe.lock, where that was asked for."""
        isa = self._job.target.isa
        if self._job.update_lock:
            self._lock = self._lock.with_schedules(isa, self._tuned).with_fallback(isa, built.fallback)
            if self._compared:
                self._lock = self._lock.with_precision(isa, self._precision)
            write_lock(self._job.recipe.folder, self._lock)

    def _faster(self, ingested: _Entry, meta: _Meta, folder: Path, built: "_Built") -> "_Built":
        """The same in float32, where that is faster: a network whose operators mostly have no integer form."""
        quantization = built.quantized.json("report.json")
        known = not self._job.update_lock and self._job.target.isa in self._lock.precision
        if known or not built.test.native or self._precision == "float32" or quantization["passed_through"]:
            return built
        with self._timed("precision"), self._naming_model():
            entry = self._precisions(ingested, meta, folder, built)
        self._compared = entry.json("precision.json")
        if self._compared and self._compared["float32_us"] < _CLEARLY * self._compared["int8_us"]:
            self._precision = "float32"
            return self._built(ingested, meta, folder, {})
        return built

    def _precisions(self, ingested: _Entry, meta: _Meta, folder: Path, built: "_Built") -> _Entry:
        """The latencies of both, in turns; nothing where integers take most of the time anyway."""

        def make() -> dict[str, bytes]:
            from edgebuild.stages.quantize import keep_float  # noqa: PLC0415 - imports onnxruntime

            test, plan = built.test, read_plan(built.program.read("plan.bin"))
            lines = check.profile(test.trial, test.golden_inputs, test.folder)
            spent = [line["latency_us"] for line in lines]
            floating = sum(us for us, op in zip(spent, plan.ops, strict=True) if not op.integer)
            if floating < _FLOATING * sum(spent):
                return {"precision.json": _json({})}
            whole = functools.partial(_files_of, keep_float, _model(ingested))
            entry = self._entry("quantize", ["whole", ingested.digest], whole)
            _, other = self._packed(entry, meta, folder)
            found = {"int8_us": math.inf, "float32_us": math.inf}
            for _ in range(_ROUNDS):
                for name, one in (("int8_us", test), ("float32_us", other)):
                    found[name] = min(found[name], *check.latency(one.trial, one.golden_inputs, one.folder))
            return {"precision.json": _json(found)}

        return self._measured("precision", [ingested.digest, built.test.digest], make)

    def _misses(self, ingested: _Entry, built: "_Built", meta: _Meta) -> bool:
        """Whether the budget is missed, and layers may still leave 8 bits. Raises CheckError where they may not."""
        over = self._over(built.accuracy, meta)
        if over is None:
            return False
        tried = built.fallback or built.quantized.json("report.json")["passed_through"]
        if tried or self._precision == "float32":
            raise self._missed(ingested, built, meta, over)
        return True

    def _within_budget(self, ingested: _Entry, meta: _Meta, folder: Path, built: "_Built") -> "_Built":
        """The build in which as few layers as the budget needs leave 8 bits. Raises CheckError when none is enough."""
        accept = self._job.recipe.accept
        assert accept is not None
        with self._timed("fallback"), self._naming_model():
            possible = self._steps(ingested, meta, folder, built)
        most, better = accept.max_drop, built
        for _ in range(_ATTEMPTS):
            with self._timed("fallback"), self._naming_model():
                found = self._fallback(ingested, meta, possible, most).json("fallback.json")
            steps = [Step.of(row) for row in found["steps"]]
            if not found["met"] and better is built:
                break
            better = self._built(ingested, meta, folder, fallback_of(steps), steps)
            over = self._over(better.accuracy, meta)
            if over is None:
                return better
            if not found["met"]:  # not even what comes nearest
                break
            most = min(most, found["drop"]) - over
        over = self._over(built.accuracy, meta)
        assert over is not None
        reached = better.accuracy["drop"] if better is not built else found["drop"]
        layers = _layers(len(better.fallback or fallback_of(steps)))
        best = "" if reached is None else f"; with {layers} at a higher precision {reached:.4g}"
        raise self._missed(ingested, built, meta, over, best)

    def _steps(self, ingested: _Entry, meta: _Meta, folder: Path, built: "_Built") -> _Entry:
        """What layers may do, in the order in which they do it."""

        def make() -> dict[str, bytes]:
            from edgebuild.stages import quantize  # noqa: PLC0415 - imports onnxruntime

            found = self._calibrated(ingested, meta)
            told = functools.partial(self._listener.advanced, "fallback")
            possible = quantize.roundings(found, told)
            costs = self._costs(found, possible, meta, folder, built)
            steps = [
                Step(r.keys, r.name, r.operator, r.precision, r.share, cost)
                for r, cost in zip(possible, costs, strict=True)
            ]
            return {"steps.json": _json([dataclasses.asdict(step) for step in ordered(steps)])}

        return self._measured("fallback", [ingested.digest, built.quantized.digest, built.test.digest], make)

    def _fallback(self, ingested: _Entry, meta: _Meta, possible: _Entry, most: float) -> _Entry:
        """As few of the steps as bring the drop down to `most`."""
        accept = self._job.recipe.accept
        assert accept is not None
        data, _, whole = self._judges()
        custom = self._own_metric()
        steps = [Step.of(row) for row in possible.json("steps.json")]

        def make() -> dict[str, bytes]:
            from edgebuild.stages import evaluate, quantize  # noqa: PLC0415 - imports onnxruntime

            found = self._calibrated(ingested, meta)

            def drop(fallback: Mapping[str, Precision]) -> float:
                batch = evaluate.graph(quantize.finished(found, fallback).model)
                samples = data.labelled(meta.inputs, whole)
                return evaluate.evaluate(_model(ingested), batch, samples, accept.metric, custom).drop

            outcome = fewest(steps, drop, most)
            rows = [dataclasses.asdict(step) for step in outcome.steps]
            least = outcome.drop if math.isfinite(outcome.drop) else None
            return {"fallback.json": _json({"steps": rows, "met": outcome.met, "drop": least})}

        own = digest.of_file(self._job.recipe.folder / accept.own[0]) if accept.own else ""
        keys = [ingested.digest, possible.digest, data.digest(), accept.metric, own, repr(most), str(whole)]
        return self._entry("fallback", keys, make)

    def _costs(
        self, found: "Calibrated", possible: "list[Rounding]", meta: _Meta, folder: Path, built: "_Built"
    ) -> list[float]:
        """How many microseconds longer the operators behind each rounding take without it, here and now."""
        from edgebuild.stages.quantize import finished  # noqa: PLC0415 - imports onnxruntime

        def profile(fallback: dict[str, Precision]) -> Profile:
            whole = functools.partial(_files_of, finished, found, fallback)
            entry = self._entry("quantize", ["whole", repr(sorted(fallback.items())), built.quantized.digest], whole)
            return profiled(self._packed(entry, meta, folder)[1])

        def profiled(test: _Test) -> Profile:
            return Profile(check.profile(test.trial, test.golden_inputs, test.folder))

        plain = profiled(built.test)
        words = profile({key: "int16" for r in possible if r.precision == "int16" for key in r.keys})
        layers = {r.name: r.keys[0] for r in possible if r.precision == "float32"}
        floats: dict[str, float] = {}
        for some in turns(plain, list(layers)):
            mixed = profile({layers[name]: "float32" for name in some})
            floats |= alone(plain, mixed, list(layers), some)
        return [
            words.longer(plain, r.nodes) if r.precision == "int16" else floats.get(r.name, math.inf) for r in possible
        ]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """A stage, which may come more than once, and within another one: each second counts once."""
        self._listener.started(stage)
        outside, self._nested, self._cached = self._nested, 0.0, False
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        own = seconds - self._nested
        self._seconds[stage] = round(self._seconds.get(stage, 0.0) + own, 3)
        self._listener.finished(stage, round(own, 3), cached=self._cached)
        self._nested, self._cached = outside + seconds, False

    @contextmanager
    def _naming_model(self) -> Iterator[None]:
        """Stages behind ingest know layers, not the file that they come from."""
        recipe = self._job.recipe
        try:
            yield
        except ModelError as error:
            where = recipe.saved or recipe.name
            raise ModelError(f"{where}: {error.message}", error.hint) from error

    def _measured(self, stage: str, inputs: Iterable[str], make: Callable[[], dict[str, bytes]]) -> _Entry:
        """The result of a stage that measures: with --update-lock what was measured before does not count."""
        now = [str(time.time_ns())] if self._job.update_lock else []
        return self._entry(stage, [*inputs, *now], make)

    def _entry(self, stage: str, inputs: Iterable[str], make: Callable[[], dict[str, bytes]]) -> _Entry:
        """The cached result of a stage, made when it is missing."""
        own = digest.of_modules(("core", *_SOURCES[stage]))
        key = digest.of_parts(stage, sys.version, own, digest.of_packages(_PACKAGES[stage]), *inputs)
        folder = self._cache.get(key)
        self._cached = folder is not None
        return _Entry(folder or self._cache.put(key, make()))

    def _progress(self, stage: str, total: int | None) -> Callable[[int], None]:
        return lambda done: self._listener.advanced(stage, done, total)

    def _ingest(self) -> _Entry:
        job = self._job
        inputs = [job.recipe.digest(), str(job.untrained), self._calibration.digest()]
        return self._entry("ingest", inputs, self._make_ingest)

    def _make_ingest(self) -> dict[str, bytes]:
        import edgebuild.stages.ingest.onnx as onnx_files  # noqa: PLC0415 - imports onnx
        from edgebuild.stages.ingest.adapters import ingest  # noqa: PLC0415

        found = ingest(self._job.recipe, untrained=self._job.untrained)
        meta = _Meta(
            function=found.entry.name,
            trigger=found.entry.trigger,
            timeout_ms=found.entry.timeout_ms,
            quality=found.quality,
            parity=found.parity,
            inputs=onnx_files.model_inputs(found.model),
            outputs=onnx_files.model_outputs(found.model),
            float_bytes=_weight_bytes(found.model),
        )
        return {"model.onnx": found.model.SerializeToString(deterministic=True), "meta.json": meta.to_json()}

    def _quantize(self, ingested: _Entry, meta: _Meta, fallback: Mapping[str, Precision]) -> _Entry:
        settings, precision = self._job.recipe.calibration, self._precision

        def make() -> dict[str, bytes]:
            from edgebuild.stages import quantize  # noqa: PLC0415 - imports onnxruntime

            model = _model(ingested)
            if precision == "float32":
                return _files(quantize.keep_float(model))
            if quantize.is_quantized(model):
                return _files(quantize.passed_through(model))
            found = self._calibrated(ingested, meta)
            known = quantize.may_fall_back(found)
            for layer in fallback:
                if layer not in known:
                    raise RecipeError(
                        f"{self._job.recipe.folder / LOCK_FILE}: fallback: the model has no layer '{layer}'",
                        "measure again: edgebuild compile --update-lock",
                    )
            return _files(quantize.finished(found, fallback))

        inputs = [
            ingested.digest,
            self._calibration.digest(),
            repr(settings),
            precision,
            repr(sorted(fallback.items())),
        ]
        return self._entry("quantize", inputs, make)

    def _calibrated(self, ingested: _Entry, meta: _Meta) -> "Calibrated":
        """What the samples showed; kept while this build goes on."""
        from edgebuild.stages.quantize import calibration  # noqa: PLC0415 - imports onnxruntime

        settings = self._job.recipe.calibration
        if self._observed is None:
            self._observed = calibration(
                _model(ingested),
                lambda: self._calibration.samples(meta.inputs, settings.samples),
                _settings(settings),
                progress=self._progress("quantize", 2 * settings.samples),
            )
        return self._observed

    def _compile(self, quantized: _Entry) -> _Entry:
        target = self._job.target
        locked = self._schedules(quantized)

        def make() -> dict[str, bytes]:
            from edgebuild.stages.compile import compile_model  # noqa: PLC0415 - imports TVM

            made = compile_model(_model(quantized), target, locked)
            return {"program.so": made.program_so, "plan.bin": made.plan, "weights.bin": made.weights}

        anonymous = dataclasses.replace(target, name="", description="")
        keys = [quantized.digest_of("model.onnx"), repr(anonymous), repr(sorted(locked.items()))]
        return self._entry("compile", keys, make)

    def _schedules(self, quantized: _Entry) -> dict[str, str]:
        """Block sizes by shape: the lock's, and what a search was asked to find."""
        job = self._job
        known = {} if job.update_lock else self._lock.schedules.get(job.target.isa, {})
        if not job.tune:
            return known
        from edgebuild.stages.compile.tune import tune  # noqa: PLC0415 - imports TVM

        progress = functools.partial(self._listener.advanced, "compile")
        shapes = known | self._tuned  # a build with fallbacks compiles more than one program
        self._tuned = tune(_model(quantized), job.target, job.tune, shapes, progress, again=job.update_lock)
        return self._tuned

    def _runtime(self) -> Path:
        from edgebuild.stages.runtime import runtime_binary  # noqa: PLC0415

        return runtime_binary(self._job.target.triple)

    def _golden(self, quantized: _Entry, meta: _Meta) -> dict[str, bytes]:
        def make() -> dict[str, bytes]:
            from edgebuild.reference import Interpreter  # noqa: PLC0415 - imports onnx

            interpreter = Interpreter(_model(quantized), _foreign)
            samples = self._calibration.samples(meta.inputs, check.GOLDEN_SAMPLES)
            pairs = [(sample, interpreter.run(sample)) for sample in samples]
            return check.golden_files([i.name for i in meta.inputs], [o.name for o in meta.outputs], pairs)

        entry = self._entry("golden", [quantized.digest_of("model.onnx"), self._calibration.digest()], make)
        return {path.name: path.read_bytes() for path in entry.folder.iterdir()}

    def _package(self, meta: _Meta, program: _Entry, runtime: Path, golden: dict[str, bytes]) -> package.Package:
        recipe = self._job.recipe
        contents = package.Contents(
            name=self._job.name,
            version=self._job.version,
            quality=meta.quality,
            function=meta.function,
            trigger=meta.trigger,
            timeout_ms=meta.timeout_ms,
            inputs=meta.inputs,
            outputs=meta.outputs,
            runtime=runtime.read_bytes(),
            program_so=program.read("program.so"),
            plan=program.read("plan.bin"),
            weights=program.read("weights.bin"),
            golden=golden,
            sources=_handler_sources(recipe),
        )
        runnable = runner.prefix_for(self._job.target)[0] is not None
        return package.package(contents, self._job.target, checked=runnable)

    def _check(self, test: "_Test") -> dict[str, Any]:
        if test.prefix is None:
            return {"checked": False, "reason": test.reason, "latency_us": None, "latency_reason": test.reason}

        def make() -> dict[str, bytes]:
            check.check(test.trial)
            latency, reason = None, "the target is another kind of CPU"
            if test.trial.native:
                latency, reason = runner.summary(check.latency(test.trial, test.golden_inputs, test.folder)), ""
            found = {"checked": True, "reason": "", "latency_us": latency, "latency_reason": reason}
            return {"check.json": _json(found)}

        found: dict[str, Any] = self._entry("check", [test.digest, str(test.prefix)], make).json("check.json")
        return found

    def _diagnose(self, ingested: _Entry, quantized: _Entry, meta: _Meta) -> dict[str, Any]:
        """Where accuracy is lost, on samples of calibration and, where there are any, held-out ones in turns."""
        parts = [self._calibration, *([load_set(self._place, "test")] if has_test(self._place) else [])]
        counted = quantized.json("report.json")["samples"] or None

        def make() -> dict[str, bytes]:
            from edgebuild.stages.diagnose import SAMPLES, diagnose  # noqa: PLC0415 - imports onnxruntime

            streams = [part.samples(meta.inputs, SAMPLES // len(parts)) for part in parts]
            turns = (sample for turn in itertools.zip_longest(*streams) for sample in turn if sample is not None)
            models = _model(ingested), _model(quantized, "float.onnx"), _model(quantized)
            try:
                found = diagnose(*models, turns, calibrated_on=counted)
            except ModelError as error:  # a report that cannot be made stands in no bundle's way
                found = {"failed": error.message}
            return {"diagnosis.json": _json(found)}

        keys = [ingested.digest, quantized.digest, *(part.digest() for part in parts)]
        found: dict[str, Any] = self._entry("diagnose", keys, make).json("diagnosis.json")
        return found

    def _evaluate(self, test: "_Test", ingested: _Entry, quantized: _Entry, meta: _Meta) -> dict[str, Any]:
        accept, recipe = self._job.recipe.accept, self._job.recipe
        data, named, whole = self._judges()
        own = recipe.folder / accept.own[0] if accept and accept.own else None

        def make() -> dict[str, bytes]:
            from edgebuild.stages import evaluate  # noqa: PLC0415 - imports onnxruntime

            if test.native:
                integer, limit = evaluate.program(test.trial, meta.outputs, test.folder), whole
            else:
                macs = read_plan(test.package.files["plan.bin"]).macs_total
                limit = min(whole or sys.maxsize, evaluate.interpreter_limit(macs))
                integer = evaluate.interpreter(_model(quantized), _foreign)
            samples = data.labelled(meta.inputs, limit)
            custom = self._own_metric()
            metric = accept.metric if accept else None
            found = evaluate.evaluate(_model(ingested), integer, samples, metric, custom).to_json()
            found |= {"data": named, "engine": "edgebuild-run" if test.native else "interpreter"}
            return {"accuracy.json": _json(found)}

        asked = [accept.metric if accept else "", digest.of_file(own) if own else ""]
        keys = [ingested.digest, quantized.digest, data.digest(), str(whole), named, *asked]
        found: dict[str, Any] = self._entry("evaluate", [*keys, test.digest if test.native else ""], make).json(
            "accuracy.json"
        )
        return found | {"budget": self._judged(found, meta)}

    def _judges(self) -> tuple[CalibrationSet, str, int | None]:
        """The samples that accuracy is measured on, what the report calls them, and how many at most."""
        recipe = self._job.recipe
        wanted = recipe.accept.data if recipe.accept else "test"
        if wanted not in ("test", "calibration"):
            place = find_set(wanted, recipe.folder)
            return load_set(place, "test" if has_test(place) else "calibration"), wanted, None
        if wanted == "test" and has_test(self._place):
            return load_set(self._place, "test"), "test", None
        return self._calibration, "calibration", recipe.calibration.samples

    def _own_metric(self) -> "Custom | None":
        """The metric that the recipe brings along."""
        from edgebuild.stages.evaluate import load_metric  # noqa: PLC0415 - imports onnxruntime

        accept, folder = self._job.recipe.accept, self._job.recipe.folder
        return load_metric(folder / accept.own[0], accept.own[1]) if accept and accept.own else None

    def _judged(self, accuracy: dict[str, Any], meta: _Meta) -> str:
        """`none`, `met`, `missed`, or `not judged: …`."""
        accept = self._job.recipe.accept
        if accept is None:
            return "none"
        if meta.quality != "trained":
            return "not judged: the weights are untrained"
        if accuracy["engine"] != "edgebuild-run":
            return "not judged: the target does not run here, and part of the samples says too little"
        if accuracy["metric"] != accept.metric:
            return f"not judged: the samples have no labels for {accept.metric}"
        if accuracy["data"] != accept.data:
            return f"not judged: the set has no held-out part, and [accept] data is '{accept.data}'"
        return "met" if accuracy["drop"] <= accept.max_drop else "missed"

    def _over(self, accuracy: dict[str, Any], meta: _Meta) -> float | None:
        """By how many points the budget is missed; None where it is met or not judged."""
        accept = self._job.recipe.accept
        if accept is None or self._judged(accuracy, meta) != "missed":
            return None
        return float(accuracy["drop"] - accept.max_drop)

    def _missed(self, ingested: _Entry, built: "_Built", meta: _Meta, over: float, best: str = "") -> CheckError:
        """The error; its hint is the remedy for what diagnosis names first."""
        accept, accuracy = self._job.recipe.accept, built.accuracy
        assert accept is not None
        low, high = accuracy["interval"] or (math.nan, math.nan)
        with self._timed("diagnose"):
            findings = self._diagnose(ingested, built.quantized, meta).get("findings") or []
        serious = [f for f in findings if f["severity"] == "high"]
        hint = "calibrate on more samples that look like what the function will see, or allow a larger max_drop"
        if serious:
            hint = f"{serious[0]['layer']}: {serious[0]['cause']}: {serious[0]['what']} {serious[0]['remedy']}"
        if self._known_fallback():
            hint = f"{LOCK_FILE} was measured for another state of the model: edgebuild compile --update-lock"
        kind = "INT8" if self._precision == "int8" else self._precision
        return CheckError(
            f"{self._job.recipe.name}: {kind} loses {accuracy['drop']:.4g} points of {accept.metric} "
            f"(95 % interval {low:.4g} to {high:.4g}, {accuracy['samples']} samples{best}); [accept] max_drop allows "
            f"{accept.max_drop:g}: {over:.4g} too many",
            hint,
        )


@dataclass(frozen=True)
class _Built:
    """One way through the stages."""

    quantized: _Entry
    program: _Entry
    test: "_Test"
    checked: dict[str, Any]
    accuracy: dict[str, Any]
    fallback: dict[str, Precision]
    steps: tuple[Step, ...]

    @property
    def fallback_rows(self) -> list[dict[str, Any]]:
        """For the report; without gain and cost where recipe.lock says what falls back."""
        if self.steps:
            return [step.to_json() for step in self.steps]
        return [{"layer": layer, "keys": [layer], "precision": kind} for layer, kind in self.fallback.items()]


class _Test:
    """The packed bundle under an ephemeral key, for what is run before the real key signs it."""

    def __init__(self, folder: Path, packed: package.Package, runtime: Path, target: Target) -> None:
        self.folder = folder
        self.package = packed
        self.prefix, self.reason = runner.prefix_for(target)
        self._runtime = runtime

    @property
    def native(self) -> bool:
        return self.prefix == ()

    @property
    def digest(self) -> str:
        files = (part for file in self.package.manifest.files for part in (file.path, file.sha256))
        return digest.of_parts(*self.package.manifest.needs, *files)

    @cached_property
    def trial(self) -> Trial:
        assert self.prefix is not None
        key = minisign.generate()
        bundle, trust = self.folder / "test.ebundle", self.folder / "trust"
        bundle.write_bytes(sign.sign(self.package.manifest, self.package.files, key))
        trust.write_bytes(key.public.file())
        return Trial(self.prefix, self._runtime, bundle, trust)

    @cached_property
    def golden_inputs(self) -> "dict[str, np.ndarray[Any, Any]]":
        import io  # noqa: PLC0415

        import numpy as np  # noqa: PLC0415 - an unchanged build does without it

        files, inputs = self.package.files, self.package.manifest.inputs
        return {item.name: np.load(io.BytesIO(files[f"golden/in-{i}.npy"])) for i, item in enumerate(inputs)}


def write_output(result: Result, out: Path) -> Path:
    """Writes bundle, report and the report's page into `out`, all or none; returns the bundle's path."""
    bundle = f"{result.stem}.ebundle"
    shown = page.render(result.report).encode()
    files = {f"{result.stem}.report.json": _json(result.report), f"{result.stem}.report.html": shown}
    disk.write_together(out, {bundle: result.bundle, **files})
    return out / bundle


def _settings(calibration: Calibration) -> "Settings":
    from edgebuild.stages.quantize import Settings  # noqa: PLC0415 - imports onnxruntime

    observers = {name: how for name, how in calibration.tensors.items() if isinstance(how, str)}
    ranges = {name: (how[0], how[1]) for name, how in calibration.tensors.items() if not isinstance(how, str)}
    return Settings(calibration.observer, calibration.percentile, observers, ranges)


def _check_search(job: Job) -> None:
    """Refuses a search that cannot be made, before anything else is done."""
    if job.update_lock and job.of_file:
        raise UsageError("--update-lock: a model file has no recipe.lock", "compile a recipe's folder")
    if job.tune and not runs_here(job.target):
        raise UsageError(
            f"--tune: code for {job.target.name} does not run on this machine, so nothing can be measured",
            "leave it out: a cost model chooses for other CPUs",
        )


def _handler_sources(recipe: Recipe) -> dict[str, bytes]:
    if recipe.function is None:
        return {}
    paths = (*recipe.folder.glob("*.py"), *recipe.code, recipe.folder / RECIPE_FILE)
    return {path.name: path.read_bytes() for path in paths}


def _model(entry: _Entry, name: str = "model.onnx") -> "onnx.ModelProto":
    import onnx  # noqa: PLC0415 - an unchanged build does without it

    return onnx.load_model_from_string(entry.read(name))


@functools.cache
def _runner() -> "Foreign":
    from edgebuild.stages.compile.foreign import Foreign  # noqa: PLC0415 - imports TVM

    return Foreign()


def _foreign(node: "onnx.NodeProto", opset: int, inputs: list[Any], constant: list[bool]) -> list[Any]:
    """Runs an operator that TVM lowers; TVM is imported with the first of them."""
    return _runner()(node, opset, inputs, constant)


def _files(quantized: "Quantized") -> dict[str, bytes]:
    """What the quantize stage leaves in the cache."""
    return {
        "model.onnx": quantized.model.SerializeToString(deterministic=True),
        "float.onnx": quantized.floating.SerializeToString(deterministic=True),
        "report.json": _json(quantized.report),
    }


def _files_of(quantize: "Callable[..., Quantized]", *given: object) -> dict[str, bytes]:
    return _files(quantize(*given))


def _layers(count: int) -> str:
    return f"{count} layer" + ("" if count == 1 else "s")


def _weight_bytes(model: "onnx.ModelProto") -> int:
    """Bytes of all constants of a graph."""
    import onnx  # noqa: PLC0415

    sizes = (onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize for tensor in model.graph.initializer)
    counts = (math.prod(tensor.dims) for tensor in model.graph.initializer)
    return sum(size * count for size, count in zip(sizes, counts, strict=True))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
