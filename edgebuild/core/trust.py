"""SPEC section 4: trust files, from bytes to the keys that count. No file is opened here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date

from edgebuild.core import minisign
from edgebuild.core.errors import BundleError
from edgebuild.core.lines import Lines
from edgebuild.core.minisign import PublicKey, parse_public_line

MAX_BYTES = 64 * 1024
MAX_ROOTS = 16
MAX_RELEASE_KEYS = 64
FORMAT = "1"
COMMENTS = (b"untrusted comment:", b"#")
_HEAD = b"edgebuild-trust "
_REMEDY = "get the trust file again from whoever made it; `edgebuild trust new` writes one"
_NEWER = "it was made for a newer edgebuild: upgrade this one"
_SIGN = "`edgebuild trust sign FILE --key ROOT.key` adds a signature"


@dataclass(frozen=True)
class TrustFile:
    """A trust file with roles, as it reads; `stands` says whether it may be believed. A signature is four lines."""

    version: int
    made: date
    expires: date
    root_threshold: int
    roots: tuple[PublicKey, ...]
    retired: tuple[PublicKey, ...]
    release: tuple[PublicKey, ...]
    signatures: tuple[bytes, ...] = ()

    def body(self) -> bytes:
        """What root keys sign. Raises BundleError for values that the format cannot hold."""
        data = self._render()
        if _Parser(data).trust_file() != replace(self, signatures=()):
            raise BundleError("the trust file holds a value that its format cannot express", "choose another one")
        return data

    def file(self) -> bytes:
        """The canonical bytes: the body alone while nobody has signed."""
        return self.body() + (b"\n" + b"".join(self.signatures) if self.signatures else b"")

    def signers(self) -> tuple[PublicKey, ...]:
        """The roots, of this file or retired, whose signatures it claims to have."""
        return tuple(_listed(self, signature) for signature in self.signatures)

    def signed_by(self, keys: Iterable[PublicKey]) -> tuple[PublicKey, ...]:
        """Those of `keys` whose signature over the body holds."""
        body, given = self.body(), {minisign.parse_signature(data).key_id: data for data in self.signatures}
        return tuple(key for key in keys if key.key_id in given and _holds(body, given[key.key_id], key))

    def expired(self, today: date) -> bool:
        return today >= self.expires

    def _render(self) -> bytes:
        rows: list[tuple[str, object]] = [
            ("edgebuild-trust", FORMAT),
            ("version", self.version),
            ("made", self.made),
            ("expires", self.expires),
            ("root-threshold", self.root_threshold),
            *(("root", key.line()) for key in self.roots),
            *(("retired", key.line()) for key in self.retired),
            *(("release", key.line()) for key in self.release),
        ]
        return "".join(f"{key} {value}\n" for key, value in rows).encode()


class Trust(dict[bytes, PublicKey]):
    """The keys that may sign bundles, by key id; `roles` is None for a plain list of keys."""

    def __init__(self, keys: Iterable[PublicKey] = (), roles: TrustFile | None = None) -> None:
        super().__init__((key.key_id, key) for key in keys)
        self.roles = roles


def parse_trust(data: bytes) -> Trust:
    """The keys of either form. Raises BundleError: a wrong line, a key that is there twice, no key, and with roles
    whatever `stands` refuses.
    """
    if is_roles(data):
        file = stands(data)
        return Trust(file.release, file)
    return parse_keys(data)


def is_roles(data: bytes) -> bool:
    return data.startswith(_HEAD)


def parse_keys(data: bytes) -> Trust:
    """A plain list of keys."""
    if len(data) > MAX_BYTES:
        raise BundleError(
            f"trust file: {len(data)} bytes; the limit is {MAX_BYTES}", "list only keys: edgebuild keys show"
        )
    trust = Trust()
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line and not line.startswith(COMMENTS):
            _add(trust, line, number)
    if not trust:
        raise BundleError("trust file: no key in it", "append the second line of a minisign public key file")
    return trust


def parse_roles(data: bytes) -> TrustFile:
    """A file with roles, or its body that nobody has signed: its form, and that every signature is by a root and holds.
    Whether they are enough is what `stands` says.
    """
    body, signatures = _split(data)
    file = replace(_Parser(body).trust_file(), signatures=signatures)
    if file.file() != data:
        raise BundleError("trust file: not in its canonical spelling", _REMEDY)
    least = 0
    for number, signature in enumerate(signatures, start=1):
        least = _check_signature(file, body, signature, number, least)
    return file


def stands(data: bytes) -> TrustFile:
    """A file that at least K of its own roots signed. A signature by a retired key counts nothing for that."""
    file = parse_roles(data)
    count = sum(key in file.roots for key in file.signers())
    if count < file.root_threshold:
        raise BundleError(
            f"trust file version {file.version} is signed by {count} of its roots; it takes {file.root_threshold}",
            _SIGN,
        )
    return file


def follows(old: TrustFile, new: TrustFile) -> None:
    """Whether `new`, which stands on its own, may take the place of `old`; raises BundleError if not.

    "Its version is larger, and at least the old file's K of the old file's roots signed it as well"; the same version
    must be the same body.
    """
    if new.version < old.version:
        raise BundleError(
            f"the trust file has version {new.version}, which is older than {old.version}",
            "take the newest one: versions only rise",
        )
    if new.version == old.version:
        if new.body() != old.body():
            raise BundleError(
                f"two different trust files have version {old.version}", "raise the version: `edgebuild trust next OLD`"
            )
        return
    count = len(new.signed_by(old.roots))
    if count < old.root_threshold:
        raise BundleError(
            f"trust file version {new.version} is signed by {count} of the roots of version {old.version}; "
            f"it takes {old.root_threshold}",
            f"the roots of the version before sign as well: {_SIGN}",
        )


def with_signature(file: TrustFile, signature: bytes) -> TrustFile:
    """The file with one more signature, in its place; refused if its key is no root, or if it does not hold."""
    key = _listed(file, signature)
    if key in file.signers():
        raise BundleError(f"root {key.name} has signed the trust file already", "let another root sign it")
    try:
        minisign.verify(file.body(), signature, {key.key_id: key})
    except BundleError as error:
        raise BundleError(error.message, "sign this body, as `edgebuild trust sign` does") from error
    places = {key.key_id: place for place, key in enumerate((*file.roots, *file.retired))}
    signatures = sorted((*file.signatures, signature), key=lambda data: places[minisign.parse_signature(data).key_id])
    return replace(file, signatures=tuple(signatures))


def verify(message: bytes, signature: bytes, trust: Mapping[bytes, PublicKey]) -> tuple[PublicKey, str]:
    """The release key that signed `message`, and the trusted comment; raises BundleError unless the signature holds."""
    key_id = minisign.parse_signature(signature).key_id
    roles = trust.roles if isinstance(trust, Trust) else None
    if roles is not None and key_id not in trust:
        for key in (*roles.roots, *roles.retired):
            if key.key_id == key_id:
                raise BundleError(
                    f"signed by {key.name}, a root key; root keys sign trust files only",
                    "sign it with a release key: `edgebuild sign BUNDLE --key RELEASE.key`",
                )
    return minisign.verify(message, signature, trust)


class _Parser(Lines):
    """The body."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, MAX_BYTES, "trust file", _REMEDY)
        self._seen: list[PublicKey] = []

    def head(self) -> None:
        self._format("edgebuild-trust", FORMAT, "the trust file's format", _NEWER)

    def trust_file(self) -> TrustFile:
        self.head()
        version, made, expires = self._numbered("version"), self._day("made"), self._day("expires")
        threshold = self._numbered("root-threshold")
        roots, retired = self._keys("root", MAX_ROOTS), self._keys("retired", MAX_ROOTS)
        release = self._keys("release", MAX_RELEASE_KEYS)
        self._end()
        if expires <= made:
            raise self._refused(f"expires {expires}, which is not after {made}, when it was made")
        for role, keys in (("root", roots), ("release", release)):
            if not keys:
                raise self._refused(f"no {role} key in it")
        if threshold > len(roots):
            raise self._refused(f"root-threshold {threshold} is above the number of roots, {len(roots)}")
        return TrustFile(version, made, expires, threshold, roots, retired, release)

    def _keys(self, role: str, most: int) -> tuple[PublicKey, ...]:
        keys = self._many(role, self._key)
        if len(keys) > most:
            raise self._refused(f"{len(keys)} keys of the role {role}; the limit is {most}")
        return keys

    def _key(self, fields: list[str]) -> PublicKey:
        try:
            key = parse_public_line(" ".join(fields))
        except BundleError as error:
            raise self._wrong("not a minisign public key") from error
        for other in self._seen:  # one key under two ids would be counted twice
            if other.key_id == key.key_id or other.key == key.key:
                raise self._wrong(f"key {key.name} is key {other.name}, which is listed above")
        self._seen.append(key)
        return key


