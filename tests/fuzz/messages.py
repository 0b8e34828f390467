"""Messages made wrong: fields set to extremes through their descriptors, and bytes that are changed or made up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_INT32 = (0, 1, -1, 7, 2**31 - 1, -(2**31))
_INT64 = (*_INT32, 2**32, 2**53 + 1, 2**63 - 1, -(2**63))
_UINT32 = (0, 1, 2, 300, 2**16, 2**31, 2**32 - 1)
_UINT64 = (*_UINT32, 2**53, 2**53 + 1, 2**63, 2**64 - 1)
_REALS = (0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 1e-300, 5e-324, 1e300, math.nan, math.inf, -math.inf)
_TEXTS = (
    "",
    " ",
    "a",
    "\0",
    "\n\r\t",
    "�￿",
    "\U0001f937\u200d\u2642\ufe0f" * 9,
    "\u202eabc",
    "../../etc/passwd",
    "%s%n{0}{{",
    "{% for a in range(9) %}{{ a }}{% endfor %}",
    "<|im_start|></s>",
    "-1",
    "0" * 40,
    "a" * 129,
    "é" * 4097,
)
_NUMBERS: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_INT64: _INT64,
    FieldDescriptor.CPPTYPE_UINT32: _UINT32,
    FieldDescriptor.CPPTYPE_UINT64: _UINT64,
    FieldDescriptor.CPPTYPE_DOUBLE: _REALS,
    FieldDescriptor.CPPTYPE_FLOAT: (*_REALS[:8], math.nan, math.inf, -math.inf, 3e38),
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
    # Enums of proto3 are open: any number passes the parser.
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 99, -1, 2**31 - 1, -(2**31)),
}

#: Repeats of a repeated field. The largest is rare: see `_count`.
_COUNTS = (0, 1, 2, 3, 17, 300)
_MANY = 20_000
#: A text of this size is rare too.
_LONG = 1_500_000


def mutated(message: Message, rng: random.Random, *, pinned: frozenset[str] = frozenset()) -> Message:
    """A copy with one to four fields changed; those in `pinned` (of the outermost message) stay."""
    changed = type(message)()
    changed.CopyFrom(message)
    for _ in range(rng.randint(1, 4)):
        _change_one(changed, rng, pinned, depth=0)
    return changed


def _change_one(message: Message, rng: random.Random, pinned: frozenset[str], depth: int) -> None:
    fields = [field for field in message.DESCRIPTOR.fields if field.name not in pinned]
    if not fields:
        return
    field = rng.choice(fields)
    if rng.random() < 0.15:
        message.ClearField(field.name)  # also: an unset oneof
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _fill_map(getattr(message, field.name), field, rng)
    elif field.is_repeated:
        _fill_list(getattr(message, field.name), field, rng, depth)
    elif field.message_type is not None:
        part = getattr(message, field.name)
        part.SetInParent()
        if depth < 6:
            _change_one(part, rng, frozenset(), depth + 1)
    else:
        setattr(message, field.name, _value(field, rng))


def _fill_map(entries: Any, field: Any, rng: random.Random) -> None:
    key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    for number in range(_count(rng)):
        entries[_value(key, rng) if number < 3 else _nth(key, number)] = _value(value, rng)


def _nth(field: Any, number: int) -> Any:
    return str(number) if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else number


def _fill_list(items: Any, field: Any, rng: random.Random, depth: int) -> None:
    count = _count(rng)
    if field.message_type is None:
        value = _value(field, rng)
        few = count if not isinstance(value, str | bytes) or len(value) < 5000 else 3
        items.extend([value] * few)
        return
    for _ in range(min(count, 300)):
        part = items.add()
        if depth < 6 and len(items) < 20:
            _change_one(part, rng, frozenset(), depth + 1)


def _count(rng: random.Random) -> int:
    return _MANY if rng.random() < 0.02 else rng.choice(_COUNTS)


def _value(field: Any, rng: random.Random) -> Any:
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return rng.choice(_NUMBERS[field.cpp_type])
    text = "word " * (_LONG // 5) if rng.random() < 0.01 else rng.choice(_TEXTS)
    return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text


# --- bytes


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _doubled(data: bytes, rng: random.Random) -> bytes:
    return data * rng.randint(2, 40)


def _spliced(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 32)) + data[at:]


def _made_up(_data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 2, 8, 100, 5000)))


def _nested(_data: bytes, rng: random.Random) -> bytes:
    """Groups within groups, deeper than any parser goes."""
    return b"\x0b" * rng.choice((10, 99, 101, 100_000))


def _wrong_lengths(data: bytes, rng: random.Random) -> bytes:
    """A field that says that it is longer than the message."""
    tag = (rng.randint(1, 20) << 3) | 2
    return (
        data
        + bytes((tag if tag < 128 else 0x7A,))
        + rng.choice((b"\xff\xff\xff\xff\x07", b"\x7f", b"\xff" * 10))
    )


def _not_unicode(data: bytes, rng: random.Random) -> bytes:
    return data + bytes(((rng.randint(1, 10) << 3) | 2, 2)) + b"\xff\xfe"


_SPOILERS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flipped,
    _cut,
    _doubled,
    _spliced,
    _made_up,
    _nested,
    _wrong_lengths,
    _not_unicode,
)


def spoiled(data: bytes, rng: random.Random) -> bytes:
    """Bytes of a message that are changed, or others in their place."""
    return rng.choice(_SPOILERS)(data, rng)
