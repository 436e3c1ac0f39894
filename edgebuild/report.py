"""The report of a build and the description of a bundle: plain values with stable keys, documented here.

Report: `name, version, target, quality, signer`; `checked` and, when it is false, `check_reason`; `accuracy` {metric,
unit, float, int8, drop, interval, samples, agreement, kl, sqnr_db, data, engine, budget}: percent where `unit` is %;
`int8`: of what is shipped, whatever its precision; `interval` [low, high] holds the drop with 95 % probability (paired
bootstrap); for `map` also `map50` {float, int8}; `unmeasured` when labels lack for what was asked; `size` {float_bytes,
int8_bytes, ratio}: weights in float32, and weights.bin; `latency_us` {min, median, p99} of one thread, or null and
`latency_reason`; `macs` {total, integer}; `float_operators` [{name, kind}]; `arena_bytes, scratch_bytes,
runtime_bytes, bundle_bytes`; `seconds` by stage; `parity`: graph against the handler run eagerly; `quantization`:
what the quantizer did, and `fallback` [{layer, keys, operator, precision, gain, cost_us}]: the layers that left 8 bits
to meet the budget, as "int16" (together, where they read the same) or "float32"; `gain`: the part of INT8's error at
the outputs that this rounding makes alone, `cost_us`: how much longer it takes without; no gain, cost and operator
where recipe.lock says which; `precision` {chosen}: "int8", or "float32" for the whole network, and where both
were measured {int8_us, float32_us}, the least latency of one thread; `diagnosis`: where accuracy is lost, why, and what
to do (keys: stages/diagnose/__init__.py; `culprit` is its first finding, or null; `failed` alone when it could not be
made); with --update-of `update` {of {version, release, id}, weights, changed, rescaled, entropy_bytes, grids_kept,
grids_changed [{name, old_scale, scale, reason}], layers [{name, weights, changed, rescaled, entropy_bytes}], sqnr_db,
accuracy {metric, unit, old, float, shipped}}: integers and channels' scales that differ from the old release's, the
empirical entropy of the integers' differences, and tensors whose scale no longer served; `runtime`: "kept" with
--keep-runtime, else "new"; and with --max-delta {max_delta, delta_bytes, delta_files {PATH: bytes, and manifest},
values_bytes, whole_bytes, price}: the delta that was asked for, the one that was made, what each file that changed
takes of it, its weights, those of the whole update, what a bit had to be worth (0: all is shipped), and accuracy.new:
of the whole update; with --baseline `baseline` {edgebuild, onnxruntime}: latency in turns.

Description: `name, version, target, release, arch, needs, abi, quality, checked, function, trigger, timeout_ms,
verified`; `made`, `expires`: YYYY-MM-DD or null; `signer`: key id; `inputs`, `outputs` [{name, shape, dtype}]; `files`
[{path, size, sha256}]; `ops` [{name, kind, inputs, outputs, macs, integer}] with [{name, shape, dtype, space}];
`macs` {total, integer}; `arena_bytes, scratch_bytes`; the memory plan: `tensors` [{name, shape, dtype, space,
offset, bytes}].

Trust file: `form`: roles or keys; `version, made, expires, expired, root_threshold`; `keys` [{role, key_id, public,
signed}]: role root, retired or release; `signed_by_roots`; `stands`; with --after `follows`: {version, signed_by_roots,
root_threshold, holds, problem}. Of a plain list of keys `form` and `keys` alone.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from edgebuild.core.bundle import Bundle
from edgebuild.core.errors import BundleError
from edgebuild.core.manifest import Manifest, Tensor, Trigger
from edgebuild.core.minisign import PublicKey
from edgebuild.core.plan import Plan, PlanOp, read_plan
from edgebuild.core.trust import Trust, TrustFile, follows


def of_build(
    manifest: Manifest,
    plan: Plan,
    *,
    float_bytes: int,
    quantization: dict[str, Any],
    checked: dict[str, Any],
    accuracy: dict[str, Any],
) -> dict[str, Any]:
    """The report, without what only the end of a build knows."""
    sizes = {file.path: file.size for file in manifest.files}
    int8_bytes = sizes["weights.bin"]
    return {
        "name": manifest.name,
        "version": manifest.version,
        "target": manifest.target,
        "quality": manifest.quality,
        "checked": checked["checked"],
        "check_reason": checked["reason"],
        "accuracy": accuracy,
        "size": {
            "float_bytes": float_bytes,
            "int8_bytes": int8_bytes,
            "ratio": round(int8_bytes / float_bytes, 4) if float_bytes else 0.0,
        },
        "latency_us": checked["latency_us"],
        "latency_reason": checked["latency_reason"],
        "macs": {"total": plan.macs_total, "integer": plan.macs_integer},
        "float_operators": [{"name": op.name, "kind": op.kind} for op in plan.ops if not op.integer],
        "arena_bytes": plan.arena_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "runtime_bytes": sizes["edgebuild-run"],
        "quantization": quantization,
    }


def of_bundle(bundle: Bundle, claimed_signer: str) -> dict[str, Any]:
    """The description of a bundle; `claimed_signer` is the key id in its signature."""
    manifest = bundle.manifest
    plan = read_plan(bytes(bundle.files["plan.bin"]))
    return {
        "name": manifest.name,
        "version": manifest.version,
        "target": manifest.target,
        "release": manifest.release,
        "made": manifest.made and str(manifest.made),
        "expires": manifest.expires and str(manifest.expires),
        "arch": manifest.arch,
        "needs": list(manifest.needs),
        "abi": manifest.abi,
        "quality": manifest.quality,
        "checked": manifest.checked,
        "function": manifest.function,
        "trigger": trigger_text(manifest.trigger),
        "timeout_ms": manifest.timeout_ms,
        "signer": claimed_signer,
        "verified": bundle.signer is not None,
        "inputs": [_tensor(tensor) for tensor in manifest.inputs],
        "outputs": [_tensor(tensor) for tensor in manifest.outputs],
        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in manifest.files],
        "ops": [_op(plan, op) for op in plan.ops],
        "macs": {"total": plan.macs_total, "integer": plan.macs_integer},
        "arena_bytes": plan.arena_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "tensors": [
            {**_operand(plan, index), "offset": tensor.offset, "bytes": tensor.nbytes}
            for index, tensor in enumerate(plan.tensors)
        ],
    }


def shipped(report: Mapping[str, Any]) -> str:
    """What the network of a report runs in, for people."""
    fallback = report.get("quantization", {}).get("fallback") or []
    return precision_text(report.get("precision", {}).get("chosen", "int8"), (row["precision"] for row in fallback))


def precision_text(chosen: str, fallback: Iterable[str]) -> str:
    """The precision of a network in which some layers have others; "compiled float32" is not the float network."""
    if chosen != "int8":
        return f"compiled {chosen}"
    others = set(fallback)
    kinds = " and ".join(kind for kind in ("int16", "float32") if kind in others)
    return f"INT8 with {kinds} layers" if kinds else "INT8"


def trigger_text(trigger: Trigger) -> str:
    return trigger.kind if trigger.value is None else f"{trigger.kind} {trigger.value}"


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}


def _op(plan: Plan, op: PlanOp) -> dict[str, Any]:
    return {
        "name": op.name,
        "kind": op.kind,
        "inputs": [_operand(plan, index) for index in op.inputs],
        "outputs": [_operand(plan, index) for index in op.outputs],
        "macs": op.macs,
        "integer": op.integer,
    }


def _operand(plan: Plan, index: int) -> dict[str, Any]:
    tensor = plan.tensors[index]
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype, "space": tensor.space}


def of_keys(trust: Trust) -> dict[str, Any]:
    """The description of a plain list of keys."""
    return {"form": "keys", "keys": [_key("release", key, ()) for key in trust.values()]}


def of_trust(file: TrustFile, after: TrustFile | None, today: date) -> dict[str, Any]:
    """The description of a trust file with roles, finished or not, and whether it follows `after`."""
    signers = file.signers()
    by_roots = sum(key in file.roots for key in signers)
    roles = (("root", file.roots), ("retired", file.retired), ("release", file.release))
    return {
        "form": "roles",
        "version": file.version,
        "made": str(file.made),
        "expires": str(file.expires),
        "expired": file.expired(today),
        "root_threshold": file.root_threshold,
        "keys": [_key(role, key, signers) for role, keys in roles for key in keys],
        "signed_by_roots": by_roots,
        "stands": by_roots >= file.root_threshold,
        **({} if after is None else {"follows": _follows(after, file, stands=by_roots >= file.root_threshold)}),
    }


def _follows(old: TrustFile, file: TrustFile, *, stands: bool) -> dict[str, Any]:
    problem = None if stands else "it does not stand on its own"
    try:
        follows(old, file)
    except BundleError as error:
        problem = error.message
    return {
        "version": old.version,
        "signed_by_roots": len(file.signed_by(old.roots)),
        "root_threshold": old.root_threshold,
        "holds": problem is None,
        "problem": problem,
    }


def _key(role: str, key: PublicKey, signers: Iterable[PublicKey]) -> dict[str, Any]:
    return {"role": role, "key_id": key.name, "public": key.line(), "signed": key in signers}
