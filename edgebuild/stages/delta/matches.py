"""Where a new file's bytes lie in the old one, though addresses in them moved: bsdiff's search (Percival, "Naive
differences of executable code", 2003), by the package bsdiff4.
"""

import numpy as np

Step = tuple[int, int, int]


def steps(old: bytes, new: bytes) -> list[Step]:
    """(copy, extra, seek): so many bytes of the old file with differences added, so many of its own, then the cursor in
    the old file moves. The first step only seeks, and no other one is empty.
    """
    from bsdiff4 import core  # noqa: PLC0415 - only a delta needs it

    control, _, _ = core.diff(old, new)
    raw = np.frombuffer(control, "<u8")
    size = (raw & np.uint64(2**63 - 1)).astype(np.int64)
    rows = np.where(raw >> np.uint64(63), -size, size).reshape(-1, 3).tolist()
    found = [(0, 0, 0)]
    for copy, extra, seek in rows:
        if copy + extra:
            found.append((copy, extra, seek))
        else:
            found[-1] = (*found[-1][:2], found[-1][2] + seek)
    return found
