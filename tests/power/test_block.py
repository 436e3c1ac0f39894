"""The same on real file systems, where this machine may mount them; tests/benchmarks/power_cut.py --disks does all."""

import pytest
from power.block import FILE_SYSTEMS, Disks, FileSystem, cannot
from power.operations import BY_NAME
from power.sweep import Bench

EXT4 = FILE_SYSTEMS[0]
NAMES = ("first install", "install over two", "install, other roles", "follow, delta", "rollback", "gc")


def disks(bench: Bench, system: FileSystem, *, deaf: bool = False) -> Disks:
    if why := cannot(system):
        pytest.skip(f"no {system.name} can be mounted: {why}")
    return Disks(bench, system, deaf=deaf)


@pytest.mark.parametrize("system", FILE_SYSTEMS, ids=lambda system: system.name)
@pytest.mark.parametrize("name", NAMES)
def test_power_lost(bench: Bench, system: FileSystem, name: str) -> None:
    found = disks(bench, system).lose(BY_NAME[name], every=11)
    assert found.problems == []


def test_power_lost_behind_syncs_that_do_nothing(bench: Bench) -> None:
    """That the test sees what it is to see."""
    found = disks(bench, EXT4, deaf=True).lose(BY_NAME["install over two"], every=11)
    assert found.problems != []
