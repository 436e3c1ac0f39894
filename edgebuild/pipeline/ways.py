"""Ways through the stages behind ingest: with some layers at a higher precision, or all of them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgebuild.budget import Precision, Step
from edgebuild.core.basis import PROGRAM
from edgebuild.core.bundle import file_rows
from edgebuild.pipeline.entries import Built, Draft, Entry, Meta, Rival
from edgebuild.pipeline.stages import Stages
from edgebuild.stages.package import Package


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
            rivals = self._rivals(quantized, draft)
            accuracy, others = stages.evaluate(draft, self.ingested, quantized, self.meta, rivals)
        return Built(quantized, program, draft, checked, accuracy, dict(fallback), tuple(rows), others)

    def _rivals(self, quantized: Entry, shipped: Draft) -> dict[str, Rival]:
        """What an update is compared with: `old`, and `new` where only a part of it is shipped."""
        stages = self.stages
        if stages.old is None:
            return {}
        bundle = stages.old.bundle
        files = {path: bytes(data) for path, data in bundle.files.items()}
        found = {"old": Rival(stages.old.basis.model, self._draft(Package(bundle.manifest, files)))}
        if stages.room is not None:
            whole = stages.whole(quantized)
            program = stages.compile(whole)
            files = shipped.package.files | {name: program.read(name) for name in PROGRAM}
            packed = Package(replace(shipped.package.manifest, files=file_rows(files)), files)
            found["new"] = Rival(whole.read("model.onnx"), self._draft(packed))
        return found

    def unchanged(self) -> Package:
        """A bundle of the old release's values in all that this build makes anew around them."""
        stages = self.stages
        assert stages.old is not None
        program = stages.old_program()
        golden = {
            path.removeprefix("golden/"): bytes(data)
            for path, data in stages.old.bundle.files.items()
            if path.startswith("golden/")
        }
        return stages.package(self.meta, program, stages.runtime(), golden)

    def _draft(self, packed: Package) -> Draft:
        place = Path(tempfile.mkdtemp(dir=self._folder))
        return Draft(place, packed, self.stages.runtime(), self.stages.job.target)

    def packed(self, quantized: Entry) -> tuple[Entry, Draft]:
        """The program of a quantized model, and the bundle around it."""
        stages = self.stages
        with stages.timed("compile"), stages.naming_model():
            program = stages.compile(quantized)
        with stages.timed("runtime"):
            runtime = stages.runtime()
        with stages.timed("package"):
            packed = stages.package(self.meta, program, runtime, stages.golden(quantized, self.meta))
        return program, self._draft(packed)
