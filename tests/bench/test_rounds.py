from dataclasses import dataclass, field

from edgebuild.bench import rounds
from edgebuild.bench.engines import Start

START = Start(1.0, 1.0, 1, 0)


@dataclass
class Fake:
    """Says that each run took `time_us`, and numbers its runs; writes its turns to a log that engines share."""

    name: str
    time_us: float
    log: list[str]
    start: Start = START
    runs: int = 0
    counts: list[int] = field(default_factory=list)

    def run(self, count: int) -> list[float]:
        self.log.append(self.name)
        self.counts.append(count)
        self.runs += count
        return [self.time_us] * count

    def outputs(self) -> list[object]:
        return []

    def close(self) -> None: ...


def fakes(monkeypatch, **times_us: float) -> tuple[dict[str, Fake], list[str]]:
    monkeypatch.setattr(rounds, "WARM_SECONDS", 0.0)
    log: list[str] = []
    return {name: Fake(name, time_us, log) for name, time_us in times_us.items()}, log


def test_every_engine_runs_in_every_round_and_none_is_always_first(monkeypatch) -> None:
    engines, log = fakes(monkeypatch, a=5e4, b=5e4, c=5e4)
    rounds.measure(engines, 50)
    turns = [log[3:][at : at + 3] for at in range(0, 3 * rounds.ROUNDS, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert {turn[0] for turn in turns} == {"a", "b", "c"}


def test_no_engine_runs_less_often_than_asked_and_fast_ones_run_more(monkeypatch) -> None:
    engines, _ = fakes(monkeypatch, fast=100.0, slow=1500.0)
    times = rounds.measure(engines, 70)
    assert len(times["fast"]) >= rounds.ROUNDS * rounds.ROUND_SECONDS * 1e6 / 100.0
    assert len(times["slow"]) >= 70


def test_the_first_runs_of_a_round_do_not_count(monkeypatch) -> None:
    engines, _ = fakes(monkeypatch, only=2000.0)
    times = rounds.measure(engines, 50)
    refresh = rounds.REFRESH_SECONDS * 1e6 / 2000.0
    assert engines["only"].runs - 1 - len(times["only"]) == rounds.ROUNDS * refresh


def test_nobody_waits_for_an_engine_that_is_far_slower(monkeypatch) -> None:
    engines, _ = fakes(monkeypatch, fast=1e3, slow=1e3 * rounds.SLOW_FACTOR * 2)
    times = rounds.measure(engines, 50)
    assert len(times["slow"]) < 50 <= len(times["fast"])
