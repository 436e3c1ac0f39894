"""Ways through the stages behind ingest: with some layers at a higher precision, or all of them."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgebuild.budget import Precision, Step
from edgebuild.pipeline.entries import Built, Draft, Entry, Meta
from edgebuild.pipeline.stages import Stages


class Ways:
    """Each gives a bundle that can be tried, in a folder of its own below `folder`."""

    def __init__(self, stages: Stages, ingested: Entry, folder: Path) -> None:
        self.stages = stages
        self.ingested = ingested
        self.meta = Meta.of(ingested)
        self._folder = folder

    def built(self, fallback: Mapping[str, Precision], rows: Sequence[Step] = ()) -> Built:
        """Everything from quantization to accuracy, with some layers at a higher precision."""
        stages = self.stages
        with stages.timed("quantize"), stages.naming_model():
            quantized = stages.quantize(self.ingested, self.meta, fallback)
        program, draft = self.packed(quantized)
        with stages.timed("check"):
            checked = stages.check(draft)
        with stages.timed("evaluate"):
            accuracy = stages.evaluate(draft, self.ingested, quantized, self.meta)
        return Built(quantized, program, draft, checked, accuracy, dict(fallback), tuple(rows))

    def packed(self, quantized: Entry) -> tuple[Entry, Draft]:
        """The program of a quantized model, and the bundle around it."""
        stages = self.stages
        with stages.timed("compile"), stages.naming_model():
            program = stages.compile(quantized)
        with stages.timed("runtime"):
            runtime = stages.runtime()
        with stages.timed("package"):
            packed = stages.package(self.meta, program, runtime, stages.golden(quantized, self.meta))
        place = Path(tempfile.mkdtemp(dir=self._folder))
        return program, Draft(place, packed, runtime, stages.job.target)
