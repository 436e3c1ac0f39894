"""Block sizes: any of them gives the same bytes, the lock names them, and the search measures each shape once."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance import graphs
from kernels.native import Native

from edgebuild.core import digest
from edgebuild.core.errors import CalibrationError, RecipeError, UsageError
from edgebuild.core.target import Target
from edgebuild.core.target_file import load_target, runs_here
from edgebuild.kernels import schedules
from edgebuild.kernels.conv import Blocking, Conv, conv_kernel
from edgebuild.kernels.copy import Into
from edgebuild.kernels.depthwise import depthwise_kernel
from edgebuild.kernels.isa import ISAS
from edgebuild.stages.compile import Program, compile_model, tune

NAMES = ("conv_pointwise", "conv_first_layer", "depthwise", "gemm_plain", "embedding")
CONVS = (
    Conv(1, 6, 6, 24, 6, 6, 40),
    Conv(1, 7, 5, 9, 7, 5, 72, (3, 3), (1, 1), (1, 1)),
    Conv(1, 9, 9, 40, 5, 5, 40, (3, 3), (2, 2), (1, 1), groups=40),
)
KEY = re.compile(
    r"(conv|depthwise) (\d+x){3}\d+ to (\d+x){2}\d+ k\d+x\d+ s\d+x\d+ p\d+x\d+ d\d+x\d+ g\d+( \+ table)?", re.ASCII
)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Target:
    """A target that runs here, and a cache of its own."""
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path / "cache"))
    found = load_target("x86_64-avx2")
    if not runs_here(found):
        pytest.skip("this CPU has no AVX2")
    return found


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return graphs.merged({name: graphs.CASES[name] for name in NAMES})


def conv_of(key: str) -> Conv:
    """The shape that a key describes."""
    sizes = [[int(n) for n in part.split("x")] for part in re.findall(r"[\dx]*\d", key.removesuffix(" + table"))]
    (batch, height, width, channels), (rows, columns, outputs), *window, (groups,) = sizes
    pairs = [(a, b) for a, b in window]
    return Conv(batch, height, width, channels, rows, columns, outputs, *pairs, groups)


@pytest.mark.parametrize("name", ["x86_64-avx2", "x86_64-avx512vnni"])
@pytest.mark.parametrize("conv", CONVS, ids=schedules.key)
def test_every_schedule_gives_the_same_bytes(conv: Conv, name: str) -> None:
    target = load_target(name)
    if not runs_here(target):
        pytest.skip(f"this CPU cannot run {name}")
    isa = ISAS[target.isa]
    make = depthwise_kernel if conv.groups > 1 else conv_kernel
    chosen = list(schedules.alternatives(conv, isa).values())
    native = Native([make(conv, isa), *(make(conv, isa, schedule=each) for each in chosen)], target)
    args = _arguments(conv)
    outputs = [native(i, args, np.zeros(conv.pixels * conv.out_channels, np.uint8)) for i in range(len(chosen) + 1)]
    assert len(chosen) > 1
    assert len(set(outputs[0].tolist())) > 20
    for schedule, output in zip(chosen, outputs[1:], strict=True):
        assert np.array_equal(output, outputs[0]), schedule


def _arguments(conv: Conv) -> list[np.ndarray]:
    """More than any instruction set packs; what the values are does not matter."""
    rng = np.random.default_rng(3)
    lanes = -(-conv.out_channels // 64 + 1) * 64 + 64
    return [
        rng.integers(0, 256, conv.batch * conv.height * conv.width * conv.channels).astype(np.uint8),
        rng.integers(-3, 4, lanes * (conv.depth + 16) * 2).astype(np.int8 if conv.groups == 1 else np.int16),
        rng.integers(-900, 900, lanes).astype(np.int32),
        np.full(lanes, 0.02, np.float32),
        np.array([np.float32(127).view(np.int32), 128, 0, 255, 7], np.int32),
    ]


def test_a_key_says_what_the_blocks_depend_on() -> None:
    conv = CONVS[1]
    assert schedules.key(conv) == "conv 1x7x5x9 to 7x5x72 k3x3 s1x1 p1x1 d1x1 g1"
    assert schedules.key(CONVS[2], table=True).endswith(" p1x1 d1x1 g40 + table")
    assert schedules.key(CONVS[2]).startswith("depthwise ")
    for each in CONVS:
        assert KEY.fullmatch(schedules.key(each))
        assert conv_of(schedules.key(each)) == each


def test_the_cost_models_choice_comes_first() -> None:
    for isa in ISAS.values():
        for conv in CONVS:
            (text, first), *_ = schedules.alternatives(conv, isa).items()
            found = schedules.find(conv, isa, table=False, locked={schedules.key(conv): text}, shipped={})
            assert found == first
            assert schedules.find(conv, isa, table=False, locked={}, shipped={}) is None


def test_the_lock_goes_before_what_is_shipped() -> None:
    conv, isa = CONVS[0], ISAS["avx2"]
    one, two = list(schedules.alternatives(conv, isa))[1:3]
    name = schedules.key(conv)
    find = schedules.find
    fitting = schedules.alternatives(conv, isa)
    assert find(conv, isa, table=False, locked={name: one}, shipped={name: two}) == fitting[one]
    assert find(conv, isa, table=False, locked={}, shipped={name: two}) == fitting[two]
    assert find(conv, isa, table=True, locked={name: one}, shipped={name: two}) is None
    assert find(conv, isa, table=False, locked={}, shipped={name: "99x4x1"}) is None


@pytest.mark.parametrize("wrong", ["99x1x1", "4", "", "0x1x1", "6x2", "１x1x1"])
def test_a_locked_schedule_that_does_not_fit_is_refused(model: onnx.ModelProto, wrong: str) -> None:
    target = load_target("x86_64-avx2")
    key = next(layer.key for layer in tune.layers_of(tune.lowered_steps(model, target)) if layer.key.startswith("conv"))
    with pytest.raises(RecipeError, match=f"'{re.escape(key)}' cannot be cut into blocks of '{wrong}'") as caught:
        compile_model(model, target, {key: wrong})
    assert "--update-lock" in caught.value.hint


def test_a_lock_changes_the_code_only(model: onnx.ModelProto) -> None:
    target = load_target("x86_64-avx2")
    layers = tune.layers_of(tune.lowered_steps(model, target))
    locked = {layer.key: layer.candidates[-1] for layer in layers}
    default, one, two = compile_model(model, target), *(compile_model(model, target, locked) for _ in range(2))
    assert one == two
    assert isinstance(one, Program)
    assert one.program_so != default.program_so
    assert one.weights == default.weights
    unrelated = {"conv 1x1x1x1 to 1x1x1 k1x1 s1x1 p0x0 d1x1 g1": "1x1x1"}
    assert compile_model(model, target, unrelated) == default


def test_shapes_are_listed_once_with_most_work_first(model: onnx.ModelProto) -> None:
    emitter = tune.lowered_steps(model, load_target("x86_64-avx2"))
    steps = [step for step in emitter.steps if step.make in (conv_kernel, depthwise_kernel)]
    emitter.steps += [step.with_option("into", Into(8, 8, 0, 8)) for step in steps]
    layers = tune.layers_of(emitter)
    assert 1 < len(layers) == len({layer.key for layer in layers}) <= len(steps)
    assert [x.step.macs for x in layers] == sorted((x.step.macs for x in layers), reverse=True)
    for layer in layers:
        assert len(layer.candidates) > 1
        assert layer.candidates[0] == next(iter(schedules.alternatives(layer.step.spec, emitter.isa)))
        assert len(layer.buffers) == len(layer.step.inputs) + 1


def test_candidates_leave_work_for_several_threads() -> None:
    conv = Conv(1, 7, 7, 320, 7, 7, 1280)
    for isa in ISAS.values():
        texts = tune._candidates(conv, isa)
        found = [schedules.alternatives(conv, isa)[text] for text in texts]
        assert all(isinstance(x, Blocking) and -(-49 // x.rows) * x.splits >= 8 for x in found[1:])


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ([[100, 100], [90, 90]], 1),
        ([[100, 100], [99, 99]], 0),
        ([[100, 100], [80, 99]], 0),
        ([[100, 100], [99, 80]], 0),
        ([[100, 100], [90, 91], [85, 86]], 2),
        ([[100, 100]], 0),
        ([[100, 100], [110, 120]], 0),
    ],
)
def test_a_gain_within_the_noise_is_none(times: tune.Times, best: int) -> None:
    assert tune.fastest(times) == best


class Stopwatch:
    """Stands for the process that measures: the last candidate is always twice as fast."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, layers: Sequence[tune.Layer], _: Target) -> list[tune.Times]:
        self.asked += [layer.key for layer in layers]
        return [[[100, 100]] * (len(layer.candidates) - 1) + [[50, 50]] for layer in layers]


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    made = Stopwatch()
    monkeypatch.setattr(tune, "timed", made)
    return made


