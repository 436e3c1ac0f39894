"""What the files of a release are called, and what they are."""

import re

from edgebuild.core import basis

SUMS = "SHA256SUMS"
INDEX = "release.json"
TRUST = "trust"
SIGNATURE = ".minisig"
REPORTS = (".report.json", ".report.html")
BASIS = basis.SUFFIX
"""What `--update` builds on. It holds the float network: it stays where releases are built."""
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}")


def is_file_name(name: str) -> bool:
    """SPEC section 13's FILE: a name in one folder, which cannot lead out of it."""
    return bool(_FILE.fullmatch(name))


def stem(name: str, version: str, target: str) -> str:
    return f"{name}-{version}-{target}"


def bundle(name: str, version: str, target: str) -> str:
    return f"{stem(name, version, target)}.ebundle"


def delta(name: str, version: str, target: str, base: str) -> str:
    """`base`: the ID of the release that the delta starts from; two bases of one counter differ in it."""
    return f"{stem(name, version, target)}-from-{base[:16]}.edelta"


def sbom(name: str, version: str) -> str:
    return f"{name}-{version}.cdx.json"


def provenance(name: str, version: str) -> str:
    return f"{name}-{version}.intoto.jsonl"
