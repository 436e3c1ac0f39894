"""The build in which as few layers as the budget needs leave 8 bits."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgebuild.budget import Precision, Profile, Step, alone, fallback_of, fewest, ordered, turns
from edgebuild.core import digest
from edgebuild.core.errors import CheckError
from edgebuild.core.recipe import LOCK_FILE
from edgebuild.pipeline.entries import Built, Draft, Entry, files_in, json_bytes, model_of
from edgebuild.pipeline.ways import Ways
from edgebuild.report import precision_text
from edgebuild.stages import check

if TYPE_CHECKING:
    from edgebuild.stages.quantize import Calibrated, Rounding

_ATTEMPTS = 4
"""How often layers are chosen anew when the compiled program misses a budget that ONNX Runtime's integers meet."""


class Search:
    """Looks for the layers that leave 8 bits, with the stages of `ways`."""

    def __init__(self, ways: Ways) -> None:
        self._ways = ways
        self._stages = ways.stages
        self._recipe = ways.stages.job.recipe

    def met(self, built: Built) -> Built:
        """What was built, or one that keeps the budget. Raises CheckError when none does."""
        return self._within_budget(built) if self._misses(built) else built

    def kept(self, built: Built) -> Built:
        """What was built as an update, which keeps the precision of every layer. Raises CheckError."""
        over = self._over(built.accuracy)
        if over is not None and self._stages.room is None:
            raise self._missed(built, over)
        return built

    def _misses(self, built: Built) -> bool:
        """Whether the budget is missed, and layers may still leave 8 bits. Raises CheckError where they may not."""
        over = self._over(built.accuracy)
        if over is None:
            return False
        tried = built.fallback or built.quantized.json("report.json")["passed_through"]
        if tried or self._stages.precision == "float32":
            raise self._missed(built, over)
        return True

    def _within_budget(self, built: Built) -> Built:
        """The build in which as few layers as the budget needs leave 8 bits. Raises CheckError when none is enough."""
        accept = self._recipe.accept
        assert accept is not None
        with self._stages.timed("fallback"), self._stages.naming_model():
            possible = self._steps(built)
        most, better = accept.max_drop, built
        for _ in range(_ATTEMPTS):
            with self._stages.timed("fallback"), self._stages.naming_model():
                found = self._fallback(possible, most).json("fallback.json")
            steps = [Step.of(row) for row in found["steps"]]
            if not found["met"] and better is built:
                break
            better = self._ways.built(fallback_of(steps), steps)
            over = self._over(better.accuracy)
            if over is None:
                return better
            if not found["met"]:  # not even what comes nearest
                break
            most = min(most, found["drop"]) - over
        over = self._over(built.accuracy)
        assert over is not None
        reached = better.accuracy["drop"] if better is not built else found["drop"]
        layers = _layers(len(better.fallback or fallback_of(steps)))
        best = "" if reached is None else f"; with {layers} at a higher precision {reached:.4g}"
        raise self._missed(built, over, best)

    def _steps(self, built: Built) -> Entry:
        """What layers may do, in the order in which they do it."""

        def make() -> dict[str, bytes]:
            from edgebuild.stages import quantize  # noqa: PLC0415 - imports onnxruntime

            found = self._stages.calibrated(self._ways.ingested, self._ways.meta)
            told = functools.partial(self._stages.advanced, "fallback")
            possible = quantize.roundings(found, told)
            costs = self._costs(found, possible, built)
            steps = [
                Step(r.keys, r.name, r.operator, r.precision, r.share, cost)
                for r, cost in zip(possible, costs, strict=True)
            ]
            return {"steps.json": json_bytes([dataclasses.asdict(step) for step in ordered(steps)])}

        return self._stages.measured(
            "fallback", [self._ways.ingested.digest, built.quantized.digest, built.draft.digest], make
        )

    def _fallback(self, possible: Entry, most: float) -> Entry:
        """As few of the steps as bring the drop down to `most`."""
        accept = self._recipe.accept
        assert accept is not None
        data, _, whole = self._stages.judges()
        custom = self._stages.own_metric()
        steps = [Step.of(row) for row in possible.json("steps.json")]

        def make() -> dict[str, bytes]:
            from edgebuild.stages import evaluate, quantize  # noqa: PLC0415 - imports onnxruntime

            found = self._stages.calibrated(self._ways.ingested, self._ways.meta)

            def drop(fallback: Mapping[str, Precision]) -> float:
                batch = evaluate.graph(quantize.finished(found, fallback).model)
                samples = data.labelled(self._ways.meta.inputs, whole)
                return evaluate.evaluate(model_of(self._ways.ingested), batch, samples, accept.metric, custom).drop

            outcome = fewest(steps, drop, most)
            rows = [dataclasses.asdict(step) for step in outcome.steps]
            least = outcome.drop if math.isfinite(outcome.drop) else None
            return {"fallback.json": json_bytes({"steps": rows, "met": outcome.met, "drop": least})}

        own = digest.of_file(self._recipe.folder / accept.own[0]) if accept.own else ""
        keys = [self._ways.ingested.digest, possible.digest, data.digest(), accept.metric, own, repr(most), str(whole)]
        return self._stages.entry("fallback", keys, make)

    def _costs(self, found: "Calibrated", possible: "list[Rounding]", built: Built) -> list[float]:
        """How many microseconds longer the operators behind each rounding take without it, here and now."""
        from edgebuild.stages.quantize import finished  # noqa: PLC0415 - imports onnxruntime

        def profile(fallback: dict[str, Precision]) -> Profile:
            keys = ["whole", repr(sorted(fallback.items())), built.quantized.digest]
            entry = self._stages.entry("quantize", keys, lambda: files_in(finished(found, fallback)))
            return profiled(self._ways.packed(entry)[1])

        def profiled(draft: Draft) -> Profile:
            return Profile(check.profile(draft.trial, draft.golden_inputs, draft.folder))

        plain = profiled(built.draft)
        words = profile({key: "int16" for r in possible if r.precision == "int16" for key in r.keys})
        layers = {r.name: r.keys[0] for r in possible if r.precision == "float32"}
        floats: dict[str, float] = {}
        for some in turns(plain, list(layers)):
            mixed = profile({layers[name]: "float32" for name in some})
            floats |= alone(plain, mixed, list(layers), some)
        return [
            words.longer(plain, r.nodes) if r.precision == "int16" else floats.get(r.name, math.inf) for r in possible
        ]

    def _over(self, accuracy: dict[str, Any]) -> float | None:
        """By how many points the budget is missed; None where it is met or not judged."""
        accept = self._recipe.accept
        if accept is None or self._stages.judged(accuracy, self._ways.meta) != "missed":
            return None
        return float(accuracy["drop"] - accept.max_drop)

    def _missed(self, built: Built, over: float, best: str = "") -> CheckError:
        """The error; its hint is the remedy for what diagnosis names first."""
        accept, accuracy = self._recipe.accept, built.accuracy
        assert accept is not None
        low, high = accuracy["interval"] or (math.nan, math.nan)
        with self._stages.timed("diagnose"):
            findings = (
                self._stages.diagnose(self._ways.ingested, built.quantized, self._ways.meta).get("findings") or []
            )
        serious = [f for f in findings if f["severity"] == "high"]
        hint = "calibrate on more samples that look like what the function will see, or allow a larger max_drop"
        if serious:
            hint = f"{serious[0]['layer']}: {serious[0]['cause']}: {serious[0]['what']} {serious[0]['remedy']}"
        if self._stages.old:
            hint = "compile without --update-of: a grid of its own, and other precisions, may keep the budget"
        elif self._stages.known_fallback():
            hint = f"{LOCK_FILE} was measured for another state of the model: edgebuild compile --update-lock"
        kind = precision_text(self._stages.precision, built.fallback.values())
        return CheckError(
            f"{self._recipe.name}: {kind} loses {accuracy['drop']:.4g} points of {accept.metric} "
            f"(95 % interval {low:.4g} to {high:.4g}, {accuracy['samples']} samples{best}); [accept] max_drop allows "
            f"{accept.max_drop:g}: {over:.4g} too many",
            hint,
        )


def _layers(count: int) -> str:
    return f"{count} layer" + ("" if count == 1 else "s")
