"""Where keys and trust lie on this machine, their passwords, and the development key, made when there is none."""

import getpass
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from edgebuild.core import minisign
from edgebuild.core.disk import write_together
from edgebuild.core.errors import BundleError, EnvironmentProblem, UsageError
from edgebuild.core.minisign import PublicKey, SecretKey
from edgebuild.core.trust import Trust, TrustFile, is_roles, parse_trust, stands

KEY_VARIABLE = "EDGEBUILD_KEY"
PASSWORD_VARIABLE = "EDGEBUILD_KEY_PASSWORD"  # noqa: S105 - its name
MAKE_KEY = "`edgebuild keys new --out FILE` makes a key"
MAKE_TRUST = "`edgebuild keys show > FILE` writes one that trusts your development key"


def config_dir() -> Path:
    """$XDG_CONFIG_HOME/edgebuild, else ~/.config/edgebuild. It may not exist yet."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "edgebuild"


def development_key_path() -> Path:
    return config_dir() / "keys" / "dev.key"


def user_trust_path() -> Path:
    return config_dir() / "trust"


def load_secret(path: Path, password: bytes = b"") -> SecretKey:
    """A minisign secret key file; where it is protected and no password is given, it is asked for."""
    data = _read(path, "key file", MAKE_KEY)
    try:
        if minisign.is_protected(data):
            return minisign.parse_secret_file(data, password or _password())
        return minisign.parse_secret_file(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error


def load_public(path: Path) -> PublicKey:
    """The public half of a public or a secret key file."""
    data = _read(path, "key file", MAKE_KEY)
    with suppress(BundleError):
        return minisign.parse_public_file(data)
    try:
        protected = minisign.is_protected(data)
    except BundleError as error:
        hint = "expected two lines: `untrusted comment: …` and base64"
        raise BundleError(f"{path}: not a minisign key", hint) from error
    try:
        return load_secret(path).public
    except BundleError as error:
        more = f"; or name its public half, {path}.pub, which needs none" if protected else ""
        raise BundleError(error.message, error.hint + more) from error


def load_trust(path: Path) -> Trust:
    data = read_trust(path)
    try:
        return parse_trust(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error


def load_roles(path: Path) -> TrustFile:
    """A trust file with roles that stands on its own. Raises BundleError, for a plain list of keys too."""
    data = read_trust(path)
    try:
        if not is_roles(data):
            raise BundleError("a plain list of keys, without versions", "`edgebuild trust new` writes one with roles")
        return stands(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error


def read_trust(path: Path) -> bytes:
    """Its bytes."""
    return _read(path, "trust file", MAKE_TRUST)


def signing_key_path() -> Path:
    """$EDGEBUILD_KEY, else the development key's, which may not exist yet."""
    variable = os.environ.get(KEY_VARIABLE)
    return Path(variable) if variable else development_key_path()


def signing_key(chosen: Path | None) -> SecretKey:
    """The key of `--key`, else of $EDGEBUILD_KEY, else the development key, created when there is none."""
    variable = os.environ.get(KEY_VARIABLE)
    if chosen is None and not variable:
        return development_key()
    return load_secret(chosen or signing_key_path())


def development_key(password: bytes = b"") -> SecretKey:
    """The development key; a new one is trusted on this machine, like one made by hand, and protected if asked for."""
    path = development_key_path()
    made = not path.exists()
    if made:
        write_new(path, minisign.generate(), password)
    key = load_secret(path, password)
    if made or not user_trust_path().exists():  # a key that was taken out of the trust file on purpose stays out
        add_trust(user_trust_path(), key.public)
    return key


def new_password() -> bytes:
    """The password for a new key: $EDGEBUILD_KEY_PASSWORD, else typed twice."""
    if given := os.environ.get(PASSWORD_VARIABLE):
        return os.fsencode(given)
    first = _typed("Password: ")
    if not first:
        raise UsageError("the password is empty", "without --password the key is not protected")
    if _typed("Password (one more time): ") != first:
        raise UsageError("the two passwords differ", "type the same one twice")
    return first


def _password() -> bytes:
    given = os.environ.get(PASSWORD_VARIABLE)
    return os.fsencode(given) if given else _typed("Password: ")


def _typed(prompt: str) -> bytes:
    if not sys.stdin.isatty():
        raise BundleError(
            "the key needs a password, and there is no terminal to ask on", f"put it into ${PASSWORD_VARIABLE}"
        )
    try:
        return os.fsencode(getpass.getpass(prompt))
    except EOFError as error:
        raise BundleError("no password was typed", f"type it, or put it into ${PASSWORD_VARIABLE}") from error


def write_new(path: Path, key: SecretKey, password: bytes = b"") -> None:
    """Writes the key (mode 0600) and `path`.pub beside it. An existing file stays as it is."""
    content = key.file(password)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".key-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        try:
            os.link(temporary, path)  # never replaces a key that another process made meanwhile
        except FileExistsError:
            return
    finally:
        Path(temporary).unlink()
    path.with_name(path.name + ".pub").write_bytes(key.public.file())


def add_trust(path: Path, key: PublicKey) -> None:
    """Lists `key` in a trust file, which is created when missing and otherwise only grows.

    One with roles stays as it is: whom it trusts is for its root keys to say.
    """
    old = path.read_bytes() if path.exists() else b""
    if is_roles(old) or key.line().encode() in old.split(b"\n"):
        return
    if old and not old.endswith(b"\n"):
        old += b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_together(path.parent, {path.name: old + key.file()})


def _read(path: Path, what: str, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such {what}", hint) from error
    except OSError as error:
        raise EnvironmentProblem(f"{path}: the {what} cannot be read: {error.strerror}", hint) from error
