"""The SBOM: CycloneDX's own schema takes it, and it names what is in the bundles."""

import json
import re
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from releases import Home

from edgebuild.core import bundle, digest
from edgebuild.stages.runtime import LIBRARIES, library_source


@pytest.fixture(scope="module")
def sbom(home: Home) -> Any:
    return json.loads((home.second / "dense-1.1.0.cdx.json").read_text())


def test_the_schema_takes_it(home: Home, sbom: Any) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for folder, version in ((home.first, "1.0.0"), (home.second, "1.1.0")):
        error = validator.validate_str((folder / f"dense-{version}.cdx.json").read_text())
        assert error is None, error
    assert validator.validate_str(json.dumps(sbom | {"componets": []})) is not None


def component(sbom: Any, ref: str) -> Any:
    (found,) = (one for one in sbom["components"] if one["bom-ref"] == ref)
    return found


@pytest.mark.parametrize("target", ["host", "aarch64-generic"])
def test_a_bundle_and_its_files(home: Home, sbom: Any, target: str) -> None:
    path = home.second / f"dense-1.1.0-{target}.ebundle"
    found = component(sbom, target)
    assert (found["name"], found["hashes"]) == (path.name, [{"alg": "SHA-256", "content": digest.of_file(path)}])
    files = {one["name"]: one["hashes"][0]["content"] for one in found["components"]}
    manifest = bundle.read_unverified(path.read_bytes()).manifest
    assert files == {file.path: file.sha256 for file in manifest.files}


def test_model_data_and_what_is_linked(home: Home, sbom: Any) -> None:
    model = component(sbom, "model")
    assert model["type"] == "machine-learning-model"
    assert model["hashes"][0]["content"] == digest.of_file(home.tuned / "model.onnx")
    parameters = model["modelCard"]["modelParameters"]
    assert (parameters["inputs"], parameters["outputs"]) == (
        [{"format": "x: float32 [1, 16]"}],
        [{"format": "y: float32 [1, 4]"}],
    )
    data = component(sbom, "data/calibration")
    assert data["licenses"] == [{"license": {"name": "CC0-1.0"}}]
    assert data["properties"][0]["name"] == "edgebuild:set-digest"
    assert component(sbom, "libsodium")["licenses"] == [{"license": {"id": "ISC"}}]
    tools = {one["name"] for one in sbom["components"] if one.get("scope") == "excluded" and "purl" in one}
    assert {"apache-tvm", "onnx", "onnxruntime", "ziglang"} <= tools
    assert "torch" not in tools  # the recipe is an ONNX file


def test_references_resolve(sbom: Any) -> None:
    refs = {sbom["metadata"]["component"]["bom-ref"]}
    for one in sbom["components"]:
        refs |= {one["bom-ref"], *(part["bom-ref"] for part in one.get("components", []))}
    for row in sbom["dependencies"]:
        assert {row["ref"], *row["dependsOn"]} <= refs


def test_what_is_linked_has_the_version_that_is_said() -> None:
    sodium, zstd = LIBRARIES
    assert f"AC_INIT([libsodium],[{sodium.library_version}]" in (library_source(sodium) / "configure.ac").read_text()
    header = (library_source(zstd) / "zstd.h").read_text()
    found = [re.search(rf"#define ZSTD_VERSION_{part}\s+(\d+)", header) for part in ("MAJOR", "MINOR", "RELEASE")]
    assert [match and match[1] for match in found] == zstd.library_version.split(".")
