"""`NAME-VERSION.cdx.json`: what is in the bundles, and what made them, as CycloneDX 1.6 (https://cyclonedx.org).

A model's component has the recipe's digest, and the SHA-256 of its weights where they are one file. Measured accuracy
stays in the report: it depends on the machine that ran the bundle, and this file must not.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from edgebuild.core.manifest import Manifest, Tensor
from edgebuild.release.inputs import Data, Inputs, package_url
from edgebuild.stages import runtime

_MODEL, _DATA = "model", "data"


@dataclass(frozen=True)
class Subject:
    """A bundle of the release."""

    file: str
    sha256: str
    manifest: Manifest


def make(name: str, version: str, made: date | None, subjects: Sequence[Subject], inputs: Inputs) -> bytes:
    """The SBOM of a release; `made` is its day, or None."""
    root = {"type": "application", "bom-ref": "release", "name": name, "version": version}
    linked = runtime.LIBRARIES
    body = {
        "metadata": {
            **({"timestamp": f"{made}T00:00:00Z"} if made else {}),
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [_package("edgebuild", inputs.edgebuild, "application")]},
            "component": root,
        },
        "components": [
            *(_bundle(subject) for subject in subjects),
            _model(name, version, subjects[0].manifest, inputs),
            *(_dataset(part) for part in inputs.data),
            *(_library(library) for library in linked),
            *(_package(one, found, "library") for one, found in inputs.packages.items()),
        ],
        "dependencies": _dependencies(subjects, inputs, [library.library for library in linked]),
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    head = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
    }
    return (json.dumps({**head, **body}, indent=1) + "\n").encode()


def _sha256(found: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": found}]


def _bundle(subject: Subject) -> dict[str, Any]:
    """A bundle, and every file in it; its `edgebuild-run` is a program of its own."""
    manifest = subject.manifest
    files = [
        {
            "type": "application" if file.path == "edgebuild-run" else "file",
            "bom-ref": f"{manifest.target}/{file.path}",
            "name": file.path,
            "hashes": _sha256(file.sha256),
        }
        for file in manifest.files
    ]
    return {
        "type": "application",
        "bom-ref": manifest.target,
        "name": subject.file,
        "version": manifest.version,
        "hashes": _sha256(subject.sha256),
        "properties": _properties(
            {
                "target": manifest.target,
                "arch": manifest.arch,
                "release": str(manifest.release),
                "needs": " ".join(manifest.needs),
            }
        ),
        "components": files,
    }


def _model(name: str, version: str, manifest: Manifest, inputs: Inputs) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "datasets": [{"ref": f"{_DATA}/{part.part}"} for part in inputs.data],
        "inputs": [{"format": _format(tensor)} for tensor in manifest.inputs],
        "outputs": [{"format": _format(tensor)} for tensor in manifest.outputs],
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": name,
        "version": version,
        **({"hashes": _sha256(inputs.weights)} if inputs.weights else {}),
        "modelCard": {"modelParameters": parameters},
        "properties": _properties({"recipe-digest": inputs.recipe}),
    }


def _format(tensor: Tensor) -> str:
    return f"{tensor.name}: {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"


def _dataset(part: Data) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": f"{_DATA}/{part.part}",
        "name": part.name,
        "scope": "excluded",
        **({"licenses": [{"license": {"name": part.licence}}]} if part.licence else {}),
        "data": [{"type": "dataset", "name": f"{part.name}: {part.part}"}],
        "properties": _properties({"set-digest": part.digest}),
    }


def _library(library: runtime.Sdist) -> dict[str, Any]:
    """What is linked into `edgebuild-run`."""
    source = {
        "type": "source-distribution",
        "url": f"pkg:pypi/{library.package}@{library.version}",
        "hashes": _sha256(library.sha256),
    }
    return {
        "type": "library",
        "bom-ref": library.library,
        "name": library.library,
        "version": library.library_version,
        "licenses": [{"license": {"id": library.licence}}],
        "purl": f"pkg:generic/{library.library}@{library.library_version}",
        "externalReferences": [source],
    }


def _package(name: str, version: str, kind: str) -> dict[str, Any]:
    """What made the bundles and is not in them."""
    purl = package_url(name, version)
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "scope": "excluded", "purl": purl}


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"edgebuild:{name}", "value": value} for name, value in values.items() if value]


def _dependencies(subjects: Sequence[Subject], inputs: Inputs, linked: Sequence[str]) -> list[dict[str, Any]]:
    targets = [subject.manifest.target for subject in subjects]
    return [
        {"ref": "release", "dependsOn": targets},
        *({"ref": target, "dependsOn": [_MODEL, f"{target}/edgebuild-run"]} for target in targets),
        *({"ref": f"{target}/edgebuild-run", "dependsOn": list(linked)} for target in targets),
        {"ref": _MODEL, "dependsOn": [f"{_DATA}/{part.part}" for part in inputs.data]},
    ]