def search(model: onnx.ModelProto, target: Target, *, seconds: float = 60, **options: object) -> dict[str, str]:
    known = options.pop("known", {})
    return tune.tune(model, target, seconds, known, lambda done, total: None, **options)


def test_a_shape_is_measured_once(model: onnx.ModelProto, target: Target, stopwatch: Stopwatch) -> None:
    layers = tune.layers_of(tune.lowered_steps(model, target))
    found = search(model, target)
    assert found == {layer.key: layer.candidates[-1] for layer in layers}
    assert stopwatch.asked == [layer.key for layer in layers]
    assert search(model, target) == found
    assert len(stopwatch.asked) == len(layers)
    assert search(model, target, again=True) == found
    assert len(stopwatch.asked) == 2 * len(layers)


def test_what_the_lock_lists_is_not_measured(model: onnx.ModelProto, target: Target, stopwatch: Stopwatch) -> None:
    first, *rest = tune.layers_of(tune.lowered_steps(model, target))
    known = {first.key: first.candidates[0], "another": "1x1x1"}
    found = search(model, target, known=known)
    assert stopwatch.asked == [layer.key for layer in rest]
    assert found == {**known, **{layer.key: layer.candidates[-1] for layer in rest}}


def test_the_search_stops_in_time(
    model: onnx.ModelProto, target: Target, stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "BATCH", 1)
    layers = tune.layers_of(tune.lowered_steps(model, target))
    assert len(layers) > 1
    heard: list[tuple[int, int]] = []
    found = tune.tune(model, target, 0.0, {}, lambda done, total: heard.append((done, total)))
    assert stopwatch.asked == [layers[0].key] == list(found)
    assert heard == [(1, len(layers))]


