"""Days of manifests and trust files (SPEC sections 2 and 4), and how the command line says them."""

import os
import re
from datetime import UTC, date, datetime, timedelta

from edgebuild.core.errors import UsageError

EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"
_DAY = re.compile(r"[2-9][0-9]{3}-[0-9]{2}-[0-9]{2}")
_LATER = re.compile(r"\+([1-9][0-9]{0,4})([dwmy])")
_SAID = "a day as YYYY-MM-DD, or +90d, +6m, +1y"


def parse_day(text: str) -> date:
    """`YYYY-MM-DD`, of the years 2000 to 9999. Raises ValueError for anything else."""
    if not _DAY.fullmatch(text):
        raise ValueError(text)
    return date.fromisoformat(text)


def today() -> date:
    """The day in UTC; that of $SOURCE_DATE_EPOCH where it is set (https://reproducible-builds.org/specs/).

    Raises UsageError for a variable that is no time of the years 2000 to 9999.
    """
    said = os.environ.get(EPOCH_VARIABLE)
    if said is None:
        return datetime.now(UTC).date()
    try:
        day = datetime.fromtimestamp(int(said), UTC).date()
        return parse_day(day.isoformat())
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"${EPOCH_VARIABLE} is {said!r}", "set it to seconds since 1970, of a day from 2000 on, or unset it"
        ) from error


def made_day(option: str, text: str) -> date:
    """What --made says: `now`, or a day. Raises UsageError."""
    if text == "now":
        return today()
    try:
        return parse_day(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: no day of the years 2000 to 9999", "e.g. now, 2026-01-31") from error


def expiry_day(option: str, text: str, made: date) -> date:
    """What --expires says: a day behind `made`, or how long after it: days, weeks, months, years. Raises UsageError."""
    later = _LATER.fullmatch(text)
    try:
        day = _after(made, int(later[1]), later[2]) if later else parse_day(text)
        parse_day(day.isoformat())
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{option} {text}: no day of the years 2000 to 9999", _SAID) from error
    if day <= made:
        raise UsageError(f"{option} {text}: is not after {made}, when it is made", _SAID)
    return day


def _after(day: date, count: int, unit: str) -> date:
    if unit in "dw":
        return day + timedelta(days=count * (7 if unit == "w" else 1))
    months = day.month - 1 + count * (12 if unit == "y" else 1)
    year, month = day.year + months // 12, months % 12 + 1
    first_of_next = date(year + month // 12, month % 12 + 1, 1)
    last = (first_of_next - timedelta(days=1)).day  # one month after January 31st is the last of February
    return date(year, month, min(day.day, last))
