"""HTTP/2 written by hand: what no library of gRPC sends.

Frames of RFC 9113, header fields as literals without Huffman coding (RFC 7541, 6.2.2).
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
from collections.abc import Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 8, 9
_END_STREAM, _END_HEADERS = 1, 4

#: gRPC's core writes trailers as literals too, without Huffman coding, when they are the connection's first.
_STATUS = re.compile(rb"\x0bgrpc-status[\x01-\x02](\d{1,2})")
_MESSAGE = b"\x0cgrpc-message"
_DEFECTS = {b"2", b"13", b"15"}
#: How answers begin that gRPC's core gives before any code of ours hears of the call: UNKNOWN to one with no method of
#: HTTP, or with two; INTERNAL to what is no HTTP/2, or no header of gRPC's (1.85; 1.72 says nothing to most of it).
_NOT_OURS = (
    b"Bad method header",
    b"Missing :method header",
    b"Error parsing '",
    b"Failed parsing HTTP/2",
    b"Illegal header key",
    b"Compression bit set but no encoding",
)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Nine bytes of head, then the payload."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def head(path: str, **fields: str) -> bytes:
    """The header block of a call; `fields` with _ for -, e.g. grpc_encoding."""
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
    pairs += [("te", "trailers"), ("content-type", "application/grpc")]
    known = dict(pairs) | {name.replace("_", "-"): value for name, value in fields.items()}
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in known.items())


def _text(value: str) -> bytes:
    data = value.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    rest, digits = len(data) - 127, bytearray((127,))
    while rest >= 128:
        digits.append(rest % 128 + 128)
        rest //= 128
    digits.append(rest)
    return bytes(digits) + data


def body(message: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A message as gRPC frames it; `length`: what it says of itself."""
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


Attack = Callable[[str, bytes, random.Random], bytes]


def _call(fields: bytes, data: bytes, *, flags: int = _END_STREAM) -> bytes:
    return (
        PREFACE
        + frame(_SETTINGS, 0, 0, b"")
        + frame(_HEADERS, _END_HEADERS, 1, fields)
        + frame(_DATA, flags, 1, data)
    )


def _bad_timeout(path: str, data: bytes, rng: random.Random) -> bytes:
    value = rng.choice(("", "x", "-1S", "99999999H", "999999999999S", "0n", "1", "S", "1.5S"))
    return _call(head(path, grpc_timeout=value), body(data))


def _bad_content_type(path: str, data: bytes, rng: random.Random) -> bytes:
    value = rng.choice(("text/html", "application/json", "application/grpc+json", "application/grpc-web", ""))
    return _call(head(path, content_type=value), body(data))


def _bad_method(path: str, data: bytes, rng: random.Random) -> bytes:
    fields = head(path) + b"\0" + _text(rng.choice((":method", ":path", "connection", "TE"))) + _text("GET")
    return _call(fields, body(data))


def _bad_path(path: str, data: bytes, rng: random.Random) -> bytes:
    odd = rng.choice(
        ("", "/", "*", path[1:], path + "/", path + "x", "/" + "a" * 9000, path.upper(), "/é", "//")
    )
    return _call(head(odd), body(data))


