"""What a token contributes to the text: derived from the `decoder` section of a tokenizer.json.

Most decoders turn each token into bytes or text independently of its neighbours, except that a character
may be spread over several tokens and that the first token may lose a leading space. `read_decoder`
recognises those; what it doesn't recognise is decoded by the tokenizer itself over a small window (see
`detokenizer`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class DecoderRules:
    """How a token's string becomes bytes.

    byte_level: characters stand for bytes (GPT-2's table). Otherwise characters stand for themselves, after
    `replacements`, and with `byte_fallback` a token "<0xE4>" stands for that byte.
    strip_first: characters that the first token of a text loses at its start, and how many at most.
    drop_in_first: character that the first token loses wherever it is (Metaspace); empty: none.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip_first: tuple[str, int] = ("", 0)
    drop_in_first: str = ""

    def piece(self, token: str) -> bytes | str:
        """Bytes, if the token can be a part of a character; text if it always stands for whole characters."""
        if self.byte_level:
            return _byte_level_bytes(token)
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_fallback:
            match = _BYTE_TOKEN.fullmatch(token)
            if match:
                return bytes([int(match[1], 16)])
        return token

    def first_piece(self, token: str) -> bytes | str:
        """The same for the first token of a text."""
        if self.drop_in_first:
            token = token.replace(self.drop_in_first, "")
        return self.piece(token)


def read_decoder(decoder_json: str | bytes) -> DecoderRules | None:
    """The rules of a serialised decoder, or None if it is of a kind that must be asked itself."""
    decoder = json.loads(decoder_json)
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    rules = DecoderRules()
    fused = False
    for step in steps:
        kind = step["type"]
        # Before Fuse a strip would mean every single token; behind it the other steps would mean the whole
        # text.
        if kind not in _STEPS or (kind == "Strip" and not fused) or (fused and kind not in {"Strip", "Fuse"}):
            return None
        fused = fused or kind == "Fuse"
        changed = _STEPS[kind](rules, step)
        if changed is None:
            return None
        rules = changed
    return rules


def _byte_level(rules: DecoderRules, _step: Mapping[str, Any]) -> DecoderRules | None:
    return DecoderRules(byte_level=True) if rules == DecoderRules() else None


def _metaspace(rules: DecoderRules, step: Mapping[str, Any]) -> DecoderRules | None:
    if rules != DecoderRules():
        return None
    replacement = str(step["replacement"])
    # Files older than tokenizers 0.15 say add_prefix_space instead of prepend_scheme.
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    return DecoderRules(
        replacements=((replacement, " "),), drop_in_first="" if scheme == "never" else replacement
    )


def _replace(rules: DecoderRules, step: Mapping[str, Any]) -> DecoderRules | None:
    pattern = step["pattern"].get("String")
    if not pattern or rules.byte_level or rules.byte_fallback or rules.drop_in_first:
        return None
    return replace(rules, replacements=(*rules.replacements, (pattern, str(step["content"]))))


def _byte_fallback(rules: DecoderRules, _step: Mapping[str, Any]) -> DecoderRules | None:
    if rules.byte_level or rules.drop_in_first:
        return None
    return replace(rules, byte_fallback=True)


def _fuse(rules: DecoderRules, _step: Mapping[str, Any]) -> DecoderRules | None:
    return rules


def _strip(rules: DecoderRules, step: Mapping[str, Any]) -> DecoderRules | None:
    content, start = str(step["content"]), int(step["start"])
    if step["stop"] or rules.byte_level or rules.drop_in_first or rules.strip_first[1]:
        return None  # what is cut at the end is only known at the end
    return replace(rules, strip_first=(content, start))


_STEPS: dict[str, Callable[[DecoderRules, Mapping[str, Any]], DecoderRules | None]] = {
    "ByteLevel": _byte_level,
    "Metaspace": _metaspace,
    "Replace": _replace,
    "ByteFallback": _byte_fallback,
    "Fuse": _fuse,
    "Strip": _strip,
}


def _byte_table() -> dict[str, int]:
    """GPT-2's characters for bytes (`bytes_to_unicode` of its encoder.py): printable ones stand for
    themselves, the others for the characters from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_table()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:
        return token.encode()  # an added token is text, as the tokenizer's own decoder has it
