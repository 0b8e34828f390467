"""Which decoders are understood, and that no other is taken for one of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ryzanstein_coordinator.token_text import DecoderRules, read_decoder

REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FALLBACK = {"type": "ByteFallback"}
FUSE = {"type": "Fuse"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
BYTE_LEVEL = {"type": "ByteLevel"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}


def read(*steps: dict[str, Any]) -> DecoderRules | None:
    decoder = steps[0] if len(steps) == 1 else {"type": "Sequence", "decoders": steps}
    return read_decoder(json.dumps(decoder))


def test_those_in_use_are_understood() -> None:
    assert read(BYTE_LEVEL) == DecoderRules(byte_level=True)
    assert read(REPLACE, FALLBACK, FUSE, STRIP) == DecoderRules(
        byte_fallback=True, replacements=(("▁", " "),), strip_first=(" ", 1)
    )
    assert read(METASPACE) == DecoderRules(replacements=(("▁", " "),), drop_in_first="▁")
    assert read({**METASPACE, "prepend_scheme": "never"}) == DecoderRules(replacements=(("▁", " "),))
    older = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": False}
    assert read(older) == DecoderRules(replacements=(("▁", " "),))


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "WordPiece", "prefix": "##", "cleanup": True}],
        [{"type": "CTC"}],
        [{"type": "BPEDecoder", "suffix": "</w>"}],
        [{"type": "Replace", "pattern": {"Regex": "a+"}, "content": " "}],
        [STRIP],  # of every single token
        [FUSE, REPLACE],  # of the whole text
        [FALLBACK, REPLACE],
        [FUSE, {**STRIP, "stop": 1}],
        [FUSE, STRIP, STRIP],
        [METASPACE, STRIP],
        [METASPACE, FALLBACK],
        [METASPACE, FUSE, STRIP],
        [REPLACE, METASPACE],
        [REPLACE, BYTE_LEVEL],
        [BYTE_LEVEL, REPLACE],
        [BYTE_LEVEL, FALLBACK],
    ],
    ids=lambda steps: "+".join(step["type"] for step in steps),
)
def test_others_are_not(steps: list[dict[str, Any]]) -> None:
    assert read(*steps) is None


def test_a_token_of_bytes_that_holds_other_characters_is_text() -> None:
    rules = DecoderRules(byte_level=True)

    assert rules.piece("ĠðŁ") == b" \xf0\x9f"
    assert rules.piece("a b🚀") == "a b🚀".encode()
