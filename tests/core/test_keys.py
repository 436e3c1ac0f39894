import os
import stat
from datetime import date
from pathlib import Path

import pytest

from edgebuild.core import keys, minisign, scrypt
from edgebuild.core.errors import BundleError, UsageError
from edgebuild.core.trust import TrustFile, with_signature


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEBUILD_KEY", raising=False)
    monkeypatch.delenv("EDGEBUILD_KEY_PASSWORD", raising=False)
    return tmp_path / "edgebuild"


def test_a_development_key_is_made_once_and_trusted(config: Path) -> None:
    first, second = keys.signing_key(None), keys.signing_key(None)
    assert first == second
    path = config / "keys" / "dev.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.load_public(config / "keys" / "dev.key.pub") == first.public
    assert keys.load_trust(config / "trust") == {first.key_id: first.public}


def test_trust_only_grows(config: Path, key) -> None:
    trust = config / "trust"
    config.mkdir()
    trust.write_text(f"# the team\n{key.public.line()}")
    made = keys.signing_key(None)
    assert keys.load_trust(trust) == {key.key_id: key.public, made.key_id: made.public}
    assert trust.read_text().startswith(f"# the team\n{key.public.line()}\n")


def test_a_trust_file_with_roles_is_left_to_its_roots(config: Path, key) -> None:
    trust = config / "trust"
    config.mkdir()
    days = (date(2026, 1, 1), date(2027, 1, 1))
    body = TrustFile(1, *days, 1, (key.public,), (), (minisign.generate().public,))
    signed = with_signature(body, minisign.sign(body.body(), key, "c")).file()
    trust.write_bytes(signed)
    keys.signing_key(None)
    assert trust.read_bytes() == signed
    assert keys.load_roles(trust).file() == signed


def test_a_chosen_key_is_used_and_not_trusted_by_itself(config: Path, key, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config.parent / "release.key"
    keys.write_new(path, key)
    assert keys.signing_key(path) == key
    monkeypatch.setenv("EDGEBUILD_KEY", str(path))
    assert keys.signing_key(None) == key
    assert not (config / "trust").exists()


def test_an_existing_key_is_not_replaced(tmp_path: Path, key) -> None:
    path = tmp_path / "key"
    keys.write_new(path, key)
    keys.write_new(path, minisign.generate())
    assert keys.load_secret(path) == key
    assert sorted(found.name for found in tmp_path.iterdir()) == ["key", "key.pub"]


def test_a_key_file_of_a_wrong_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(BundleError, match=f"{path}: not a minisign secret key") as caught:
        keys.signing_key(path)
    assert "expected a minisign secret key" in caught.value.hint


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nothing\.key: no such key file"):
        keys.signing_key(tmp_path / "nothing.key")


def test_a_public_key_is_found_in_either_file(tmp_path: Path, key) -> None:
    keys.write_new(tmp_path / "k", key)
    assert keys.load_public(tmp_path / "k") == keys.load_public(tmp_path / "k.pub") == key.public


@pytest.fixture
def protected(tmp_path: Path, key) -> Path:
    path = tmp_path / "protected.key"
    path.write_bytes(key.file(b"swordfish", scrypt.Limits(1 << 15, 1 << 24)))
    return path


def typing(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """A terminal at which `words` are typed; the prompts that were shown."""
    prompts: list[str] = []
    answers = iter(words)

    def typed(prompt: str) -> str:
        prompts.append(prompt)
        return next(answers)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", typed)
    return prompts


def test_a_password_comes_from_the_environment(protected: Path, key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEBUILD_KEY_PASSWORD", "swordfish")
    assert keys.signing_key(protected) == key
    assert keys.load_public(protected) == key.public
    monkeypatch.setenv("EDGEBUILD_KEY_PASSWORD", "shark")
    for load in (keys.load_secret, keys.load_public):
        with pytest.raises(BundleError, match=r"protected\.key: wrong password"):
            load(protected)


def test_a_password_is_asked_for(protected: Path, key, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = typing(monkeypatch, "swordfish")
    assert keys.load_secret(protected) == key
    assert len(prompts) == 1


def test_without_a_terminal_the_variable_is_named(protected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Path(os.devnull).open())  # noqa: SIM115
    with pytest.raises(BundleError, match=r"protected\.key: the key needs a password, and there is no term") as caught:
        keys.load_secret(protected)
    assert "$EDGEBUILD_KEY_PASSWORD" in caught.value.hint


def test_a_new_password_is_typed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = typing(monkeypatch, "a", "a")
    assert keys.new_password() == b"a"
    assert len(prompts) == 2
    typing(monkeypatch, "a", "b")
    with pytest.raises(UsageError, match="the two passwords differ"):
        keys.new_password()
    typing(monkeypatch, "")
    with pytest.raises(UsageError, match="the password is empty"):
        keys.new_password()