def test_a_broken_cache_is_no_cache(model: onnx.ModelProto, target: Target, stopwatch: Stopwatch) -> None:
    found = search(model, target)
    store = tune.Store(target.isa)
    (path,) = store._folder.iterdir()
    assert store.read() == found
    for broken in ("", "[1]", '{"a": '):
        path.write_text(broken)
        assert store.read() == {}
    assert search(model, target) == found == store.read()


def test_layers_are_timed_in_a_process_of_their_own(model: onnx.ModelProto, target: Target) -> None:
    layers = tune.layers_of(tune.lowered_steps(model, target))[:3]
    found = tune.timed(layers, target)
    assert [len(times) for times in found] == [len(layer.candidates) for layer in layers]
    assert all(0 < half < 10**9 for times in found for both in times for half in both)


def test_a_process_that_dies_measures_nothing(
    model: onnx.ModelProto, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tune.build_program
    trap = b"\x0f\x0b" * 64  # ud2
    layers = tune.layers_of(tune.lowered_steps(model, target))[:1]

    def crashing(*args: object) -> bytes:
        data = bytearray(built(*args))
        text = _section(bytes(data), b".text")
        data[text] = (trap * (len(data[text]) // len(trap) + 1))[: len(data[text])]
        return bytes(data)

    assert tune.timed(layers, target)
    monkeypatch.setattr(tune, "build_program", crashing)
    assert tune.timed(layers, target) == []
    assert tune.measure(layers, target, 0.0, lambda done, total: None) == {}


def _section(elf: bytes, name: bytes) -> slice:
    """Where a section of a 64-bit ELF file lies."""
    table, size, count, names = (
        int.from_bytes(elf[a : a + n], "little") for a, n in ((40, 8), (58, 2), (60, 2), (62, 2))
    )
    headers = [elf[table + i * size : table + (i + 1) * size] for i in range(count)]

    def number(header: bytes, at: int) -> int:
        return int.from_bytes(header[at : at + 8], "little")

    texts = elf[number(headers[names], 24) :]
    found = next(h for h in headers if texts[int.from_bytes(h[:4], "little") :].startswith(name + b"\0"))
    return slice(number(found, 24), number(found, 24) + number(found, 32))


def test_shipped_schedules_fit_their_shapes() -> None:
    files = {path.stem: path for path in schedules.SHIPPED.glob("*.toml")}
    assert set(files) <= set(ISAS)
    assert {"avx2", "avx512vnni", "avx512vbmi"} <= set(files)
    for name in files:
        isa = ISAS[name]
        shipped = schedules.read_shipped(isa)
        assert len(shipped) > 100
        for key, text in shipped.items():
            assert KEY.fullmatch(key)
            assert schedules.key(conv_of(key), table=key.endswith("+ table")) == key
            assert text in schedules.alternatives(conv_of(key), isa), key


def test_shipped_schedules_belong_to_what_a_build_depends_on() -> None:
    files = digest.files_below(digest.PACKAGE / "kernels")
    assert {path for path in files if path.suffix == ".toml"} == set(schedules.SHIPPED.glob("*.toml")) != set()


def test_a_search_that_cannot_be_made_is_refused_at_once(tmp_path: Path, target: Target) -> None:
    from edgebuild import pipeline, projects
    from edgebuild.pipeline.build import Build

    recipe = projects.resolve("digits", projects.Overrides())
    job = pipeline.Job(recipe, load_target("jetson"), "digits", "1")
    assert Build(job, None, None)
    with pytest.raises(UsageError, match="--tune: code for jetson does not run on this machine"):
        Build(pipeline.Job(recipe, load_target("jetson"), "digits", "1", tune=1.0), None, None)
    file = tmp_path / "m.onnx"
    file.write_bytes(b"")
    with pytest.raises(CalibrationError):
        projects.resolve(str(file), projects.Overrides())
    data = tmp_path / "d.npz"
    np.savez(data, x=np.zeros((2, 3), np.float32))
    bare = projects.resolve(str(file), projects.Overrides(calibration=data))
    with pytest.raises(UsageError, match=r"--update-lock: a model file has no recipe\.lock"):
        Build(pipeline.Job(bare, target, "m", "1", tune=1.0, update_lock=True), None, None)
