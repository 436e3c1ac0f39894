"""`compile --update-of`: what did not change stays the same bytes, and what cannot be kept is said."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from command_line import Edgebuild
from core.bundles import make_bundle
from networks import GRAPH, SIDE, Release, samples, values, write

from edgebuild.core.bundle import read_unverified
from edgebuild.core.minisign import SecretKey
from edgebuild.core.plan import read_plan

CODE = ("program.so", "plan.bin")


def changed(release: Release, old: Release) -> set[str]:
    return {path for path in old.read.files if release.file(path) != old.file(path)}


def multiplier_steps(old: Release, new: Release) -> np.ndarray:
    """How far the float32 numbers of weights.bin of which there is one a channel moved, in units of their last bit."""
    found = []
    for tensor in read_plan(new.file("plan.bin")).tensors:
        if (tensor.space, tensor.dtype) == ("weights", "float32") and tensor.nbytes > 16:
            place = slice(tensor.offset, tensor.offset + tensor.nbytes)
            a, b = (np.frombuffer(r.file("weights.bin")[place], np.int32).astype(np.int64) for r in (old, new))
            found.append((b - a)[a != b])
    return np.concatenate(found)


def test_the_same_weights_are_the_same_bytes(compiled: Callable[..., Release], old: Release, place: Path) -> None:
    """Also where the samples are others: the grid serves them."""
    samples(place / "other.npz", seed=8)
    new = compiled(values(), "1.0.1", "--update-of", old.path, calibration="other.npz")
    assert changed(new, old) == set()
    assert (old.read.manifest.release, new.read.manifest.release) == (1, 2)
    update = new.report["update"]
    assert (update["of"]["version"], update["changed"], update["rescaled"]) == ("1.0.0", 0, 0)
    assert update["grids_changed"] == []
    again = compiled(values(), "1.0.2", "--update-of", new.path)
    assert (changed(again, old), again.read.manifest.release) == (set(), 3)


def test_a_changed_gain_changes_no_integer(compiled: Callable[..., Release], old: Release) -> None:
    given = values()
    rng = np.random.default_rng(1)
    given["g2"] = (given["g2"] * rng.uniform(0.9, 1.1, given["g2"].shape)).astype(np.float32)
    new = compiled(given, "1.1.0", "--update-of", old.path)
    update = new.report["update"]
    assert changed(new, old) == {"weights.bin", "golden/out-0.npy"}
    assert update["changed"] == 0
    assert update["rescaled"] > 10
    assert new.report["accuracy"]["sqnr_db"] > 30


def test_small_changes_change_few_integers(compiled: Callable[..., Release], old: Release) -> None:
    given = values()
    rng = np.random.default_rng(2)
    given["w2"] += (rng.normal(size=given["w2"].shape) * 2e-4).astype(np.float32)
    plain = compiled(given, "1.2.0-plain")
    new = compiled(given, "1.2.0", "--update-of", old.path)
    assert not changed(new, old) & set(CODE)
    update = new.report["update"]
    assert 0 < update["changed"] < 0.3 * update["weights"]
    assert update["layers"][0]["changed"] == 0
    assert new.report["accuracy"]["sqnr_db"] > plain.report["accuracy"]["sqnr_db"] - 1.5


def test_another_training_altogether(compiled: Callable[..., Release], old: Release) -> None:
    """Weights that have nothing to do with the old ones, some of them the opposite. A kept grid costs up to 3 dB."""
    given = values(3)
    given["w1"] = -values()["w1"]
    plain = compiled(given, "1.5.0-plain")
    new = compiled(given, "1.5.0", "--update-of", old.path)
    assert new.report["accuracy"]["sqnr_db"] > plain.report["accuracy"]["sqnr_db"] - 6


def test_a_grid_that_no_longer_serves_is_replaced(compiled: Callable[..., Release], old: Release) -> None:
    given = values()
    given["g1"], given["b1"] = 3 * given["g1"], 3 * given["b1"]
    new = compiled(given, "1.3.0", "--update-of", old.path)
    rows = new.report["update"]["grids_changed"]
    assert rows
    assert all(row["scale"] > 1.5 * row["old_scale"] and "the range is" in row["reason"] for row in rows)
    assert not changed(new, old) & set(CODE)
    assert new.report["accuracy"]["sqnr_db"] > 30


def test_what_a_function_cuts_off_anyway_needs_no_grid(compiled: Callable[..., Release]) -> None:
    """HardSwish makes 0 of all that lies below -3: a range that ends there serves, however far values reach."""
    graph, given = GRAPH.replace("r1 = Relu(n1)", "r1 = HardSwish(n1)"), values()
    given["b1"][::2] -= 12
    first = compiled(given, "1.10.0", graph=graph)
    same = compiled(given, "1.10.1", "--update-of", first.path, graph=graph)
    assert (changed(same, first), same.report["update"]["grids_changed"]) == (set(), [])
    rng = np.random.default_rng(5)
    given["g1"] = (given["g1"] * rng.uniform(1.0, 1.05, given["g1"].shape)).astype(np.float32)
    new = compiled(given, "1.10.2", "--update-of", first.path, graph=graph)
    assert new.report["update"]["grids_changed"] == []


def test_a_channel_without_weights_keeps_its_bias(compiled: Callable[..., Release], old: Release) -> None:
    """Pruned whole, or nearly so: what is left of it is a constant, which tiny steps could not express."""
    given = values()
    given["b2"][3:5] = 4.0
    given["m2"][3:5] = 0.0
    given["w2"][3], given["w2"][4] = 0.0, given["w2"][4] * 1e-12
    plain = compiled(given, "1.6.0-plain")
    new = compiled(given, "1.6.0", "--update-of", old.path)
    assert new.report["accuracy"]["sqnr_db"] > plain.report["accuracy"]["sqnr_db"] - 3
    assert not changed(new, old) & set(CODE)
    for number, release in enumerate((plain, new)):
        same = compiled(given, f"1.6.2-{number}", "--update-of", release.path)
        assert changed(same, release) == set()
    alive = compiled(values(), "1.6.1", "--update-of", new.path)
    assert alive.report["accuracy"]["sqnr_db"] > old.report["accuracy"]["sqnr_db"] - 1.5


def test_a_channel_that_woke_up_drowns_no_other(compiled: Callable[..., Release]) -> None:
    """It was enlarged hundredfold while it slept."""
    given = values()
    for name in ("g1", "b1"):
        given[name][[2, 9]] *= np.float32(0.004)
    given["w2"][:, [2, 9]] *= np.float32(60)
    first = compiled(given, "1.9.0")
    assert max(row["largest"] for row in first.report["quantization"]["equalized"]) > 10
    plain = compiled(values(), "1.9.1-plain")
    new = compiled(values(), "1.9.1", "--update-of", first.path)
    assert new.report["accuracy"]["sqnr_db"] > plain.report["accuracy"]["sqnr_db"] - 3
    assert not changed(new, first) & set(CODE)
    assert changed(compiled(given, "1.9.2", "--update-of", first.path), first) == set()


def test_a_bias_that_outgrows_its_steps_gets_larger_ones(compiled: Callable[..., Release]) -> None:
    given = values()
    given["w3"][2] *= np.float32(1e-7)
    first = compiled(given, "1.8.0")
    given["b3"][2] = 40.0
    plain = compiled(given, "1.8.1-plain")
    new = compiled(given, "1.8.1", "--update-of", first.path)
    assert new.report["accuracy"]["sqnr_db"] > plain.report["accuracy"]["sqnr_db"] - 1.5


def test_multipliers_change_in_their_high_bits_only(compiled: Callable[..., Release], old: Release) -> None:
    """Also where the grid around a layer changed, and where no scale of a weight gives the multiplier that was wanted.

    Low bits that change cost as many bytes as they are: nobody can foresee them.
    """
    rng, given = np.random.default_rng(4), values()
    given["g1"] = (3.3 * given["g1"] * rng.uniform(0.9, 1.1, given["g1"].shape)).astype(np.float32)
    new = compiled(given, "1.7.0", "--update-of", old.path)
    assert new.report["update"]["grids_changed"]
    steps = multiplier_steps(old, new)
    assert len(steps) > 20
    assert np.count_nonzero(steps % (1 << 14)) <= 1


def test_pruned_weights_follow_from_the_old_ones(
    compiled: Callable[..., Release], edgebuild: Edgebuild, old: Release
) -> None:
    """All that were small are 0 now: a difference costs nothing that the old weight foretells."""
    given = values()
    for name in ("w1", "w2", "w3"):
        given[name][np.abs(given[name]) < np.quantile(np.abs(given[name]), 0.4)] = 0.0
    new = compiled(given, "1.9.9", "--update-of", old.path)
    ran = edgebuild("delta", old.path, new.path, "--json")
    assert ran.code == 0, ran.err
    weights = next(row for row in ran.json["files"] if row["path"] == "weights.bin")
    assert weights["codec"] == "patch"
    assert weights["cost"] < 1600


def test_golden_inputs_stay(compiled: Callable[..., Release], old: Release, place: Path) -> None:
    samples(place / "fresh.npz", seed=9)
    given = values()
    given["b3"] = given["b3"] + np.float32(0.5)
    new = compiled(given, "1.4.0", "--update-of", old.path, calibration="fresh.npz")
    assert changed(new, old) == {"weights.bin", "golden/out-0.npy"}


def test_large_outputs_have_fewer_golden_samples(edgebuild: Edgebuild, place: Path) -> None:
    """An update brings them all anew: of a detector they were 4.4 MB, beside 13 KB of weights."""
    graph = GRAPH[: GRAPH.index("  p = ")].replace("float[1, 5] y", "float[1, 32, 6, 6] y").replace("r2 =", "y =") + "}"
    counts = []
    for side in (SIDE, 12 * SIDE):
        np.savez(place / "large.npz", x=np.random.default_rng(1).normal(size=(5, 1, 3, side, side)).astype(np.float32))
        grown = graph.replace(f"{SIDE}, {SIDE}]", f"{side}, {side}]").replace("6, 6]", f"{side // 2}, {side // 2}]")
        path = write(place / "large.onnx", values(), grown)
        ran = edgebuild("compile", path, "--calibration", place / "large.npz", "--out", place / "large")
        assert ran.code == 0, ran.err
        files = read_unverified((place / "large" / "large-1.0.0-host.ebundle").read_bytes()).files
        arrays = [np.load(io.BytesIO(bytes(files[f"golden/{name}-0.npy"]))) for name in ("in", "out")]
        assert len(arrays[0]) == len(arrays[1])
        counts.append(len(arrays[1]))
    assert counts == [4, 1]


def test_what_is_no_base_is_refused(refused: Callable[..., str], old: Release, place: Path) -> None:
    said = refused(2, "--update-of", place / "no.ebundle")
    assert "no such file" in said
    said = refused(2, "--update-of", old.path, version="1.0.0")
    assert "has version 1.0.0 already" in said
    assert "--version" in said
    said = refused(2, "--update-of", old.path, "--target", "raspberry-pi-5")
    assert "its target is 'host', the new one's 'raspberry-pi-5'" in said
    said = refused(2, "--update-of", old.path, "--name", "other")
    assert "its name is 'net'" in said
    said = refused(2, "--update-of", old.path, "--release", 1)
    assert "is release 1 already" in said
    said = refused(2, "--update-of", old.path, "--update-lock")
    assert "--update-lock" in said
    said = refused(8, "--update-of", place / "c.npz")
    assert "hint" in said


def test_another_network_is_refused(refused: Callable[..., str], old: Release) -> None:
    said = refused(4, "--update-of", old.path, graph=GRAPH.replace("r1 = Relu(n1)", "r1 = Sigmoid(n1)"))
    assert "not the network that the old bundle was made of" in said
    assert "compile without --update-of" in said
    said = refused(4, "--update-of", old.path, graph=GRAPH.replace("strides = [2, 2]", "strides = [1, 1]"))
    assert "not the network" in said


def test_what_differs_in_an_operator_is_said(refused: Callable[..., str], old: Release) -> None:
    """Not only that it does: a bias more is the usual one."""
    given = values() | {"b0": values()["b1"]}
    said = refused(4, "--update-of", old.path, graph=GRAPH.replace("(f, w3, b3)", "(f, w3)"))
    assert "Gemm 'Gemm_8' read f, w3, b3, and now reads f, w3" in said
    said = refused(4, "--update-of", old.path, graph=GRAPH.replace("r1 = Relu(n1)", "r1 = Sigmoid(n1)"))
    assert "Relu 'Relu_2' is now Sigmoid 'Sigmoid_2'" in said
    said = refused(4, "--update-of", old.path, graph=GRAPH.replace("(r1, w2)", "(r1, w2, b0)"), given=given)
    assert "hint" in said
    said = refused(4, "--update-of", old.path, graph=GRAPH.replace("strides = [2, 2]", "strides = [1, 1]"))
    assert "its strides was [2, 2], and is now [1, 1]" in said


def test_float32_is_no_update_of_integers(refused: Callable[..., str], old: Release) -> None:
    """Integers would come out where float32 was asked for."""
    said = refused(2, "--update-of", old.path, "--float")
    assert "is int8, and float32 is asked for" in said
    assert "compile without --update-of" in said


def test_a_model_that_came_quantized_is_no_update(
    compiled: Callable[..., Release], edgebuild: Edgebuild, old: Release, place: Path
) -> None:
    """Whatever the old release is; recipe.lock has nothing to do with it."""
    quantized = place / "qdq.onnx"
    with zipfile.ZipFile(old.path.with_name("net-1.0.0-host.basis.zip")) as archive:
        quantized.write_bytes(archive.read("model.onnx"))
    named = ("--name", "net", "--version", "2.1.0", "--calibration", place / "c.npz", "--out", place / "refused")
    for release in (old, compiled(values(), "1.0.0f", "--float")):
        ran = edgebuild("compile", quantized, *named, "--update-of", release.path)
        assert (ran.code, "the model came quantized, on a grid of its own" in ran.err) == (4, True), ran.err
        assert "recipe.lock" not in ran.err


def test_another_interface_is_refused(
    compiled: Callable[..., Release], refused: Callable[..., str], old: Release
) -> None:
    """Of a network in float32, too, whose values may all be others."""
    floating = compiled(values(), "1.0.0f", "--float")
    given = {name: value[:4] if name in ("w3", "b3") else value for name, value in values().items()}
    for release, options in ((old, ()), (floating, ("--float",))):
        graph = GRAPH.replace("float[1, 5] y", "float[1, 4] y")
        said = refused(4, "--update-of", release.path, *options, graph=graph, given=given)
        assert "its outputs were y float32 [1, 5], and are now y float32 [1, 4]" in said
        assert "compile without --update-of" in said


def test_a_basis_that_is_missing_or_wrong_is_refused(refused: Callable[..., str], old: Release) -> None:
    place = old.path.with_name("net-1.0.0-host.basis.zip")
    whole = place.read_bytes()
    try:
        place.unlink()
        said = refused(2, "--update-of", old.path)
        assert "net-1.0.0-host.basis.zip is not beside it" in said
        assert "compile the old release again" in said
        place.write_bytes(whole[: len(whole) // 2])
        assert "is damaged" in refused(8, "--update-of", old.path)
        _rewritten(place, whole, "model.onnx", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
        assert "model.onnx is damaged" in refused(8, "--update-of", old.path)
        _rewritten(place, whole, "basis.json", lambda data: data.replace(b'"weights.bin": "', b'"weights.bin": "0'))
        assert "belongs to another bundle" in refused(8, "--update-of", old.path)
        _rewritten(place, whole, "basis.json", lambda _: b"[]")
        assert "is not a basis" in refused(8, "--update-of", old.path)
    finally:
        place.write_bytes(whole)
    assert "no such file" in refused(2, "--update-of", old.path.with_name("gone.ebundle"))


def _rewritten(place: Path, whole: bytes, name: str, change: Callable[[bytes], bytes]) -> None:
    place.write_bytes(whole)
    with zipfile.ZipFile(place) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(place, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def test_a_release_that_nobody_here_trusts_is_not_built_on(
    old: Release, refused: Callable[..., str], place: Path
) -> None:
    """Its program would go into the new bundle, and be signed there."""
    foreign = place / "foreign" / old.path.name
    foreign.parent.mkdir()
    files = {path: bytes(data) for path, data in old.read.files.items()}
    foreign.write_bytes(make_bundle(old.read.manifest, files, SecretKey(b"somebody", bytes(32))))
    for basis in old.path.parent.glob("*.basis*"):
        (foreign.parent / basis.name).write_bytes(basis.read_bytes())
    said = refused(8, "--update-of", foreign)
    assert f"--update-of {foreign}: signed by key 79646F62656D6F73, which the trust file does not list" in said