ATTACKS: dict[str, Attack] = {
    "an encoding that does not exist": lambda path, data, _: _call(
        head(path, grpc_encoding="zz"), body(data, compressed=1)
    ),
    "gzip that is none": lambda path, data, rng: _call(
        head(path, grpc_encoding="gzip"), body(rng.randbytes(40), compressed=1)
    ),
    "a cut gzip": lambda path, data, _: _call(
        head(path, grpc_encoding="gzip"), body(b"\x1f\x8b\x08\0\0\0\0\0\0\x03", compressed=1)
    ),
    "deflate that is none": lambda path, data, rng: _call(
        head(path, grpc_encoding="deflate"), body(rng.randbytes(9), compressed=1)
    ),
    "compressed without an encoding": lambda path, data, _: _call(head(path), body(data, compressed=1)),
    "a flag that does not exist": lambda path, data, rng: _call(
        head(path), body(data, compressed=rng.randint(2, 255))
    ),
    "a message longer than any may be": lambda path, data, _: _call(head(path), body(data, length=2**32 - 1)),
    "a message that ends too early": lambda path, data, _: _call(
        head(path), body(data, length=len(data) + 5)
    ),
    "no message": lambda path, data, _: _call(head(path), b""),
    "two messages": lambda path, data, _: _call(head(path), body(data) * 2),
    "a message and half a head": lambda path, data, _: _call(head(path), body(data) + b"\0\0"),
    "a call that is never ended": lambda path, data, _: _call(head(path), body(data)[:7], flags=0),
    "a call that is reset": lambda path, data, rng: (
        _call(head(path), body(data), flags=rng.choice((0, _END_STREAM)))
        + frame(_RST, 0, 1, struct.pack(">I", rng.randrange(16)))
    ),
    "a bad timeout": _bad_timeout,
    "a bad content type": _bad_content_type,
    "a bad header": _bad_method,
    "a bad path": _bad_path,
    "nothing but a preface": lambda path, data, _: PREFACE,
    "half a preface": lambda path, data, rng: PREFACE[: rng.randrange(len(PREFACE))],
    "headers without an end": lambda path, data, _: (
        PREFACE + frame(_SETTINGS, 0, 0, b"") + frame(_HEADERS, 0, 1, head(path))
    ),
    "headers that go on and on": lambda path, data, rng: (
        PREFACE
        + frame(_SETTINGS, 0, 0, b"")
        + frame(_HEADERS, 0, 1, head(path))
        + b"".join(frame(_CONTINUATION, 0, 1, b"\0" + _text(f"k{n}") + _text("v" * 99)) for n in range(300))
    ),
    "header bytes that are none": lambda path, data, rng: _call(rng.randbytes(60), body(data)),
    "data on no stream": lambda path, data, rng: (
        PREFACE + frame(_SETTINGS, 0, 0, b"") + frame(_DATA, 1, rng.choice((0, 2, 9)), body(data))
    ),
    "windows that overflow": lambda path, data, _: (
        _call(head(path), body(data)) + frame(_WINDOW, 0, 0, struct.pack(">I", 2**31 - 1)) * 3
    ),
    "settings that make no sense": lambda path, data, rng: (
        PREFACE
        + frame(_SETTINGS, 0, 0, struct.pack(">HI", rng.randint(1, 9), rng.choice((0, 1, 2**31, 2**32 - 1))))
    ),
    "pings": lambda path, data, _: (
        PREFACE + frame(_SETTINGS, 0, 0, b"") + frame(_PING, 0, 0, b"12345678") * 2000
    ),
    "five hundred calls, each reset at once": lambda path, data, _: (
        PREFACE
        + frame(_SETTINGS, 0, 0, b"")
        + b"".join(
            frame(_HEADERS, _END_HEADERS, n, head(path))
            + frame(_DATA, 1, n, body(data))
            + frame(_RST, 0, n, struct.pack(">I", 8))
            for n in range(1, 1000, 2)
        )
    ),
    "frames made up": lambda path, data, rng: (
        PREFACE
        + frame(_SETTINGS, 0, 0, b"")
        + b"".join(
            frame(rng.randrange(12), rng.randrange(256), rng.randrange(4), rng.randbytes(rng.randrange(40)))
            for _ in range(30)
        )
    ),
    "bytes made up": lambda path, data, rng: rng.randbytes(200),
    "HTTP/1.1": lambda path, data, _: f"POST {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
}


def attack(address: str, bytes_sent: bytes, *, patience_s: float) -> tuple[str, bool]:
    """Sends them, listens for as long, cuts. → what was answered, and whether that is a defect of ours.

    Raises OSError if nobody listens any more.
    """
    host, _, port = address.rpartition(":")
    heard = b""
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.settimeout(patience_s)
        with contextlib.suppress(OSError):
            connection.sendall(bytes_sent)
            while status_in(heard) is None:
                part = connection.recv(65536)
                if not part:
                    break
                heard += part
    found = status_in(heard)
    if found is None:
        return "nothing", False
    status, message = found
    ours = status in _DEFECTS and not message.startswith(_NOT_OURS)
    return f"{status.decode()} {message.decode(errors='replace')}".strip(), ours


def status_in(heard: bytes) -> tuple[bytes, bytes] | None:
    """→ grpc-status and grpc-message of the first whole frame of headers that has them; None if none has come yet."""
    while len(heard) >= 9:
        end = 9 + int.from_bytes(heard[:3])
        payload, kind = heard[9:end], heard[3]
        if kind == _HEADERS and len(heard) >= end and (found := _STATUS.search(payload)):
            _, name, after = payload.partition(_MESSAGE)
            return found[1], _text_at(after) if name else b""
        heard = heard[end:]
    return None


def _text_at(data: bytes) -> bytes:
    """The text that begins here, as `_text` writes it: its length comes first (RFC 7541, 5.1 and 5.2)."""
    length, at = data[0] & 127, 1
    if length == 127:
        shift = 0
        while True:
            length += (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                break
    return data[at : at + length]
