"""Deltas with this machine's build of the native codecs."""

import functools

from edgebuild.core.coded import Codecs
from edgebuild.stages import delta
from edgebuild.stages.delta import Made


def make_delta(old: bytes, new: bytes) -> Made:
    """The delta from one bundle to another (SPEC section 12); `.data` is its bytes."""
    return delta.make_delta(old, new, codecs())


def apply_delta(old: bytes, data: bytes) -> bytes:
    """The new bundle that a delta makes of the old one; signatures are not verified."""
    return delta.apply_delta(old, data, codecs())


@functools.cache
def codecs() -> Codecs:
    """Built once; later builds find it in the cache."""
    from edgebuild.stages.runtime import delta_encoder  # noqa: PLC0415 - a build that has no delta needs no encoder

    return Codecs(delta_encoder())
