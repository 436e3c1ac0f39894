"""A whole device, emulated, whose power goes: `python tests/benchmarks/emulated_device.py [--cuts N] [--seed N]`.

QEMU runs an ARM processor (Cortex-A72) with Debian's kernel, and a store on an ext4 disk. The device installs releases,
whole and by delta, runs them, rolls back, tidies up; at a random moment QEMU is killed, and the device starts again
from the disk as it is then. What was current must be the old or the new release, and give its results.

Needs `apt-get install qemu-system-arm cpio e2fsprogs`; kernel, C library and shell are downloaded by apt.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "runtime")]

import tiny  # noqa: E402
from power.operations import TRUST, Releases  # noqa: E402
from published import manifest_id  # noqa: E402

from edgebuild.stages.runtime import runtime_binary  # noqa: E402

ARCH = "aarch64"
APT = """Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
APT::Architecture "arm64";
APT::Architectures {{"arm64";}};
APT::Sandbox::User "root";
"""
KERNEL = r"linux-image-6\.1\.[0-9-]+-cloud-arm64"
MODULES = ("virtio_pci", "virtio_blk")
LIBRARIES = ("ld-linux-aarch64.so.1", "libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0")
COMMANDS = ("cat", "echo", "grep", "insmod", "mount", "rm", "sh", "sleep", "sync")
DISK_MEBIBYTES = 32
START_SECONDS = 120
"""A device that has done nothing by then does not start."""
RUN = "run tiny --input /r/frames.npy"
STEPS = {
    "install /r/1.ebundle": "1",
    "install /r/1-2.edelta": "2",
    "rollback tiny": "1",
    "install /r/2f.ebundle": "",
    "install /r/3.ebundle": "3",
    "gc": "",
    "rollback tiny --bad": "1",
}
"""What is current behind each; "": what was."""
FAILS = {"install /r/2f.ebundle": "3"}
"""Exit codes of those that must fail."""
INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
{modules}
while ! mount -t ext4 /dev/vda /d 2>/tmp/why; do sleep 0.1; done
device() {{ edgebuild-run "$@" --store /d/store --trust /r/trust; }}
step() {{ echo BEGIN "$*"; device "$@" >/tmp/out 2>&1; echo END $? "$*"; }}
echo STATUS $(device status --json 2>&1)
echo RESULT $(device {run} 2>&1 | grep -o '"pixels":.[0-9]*')
rm -rf /d/store
sync
{steps}
echo FINISHED
while :; do sleep 9; done
"""


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def call(*command: str, folder: Path | None = None) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


