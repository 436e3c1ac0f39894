"""Mutants through the program that devices have: `edgebuild-run install`, and the store's files before and after."""

from collections.abc import Iterable
from pathlib import Path

from store import Store
from tamper.cases import Case
from tamper.subjects import Subjects

REFUSALS = {1, 2, 3, 4}
"""Exit codes of what is wrong with the file; a sanitizer's report is 1 as well, and is told by its text."""


def check(program: Path, folder: Path, subjects: Subjects, cases: Iterable[Case]) -> list[str]:
    """What went wrong; `cases` are installs."""
    stores = {letter: Store(program, folder / letter) for letter in "es"}
    before = {letter: _fresh(store, letter, subjects) for letter, store in stores.items()}
    wrong = []
    for case in cases:
        store = stores[case.letter]
        done = store.run("install", store.write("mutant", case.parts[0]))
        after = store.listing()
        if done.returncode == 0 and case.exact:
            right = _current(store) in {subjects.base(0).hex(), subjects.base(1).hex()}
            problem = "" if right else "another release is current"
        else:
            problem = _refused(done.returncode, done.stderr, before[case.letter], after)
        if problem:
            wrong.append(f"{case.group}: {problem}: {done.stderr[:500]}")
        if after != before[case.letter]:
            before[case.letter] = _fresh(store, case.letter, subjects)
    return wrong


def _fresh(store: Store, letter: str, subjects: Subjects) -> dict[str, str]:
    """An empty store, or one with the first release; its listing."""
    store.folder.mkdir(exist_ok=True)
    for path in sorted(store.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if letter == "s":
        store.install(subjects.bundles[0])
    else:
        store.run("install", store.write("nothing", b""))
    return store.listing()


def _current(store: Store) -> str:
    return str(store.status()["id"])


def _refused(code: int, said: str, before: dict[str, str], after: dict[str, str]) -> str:
    if code not in REFUSALS or not said.startswith("error: ") or "hint: " not in said:
        return f"exit code {code}"
    if {name: after.get(name) for name in before} != before:
        return "the store is not as it was"
    for name in set(after) - set(before):
        folder, _, digest = name.partition("/")
        if folder != "partial" and not (folder == "blobs" and after[name].endswith(digest)):
            return f"the store has {name}"
    return ""
