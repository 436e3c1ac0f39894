"""Who signs a manifest without showing us the key: a command, or somebody who did it elsewhere."""

import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgebuild.core import minisign
from edgebuild.core.errors import BundleError, EnvironmentProblem, UsageError
from edgebuild.core.minisign import PublicKey
from edgebuild.core.trust import verify

TIMEOUT_S = 60.0
_FOUR_LINES = (
    "it gets what is to be signed on standard input, and prints the four lines of a minisign signature, nothing else"
)


@dataclass(frozen=True)
class Subject:
    """What is signed, in hints: minisign's command for it, and what to do when a signature is of something else."""

    command: str
    remedy: str


MANIFEST = Subject(
    "`minisign -Sm manifest` writes one",
    "sign the manifest of this bundle (`tar -xf BUNDLE manifest`) with a key of the trust file: "
    "~/.config/edgebuild/trust, where --trust names no other",
)
TRUST_BODY = Subject(
    "`minisign -Sm BODY` writes one",
    "sign the body of this trust file (`edgebuild trust show FILE --body > BODY`) with a root key that it lists",
)


class Signer(Protocol):
    """A `minisign.SecretKey`, or one of the classes below."""

    def sign(self, message: bytes, comment: str) -> bytes:
        """A minisign signature of `message`; `comment` is the trusted comment, where the signer lets us choose it.

        Raises BundleError, EnvironmentProblem.
        """


@dataclass(frozen=True)
class CommandSigner:
    """`command` is split into words as a shell does, and run without one."""

    command: str
    trust: Mapping[bytes, PublicKey]
    subject: Subject = MANIFEST

    def __post_init__(self) -> None:
        """A wrong one is refused before a long build."""
        if shutil.which(self._words()[0]) is None:
            raise self._not_run("No such file or directory")

    def sign(self, message: bytes, comment: str) -> bytes:  # noqa: ARG002 - a command writes its own
        output = self._output(message)
        return _verified(f"--signer {self.command}", message, output, self.trust, _FOUR_LINES, self.subject)

    def _words(self) -> list[str]:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"--signer {self.command}: {error}", "quote as in a shell") from error
        if not words:
            raise UsageError("--signer: no command", "e.g. --signer 'pkcs11-sign --slot 1'")
        return words

    def _not_run(self, why: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"--signer {self.command}: cannot be run: {why}", "name a program of this machine that may be executed"
        )

    def _output(self, message: bytes) -> bytes:
        where = f"--signer {self.command}"
        try:
            done = subprocess.run(self._words(), input=message, capture_output=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise EnvironmentProblem(f"{where}: no answer in {TIMEOUT_S:g} seconds", _FOUR_LINES) from error
        except OSError as error:
            raise self._not_run(error.strerror or "") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise EnvironmentProblem(
                f"{where}: failed with exit code {done.returncode}" + (f": {said[-1]}" if said else ""), _FOUR_LINES
            )
        return done.stdout


@dataclass(frozen=True)
class SignatureFile:
    """A signature that was made elsewhere."""

    path: Path
    trust: Mapping[bytes, PublicKey]
    subject: Subject = MANIFEST

    def sign(self, message: bytes, comment: str) -> bytes:  # noqa: ARG002 - it has its own
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise EnvironmentProblem(
                f"{self.path}: the signature cannot be read: {error.strerror}", self.subject.command
            ) from error
        return _verified(str(self.path), message, data, self.trust, self.subject.command, self.subject)


def _verified(
    where: str, message: bytes, signature: bytes, trust: Mapping[bytes, PublicKey], form: str, subject: Subject
) -> bytes:
    """`signature`, if it holds."""
    try:
        minisign.parse_signature(signature)
    except BundleError as error:
        raise BundleError(f"{where}: {error.message}", form) from error
    try:
        verify(message, signature, trust)
    except BundleError as error:
        raise BundleError(f"{where}: {error.message}", subject.remedy) from error
    return signature
