"""Frames: formats, sizes, conversions (SPEC 10), and input that is wrong."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from machine import HOST, Machine
from tiny import H, W

RNG = np.random.default_rng(3)


def frames_seen(machine: Machine, bundle: tiny.Bundle, *arguments: str | Path, stdin: bytes = b"") -> np.ndarray:
    """The frames [n, H, W, 3] that reached the model: its table is a permutation."""
    done = machine.run(bundle.build(), *arguments, stdin=stdin)
    assert (done.returncode, "error" in done.stderr) == (0, False), done.stderr
    inverse = np.argsort(tiny.table()).astype(np.uint8)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    return np.array([inverse[line["outputs"]["pixels"]] for line in lines]).reshape(-1, H, W, 3)


def wrong(machine: Machine, bundle: tiny.Bundle, message: str, *arguments: str | Path, stdin: bytes = b"") -> str:
    """Standard output of a run that must fail with this message; a good input passes first."""
    assert machine.run(bundle.build(), "--check").returncode == 0
    done = machine.run(bundle.build(), *arguments, stdin=stdin)
    assert message in done.stderr
    assert done.returncode == 1
    return done.stdout


def to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray, full: bool) -> np.ndarray:
    """SPEC 10 on int64 planes [H, W] of equal size."""
    d, e = u - 128, v - 128
    if full:
        c, red, green_u, green_v, blue = 256 * y, 359, 88, 183, 454
    else:
        c, red, green_u, green_v, blue = 298 * (y - 16), 409, 100, 208, 516
    channels = (c + red * e + 128, c - green_u * d - green_v * e + 128, c + blue * d + 128)
    return np.clip(np.stack(channels, axis=-1) >> 8, 0, 255).astype(np.uint8)


def y4m_frame(shift_x: int, shift_y: int, full: bool, mono: bool) -> tuple[bytes, np.ndarray]:
    """The bytes of a random frame and its RGB image."""
    y = RNG.integers(0, 256, (H, W), dtype=np.int64)
    if mono:
        flat = np.full((H, W), 128)
        return y.astype(np.uint8).tobytes(), to_rgb(y, flat, flat, full)
    size = (-(-H >> shift_y), -(-W >> shift_x))
    u, v = (RNG.integers(0, 256, size, dtype=np.int64) for _ in range(2))
    wide = [plane.repeat(1 << shift_y, 0).repeat(1 << shift_x, 1)[:H, :W] for plane in (u, v)]
    return b"".join(plane.astype(np.uint8).tobytes() for plane in (y, u, v)), to_rgb(y, *wide, full)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("space", "shift_x", "shift_y"),
    [
        *((space, 1, 1) for space in ("", "C420", "C420jpeg", "C420mpeg2", "C420paldv")),
        ("C422", 1, 0),
        ("C444", 0, 0),
        ("Cmono", 0, 0),
    ],
)
def test_y4m(checked: Machine, bundle: tiny.Bundle, space: str, shift_x: int, shift_y: int, full: bool) -> None:
    made = [y4m_frame(shift_x, shift_y, full, space == "Cmono") for _ in range(3)]
    head = f"YUV4MPEG2 W{W} H{H} F15:1 Ip A1:1 {space}{' XCOLORRANGE=FULL' if full else ''}\n".encode()
    stream = head + b"".join(b"FRAME\n" + data for data, _ in made)
    seen = frames_seen(checked, bundle, "--input", "-", stdin=stream)
    np.testing.assert_array_equal(seen, [rgb for _, rgb in made])


def test_y4m_of_ffmpeg_from_a_pipe(host: Machine, bundle: tiny.Bundle) -> None:
    assert shutil.which("ffmpeg"), "ffmpeg is not installed (Debian: apt-get install ffmpeg)"
    source = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"testsrc=size={W}x{H}:rate=5:duration=2"]
    made = {}
    for kind in (("-f", "yuv4mpegpipe"), ("-f", "rawvideo")):
        command = [*source, "-pix_fmt", "yuv420p", *kind, "-"]
        made[kind[1]] = subprocess.run(command, capture_output=True, check=True).stdout
    assert made["yuv4mpegpipe"].startswith(b"YUV4MPEG2 ")
    seen = frames_seen(host, bundle, "--input", "-", stdin=made["yuv4mpegpipe"])
    planes = np.frombuffer(made["rawvideo"], np.uint8).reshape(10, -1).astype(np.int64)
    y = planes[:, : H * W].reshape(-1, H, W)
    u, v = (part.reshape(-1, H // 2, W // 2).repeat(2, 1).repeat(2, 2) for part in np.split(planes[:, H * W :], 2, 1))
    np.testing.assert_array_equal(seen, [to_rgb(*frame, full=False) for frame in zip(y, u, v, strict=True)])


def test_formats_that_carry_rgb(checked: Machine, bundle: tiny.Bundle) -> None:
    frames = tiny.golden_frames()
    ppm = b"".join(f"P6\n# a comment 1 2\n{W} {H}\n255\n".encode() + frame.tobytes() for frame in frames)
    for name, data in (("a.rgb", frames.tobytes()), ("a.ppm", ppm), ("a.npy", tiny.npy(frames))):
        path = checked.write(name, data)
        np.testing.assert_array_equal(frames_seen(checked, bundle, "--input", path), frames)
        np.testing.assert_array_equal(frames_seen(checked, bundle, "--input", f"frame={path}"), frames)
        stated = ("--input", "-", "--format", name[2:])
        np.testing.assert_array_equal(frames_seen(checked, bundle, *stated, stdin=data), frames)
    size = ("--size", f"{W}x{H}")
    seen = frames_seen(checked, bundle, "--input", "-", "--format", "rgb", *size, stdin=frames.tobytes())
    np.testing.assert_array_equal(seen, frames)


def test_npy_of_one_frame_and_of_version_2(checked: Machine, bundle: tiny.Bundle) -> None:
    frame = tiny.golden_frames()[0]
    np.testing.assert_array_equal(frames_seen(checked, bundle, "--input", "-", stdin=tiny.npy(frame)), [frame])
    path = checked.folder / "two.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, frame, version=(2, 0))
    np.testing.assert_array_equal(frames_seen(checked, bundle, "--input", path), [frame])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((H, W), np.uint8), f"input frame: expected uint8 [{H}, {W}, 3], found uint8 [{H}, {W}]"),
        (np.zeros((W, H, 3), np.uint8), f"expected uint8 [{H}, {W}, 3], found uint8 [{W}, {H}, 3]"),
        (np.zeros((H, W, 3), np.float32), f"expected uint8 [{H}, {W}, 3], found float32 [{H}, {W}, 3]"),
        (np.zeros((H, W, 3), np.int64), f"expected uint8 [{H}, {W}, 3], found int64 [{H}, {W}, 3]"),
        (np.zeros((H, W, 3), ">f8"), f"expected uint8 [{H}, {W}, 3], found >f8 [{H}, {W}, 3]"),
        (np.zeros((2, 2, H, W, 3), np.uint8), f"expected uint8 [{H}, {W}, 3], found uint8 [2, 2, {H}, {W}, 3]"),
        (np.asfortranarray(np.zeros((H, W, 3), np.uint8)), "it is in Fortran order"),
    ],
)
def test_npy_of_another_kind(checked: Machine, bundle: tiny.Bundle, array: np.ndarray, message: str) -> None:
    path = checked.write("a.npy", tiny.npy(array))
    assert wrong(checked, bundle, message, "--input", path) == ""


def test_npy_cut_off(checked: Machine, bundle: tiny.Bundle) -> None:
    data = tiny.npy(tiny.golden_frames())
    last = checked.write("a.npy", data[:-1])
    out = wrong(checked, bundle, "a.npy: it is cut off: the last frame has 143 of 144 bytes", "--input", last)
    assert len(out.splitlines()) == 2
    missing = checked.write("b.npy", data[:-144])
    out = wrong(checked, bundle, "b.npy: it is cut off: 1 frames are missing", "--input", missing)
    assert len(out.splitlines()) == 2
    for size in range(6, 128, 5):
        head = checked.write("c.npy", data[:size])
        done = checked.run(bundle.build(), "--input", head)
        assert (done.returncode, "c.npy: malformed .npy header" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"YUV4MPEG2 W7 H6 C444\n", f"standard input: the frames are 7x6, the model takes {W}x{H}"),
        (b"YUV4MPEG2 W8 H6 C420p10\n", "the colour space C420p10 cannot be read"),
        (b"YUV4MPEG2 W8 Hx\n", "standard input: malformed y4m header"),
        (b"YUV4MPEG2 W8 H6", "standard input: malformed y4m header"),
        (b"P6 9 9 255\n", f"standard input: the frames are 9x9, the model takes {W}x{H}"),
        (b"P6 8 6 65535\n", "standard input: malformed PPM header"),
        (b"P6 8 6 255\n", "standard input: it is cut off: the last image has no pixels"),
        (b"P6 8 6 255\nabc", "standard input: it is cut off: the last frame has 3 of 144 bytes"),
        (b"GIF89a", "standard input: unknown format; y4m, ppm, npy and raw RGB can be read"),
        (b"", "standard input: it is empty"),
    ],
)
def test_wrong_streams(checked: Machine, bundle: tiny.Bundle, stream: bytes, message: str) -> None:
    assert wrong(checked, bundle, message, "--input", "-", stdin=stream) == ""


def test_y4m_cut_off_after_complete_frames(checked: Machine, bundle: tiny.Bundle) -> None:
    head, frame = f"YUV4MPEG2 W{W} H{H} C444\n".encode(), b"FRAME\n" + bytes(H * W * 3)
    message = "standard input: it is cut off: the last frame has 143 of 144 bytes"
    out = wrong(checked, bundle, message, "--input", "-", stdin=head + frame * 3 + frame[:-1])
    assert len(out.splitlines()) == 3
    out = wrong(checked, bundle, "a frame does not start with FRAME", "--input", "-", stdin=head + frame + b"x\n")
    assert len(out.splitlines()) == 1


def test_wrong_size_option(checked: Machine, bundle: tiny.Bundle) -> None:
    arguments = ("--input", "-", "--format", "rgb", "--size", "640x480")
    wrong(checked, bundle, f"the frames are 640x480, the model takes {W}x{H}", *arguments, stdin=bytes(144))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no data for the model's input frame"),
        (("--input", "x=y.npy"), "cannot open x=y.npy"),
        (("--input", "a.npy", "--input", "b.npy"), "2 inputs are given, the model has 1"),
        (("--repeat", "0"), "--repeat: wrong value 0"),
        (("--threads", "65"), "--threads: wrong value 65"),
        (("--format", "gif"), "--format: wrong value gif"),
        (("--size", "8"), "--size: wrong value 8"),
        (("--speed", "9"), "unknown option --speed"),
        (("--input",), "one without its value: --input"),
        (("other.ebundle",), "more than one bundle is given: other.ebundle"),
        (("--check", "--verify"), "--check and --verify exclude each other"),
    ],
)
def test_wrong_arguments(host: Machine, bundle: tiny.Bundle, arguments: tuple[str, ...], message: str) -> None:
    # The trust file comes in front: the last argument may lack its value.
    trust = ("--trust", host.write("trust", tiny.KEY.trust))
    assert host.run(bundle.build(), *trust, "--check", trust=None).returncode == 0
    done = host.run(bundle.build(), *trust, *arguments, trust=None)
    assert message in done.stderr
    assert done.returncode == (5 if "cannot open" in message else 1)


def test_errors_as_json(host: Machine, bundle: tiny.Bundle) -> None:
    done = host.run(bundle.build(), "--json", "--input", '"\x01.npy')
    assert json.loads(done.stderr) == {
        "error": 'cannot open "\x01.npy: No such file or directory',
        "hint": "name an existing file that this user may read",
        "code": "io",
    }


def test_an_input_that_is_no_image(host: Machine, program: Callable[..., bytes]) -> None:
    plan = tiny.plan_bin()
    flat = plan[:64] + tiny._tensor("frame", tiny.U8, tiny.ARENA, (tiny.N,), 0, tiny.N) + plan[64 + 48 :]
    edits = ((f"input frame uint8 {H} {W} 3", f"input frame uint8 {tiny.N}"),)
    golden = {"golden/in-0.npy": tiny.npy(tiny.golden_frames().reshape(-1, tiny.N))}
    bundle = tiny.Bundle(program(), arch=HOST, plan=flat, edits=edits, golden=golden)
    stream = f"YUV4MPEG2 W{W} H{H} C444\nFRAME\n".encode() + bytes(tiny.N)
    message = "standard input: the model's input frame is no uint8 image [H, W, 3]"
    assert wrong(host, bundle, message, "--input", "-", stdin=stream) == ""


def test_several_inputs(checked: Machine, bundle: tiny.Bundle) -> None:
    frames = tiny.golden_frames()
    tables = np.stack([tiny.table()] * len(frames))
    edits = (("output pixels", "input table uint8 256\noutput pixels"),)
    two = bundle.but(plan=tiny.plan_bin(table_input=True), edits=edits, golden={"golden/in-1.npy": tiny.npy(tables)})
    frame, table = checked.write("f.npy", tiny.npy(frames)), checked.write("t.npy", tiny.npy(tables))
    arguments = ("--input", f"table={table}", "--input", f"frame={frame}")
    np.testing.assert_array_equal(frames_seen(checked, two, *arguments), frames)
    short = checked.write("s.npy", tiny.npy(tables[:2]))
    message = "s.npy: it has fewer frames than the input before it"
    out = wrong(checked, two, message, "--input", f"table={short}", "--input", f"frame={frame}")
    assert len(out.splitlines()) == 2
    wrong(checked, two, "no data for the model's input table", "--input", f"frame={frame}")
    wrong(checked, two, "no data for the model's input frame", "--input", frame, "--input", f"table={table}")
