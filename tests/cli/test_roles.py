"""`edgebuild trust`, `edgebuild keys rotate`, and bundles under a trust file with roles."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_bad_input import made_bundle

from edgebuild.core import keys, minisign, trust

ROOTS = tuple(minisign.SecretKey(f"root---{i}".encode(), bytes([i]) * 32) for i in range(1, 4))
RELEASE = minisign.SecretKey(b"released", b"r" * 32)
NAMES = tuple(key.public.name for key in ROOTS)


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys root-1.key … and release.key, and a day, 2026-01-31."""
    for number, key in enumerate(ROOTS, start=1):
        keys.write_new(Path(f"root-{number}.key"), key)
    keys.write_new(Path("release.key"), RELEASE)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1769860800")


@pytest.fixture
def body(edgebuild) -> Path:
    """Version 1, unsigned: two of three roots must sign."""
    roots = [part for number in (1, 2, 3) for part in ("--root", f"root-{number}.key.pub")]
    ran = edgebuild("trust", "new", *roots, "--release", "release.key.pub", "-o", "trust")
    assert (ran.code, ran.err) == (0, "")
    assert "version 1, signed by 0 of 3 roots, it takes 2" in ran.out
    assert "edgebuild trust sign trust --key ROOT.key; or where only minisign is: edgebuild trust show" in ran.out
    return Path("trust")


@pytest.fixture
def signed(edgebuild, body: Path) -> Path:
    for number in (1, 2):
        assert edgebuild("trust", "sign", body, "--key", f"root-{number}.key").code == 0
    return body


def refused(ran, code: int, message: str) -> None:
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err.splitlines()[0]
    assert ran.err.splitlines()[1].startswith("hint: ")


def test_new_and_sign(edgebuild, body: Path) -> None:
    text = body.read_text()
    assert "version 1\nmade 2026-01-31\nexpires 2027-01-31\nroot-threshold 2\n" in text
    ran = edgebuild("trust", "sign", body, "--key", "root-2.key")
    assert (ran.code, ran.err) == (0, "")
    assert "signed by 1 of 3 roots, it takes 2" in ran.out
    Path("b.ebundle").write_bytes(made_bundle())
    below = "trust: trust file version 1 is signed by 1 of its roots; it takes 2"
    refused(edgebuild("verify", "b.ebundle", "--trust", body), 8, below)
    assert edgebuild("trust", "sign", body, "--key", "root-1.key").code == 0
    found = trust.stands(body.read_bytes())
    assert found.signers() == (ROOTS[0].public, ROOTS[1].public)
    assert body.read_text().startswith(text + "\n")


def test_minisign_signs_a_body(edgebuild, body: Path) -> None:
    """A root key need not be where edgebuild is; `show --body` gives the body of what others have signed."""
    assert edgebuild("trust", "sign", body, "--key", "root-1.key").code == 0
    Path("body").write_text(edgebuild("trust", "show", body, "--body").out)
    subprocess.run(["minisign", "-Sm", "body", "-s", "root-3.key"], check=True, capture_output=True)
    ran = edgebuild("trust", "sign", body, "--signature", "body.minisig")
    assert (ran.code, ran.err) == (0, "")
    assert trust.stands(body.read_bytes()).signers() == (ROOTS[0].public, ROOTS[2].public)
    subprocess.run(["minisign", "-Vm", "body", "-P", ROOTS[2].public.line()], check=True, capture_output=True)


def test_a_command_signs(edgebuild, body: Path) -> None:
    program = "import sys; from edgebuild.core import keys, minisign; from pathlib import Path; "
    program += "key = keys.load_secret(Path('root-3.key')); "
    program += "sys.stdout.buffer.write(minisign.sign(sys.stdin.buffer.read(), key, 'c'))"
    ran = edgebuild("trust", "sign", body, "--signer", shlex.join([sys.executable, "-c", program]))
    assert (ran.code, ran.err) == (0, "")
    assert trust.parse_roles(body.read_bytes()).signers() == (ROOTS[2].public,)


