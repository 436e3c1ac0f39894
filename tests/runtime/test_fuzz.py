"""libFuzzer on every reader of bytes that come from outside, with ASan and UBSan."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import published
import pytest
import roles
import tiny
from delta import releases
from machine import FUZZERS

from edgebuild.core import delta
from edgebuild.pipeline.delta import codecs
from edgebuild.stages.delta.matches import steps

SECONDS = {"manifest": 30, "trust": 30, "bundle": 30, "delta": 30}


def delta_seeds() -> Iterator[bytes]:
    """A delta of one part for each codec, against one old file."""
    old = releases.files(releases.weights())
    plan, before = old["plan.bin"], old["weights.bin"]
    values = releases.weights()
    values["w"][::9] += 1
    after = releases.weights_bin(values)
    moved = before[:900] + b"inserted" + before[900:-8]
    coded = {
        delta.SAME: b"",
        delta.RAW: after,
        delta.ZSTD: delta.compress(after),
        delta.ZSTD_OLD: delta.compress(after, before),
        delta.WEIGHTS: codecs().weights(plan, before, after, len(after)),
        delta.PATCH: codecs().patch(before, moved, steps(before, moved), len(moved)),
    }
    sizes = b"".join(len(part).to_bytes(2, "little") for part in (plan, before, after))
    for codec, data in coded.items():
        assert data is not None
        parts = (delta.Part(codec, data),)
        yield (
            sizes
            + plan
            + before
            + delta.serialize(delta.Delta(bytes(32), 5, 3, delta.compress(b"manifest", b"mm"), parts))
        )


def state_text(more: str) -> bytes:
    first = f"edgebuild-state 1\ntarget test\nfloor 3\ncurrent {'0' * 64}\nconfirmed yes\ncrashes 2\n"
    return (first + more).encode()


def seeds(bundle: tiny.Bundle) -> dict[str, list[bytes]]:
    """What each fuzzer starts from: inputs that are accepted."""
    trust, manifest = tiny.KEY.trust, bundle.manifest()
    head = len(trust).to_bytes(2, "little") + trust
    frame = bytes(range(45))
    signed = tiny.KEY.sign(b"m", "a\tcomment")
    first = roles.Roles().build()
    next_ = roles.Roles(version="2", roots=roles.ROOTS[2:4], retired=roles.ROOTS[:2], signers=roles.ROOTS[2:4])
    return {
        "manifest": [manifest, manifest.replace(b"arch", b"made 2026-01-31\nexpires 2028-02-29\narch")],
        "trust": [
            len(first).to_bytes(2, "little") + first + next_.build(),
            len(first).to_bytes(2, "little") + first + next_.but(signers=(*next_.signers, *roles.ROOTS[:2])).build(),
            head + first,
        ],
        "minisign": [head + signed, head + signed.replace(b"edgebuild", b"minisign secret key")],
        "bundle": [head + bundle.build()],
        "delta": list(delta_seeds()),
        "index": [published.index(bundle.build()), published.index(bundle.build(), [(bundle.build(), b"delta")])],
        "chunks": [
            b"\0" + b"3\r\nabc\r\n0\r\n\r\n",
            b"\2" + b"00a;x=y\r\n0123456789\r\n1 \r\nx\r\n0\r\nTrailer: 1\r\n\r\nmore",
        ],
        "state": [
            b"\0" + state_text(""),
            b"\0" + state_text(f"previous {'1' * 64}\n" + "".join(f"bad {i:064x}\n" for i in range(16))),
            b"\0" + state_text("").replace(b"current", b"signer 0123456789ABCDEF\ncurrent"),
            b"\0edgebuild-state 1\ntarget test\nfloor 7\nsigner 0123456789ABCDEF\nsaid 1111111111111111 5\n"
            b"said 2222222222222222 5\ncurrent " + b"0" * 64 + b"\nconfirmed no\ncrashes 0\n",
            b"\0edgebuild-state 1\ntarget test\nfloor 1\nbad " + b"0" * 64 + b"\n",
            b"\1edgebuild-time 1\nfloor 2026-01-31\n",
            b"\1edgebuild-time 1\nfloor 2026-01-31\nby tiny 7 0123456789ABCDEF\n",
            b"\2" + tiny.member("manifest", manifest) + tiny.member("manifest.minisig", signed),
        ],
        "plan": [bundle.plan],
        "npy": [tiny.npy(np.zeros((2, 3), np.float32)), tiny.npy(np.zeros((4, 2, 3), np.float32))],
        "y4m": [
            b"YUV4MPEG2 W5 H3 C444\nFRAME\n" + frame,
            b"YUV4MPEG2 W5 H3\nFRAME X\n" + frame,
            b"P6 5 3 255\n" + frame,
        ],
    }


@pytest.mark.parametrize("name", FUZZERS)
def test_fuzz_briefly(sanitized: Path, tmp_path: Path, bundle: tiny.Bundle, name: str) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(seeds(bundle)[name]):
        (corpus / f"seed-{i}").write_bytes(seed)
    # The largest memory of a process counts what its parent held before exec, and this one may be large: what is
    # limited is each allocation.
    seconds = SECONDS.get(name, 1)
    search = (f"-max_total_time={seconds}", "-seed=1", "-max_len=32768", f"-artifact_prefix={tmp_path}/")
    search = (*search, "-rss_limit_mb=0", "-malloc_limit_mb=1024", "-timeout=10")
    for arguments in (search, ("-runs=0", "-rss_limit_mb=0")):
        command = [sanitized / f"fuzz_{name}", *arguments, corpus]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 + seconds)
        assert done.returncode == 0, done.stderr[-3000:]
    print(f"fuzz_{name}: {re.findall(r'cov: .*', done.stderr)[-1]}")  # noqa: T201
