"""The next version of a trust file: keys come and go. Who signs it then is SPEC section 4's matter."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date

from edgebuild.core.errors import BundleError, UsageError
from edgebuild.core.minisign import PublicKey
from edgebuild.core.trust import COMMENTS, MAX_ROOTS, TrustFile, parse_keys


@dataclass(frozen=True)
class Change:
    """What the next version changes; keys that leave are named by their ids, as minisign prints them."""

    add_roots: tuple[PublicKey, ...] = ()
    drop_roots: tuple[str, ...] = ()
    add_release: tuple[PublicKey, ...] = ()
    drop_release: tuple[str, ...] = ()
    root_threshold: int | None = None


def first_version(
    roots: Sequence[PublicKey], threshold: int | None, release: Sequence[PublicKey], made: date, expires: date
) -> TrustFile:
    """Version 1, unsigned; without a threshold more than half of the roots have to sign. Raises BundleError."""
    least = threshold or len(roots) // 2 + 1
    return _checked(TrustFile(1, made, expires, least, tuple(roots), (), tuple(release)))


def next_version(old: TrustFile, change: Change, made: date, expires: date) -> TrustFile:
    """The version after `old`, unsigned. A root that leaves is retired: it can still sign this step, and nothing else.

    Raises UsageError for a key that is not there, or there already, BundleError for what SPEC section 4 does not allow.
    """
    roots, left = _changed("root", old.roots, change.add_roots, change.drop_roots)
    release, _ = _changed("release key", old.release, change.add_release, change.drop_release)
    back = {key.key_id for key in roots}
    retired = [key for key in (*old.retired, *left) if key.key_id not in back]
    return _checked(
        replace(
            old,
            version=old.version + 1,
            made=max(made, old.made),
            expires=expires,
            root_threshold=change.root_threshold or old.root_threshold,
            roots=roots,
            retired=tuple(retired[-MAX_ROOTS:]),
            release=release,
            signatures=(),
        )
    )


def next_keys(data: bytes, new: PublicKey, old: PublicKey, *, keep: bool) -> bytes:
    """A plain list of keys with `new` behind `old`, or in its place; all else in it stays. Raises BundleError."""
    trust = parse_keys(data)
    if trust.get(old.key_id) != old:
        raise BundleError(f"the trust file does not list key {old.name}", "name the key that it lists with --key")
    if new.key_id in trust:
        raise BundleError(f"the trust file lists key {new.name} already", "make another key")
    lines = data.split(b"\n")
    at = lines.index(old.line().encode())
    speaks_of_it = at > 0 and lines[at - 1].startswith(COMMENTS) and old.name.encode() in lines[at - 1]
    first = at - 1 if speaks_of_it and not keep else at
    fresh = new.file().rstrip(b"\n").split(b"\n")
    kept = [lines[at]] if keep else []
    made = b"\n".join([*lines[:first], *kept, *fresh, *lines[at + 1 :]])
    parse_keys(made)
    return made


def _changed(
    role: str, keys: Iterable[PublicKey], add: Iterable[PublicKey], drop: Iterable[str]
) -> tuple[tuple[PublicKey, ...], list[PublicKey]]:
    """The keys of a role afterwards, and those that left it."""
    found = {key.name: key for key in keys}
    left = []
    for name in drop:
        key = found.pop(name.upper(), None)
        if key is None:
            listed = ", ".join(found) or "none"
            raise UsageError(f"{name}: no {role} of the trust file has this id", f"it has {listed}")
        left.append(key)
    for key in add:
        if key.name in found:
            raise UsageError(f"{key.name}: is a {role} of the trust file already", "leave it out")
        found[key.name] = key
    return tuple(found.values()), left


def _checked(file: TrustFile) -> TrustFile:
    try:
        file.body()
    except BundleError as error:
        raise BundleError(error.message, "a key has one role; as many roots must sign as there are, at most") from error
    return file
