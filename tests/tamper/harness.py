"""Every class of mutants, through both readers, to a table."""

import base64
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import roles
import tiny
from tamper import archives, bytewise, deltas, indices, manifests, readers, signatures, trusts
from tamper.bytewise import Change, real
from tamper.cases import Case, Table
from tamper.subjects import ATTACKER, FIRST, FORGED, INDEX_COMMENT, PLAIN, SECOND, TRUST, Subjects

from edgebuild.core.delta import serialize
from edgebuild.core.trust import MAX_BYTES

CHUNK = 500
UNCHANGED = "unchanged"
"""Of a mutant whose head is the current release's: nothing of that is missing, so nothing else is looked at."""
KEY_BYTES = 42


def bundles(subjects: Subjects, count: int, seed: int) -> Iterator[Case]:
    first, bundle, third = subjects.bundles
    originals = (first, bundle, third)
    anywhere = bytewise.changes(bundle, first, archives.aims(subjects), count, seed)
    for group, data in real(originals, anywhere):
        yield Case(f"bundle: {group}", "b", (TRUST, data))
    for group, data in real(originals, archives.changes(subjects, count, seed)):
        yield Case(f"bundle: {group}", "b", (TRUST, data))
    for group, text in manifests.texts(subjects, count, seed):
        yield Case(f"signed manifest: {group}", "b", (TRUST, manifests.resigned(subjects.parts[1], text)))
    manifest, _ = subjects.heads[1]
    for group, signature in signatures.signatures(manifest, subjects.parts[1].comment):
        data = manifests.resigned(subjects.parts[1], manifest, signature or b"\n")
        if data != bundle:
            yield Case(f"signature: {group}", "b", (TRUST, data))
    for stranger in (ATTACKER, FORGED, roles.ROOTS[0]):
        other = subjects.parts[1].but(key=stranger).build()
        yield Case("bundle: signed by another key", "b", (TRUST, other))
        yield Case("bundle: signed by another key", "b", (FIRST.build(), other))
        yield Case("bundle: signed by another key", "b", (SECOND.build(), other))


def trust_files(subjects: Subjects, count: int, seed: int) -> Iterator[Case]:
    """As a device is provisioned with them, as what follows, and with a good bundle in hand."""
    first, second = FIRST.build(), SECOND.build()
    aims = {
        "a trust file's body": [*range(len(FIRST.body()))],
        "its signatures": [*range(len(FIRST.body()), len(first))],
    }
    for group, data in real((first, second), bytewise.changes(first, second, aims, count, seed)):
        yield Case(f"trust: {group}", "t", (b"", data))
        yield Case("bundle under a changed trust file", "b", (data, subjects.bundles[1]))
    aims = {
        "a trust file's body": [*range(len(SECOND.body()))],
        "its signatures": [*range(len(SECOND.body()), len(second))],
    }
    for group, data in real((first, second), bytewise.changes(second, first, aims, count, seed + 1)):
        yield Case(f"trust: {group}", "t", (first, data))
    for group, data in trusts.trusts(count, seed):
        yield Case(group, "t", (b"", data))
    for data in usurpers():
        yield Case("trust: stands, but does not follow", "t", (first, data))
    yield Case("trust: stands, but does not follow", "t", (second, first))


def usurpers() -> Iterator[bytes]:
    """Good trust files of other owners, or signed by too few of the old roots."""
    strangers = tuple(tiny.Key.new(seed) for seed in range(60, 64))
    one = SECOND.but(roots=(roles.ROOTS[1], *strangers), retired=(), signers=(roles.ROOTS[1], strangers[0]))
    theirs = SECOND.but(roots=strangers, retired=(), signers=strangers[:2])
    for version in ("1", "2", "3", "2147483647"):
        for roles_ in (
            one,
            theirs,
            theirs.but(threshold="1"),
            theirs.but(retired=roles.ROOTS[:1], signers=(*strangers[:2], roles.ROOTS[0])),
        ):
            yield roles_.but(version=version).build()
    yield FIRST.but(release=(ATTACKER,)).build()
    yield TRUST


