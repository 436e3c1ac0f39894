"""Every adapter on a network small enough for all of them; one whose peer is not installed skips."""

import contextlib
import importlib
import json

import pytest

from edgebuild.bench import measure, outputs
from edgebuild.bench.case import Case
from edgebuild.bench.engines import EngineFailure, Hosted, Native
from edgebuild.bench.peers import OWN, PEERS, Peer

VARIANTS = [(peer, variant) for peer in PEERS.values() for variant in peer.variants]


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_an_adapter_needs_its_peer_only_when_it_is_used(peer: Peer) -> None:
    adapter = importlib.import_module(f"edgebuild.bench.peers.{peer.module}")
    assert callable(adapter.prepare)
    assert callable(adapter.load)
    assert len(peer.packages) == len(peer.imports)


@pytest.mark.parametrize(("peer", "variant"), VARIANTS, ids=lambda item: getattr(item, "name", item))
def test_a_peer_computes_what_we_compute(case: Case, peer: Peer, variant: str) -> None:
    if missing := peer.missing():
        pytest.skip(f"{missing} is not installed: {peer.install}")
    folder = measure._converted(case, peer, variant)
    refused = folder / "refused.json"
    assert not refused.exists(), refused.read_text()
    with contextlib.closing(Native(case, 1)) as ours, contextlib.closing(Hosted(peer.name, folder, case, 1)) as theirs:
        found = outputs.agreement(ours.outputs(), theirs.outputs())
        assert found["max_difference"] < (0.5 if variant == OWN else 0.15)  # its quantizer may cut ranges off
        assert found["same_top1"] >= 0.5
        times = theirs.run(20)
        assert len(times) == 20
        assert min(times) > 0
        assert theirs.start.first_result_ms > theirs.start.load_ms > 0
        assert theirs.start.peak_kb > theirs.start.host_kb > 0


def test_our_graph_in_onnx_runtime_gives_our_result(case: Case) -> None:
    """Quantized alike, only the rounding of the last operators may differ."""
    peer = PEERS["onnxruntime"]
    folder = measure._converted(case, peer, "qdq")
    with contextlib.closing(Native(case, 1)) as ours, contextlib.closing(Hosted(peer.name, folder, case, 1)) as theirs:
        assert outputs.agreement(ours.outputs(), theirs.outputs())["max_difference"] < 0.02


def test_a_peer_that_cannot_take_the_model_says_why(case: Case, monkeypatch) -> None:
    """`nothing` is no variant: the adapter fails in its own process."""
    found = measure._convert(case, PEERS["onnxruntime"], "nothing")
    assert json.loads(found["refused.json"])["reason"] == "KeyError: 'nothing'"


def test_a_process_that_ends_says_what_it_said(case: Case, tmp_path) -> None:
    with pytest.raises(EngineFailure, match=r"model\.onnx"):
        Hosted("onnxruntime", tmp_path, case, 1)
