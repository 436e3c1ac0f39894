"""What edgebuild-run refuses. Every test first shows that the untouched bundle passes its check."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from machine import HOST, QEMU_AARCH64, QEMU_RISCV64, Machine

from edgebuild.core.minisign import SecretKey

OK, INPUT, REFUSED, CHECK, UNSUPPORTED, IO = range(6)
OTHER_KEY = tiny.Key.new(2)


def runs(machine: Machine, bundle: tiny.Bundle) -> None:
    done = machine.run(bundle.build(), "--check")
    assert (done.returncode, done.stderr) == (OK, "")
    assert done.stdout == "check: 3 golden samples, 4 outputs: identical\n"


def refused(
    machine: Machine, data: bytes, code: int, message: str, *arguments: str, trust: bytes | None = tiny.KEY.trust
) -> None:
    done = machine.run(data, *(arguments or ("--check",)), trust=trust)
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.returncode == code


def test_changed_manifest(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bundle.build().replace(b"release 1\n", b"release 2\n")
    refused(checked, data, REFUSED, "the signature does not hold")


def test_changed_signature(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bytearray(bundle.build())
    at = data.index(b"signature from edgebuild\n") + 60
    data[at] = ord("A") if data[at] != ord("A") else ord("B")
    refused(checked, bytes(data), REFUSED, "the signature does not hold")


def test_changed_trusted_comment(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bundle.build().replace(b"comment: edgebuild tiny", b"comment: edgebuild tinx")
    refused(checked, data, REFUSED, "the signature does not hold")


def signed_by_minisign(folder: Path, manifest: bytes, *arguments: str) -> bytes:
    """What Debian's minisign writes for `tiny.KEY`."""
    (folder / "manifest").write_bytes(manifest)
    (folder / "key").write_bytes(SecretKey(tiny.KEY.key_id, bytes(tiny.KEY.signing)).file())
    command = ["minisign", "-S", *arguments, "-m", "manifest", "-s", "key"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "manifest.minisig").read_bytes()


def resigned(bundle: tiny.Bundle, signature: bytes) -> bytes:
    members = [("manifest", bundle.manifest()), ("manifest.minisig", signature), *bundle.files()]
    return b"".join(tiny.member(name, data) for name, data in members) + bytes(1024)


