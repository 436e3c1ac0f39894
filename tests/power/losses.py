"""What a disk may hold after the power went: every call up to then, less what was not yet made durable.

A file's bytes, size and mode are durable once the file is synced, a folder's entries once the folder is; a rename
inside one folder happens whole or not at all. Nothing else is promised, neither an order nor that a synced file has a
name (the model of Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014). A page that was written but not
synced may be lost, or be there as zeros, as ext4 leaves it with data=writeback.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from power.calls import Call

TRUNCATES = 0o1000000
Tree = dict[str, tuple[int, bytes | None]]
"""Mode and bytes by path below the store's parent; a folder has no bytes."""


@dataclass(frozen=True)
class Effect:
    """Of the call number `at` on one file or folder."""

    at: int
    owner: int


@dataclass(frozen=True)
class Entries(Effect):
    changes: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Bytes(Effect):
    offset: int
    data: bytes


@dataclass(frozen=True)
class Size(Effect):
    size: int


@dataclass(frozen=True)
class Mode(Effect):
    mode: int


@dataclass
class Node:
    mode: int
    content: bytes = b""
    entries: dict[str, int] | None = None

    def copy(self) -> "Node":
        return Node(self.mode, self.content, None if self.entries is None else dict(self.entries))

    def apply(self, effect: Effect) -> None:
        match effect:
            case Entries(changes=changes):
                assert self.entries is not None
                for name, number in changes:
                    if number is None:
                        self.entries.pop(name, None)
                    else:
                        self.entries[name] = number
            case Bytes(offset=offset, data=data):
                before = self.content[:offset].ljust(offset, b"\0")
                self.content = before + data + self.content[offset + len(data) :]
            case Size(size=size):
                self.content = self.content[:size].ljust(size, b"\0")
            case Mode(mode=mode):
                self.mode = mode


@dataclass(frozen=True)
class Loss:
    """A state that the disk may be in when the power goes before call `before`."""

    before: int
    kept: str
    tree: Tree


class Disk:
    """The folder that holds the store, as it was, and what the calls did to it."""

    def __init__(self, parent: Path, store: str, calls: Sequence[Call]) -> None:
        self.store = store
        self.calls = calls
        self.nodes: dict[int, Node] = {}
        self.effects: list[Effect] = []
        self.syncs: list[tuple[int, int]] = []
        self.root = self._take(0o40700, entries={})
        if (parent / store).exists():
            self.nodes[self.root].entries = {store: self._read(parent / store)}
        self._live = {number: node.copy() for number, node in self.nodes.items()}
        for at, call in enumerate(calls):
            if not call.failed:
                self._follow(at, call)

    def _take(self, mode: int, content: bytes = b"", entries: dict[str, int] | None = None) -> int:
        number = len(self.nodes)
        self.nodes[number] = Node(mode, content, entries)
        return number

    def _read(self, path: Path) -> int:
        mode = path.stat().st_mode
        if not path.is_dir():
            return self._take(mode, path.read_bytes())
        return self._take(mode, entries={one.name: self._read(one) for one in sorted(path.iterdir())})

    def _place(self, path: str) -> tuple[int, str]:
        """The folder that holds a path, and the name there."""
        parts = [self.store, *(part for part in path.split("/") if part != ".")]
        number = self.root
        for part in parts[:-1]:
            number = (self._live[number].entries or {})[part]
        return number, parts[-1]

    def _find(self, path: str) -> int | None:
        if path == "..":
            return self.root
        folder, name = self._place(path)
        return (self._live[folder].entries or {}).get(name)

    def _add(self, effect: Effect) -> None:
        self.effects.append(effect)
        self._live[effect.owner].apply(effect)

    def _create(self, at: int, path: str, mode: int, entries: dict[str, int] | None) -> None:
        folder, name = self._place(path)
        number = self._take(mode, entries=entries)
        self._live[number] = self.nodes[number].copy()
        self._add(Entries(at, folder, ((name, number),)))

    def _rename(self, at: int, old: str, new: str) -> None:
        (source, old_name), (target, new_name) = self._place(old), self._place(new)
        gone, there = (old_name, None), (new_name, self._find(old))
        if source == target:
            self._add(Entries(at, source, (gone, there)))
        else:
            self._add(Entries(at, target, (there,)))
            self._add(Entries(at, source, (gone,)))

    def _follow(self, at: int, call: Call) -> None:
        if call.path.endswith(" (deleted)"):
            return
        number = self._find(call.path)
        if call.name == "open" and number is None:
            self._create(at, call.path, 0o100000 | call.number & 0o777, None)
        elif call.name == "mkdir":
            self._create(at, call.path, 0o40000 | call.number, {})
        elif call.name == "rename":
            self._rename(at, call.path, call.other)
        else:
            assert number is not None, call
            self._change(at, call, number)

    def _change(self, at: int, call: Call, number: int) -> None:
        if call.name == "fsync":
            self.syncs.append((at, number))
        elif call.name == "syncfs":
            self.syncs += [(at, one) for one in self.nodes]
        elif call.name == "write":
            self._add(Bytes(at, number, call.number, call.data))
        elif call.name == "ftruncate" or (call.name == "open" and call.number & TRUNCATES):
            size = call.number if call.name == "ftruncate" else 0
            if size != len(self._live[number].content):
                self._add(Size(at, number, size))
        elif call.name == "fchmod":
            self._add(Mode(at, number, self._live[number].mode & ~0o777 | call.number))
        elif call.name == "unlink":
            folder, name = self._place(call.path)
            self._add(Entries(at, folder, ((name, None),)))

    def tree(self, effects: Iterable[Effect]) -> Tree:
        nodes = {number: node.copy() for number, node in self.nodes.items()}
        for effect in effects:
            nodes[effect.owner].apply(effect)
        found: Tree = {}

        def visit(number: int, path: str) -> None:
            node = nodes[number]
            if node.entries is None:
                found[path] = (node.mode, node.content)
                return
            found[path] = (node.mode, None)
            for name in sorted(node.entries):
                visit(node.entries[name], f"{path}/{name}")

        store = (nodes[self.root].entries or {}).get(self.store)
        if store is not None:
            visit(store, self.store)
        return found

    def after(self, before: int) -> Tree:
        """What the calls before this one made, nothing lost."""
        return self.tree(effect for effect in self.effects if effect.at < before)

    def durable(self, before: int) -> Tree:
        """What is left if everything is lost that may be."""
        return self.tree(self._split(before)[0])

    def _split(self, before: int) -> tuple[list[Effect], list[Effect]]:
        last: Mapping[int, int] = {number: at for at, number in self.syncs if at < before}
        made = [effect for effect in self.effects if effect.at < before]
        is_sure = [effect.at < last.get(effect.owner, -1) for effect in made]
        sure = [effect for effect, yes in zip(made, is_sure, strict=True) if yes]
        return sure, [effect for effect, yes in zip(made, is_sure, strict=True) if not yes]

    def losses(self, *, subsets: int = 0) -> Iterator[Loss]:
        """States after each call; with `subsets` also every choice among so many unsynced effects, or fewer."""
        for before in range(len(self.calls) + 1):
            sure, pending = self._split(before)
            for kept, chosen in _choices(pending, subsets):
                yield Loss(before, kept, self.tree(sorted((*sure, *chosen), key=lambda effect: effect.at)))


