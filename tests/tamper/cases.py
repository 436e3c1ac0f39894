"""One mutant, and what is said of it."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """A mutant of a class. `letter` and `parts` are a record of the driver (runtime-min/tests/tamper.c).

    It must be refused, or, where `exact` is not empty, accepted with one of these results.
    """

    group: str
    letter: str
    parts: tuple[bytes, ...]
    exact: tuple[str, ...] = ()

    def record(self) -> bytes:
        return self.letter.encode() + b"".join(len(part).to_bytes(4, "little") + part for part in self.parts)

    def harmless(self, outcome: str) -> bool:
        """`outcome` is a line of the driver."""
        status, _, result = outcome.partition(" ")
        return status != "ok" or result.strip() in self.exact


CRASH = "crash"


@dataclass
class Row:
    """A class of the table."""

    mutants: int = 0
    exact: int = 0
    accepted: int = 0
    crashes: int = 0
    compared: int = 0
    disagreements: int = 0


@dataclass
class Table:
    """Counts by class, and every case that should not be: (what, case, outcome)."""

    rows: dict[str, Row] = field(default_factory=dict)
    wrong: list[tuple[str, Case, str]] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, case: Case, native: str, python: str | None) -> None:
        row = self.rows.setdefault(case.group, Row())
        row.mutants += 1
        self.statuses[native.split(" ", maxsplit=1)[0]] += 1
        if native.startswith(CRASH):
            row.crashes += 1
            self.wrong.append(("crash", case, native))
        elif not case.harmless(native):
            row.accepted += 1
            self.wrong.append(("accepted", case, native))
        row.exact += native.startswith("ok ") and case.harmless(native)
        if python is not None:
            self._compare(row, case, native, python)

    def _compare(self, row: Row, case: Case, native: str, python: str) -> None:
        row.compared += 1
        if not case.harmless(python):
            row.accepted += 1
            self.wrong.append(("accepted by Python", case, python))
        same = native.strip() == python.strip() if native.startswith("ok") else not python.startswith("ok")
        if not same:
            row.disagreements += 1
            self.wrong.append(("disagreement", case, f"{native} / {python}"))

    def total(self) -> Row:
        rows = self.rows.values()
        return Row(*(sum(getattr(row, name) for row in rows) for name in Row.__dataclass_fields__))

    def text(self) -> str:
        """For people."""
        names = ("mutants", "accepted", "crashes", "exact", "compared", "disagreements")
        rows = [*self.rows.items(), ("all", self.total())]
        lines = [f"{'class':44}" + "".join(f"{name:>14}" for name in names)]
        lines += [f"{group:44}" + "".join(f"{getattr(row, name):14}" for name in names) for group, row in rows]
        return "\n".join(lines)