@pytest.mark.parametrize("arguments", [(), ("-t", "any words ~\tand tabs"), ("-t", " ")])
def test_what_minisign_signed_runs(
    checked: Machine, bundle: tiny.Bundle, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    signature = signed_by_minisign(tmp_path, bundle.manifest(), *arguments)
    done = checked.run(resigned(bundle, signature), "--check")
    assert (done.returncode, done.stderr) == (OK, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-l",), "the signature is one of minisign's legacy kind, which is not prehashed"),
        (("-c", "signature from me"), "the signature is malformed"),
        (("-t", "grüße"), "the signature is malformed"),
        (("-t", "x" * 900), "manifest.minisig is over 1024 bytes"),
    ],
)
def test_what_minisign_signed_otherwise(
    checked: Machine, bundle: tiny.Bundle, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    signature = signed_by_minisign(tmp_path, bundle.manifest(), *arguments)
    refused(checked, resigned(bundle, signature), REFUSED, message)


def test_no_bit_of_a_signature_of_minisign_may_change(
    sanitized: Path, checked: Machine, bundle: tiny.Bundle, tmp_path: Path
) -> None:
    """The untrusted comment too, which no signature covers."""
    signature = signed_by_minisign(tmp_path, bundle.manifest())
    data = [resigned(bundle, signature)]
    for i in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[i // 8] ^= 1 << i % 8
        data.append(resigned(bundle, bytes(changed)))
    first, *others = load_all(sanitized, checked, data)
    assert first == "ok"
    assert [line for line in others if not line.startswith("refused ")] == []


def test_unknown_key(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bundle.but(key=OTHER_KEY).build()
    refused(checked, data, REFUSED, "signed by the key 112233445566778A, which the trust file does not list")
    both = tiny.KEY.trust + OTHER_KEY.trust
    assert checked.run(data, "--check", trust=both).returncode == OK


def test_another_key_under_a_known_id(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bundle.but(key=tiny.Key(tiny.KEY.key_id, OTHER_KEY.signing)).build()
    refused(checked, data, REFUSED, "the signature does not hold")


@pytest.mark.parametrize(
    ("trust", "message"),
    [
        (b"", "the trust file has no key"),
        (b"# nothing\n\n", "the trust file has no key"),
        (b"not a key\n", "trust file, line 1: this is no public key of minisign"),
        (tiny.KEY.trust.replace(b"\n", b"\r\n"), "trust file, line 2: this is no public key of minisign"),
        (tiny.KEY.trust + b"# again\n" + tiny.KEY.trust, "trust file, line 5: this key id occurs twice"),
        (tiny.KEY.trust + b"#" * (64 << 10), "the trust file is over 64 KiB"),
    ],
)
def test_trust_file(checked: Machine, bundle: tiny.Bundle, trust: bytes, message: str) -> None:
    runs(checked, bundle)
    refused(checked, bundle.build(), REFUSED, message, trust=trust)


def test_no_trust_file(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    refused(checked, bundle.build(), REFUSED, "there is no trust file, so no bundle can be verified", trust=None)


def test_trust_of_the_home_folder(checked: Machine, bundle: tiny.Bundle) -> None:
    folder = checked.folder / ".config/edgebuild"
    folder.mkdir(parents=True)
    (folder / "trust").write_bytes(tiny.KEY.trust)
    assert checked.run(bundle.build(), "--check", trust=None).returncode == OK


@pytest.mark.parametrize("name", ["edgebuild-run", "program.so", "plan.bin", "weights.bin", "golden/out-1.npy"])
def test_changed_file(checked: Machine, bundle: tiny.Bundle, name: str) -> None:
    runs(checked, bundle)
    data = bytearray(bundle.build())
    content = dict(bundle.files())[name]
    data[data.index(tiny.member(name, content)) + 512 + len(content) - 1] ^= 1
    refused(checked, bytes(data), REFUSED, f"the bundle's file {name} is not the one that was signed")


def test_changed_padding_and_end(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bytearray(bundle.build())
    data[-1025] ^= 1
    refused(checked, bytes(data), REFUSED, "the bundle's padding behind golden/out-3.npy is not zero")
    data = bytearray(bundle.build())
    data[-1] ^= 1
    refused(checked, bytes(data), REFUSED, "the bundle has bytes behind its end")
    refused(checked, bundle.build() + bytes(512), REFUSED, "the bundle has bytes behind its end")


def test_truncated(sanitized: Path, checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bundle.build()
    refused(checked, data[: len(data) // 2], REFUSED, "the bundle is cut off")
    refused(checked, data[:-1], REFUSED, "the bundle is cut off")
    refused(checked, data[:100], REFUSED, "the bundle is cut off")
    refused(checked, b"", IO, "cannot load ")
    cut = load_all(sanitized, checked, [data[:size] for size in range(0, len(data), 37)])
    assert all(line == "refused the bundle is cut off" for line in cut)


def test_program_with_an_undefined_symbol(checked: Machine, bundle: tiny.Bundle, tmp_path: Path) -> None:
    """Nothing is bound lazily: it fails at load, not in the middle of a frame."""
    runs(checked, bundle)
    source = tiny.KERNELS.replace("  (void)scratch;", "  extern int not_there(void);\n  not_there();", 1)
    assert source != tiny.KERNELS
    program = tiny.program_so(tmp_path, f"{HOST}-linux-gnu", kernels=source)
    refused(checked, bundle.but(program=program).build(), REFUSED, "cannot load program.so: ")
    refused(checked, bundle.but(program=program).build(), REFUSED, "undefined symbol: not_there")


def test_not_a_bundle(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    refused(checked, b"\x7fELF" * 400, REFUSED, "this is not a bundle")


def test_two_files_swapped(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    files = dict(bundle.files())
    one, two = tiny.member("plan.bin", files["plan.bin"]), tiny.member("weights.bin", files["weights.bin"])
    data = bundle.build().replace(one + two, two + one)
    refused(checked, data, REFUSED, "the bundle's archive header of plan.bin is not as it must be")


def test_other_arch(checked: Machine, bundle: tiny.Bundle, program: Callable[..., bytes]) -> None:
    runs(checked, bundle)
    other = "aarch64" if HOST == "x86_64" else "x86_64"
    message = f"the bundle is for {other}, this machine is {HOST}"
    refused(checked, bundle.but(arch=other).build(), UNSUPPORTED, message)
    # Nothing behind the manifest is read first: the program of that arch is not even looked at.
    refused(checked, bundle.but(arch=other, program=program(other)).build(), UNSUPPORTED, message)


def test_missing_feature(aarch64: Machine, program: Callable[..., bytes]) -> None:
    old = Machine(aarch64.program, aarch64.folder, (*QEMU_AARCH64, "-cpu", "cortex-a53"))
    runs(old, tiny.Bundle(program("aarch64"), arch="aarch64"))
    newer = tiny.Bundle(program("aarch64", needs=0b11), arch="aarch64", needs="neon dotprod")
    runs(aarch64, newer)
    refused(old, newer.build(), UNSUPPORTED, "the bundle needs the CPU feature dotprod, which this machine lacks")


def test_missing_vectors(riscv64: Machine, program: Callable[..., bytes]) -> None:
    runs(riscv64, tiny.Bundle(program("riscv64"), arch="riscv64"))
    with_vectors = tiny.Bundle(program("riscv64", needs=1 << 4), arch="riscv64", needs="v")
    refused(riscv64, with_vectors.build(), UNSUPPORTED, "the bundle needs the CPU feature v, which this machine lacks")
    wide = tiny.Bundle(program("riscv64", needs=0b11 << 4), arch="riscv64", needs="v zvl256b")
    for bits, other in ((128, "zvl256b"), (256, None)):
        cpu = ("-cpu", f"rv64,v=true,vext_spec=v1.0,vlen={bits},elen=64")
        machine = Machine(riscv64.program, riscv64.folder, (*QEMU_RISCV64, *cpu))
        runs(machine, with_vectors)
        if other:
            refused(machine, wide.build(), UNSUPPORTED, f"the bundle needs the CPU feature {other}, which this machine")
        else:
            runs(machine, wide)


@pytest.mark.skipif(HOST != "x86_64", reason="x86 feature names")
def test_every_feature_that_the_kernel_reports(checked: Machine, program: Callable[..., bytes]) -> None:
    names = ["avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe"]
    names += [f"avx512{part}" for part in ("f", "bw", "cd", "dq", "vl", "vnni")] + ["avxvnni", "avx512vbmi"]
    kernel_names = {"bmi": "bmi1", "lzcnt": "abm", "avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni"}
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    present = [name for name in names if kernel_names.get(name, name) in flags]
    needs = sum(1 << names.index(name) for name in present)
    runs(checked, tiny.Bundle(program(needs=needs), arch=HOST, needs=" ".join(present)))
    for name in sorted(set(names) - set(present)):
        data = tiny.Bundle(program(), arch=HOST, needs=name).build()
        refused(checked, data, UNSUPPORTED, f"the bundle needs the CPU feature {name}, which this machine lacks")


def test_feature_of_the_future(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bundle.but(needs="amx9").build()
    refused(checked, data, UNSUPPORTED, "the bundle needs the CPU feature amx9, which this runtime does not know")


def test_newer_abi(checked: Machine, bundle: tiny.Bundle, program: Callable[..., bytes]) -> None:
    runs(checked, bundle)
    message = "the bundle needs kernel ABI 2, this runtime has ABI 1"
    refused(checked, bundle.but(abi="2").build(), UNSUPPORTED, message)
    data = bundle.but(program=program(abi=2)).build()
    refused(checked, data, UNSUPPORTED, "program.so has kernel ABI 2, this runtime has ABI 1")


def test_newer_manifest(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bundle.but(edits=(("edgebuild-manifest 1", "edgebuild-manifest 2"),)).build()
    refused(checked, data, UNSUPPORTED, "the bundle's manifest has version 2; this runtime reads version 1")


def test_program_that_does_not_fit(checked: Machine, bundle: tiny.Bundle, program: Callable[..., bytes]) -> None:
    runs(checked, bundle)
    refused(checked, bundle.but(program=program(magic=7)).build(), REFUSED, "program.so: bad magic")
    refused(checked, bundle.but(program=b"no ELF").build(), REFUSED, "cannot load program.so")
    refused(checked, bundle.but(program=b"").build(), REFUSED, "program.so is empty")
    message = "program.so needs other CPU features than the manifest says"
    refused(checked, bundle.but(program=program(needs=1)).build(), REFUSED, message)


@pytest.mark.parametrize(
    ("found", "instead", "message"),
    [
        ("name tiny", "name Tiny", "line 2: malformed name"),
        ("version 1.0.0", "version 1..0/0", "line 3: malformed name"),
        ("release 1", "release 0", "line 5: expected a number"),
        ("release 1", "release 01", "line 5: expected a number"),
        ("release 1", "release 2147483648", "line 5: expected a number"),
        ("release 1", "release 99999999999999999999999", "line 5: expected a number"),
        ("release 1\n", "", "line 5: expected `release`"),
        ("trained", "good", "line 8: unknown quality"),
        ("trained\n", "trained\nchecked yes\n", "line 9: expected `checked no`"),
        ("trained\n", "trained\nchecked no\nchecked no\n", "line 10: expected `function`"),
        ("trigger camera 15", "trigger http 80", "line 10: expected `trigger"),
        ("timeout-ms 500", "timeout-ms  500", "the manifest is not text in canonical form"),
        ("timeout-ms 500", "timeout-ms 500 ", "the manifest is not text in canonical form"),
        ("timeout-ms 500", "timeout-ms 500\n", "the manifest is not text in canonical form"),
        ("timeout-ms 500", "timeout-ms\t500", "the manifest is not text in canonical form"),
        ("timeout-ms 500", "retries 3", "line 11: unexpected line"),
        ("uint8 6 8 3", "uint9 6 8 3", "line 12: unknown dtype"),
        ("uint8 6 8 3", "uint8 6 8 3 1 1 1 1", "line 12: expected NAME DTYPE DIM"),
        ("uint8 6 8 3", "uint8 6 x 3", "line 12: malformed dimension"),
        ("output total", "output pixels", "line 14: this name occurs twice"),
        ("edgebuild-run", "edgebuild-ran", "the manifest lists no file edgebuild-run"),
        ("golden/in-0.npy", "golden/in-1.npy", "the manifest lists no file golden/in-0.npy"),
        ("golden/in-0.npy", "golden/../0.npy", "line 21: malformed path"),
        ("golden/out-0.npy", "golden/in-0.npy", "line 22: this path occurs twice"),
    ],
)
def test_signed_manifest_in_wrong_form(
    checked: Machine, bundle: tiny.Bundle, found: str, instead: str, message: str
) -> None:
    runs(checked, bundle)
    refused(checked, bundle.but(edits=((found, instead),)).build(), REFUSED, message)


def test_manifest_and_plan_disagree(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    data = bundle.but(edits=(("output mean float32", "output mean int32"),)).build()
    refused(checked, data, REFUSED, "output mean is not the same in manifest and plan.bin")
    data = bundle.but(edits=(("output bright bool\n", ""),)).build()
    refused(checked, data, REFUSED, "the manifest has 3 outputs, plan.bin 4")


def test_golden_outputs_that_differ(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    outputs = tiny.reference(tiny.golden_frames())
    right = outputs["pixels"][1, 0, 1, 1]
    outputs["pixels"][1, 0, 1, 1] ^= 0x55
    data = bundle.but(golden={"golden/out-0.npy": tiny.npy(outputs["pixels"])}).build()
    message = f"output pixels differs in golden sample 1 at element 4: expected {right ^ 0x55}, found {right}"
    refused(checked, data, CHECK, message)


def wrong_golden() -> dict[str, bytes]:
    """Golden outputs of which the last sample is not what the function computes."""
    pixels = tiny.reference(tiny.golden_frames())["pixels"]
    pixels[-1, 0, 0, 0] ^= 1
    return {"golden/out-0.npy": tiny.npy(pixels)}


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_bundle_that_no_machine_has_run(checked: Machine, bundle: tiny.Bundle, threads: str) -> None:
    """It runs its golden samples before it gives the first result; one that was checked does not."""
    frames = checked.write("frames.npy", tiny.npy(tiny.golden_frames()))
    arguments = ("--input", str(frames), "--threads", threads)
    first = bundle.but(checked=False)
    assert b"checked no\n" in first.manifest()
    runs(checked, first)
    ours, theirs = checked.run(first.build(), *arguments), checked.run(bundle.build(), *arguments)
    assert (ours.returncode, theirs.returncode) == (OK, OK)
    results = [[json.loads(line)["outputs"] for line in done.stdout.splitlines()] for done in (ours, theirs)]
    assert len(results[0]) == tiny.SAMPLES
    assert results[0] == results[1]
    message = "refused: the bundle's first run anywhere is not right: output pixels differs in golden sample 2 at"
    refused(checked, first.but(golden=wrong_golden()).build(), CHECK, message, *arguments)
    assert checked.run(bundle.but(golden=wrong_golden()).build(), *arguments).returncode == OK


def test_golden_samples_are_read_only_where_they_count(checked: Machine, bundle: tiny.Bundle) -> None:
    frames = str(checked.write("frames.npy", tiny.npy(tiny.golden_frames())))
    damaged = bundle.but(golden={"golden/in-0.npy": b"no array"})
    assert checked.run(damaged.build(), "--input", frames).returncode == OK
    message = "a golden array: malformed .npy header"
    refused(checked, damaged.build(), INPUT, message)
    refused(checked, damaged.but(checked=False).build(), INPUT, message, "--input", frames)


def test_golden_arrays_of_different_lengths(checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    totals = tiny.reference(tiny.golden_frames())["total"]
    data = bundle.but(golden={"golden/out-1.npy": tiny.npy(totals[:2])}).build()
    refused(checked, data, REFUSED, "the golden arrays have different lengths")


def test_minisign_verifies_the_manifest(tmp_path: Path, bundle: tiny.Bundle) -> None:
    manifest = bundle.manifest()
    (tmp_path / "manifest").write_bytes(manifest)
    (tmp_path / "manifest.minisig").write_bytes(tiny.KEY.sign(manifest, bundle.comment))
    command = ["minisign", "-Vm", "manifest", "-x", "manifest.minisig", "-P", tiny.KEY.public]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Signature and comment signature verified" in done.stdout


def load_all(sanitized: Path, machine: Machine, bundles: list[bytes], threads: int = 1) -> list[str]:
    """Status and message of each bundle, from one process under the sanitizers."""
    trust = machine.write("trust", tiny.KEY.trust)
    data = b"".join(len(bundle).to_bytes(4, "little") + bundle for bundle in bundles)
    command = [sanitized / "drive", "load", trust, str(threads)]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(bundles)
    return [line.strip() for line in lines]


def test_flipped_bytes(sanitized: Path, checked: Machine, bundle: tiny.Bundle) -> None:
    runs(checked, bundle)
    path, trust = checked.write("flip.ebundle", bundle.build()), checked.write("trust", tiny.KEY.trust)
    command = [sanitized / "drive", "flip", path, trust, "2000", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2000 changed, 0 accepted\n"


def plan_fields() -> list[tuple[int, int]]:
    """(offset, size) of every field of tiny's plan, SPEC 5, and of some bytes of its strings."""
    plan = tiny.plan_bin()
    fields = [(0, 4), *((at, 4) for at in range(4, 40, 4)), (40, 8), (48, 8), (56, 8)]
    at = 64
    for _ in range(6):
        fields += [(at, 4), *((at + i, 1) for i in range(4, 8)), *((at + i, 4) for i in range(8, 32, 4))]
        fields += [(at + 32, 8), (at + 40, 8)]
        at += 48
    for _ in range(2):
        fields += [*((at + i, 4) for i in range(0, 32, 4)), (at + 32, 8)]
        at += 40
    fields += [(at + i, 4) for i in range(0, 4 * (7 + 1 + 4), 4)]
    at += 4 * (7 + 1 + 4)
    fields += [(i, 1) for i in range(at, len(plan))]
    return fields


def mutated_plans() -> list[bytes]:
    plan = tiny.plan_bin()
    made = []
    for at, size in plan_fields():
        value, top = int.from_bytes(plan[at : at + size], "little"), (1 << 8 * size) - 1
        small = {0, 1, 2, 7, value - 1, value + 1, value + 64, value - 64, value ^ (top // 2 + 1)}
        others = sorted((small | {top, top // 2, top // 2 + 1}) - {value})
        fitting = (other.to_bytes(size, "little") for other in others if 0 <= other <= top)
        made += [plan[:at] + other + plan[at + size :] for other in fitting]
    return made


@pytest.mark.parametrize("threads", [1, 3])
def test_every_field_of_the_plan_changed(sanitized: Path, checked: Machine, bundle: tiny.Bundle, threads: int) -> None:
    runs(checked, bundle)
    plans = mutated_plans()
    lines = load_all(sanitized, checked, [bundle.but(plan=plan).build() for plan in plans], threads)
    refusals = [line for line in lines if line != "ok"]
    print(f"{len(plans)} plans, {len(refusals)} refused")  # noqa: T201
    assert len(refusals) > len(plans) // 2
    assert all("plan.bin" in line or line.startswith("memory cannot get ") for line in refusals)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0, "plan.bin: not a plan"),
        (4, 2, "plan.bin has version 2"),
        (8, 1025, "a size in the header is no multiple of 64"),
        (16, 7, "the sections do not fill the file"),
        (40, 320, "weights_bytes is not the size of weights.bin"),
        (64, 9999, "tensor 0: its name lies outside the strings"),
        (64 + 8, 7, "tensor 0: its size is not its shape's"),
        (64 + 32, 32, "tensor 0: its offset is no multiple of 64"),
        (64 + 32, 1024, "tensor 0: it lies outside its memory"),
        (64 + 32, 192, "input 0: it overlaps another tensor"),
        (352 + 8, 2, "operator 0: program.so has no such kernel"),
        (352 + 16, 17, "operator 0: not 1 to 16 arguments"),
        (352 + 12, 6, "operator 0: its arguments lie outside the table"),
        (352 + 20, 0, "operator 0: its work is out of range"),
        (352 + 24, 145, "operator 0: its grain is out of range"),
        (352 + 28, 2, "operator 0: unknown flags"),
        (432, 6, "argument 0: there is no such tensor"),
        (432 + 4, 1 | 1 << 31, "argument 1: weights are written"),
        (460, 1, "input 0: it does not lie in the arena"),
    ],
)
def test_plan_field(checked: Machine, bundle: tiny.Bundle, offset: int, value: int, message: str) -> None:
    runs(checked, bundle)
    plan = bytearray(bundle.plan)
    plan[offset : offset + 4] = value.to_bytes(4, "little")
    code = UNSUPPORTED if "version" in message else REFUSED
    refused(checked, bundle.but(plan=bytes(plan)).build(), code, message)
