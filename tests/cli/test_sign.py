"""`edgebuild keys new --password`, `edgebuild sign`."""

from pathlib import Path

from edgebuild.core import keys


def test_keys_new_with_a_password(edgebuild, monkeypatch) -> None:
    monkeypatch.setenv("EDGEBUILD_KEY_PASSWORD", "swordfish")
    ran = edgebuild("keys", "new", "--password", "--out", "my.key")
    assert (ran.code, ran.err) == (0, "")
    assert Path("my.key").read_text().startswith("untrusted comment: minisign encrypted secret key ")
    public = keys.load_public(Path("my.key.pub"))
    shown = edgebuild("keys", "show", "my.key", "--json")
    assert (shown.code, shown.json["public"]) == (0, public.line())
    monkeypatch.setenv("EDGEBUILD_KEY_PASSWORD", "shark")
    wrong = edgebuild("keys", "show", "my.key")
    assert wrong.code == 8
    assert wrong.err == "error: my.key: wrong password, or the secret key is damaged\nhint: give the one that the key was made with\n"


def test_keys_new_without_a_terminal(edgebuild) -> None:
    ran = edgebuild("keys", "new", "--password", "--out", "my.key")
    assert ran.code == 8
    assert "there is no terminal to ask on\nhint: put it into $EDGEBUILD_KEY_PASSWORD" in ran.err
    assert not Path("my.key").exists()
