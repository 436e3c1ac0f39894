from datetime import UTC, date, datetime

import pytest

from edgebuild.core import dates
from edgebuild.core.errors import UsageError

MADE = date(2026, 1, 31)


@pytest.mark.parametrize("text", ["2000-01-01", "2028-02-29", "9999-12-31"])
def test_a_day(text: str) -> None:
    assert dates.parse_day(text).isoformat() == text


@pytest.mark.parametrize(
    "text",
    ["2026-02-29", "2026-04-31", "1999-12-31", "2026-1-01", "20260101", "2026-W01-1", "2026-01-01\n", "٢026-01-01", ""],
)
def test_no_day(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its message is the caller's
        dates.parse_day(text)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-02-01", date(2026, 2, 1)),
        ("+1d", date(2026, 2, 1)),
        ("+90d", date(2026, 5, 1)),
        ("+2w", date(2026, 2, 14)),
        ("+1m", date(2026, 2, 28)),
        ("+11m", date(2026, 12, 31)),
        ("+12m", date(2027, 1, 31)),
        ("+25m", date(2028, 2, 29)),
        ("+1y", date(2027, 1, 31)),
        ("+7973y", date(9999, 1, 31)),
        ("9999-12-31", date(9999, 12, 31)),
    ],
)
def test_when_it_expires(text: str, day: date) -> None:
    assert dates.expiry_day("--expires", text, MADE) == day


@pytest.mark.parametrize(
    "text", ["", "+", "+0d", "1y", "+1", "+1h", "+1.5y", "-1d", "+8000y", "+99999y", "+99999m", "2026-02-30", "never"]
)
def test_a_wrong_expiry(text: str) -> None:
    with pytest.raises(UsageError, match=r"--expires .*: no day of the years 2000 to 9999") as caught:
        dates.expiry_day("--expires", text, MADE)
    assert "+90d" in caught.value.hint


@pytest.mark.parametrize("text", ["2026-01-31", "2025-12-31"])
def test_an_expiry_that_is_past(text: str) -> None:
    with pytest.raises(UsageError, match=f"--expires {text}: is not after 2026-01-31, when it is made"):
        dates.expiry_day("--expires", text, MADE)


def test_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    before = datetime.now(UTC).date()
    assert before <= dates.made_day("--made", "now") <= datetime.now(UTC).date()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "951782399")
    assert dates.made_day("--made", "now") == dates.today() == date(2000, 2, 28)
    assert dates.made_day("--made", "2026-01-31") == MADE


@pytest.mark.parametrize("said", ["", "x", "-1", "0", "9" * 30, "253402300800"])
def test_a_wrong_epoch(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", said)
    with pytest.raises(UsageError, match=r"\$SOURCE_DATE_EPOCH is ") as caught:
        dates.today()
    assert "seconds since 1970" in caught.value.hint