class System:
    """What the device boots: kernel, and a file system in memory with edgebuild-run and the releases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.releases = Releases(self.root / "r", tiny.program_so(folder, f"{ARCH}-linux-gnu"), real=True, arch=ARCH)
        self._download()
        self.kernel = next((folder / "debian" / "boot").glob("vmlinuz-*"))
        self._fill()
        self.initial = folder / "initial.gz"
        call("sh", "-c", f"find . | cpio -o -H newc --quiet | gzip -1 > {self.initial}", folder=self.root)

    def _download(self) -> None:
        """Into the folder `debian`, beside this machine's own packages."""
        for name in ("lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True)
        settings = self.folder / "apt.conf"
        settings.write_text(APT.format(folder=self.folder))
        call("apt-get", "-c", str(settings), "update", "-qq")
        kernels = call("apt-cache", "-c", str(settings), "search", "--names-only", f"^{KERNEL}$").split("\n")
        names = [sorted(line.split()[0] for line in kernels if line)[-1], "busybox-static", "libc6"]
        call("apt-get", "-c", str(settings), "download", *names, folder=self.folder)
        for package in self.folder.glob("*.deb"):
            call("dpkg-deb", "-x", str(package), str(self.folder / "debian"))

    def _fill(self) -> None:
        debian = self.folder / "debian"
        for name in ("bin", "lib", "proc", "dev", "d", "tmp", "r"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(debian / "bin" / "busybox", self.root / "bin")
        for name in COMMANDS:
            (self.root / "bin" / name).symlink_to("busybox")
        modules = self._modules()
        for module in modules:
            shutil.copy(module, self.root / "lib")
        for name in LIBRARIES:
            shutil.copy(debian / "lib" / "aarch64-linux-gnu" / name, self.root / "lib")
        shutil.copy(runtime_binary(f"{ARCH}-linux-gnu"), self.root / "bin" / "edgebuild-run")
        for name in ("1", "2", "2f", "3"):
            self.releases.file(name)
        self.releases.delta("1", "2")
        (self.root / "r" / "frames.npy").write_bytes(tiny.npy(tiny.golden_frames()))
        (self.root / "r" / "trust").write_bytes(TRUST["keys"])
        loads = "\n".join(f"insmod /lib/{module.name}" for module in modules)
        steps = "\n".join(f"step {step}" + ("" if step == "gc" else f"\nstep {RUN}") for step in STEPS)
        init = self.root / "init"
        init.write_text(INIT.format(modules=loads, steps=steps, run=RUN))
        init.chmod(0o755)

    def _modules(self) -> list[Path]:
        """Of the disk's drivers, each behind those that it names in its ELF section `.modinfo`."""
        found: dict[str, Path] = {}

        def load(name: str) -> None:
            (path,) = (self.folder / "debian" / "lib" / "modules").rglob(f"{name}.ko")
            needed = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
            for other in needed[1].decode().split(",") if needed and needed[1] else []:
                load(other)
            found.setdefault(name, path)

        for name in MODULES:
            load(name)
        return list(found.values())


@dataclass
class Boot:
    """What a device said until its power went."""

    current: str = ""
    said: str = ""
    is_up: bool = False
    became: str = ""
    begun: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def may_be(self) -> set[str]:
        """What may be current at the next start."""
        return {self.became, STEPS.get(self.begun) or self.became}


class Device:
    """The disk, and what is started from it."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.disk = system.folder / "disk"
        with self.disk.open("wb") as file:
            file.truncate(DISK_MEBIBYTES << 20)
        call("mkfs.ext4", "-q", str(self.disk))
        self.names = {manifest_id(bundle): name for name, bundle in system.releases.bundles.items()}
        self.span = 20.0
        """Seconds that all steps take; until it is known, more than that."""

    def boot(self, moment: float) -> Boot:
        """Until the power goes, at this share of the time that the steps take."""
        command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-m", "256", "-nographic", "-no-reboot"]
        command += ["-kernel", str(self.system.kernel), "-initrd", str(self.system.initial), "-net", "none"]
        command += ["-append", "console=ttyAMA0 quiet panic=-1", "-device", "virtio-blk-pci,drive=disk,romfile="]
        command += ["-drive", f"if=none,id=disk,format=raw,file={self.disk}"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
        )
        assert process.stdout is not None
        found, began = Boot(), 0.0
        hung = threading.Timer(START_SECONDS, process.kill)
        hung.start()
        for line in map(str.strip, process.stdout):
            if line.startswith("BEGIN ") and not began:
                began = time.monotonic()
                hung.cancel()
                threading.Timer(moment * self.span, process.kill).start()
            if line == "FINISHED":
                self.span = time.monotonic() - began
                process.kill()
            self._read(found, line)
        process.wait()
        hung.cancel()
        return found

    def _read(self, boot: Boot, line: str) -> None:
        kind, _, rest = line.partition(" ")
        if kind == "STATUS":
            boot.is_up = True
            boot.current = self._current(boot, json.loads(rest))
        elif kind == "RESULT" and boot.current:
            said, wanted = re.findall(r":.(\d+)", rest), self.system.releases.answer(boot.current)
            if str([int(value) for value in said]) != wanted:
                boot.problems.append(f"release {boot.current} gives {said} and not {wanted}")
        elif kind == "BEGIN":
            boot.begun = rest
        elif kind == "END":
            code, _, step = rest.partition(" ")
            boot.begun = ""
            boot.became = STEPS.get(step) or boot.became
            if code != FAILS.get(step, "0"):
                boot.problems.append(f"{step}: exit code {code}")

    def _current(self, boot: Boot, status: dict[str, object]) -> str:
        functions = status.get("functions")
        if not isinstance(functions, list):
            if not re.search("No such file|nothing was installed", str(status.get("error"))):
                boot.problems.append(f"status: {status}")
            return ""
        if not functions:
            return ""
        if functions[0]["damaged"]:
            boot.problems.append("its head is damaged")
        return self.names[functions[0]["id"]]


def cuts(device: Device, count: int, seed: int) -> Iterator[tuple[str, str, list[str]]]:
    """What was cut, what was current then, and what is wrong with that."""
    randoms = random.Random(seed)
    before = device.boot(1.0)
    for _ in range(count):
        boot = device.boot(randoms.random())
        problems = list(boot.problems)
        if not boot.is_up:
            problems.append("it does not start")
        elif boot.current not in before.may_be:
            problems.append(f"{boot.current or 'nothing'} is current, and not one of {sorted(before.may_be)}")
        yield before.begun or "between", boot.current or "none", problems
        before = boot


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="device-") as folder:
        found: Counter[tuple[str, str]] = Counter()
        wrong = 0
        for where, current, problems in cuts(Device(System(Path(folder))), arguments.cuts, arguments.seed):
            found[where, current] += 1
            wrong += bool(problems)
            for problem in problems:
                say(f"cut in {where}: {problem}")
    for (where, current), times in sorted(found.items()):
        say(f"{times:4} times cut in {where}: {current} is current")
    say(f"{sum(found.values())} cuts, {wrong} with problems")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