def _choices(pending: list[Effect], subsets: int) -> Iterator[tuple[str, list[Effect]]]:
    yield "what is synced", []
    yield "everything", pending
    if not pending:
        return
    yield "everything, unsynced bytes as zeros", [_zeros(effect) for effect in pending]
    yield "names and modes, unsynced bytes and sizes not", [e for e in pending if isinstance(e, Entries | Mode)]
    if isinstance(pending[-1], Bytes):
        data = pending[-1].data
        yield "everything, half of the last write", [*pending[:-1], replace(pending[-1], data=data[: len(data) // 2])]
    for i, effect in enumerate(pending):
        yield f"what is synced, and number {effect.at}", [effect]
        yield f"everything but number {effect.at}", pending[:i] + pending[i + 1 :]
    if len(pending) <= subsets:
        for mask in itertools.product((False, True), repeat=len(pending)):
            chosen = [effect for effect, keep in zip(pending, mask, strict=True) if keep]
            yield "what is synced, and numbers " + " ".join(str(effect.at) for effect in chosen), chosen


def _zeros(effect: Effect) -> Effect:
    return replace(effect, data=bytes(len(effect.data))) if isinstance(effect, Bytes) else effect


def write_tree(tree: Tree, parent: Path) -> None:
    for path, (mode, content) in tree.items():
        if content is None:
            (parent / path).mkdir()
        else:
            (parent / path).write_bytes(content)
            (parent / path).chmod(mode & 0o777)
    for path, (mode, content) in reversed(tree.items()):
        if content is None:
            (parent / path).chmod(mode & 0o777)


def without(calls: Sequence[Call], name: str, path: str) -> list[Call]:
    """The same calls but those of a name on paths of a pattern: what a mistake in the program would have done."""
    kept = [call for call in calls if not (call.name == name and re.fullmatch(path, call.path))]
    assert len(kept) < len(calls)
    return kept


def moved(calls: Sequence[Call], path: str, before: str) -> list[Call]:
    """The same calls, those on paths that start with `path` in front of the first on one that starts with `before`."""
    first = [call for call in calls if call.path.startswith(path)]
    rest = [call for call in calls if not call.path.startswith(path)]
    at = next(i for i, call in enumerate(rest) if call.path.startswith(before))
    return [*rest[:at], *first, *rest[at:]]