def _split(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """The body, and signatures of four lines; the first line is looked at before anything behind it."""
    if len(data) > MAX_BYTES:
        raise BundleError(f"trust file: {len(data)} bytes; the limit is {MAX_BYTES}", _REMEDY)
    _Parser(data.partition(b"\n")[0] + b"\n").head()
    end = data.find(b"\n\n")
    if end < 0:
        return data, ()
    lines = [line + b"\n" for line in data[end + 2 :].split(b"\n")[:-1]]
    return data[: end + 1], tuple(b"".join(lines[i : i + 4]) for i in range(0, len(lines), 4))


def _listed(file: TrustFile, signature: bytes) -> PublicKey:
    key_id = minisign.parse_signature(signature).key_id
    for key in (*file.roots, *file.retired):
        if key.key_id == key_id:
            return key
    name = PublicKey(key_id, bytes(32)).name
    if any(key.key_id == key_id for key in file.release):
        raise BundleError(f"{name} is a release key; only root keys sign trust files", "sign with a root key")
    raise BundleError(
        f"key {name} is no root of the trust file",
        "sign with a root key that it lists; `edgebuild trust next` lists one that leaves as retired",
    )


def _check_signature(file: TrustFile, body: bytes, signature: bytes, number: int, least: int) -> int:
    """The lowest place, in the order of the body's keys, that the next signature may have."""
    try:
        key = _listed(file, signature)
        place = (*file.roots, *file.retired).index(key)
        if place < least:
            raise BundleError(f"key {key.name} is out of order, or signs twice", _REMEDY)
        minisign.verify(body, signature, {key.key_id: key})
    except BundleError as error:
        raise BundleError(f"trust file, signature {number}: {error.message}", _REMEDY) from error
    return place + 1


def _holds(body: bytes, signature: bytes, key: PublicKey) -> bool:
    try:
        minisign.verify(body, signature, {key.key_id: key})
    except BundleError:
        return False
    return True


def _add(trust: Trust, line: bytes, number: int) -> None:
    try:
        key = parse_public_line(line.decode("ascii"))
    except (BundleError, UnicodeDecodeError) as error:
        raise BundleError(
            f"trust file, line {number}: not a minisign public key", "a line is base64, or a comment that starts with #"
        ) from error
    if key.key_id in trust:
        raise BundleError(f"trust file, line {number}: a second key with id {key.name}", "keep one of them")
    trust[key.key_id] = key
