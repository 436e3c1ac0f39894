import pytest

from edgebuild.bench import peak
from edgebuild.core.target_file import host_features


def test_bandwidth_is_that_of_the_smallest_memory_that_fits() -> None:
    limits = peak.Peak("dot", 1.0, {1024: 100.0, 4096: 50.0, 65536: 10.0})
    assert [limits.bandwidth(size) for size in (1, 1024, 1025, 65536, 1 << 30)] == [100.0, 100.0, 50.0, 10.0, 10.0]


def test_the_widest_dot_product_that_code_may_use_is_timed() -> None:
    arch, features = host_features()
    wide, rate = peak.dot_rate(arch, features, 1)
    plain, slow = peak.dot_rate(arch, (), 1)
    assert plain == "one multiplication at a time"
    assert wide != plain
    assert rate > slow > 0


@pytest.mark.parametrize("feature", ["avx2", "avxvnni", "avx512vnni"])
def test_every_x86_program_compiles(feature: str) -> None:
    _, instruction, options = peak._best("x86_64", (feature,))
    assert len(peak._program("x86_64", feature, options)) > 1000
    assert "bits" in instruction


@pytest.mark.parametrize("feature", ["neon", "dotprod", "i8mm"])
def test_every_arm_program_compiles(feature: str) -> None:
    _, _, options = peak._best("aarch64", (feature,))
    assert peak._program("aarch64", feature, options)[:4] == b"\x7fELF"