def test_next_and_its_step(edgebuild, signed: Path) -> None:
    new = minisign.SecretKey(b"new-root", b"n" * 32)
    keys.write_new(Path("new.key"), new)
    arguments = ("--drop-root", NAMES[0], "--add-root", "new.key.pub", "--expires", "+2y")
    ran = edgebuild("trust", "next", signed, *arguments, "-o", "trust-2")
    assert (ran.code, ran.err) == (0, "")
    assert "version 2, signed by 0 of 3 roots, it takes 2; by 0 of 3 of version 1, it takes 2" in ran.out
    for key, state in (("new", "1 of 3 roots, it takes 2; by 0 of 3"), ("root-1", "1 of 3 roots, it takes 2; by 1 of")):
        ran = edgebuild("trust", "sign", "trust-2", "--key", f"{key}.key", "--after", signed)
        assert state in ran.out
    shown = edgebuild("trust", "show", "trust-2", "--after", signed, "--json").json
    assert (shown["stands"], shown["follows"]["holds"]) == (False, False)
    assert edgebuild("trust", "sign", "trust-2", "--key", "root-2.key", "--after", signed).code == 0
    shown = edgebuild("trust", "show", "trust-2", "--after", signed, "--json").json
    assert (shown["version"], shown["expires"], shown["stands"]) == (2, "2028-01-31", True)
    expected = {"version": 1, "signed_by_roots": 2, "root_threshold": 2, "holds": True, "problem": None}
    assert shown["follows"] == expected
    roles = [(key["role"], key["key_id"], key["signed"]) for key in shown["keys"]]
    assert roles == [
        ("root", NAMES[1], True),
        ("root", NAMES[2], False),
        ("root", new.public.name, True),
        ("retired", NAMES[0], True),
        ("release", RELEASE.public.name, False),
    ]
    text = edgebuild("trust", "show", "trust-2", "--after", signed).out
    assert "follows  yes: signed by 2 of the roots of version 1, it takes 2" in text