def plain(count: int, seed: int) -> Iterator[Case]:
    """A list of keys is not signed: what is trusted must be what the page says."""
    for group, data in real((PLAIN, FIRST.build()), bytewise.changes(PLAIN, FIRST.build(), {}, count, seed)):
        yield Case(f"plain trust: {group}", "t", (b"", data), exact=listed(data))


def listed(data: bytes) -> tuple[str, ...]:
    """The keys of a plain list, read straight from SPEC 4, as the driver lists them; empty for one that is refused."""
    found: list[bytes] = []
    for line in data.split(b"\n"):
        if line in {b""} or line.startswith((b"#", b"untrusted comment:")):
            continue
        try:
            key = base64.b64decode(line, validate=True)
        except ValueError:
            return ()
        if len(key) != KEY_BYTES or base64.b64encode(key) != line or key[:2] != b"Ed" or len(data) > 1 << 16:
            return ()
        if key[2:10] in [other[:8] for other in found]:
            return ()
        found.append(key[2:])
    return ("".join(f"{key.hex()}," for key in found),) if found else ()


def delta_changes(subjects: Subjects, count: int, seed: int) -> Iterator[Change]:
    whole, other = serialize(subjects.delta), serialize(subjects.delta_to(2))
    anywhere = bytewise.changes(whole, other, deltas.layout(subjects.delta), count, seed)
    for group, data in real((whole, other), itertools.chain(anywhere, deltas.changes(subjects, count, seed))):
        yield group if group.startswith("delta") else f"delta: {group}", data
    for number, (_, text) in enumerate(manifests.texts(subjects, count, seed)):
        if number % 5 == 0 and 0 < len(text) < 65536:
            yield "delta: a malformed manifest, signed", deltas.with_manifest(subjects, text)


def all_deltas(subjects: Subjects, count: int, seed: int) -> Iterator[Case]:
    for group, data in delta_changes(subjects, count, seed):
        yield Case(group, "d", (data,), exact=(subjects.digest,))


def installs(subjects: Subjects, count: int, seed: int) -> Iterator[Case]:
    """Into a store: every byte of a bundle is looked at where the store is empty; where it has a release, what it has
    is passed over, and what becomes current must be the new one all the same.
    """
    first, bundle, third = subjects.bundles
    anywhere = bytewise.changes(bundle, first, archives.aims(subjects), count, seed)
    both = [
        data
        for _, data in real((first, bundle, third), itertools.chain(anywhere, archives.changes(subjects, count, seed)))
    ]
    yield from (Case("installed: bundle, empty store", "e", (data,)) for data in both[::4])
    yield from (Case("installed: bundle", "s", (data,), exact=(subjects.head_digest, UNCHANGED)) for data in both[2::4])
    for number, (group, data) in enumerate(delta_changes(subjects, count, seed)):
        if number % 4 == 0 or group in {"delta: the head of another release", "delta: manifest and signature of two"}:
            yield Case("installed: delta", "s", (data,), exact=(subjects.head_digest, UNCHANGED))


