"""Whether this machine lets a test trace a process: containers often forbid ptrace, though strace is there."""

import functools
import shutil
import subprocess


@functools.cache
def can_trace() -> bool:
    if not shutil.which("strace"):
        return False
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return done.returncode == 0
