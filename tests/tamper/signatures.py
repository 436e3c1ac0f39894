"""Signatures of a good file that are none (SPEC 3): by others, with other comments, and spelled otherwise."""

import base64
import hashlib
from collections.abc import Iterator

import tiny
from tamper.bytewise import Change
from tamper.subjects import ATTACKER, FORGED, ROOTS


def signature_lines(comment: bytes, algorithm: bytes, key: tiny.Key, message: bytes, untrusted: bytes) -> bytes:
    """The four lines of SPEC 3, for values that it refuses."""
    signature = key.signing.sign(message).signature
    whole = key.signing.sign(signature + comment).signature
    first = base64.b64encode(algorithm + key.key_id + signature)
    return (
        b"untrusted comment: "
        + untrusted
        + b"\n"
        + first
        + b"\ntrusted comment: "
        + comment
        + b"\n"
        + (base64.b64encode(whole) + b"\n")
    )


def respelled(line: bytes) -> Iterator[bytes]:
    """Other base64 of the same bytes, or nearly."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = len(line.rstrip(b"=")) - 1
    if last + 1 < len(line):  # where nothing is padded, another digit is another key
        yield from (line[:last] + bytes([digit]) + line[last + 1 :] for digit in alphabet if digit != line[last])
    yield from (line.rstrip(b"="), line + b"=", line + b"====", b" " + line, line + b" ", line[:40] + b"\n" + line[40:])
    yield from (
        line[:40] + b" " + line[40:],
        line.replace(b"=", b"A"),
        line[:-4],
        line + b"AAAA",
        line[:4] + b"=" + line[4:],
    )
    yield from (line.replace(b"+", b"-").replace(b"/", b"_") + (b"" if set(line) & set(b"+/") else b"-"), line + b"\r")


def signatures(message: bytes, comment: str) -> Iterator[Change]:
    """Signatures of a good manifest, most of them by the trusted key."""
    key, digest = tiny.KEY, hashlib.blake2b(message).digest()
    good = key.sign(message, comment)
    first, second, third, fourth = good.split(b"\n")[:4]
    ours = b"signature from edgebuild"
    for untrusted in (
        b"",
        b"signature from Edgebuild",
        ours + b" ",
        b"signature from minisign secret keys",
        b"x" * 500,
        ours[:-1],
    ):
        yield "untrusted comment", signature_lines(comment.encode(), b"ED", key, digest, untrusted)
    for text in (b"a\r", b"a\0b", b"\xc3\xa4", b"\x7f", b"a\x1b[2J", b"x" * 800, b"a\nb"):
        yield "trusted comment", signature_lines(text, b"ED", key, digest, ours)
    for algorithm in (b"Ed", b"ed", b"eD", b"\0\0", b"E\0"):
        yield "algorithm", signature_lines(comment.encode(), algorithm, key, digest, ours)
        yield "algorithm", signature_lines(comment.encode(), algorithm, key, message, ours)
    yield "algorithm", signature_lines(comment.encode(), b"ED", key, message, ours)
    for stranger in (ATTACKER, FORGED, tiny.Key(bytes(8), key.signing), ROOTS[0]):
        yield "another key", stranger.sign(message, comment)
    for line in respelled(second):
        yield "base64", b"\n".join([first, line, third, fourth, b""])
    for line in respelled(fourth):
        yield "base64", b"\n".join([first, second, third, line, b""])
    lines = [first, second, third, fourth]
    for i in range(4):
        for j in range(4):
            order = list(lines)
            order[i] = lines[j]
            yield "lines", b"\n".join([*order, b""])
        yield "lines", b"\n".join([*lines[:i], *lines[i + 1 :], b""])
        yield "lines", b"\n".join([*lines[:i], lines[i] + b"\r", *lines[i + 1 :], b""])
        yield "lines", b"\n".join([*lines[:i], b"", *lines[i:], b""])
        yield "lines", b"\n".join([*lines[:i], lines[i] + b" ", *lines[i + 1 :], b""])
    yield from (
        ("lines", changed) for changed in (good[:-1], good + b"\n", good + good, good + b"x", b"\n" + good, b"")
    )
    yield from malleable(second, fourth, [first, third])
    for other in (b"edgebuild other", comment.encode() + b" ", comment.encode()[:-1], b""):
        yield "trusted comment", b"\n".join([first, second, b"trusted comment: " + other, fourth, b""])


def malleable(second: bytes, fourth: bytes, lines: list[bytes]) -> Iterator[Change]:
    """A signature's s plus the group's order: its second spelling, where a reader does not look (RFC 8032, 5.1.7)."""
    order = 2**252 + 27742317777372353535851937790883648493
    for which, at in ((second, 10 + 32), (fourth, 32)):
        raw = bytearray(base64.b64decode(which))
        for times in range(1, 16):
            s = int.from_bytes(raw[at : at + 32], "little") + times * order
            if s >= 2**256:
                break
            changed = base64.b64encode(bytes(raw[:at]) + s.to_bytes(32, "little"))
            body = [changed, fourth] if which is second else [second, changed]
            yield "s + L", b"\n".join([lines[0], body[0], lines[1], body[1], b""])