def trusted_installs(subjects: Subjects, count: int, seed: int) -> Iterator[Case]:
    """A good release, with a trust file that is none, into a store that follows one."""
    first, second = FIRST.build(), SECOND.build()
    aims = {"a trust file's body": [*range(len(SECOND.body()))]}
    changed = itertools.chain(bytewise.changes(second, first, aims, count // 4, seed), trusts.trusts(count // 4, seed))
    for number, (_, data) in enumerate(real((first, second), changed)):
        if number % 3 == 0 and len(data) <= MAX_BYTES:
            yield Case("installed: under a changed trust file", "k", (data, subjects.bundles[1]))
    for data in (*usurpers(), PLAIN):
        yield Case("installed: under another's trust file", "k", (data, subjects.bundles[1]))


def release_indices(subjects: Subjects, count: int, seed: int) -> Iterator[Case]:
    text = subjects.index
    signature = tiny.KEY.sign(text, INDEX_COMMENT)
    for group, data in real((text,), bytewise.changes(text, subjects.heads[0][0], {}, count // 2, seed)):
        yield Case(f"index: {group}", "i", (TRUST, data, signature))
    for group, data in real((signature,), bytewise.changes(signature, subjects.heads[1][1], {}, count // 2, seed)):
        yield Case(f"index signature: {group}", "i", (TRUST, text, data))
    for group, data in signatures.signatures(text, INDEX_COMMENT):
        if data != signature:
            yield Case(f"index signature: {group}", "i", (TRUST, text, data))
    for group, data in indices.malformed(subjects, count, seed):
        yield Case(group, "i", (TRUST, data, tiny.KEY.sign(data, INDEX_COMMENT)))


def originals(subjects: Subjects) -> Iterator[Case]:
    """Before anything is changed: all of it is accepted."""
    data, index = serialize(subjects.delta), subjects.index
    release_keys = listed(b"".join(key.public.encode() + b"\n" for key in roles.RELEASES))
    for letter, parts, exact in (
        ("b", (TRUST, subjects.bundles[1]), ("",)),
        ("b", (FIRST.build(), subjects.bundles[1]), ("",)),
        ("b", (TRUST, minisigned(subjects)), ("",)),
        ("t", (b"", FIRST.build()), release_keys),
        ("t", (b"", SECOND.build()), release_keys),
        ("t", (FIRST.build(), SECOND.build()), release_keys),
        ("t", (b"", PLAIN), listed(PLAIN)),
        ("i", (TRUST, index, tiny.KEY.sign(index, INDEX_COMMENT)), ("",)),
        ("d", (data,), (subjects.digest,)),
        ("s", (data,), (subjects.head_digest,)),
        ("s", (subjects.bundles[1],), (subjects.head_digest,)),
        ("s", (subjects.bundles[0],), (UNCHANGED,)),
        ("e", (subjects.bundles[1],), (subjects.head_digest,)),
        ("k", (FIRST.build(), subjects.bundles[1]), (subjects.head_digest,)),
        ("k", (SECOND.build(), subjects.bundles[1]), (subjects.head_digest,)),
    ):
        yield Case("untouched", letter, parts, exact)


def minisigned(subjects: Subjects) -> bytes:
    """The other spelling of an untrusted comment that SPEC 3 accepts."""
    bundle = subjects.parts[1]
    text, signature = subjects.heads[1]
    other = signature.replace(b"signature from edgebuild", b"signature from minisign secret key", 1)
    return manifests.resigned(bundle, text, other)


MAKERS: tuple[Callable[[Subjects, int, int], Iterator[Case]], ...] = (
    bundles, trust_files, lambda _, count, seed: plain(count, seed), all_deltas, release_indices, installs,
    trusted_installs,
)  # fmt: skip


def cases(subjects: Subjects, count: int, seed: int) -> Iterator[Case]:
    for maker in MAKERS:
        yield from maker(subjects, count, seed)


def run(
    program: Path,
    folder: Path,
    subjects: Subjects,
    found: Iterable[Case],
    every: int,
    progress: Callable[[Table], None],
) -> Table:
    """Every case through the native reader, one in `every` through Python's too."""
    table = Table()
    base = subjects.bundles[0]
    for chunk in chunks(found):
        lines = readers.native(program, folder, base, TRUST, FIRST.build(), chunk)
        for number, (case, line) in enumerate(zip(chunk, lines, strict=True)):
            table.add(case, line, readers.python(case, base, TRUST) if number % every == 0 else None)
        progress(table)
    return table


def chunks(found: Iterable[Case]) -> Iterator[list[Case]]:
    iterator = iter(found)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


@contextmanager
def fast_folder(otherwise: Path) -> Iterator[Path]:
    """In memory, where there is such a place: a store syncs every file that it writes."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