def test_show_says_why_not(edgebuild, body: Path, signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("other").write_bytes(signed.read_bytes())
    edgebuild("trust", "next", signed, "-o", "trust-2")
    ran = edgebuild("trust", "show", "trust-2", "--after", signed)
    assert "stands   NO: signed by 0 of its roots, it takes 2" in ran.out
    assert "follows  NO: trust file version 2 is signed by 0 of the roots of version 1" in ran.out
    assert ran.code == 8
    assert ran.err.startswith("error: trust-2: trust file version 2 is signed by 0 of its roots; it takes 2\nhint: ")
    older = edgebuild("trust", "show", signed, "--after", signed, "--json")
    assert (older.code, older.json["follows"]["holds"]) == (0, True)
    assert edgebuild("trust", "show", "trust-2").code == 0
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1801440000")
    assert "expired, nothing is installed under it" in edgebuild("trust", "show", signed).out
    assert edgebuild("trust", "show", signed, "--json").json["expired"] is True


def test_show_of_a_plain_list(edgebuild) -> None:
    Path("plain").write_bytes(RELEASE.public.file())
    shown = edgebuild("trust", "show", "plain", "--json").json
    key = {"role": "release", "key_id": RELEASE.public.name, "public": RELEASE.public.line(), "signed": False}
    assert shown == {"form": "keys", "keys": [key]}
    assert RELEASE.public.name in edgebuild("trust", "show", "plain").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--key", "release.key"), 8, f"trust: {RELEASE.public.name} is a release key; only root keys sign trust fil"),
        (("--key", "root-1.key"), 8, f"trust: root {NAMES[0]} has signed the trust file already"),
        (("--key", "stranger.key"), 8, "trust: key 7265676E61727473 is no root of the trust file"),
        (("--signature", "other.minisig"), 8, f"other.minisig: the signature of key {NAMES[2]} does not hold"),
        (("--signature", "stranger.minisig"), 8, "signed by key 7265676E61727473, which the trust file does not list"),
        (("--signature", "nothing"), 9, "nothing: the signature cannot be read"),
        (("--signer", "cat"), 8, "--signer cat: signature: "),
        (("--signer", "false"), 9, "--signer false: failed with exit code 1"),
        ((), 2, "one signer is needed"),
        (("--key", "root-3.key", "--signer", "x"), 2, "one signer is needed"),
        (("--key", "root-3.key", "--after", "trust"), 8, "trust: version 1 does not come after version 1"),
        (("--key", "root-3.key", "--after", "plain"), 8, "plain: a plain list of keys, without versions"),
        (("--key", "root-3.key", "--after", "body"), 8, "body: trust file version 1 is signed by 0 of its roots; it"),
    ],
)
def test_a_signature_that_is_not_added(
    edgebuild, signed: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    stranger = minisign.SecretKey(b"stranger", b"s" * 32)
    keys.write_new(Path("stranger.key"), stranger)
    body = trust.parse_roles(signed.read_bytes()).body()
    Path("body").write_bytes(body)
    Path("plain").write_bytes(RELEASE.public.file())
    Path("other.minisig").write_bytes(minisign.sign(b"another", ROOTS[2], "c"))
    Path("stranger.minisig").write_bytes(minisign.sign(body, stranger, "c"))
    before = signed.read_bytes()
    refused(edgebuild("trust", "sign", signed, *arguments), code, message)
    assert signed.read_bytes() == before
    assert edgebuild("trust", "sign", signed, "--key", "root-3.key").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--root", "root-1.key.pub", "--release", "root-1.key.pub"), 8, "is listed above"),
        (("--root", "root-1.key.pub", "--root", "root-1.key"), 8, "is listed above"),
        (("--root", "root-1.key.pub", "--root-threshold", "2"), 8, "root-threshold 2 is above the number of roots, 1"),
        (("--root", "root-1.key.pub", "--expires", "2026-01-31"), 2, "--expires 2026-01-31: is not after 2026-01-31"),
        (("--root", "nothing"), 8, "nothing: no such key file"),
        (("--root", "root-1.key.pub", "-o", "release.key"), 2, "release.key: exists already"),
        (("--root", "root-1.key.pub", "-o", "no/folder"), 9, "no: cannot be written"),
    ],
)
def test_a_wrong_new(edgebuild, arguments: tuple[str, ...], code: int, message: str) -> None:
    common = () if "-o" in arguments else ("-o", "made")
    release = () if arguments[-2] == "--release" else ("--release", "release.key.pub")
    refused(edgebuild("trust", "new", *release, *common, *arguments), code, message)
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--drop-release", "0123"), 2, "0123: no release key of the trust file has this id"),
        (("--drop-root", NAMES[0], "--drop-root", NAMES[1]), 8, "trust: trust file: root-threshold 2 is above"),
        (("--add-release", "root-1.key.pub"), 8, "which is listed above"),
        (("--expires", "yesterday"), 2, "--expires yesterday: no day"),
    ],
)
def test_a_wrong_next(edgebuild, signed: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    refused(edgebuild("trust", "next", signed, "-o", "made", *arguments), code, message)
    assert not Path("made").exists()


def test_next_of_what_does_not_stand(edgebuild, body: Path) -> None:
    refused(
        edgebuild("trust", "next", body, "-o", "made"), 8, "trust: trust file version 1 is signed by 0 of its roots"
    )


def test_bundles_under_a_trust_file_with_roles(edgebuild, signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("b.ebundle").write_bytes(made_bundle())
    assert edgebuild("sign", "b.ebundle", "--key", "release.key").code == 0
    verified = edgebuild("verify", "b.ebundle", "--trust", signed, "--json").json
    assert (verified["signer"], verified["expired"]) == (RELEASE.public.name, [])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1801440000")
    ran = edgebuild("verify", "b.ebundle", "--trust", signed)
    assert (ran.code, ran.err) == (0, "")
    assert "warning: the trust file expired on 2027-01-31: devices do not install it any more\n" in ran.out
    assert edgebuild("sign", "b.ebundle", "--key", "root-1.key").code == 0
    refused(
        edgebuild("verify", "b.ebundle", "--trust", signed), 8, f"b.ebundle: signed by {NAMES[0]}, a root key; root"
    )
    refused(edgebuild("verify", "b.ebundle", "--trust", "release.key.pub"), 8, f"signed by key {NAMES[0]}, which the")


def test_rotate_in_a_trust_file_with_roles(edgebuild, signed: Path) -> None:
    ran = edgebuild(
        "keys", "rotate", "--key", "release.key.pub", "--out", "new.key", "--trust", signed, "-o", "trust-2"
    )
    assert (ran.code, ran.err) == (0, "")
    new = keys.load_public(Path("new.key"))
    after = trust.parse_roles(Path("trust-2").read_bytes())
    assert (after.version, after.release, after.signatures) == (2, (new,), ())
    assert f"new.key.pub: key {new.name}, in the place of {RELEASE.public.name}" in ran.out
    assert "sign it: edgebuild trust sign trust-2" in ran.out
    arguments = ("keys", "rotate", "--key", "release.key", "--trust", signed, "--keep")
    assert edgebuild(*arguments, "--out", "more.key", "-o", "both").code == 0
    both = trust.parse_roles(Path("both").read_bytes())
    assert both.release == (RELEASE.public, keys.load_public(Path("more.key")))


def test_rotate_in_a_plain_list(edgebuild, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --key it is the development key that goes."""
    assert edgebuild("keys", "new").code == 0
    path = home / "config" / "edgebuild" / "trust"
    (old,) = keys.load_trust(path).values()
    ran = edgebuild("keys", "rotate", "--out", "new.key", "--trust", path)
    assert (ran.code, ran.err) == (0, "")
    assert list(keys.load_trust(path).values()) == [keys.load_public(Path("new.key"))]
    monkeypatch.setenv("EDGEBUILD_KEY", "new.key")
    assert edgebuild("keys", "rotate", "--out", "third.key", "--trust", path, "--keep", "-o", "other").code == 0
    assert len(keys.load_trust(Path("other"))) == 2
    assert len(keys.load_trust(path)) == 1
    assert old.key_id not in keys.load_trust(Path("other"))


def test_rotate_without_a_trust_file(edgebuild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEBUILD_KEY_PASSWORD", "swordfish")
    ran = edgebuild("keys", "rotate", "--key", "release.key.pub", "--out", "new.key", "--password")
    assert (ran.code, ran.err) == (0, "")
    assert "encrypted secret key" in Path("new.key").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--out", "release.key"), 2, "release.key: exists already"),
        (("--trust", "trust"), 2, "trust: has roles: its next version is another file"),
        (("--trust", "trust", "-o", "release.key"), 2, "release.key: exists already"),
        (("--trust", "plain", "-o", "release.key"), 2, "release.key: exists already"),
        (("--trust", "plain", "-o", "new.key"), 2, "new.key: both the key and the trust file"),
        (("--trust", "trust", "-o", "trust"), 2, "trust: exists already"),
        (("--trust", "trust", "-o", "next", "--key", "root-1.key"), 2, "no release key of the trust file has this id"),
        (("--trust", "plain", "--expires", "+1y"), 2, "plain: a plain list of keys does not expire"),
        (("--trust", "plain", "--key", "root-1.key"), 8, f"plain: the trust file does not list key {NAMES[0]}"),
        (("--trust", "nothing"), 8, "nothing: no such trust file"),
        (("--keep",), 2, "-o, --keep and --expires are about a trust file"),
        (("--key", "nothing"), 8, "nothing: no such key file"),
    ],
)
def test_a_wrong_rotate(edgebuild, signed: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    Path("plain").write_bytes(RELEASE.public.file())
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    common = ("keys", "rotate", "--key", "release.key", "--out", "new.key")
    refused(edgebuild(*common, *arguments), code, message)
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
