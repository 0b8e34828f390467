"""Text from tokens, one by one, is the text of all tokens at once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from ryzanstein_coordinator.detokenizer import REPLACEMENT, IncrementalDetokenizer, WindowDetokenizer
from ryzanstein_coordinator.token_text import read_decoder
from ryzanstein_coordinator.tokenization import ModelTokenizer

from .trained_tokenizers import ADDED, byte_fallback, byte_level, metaspace, word_piece

KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "metaspace": metaspace,
    "word piece": word_piece,
}
every_kind = pytest.mark.parametrize("kind", KINDS)
#: Lone surrogates are no text; ▁ stands for a space in two of the tokenizers.
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="▁"), max_size=60)


@functools.cache
def tokenizer_of(kind: str) -> ModelTokenizer:
    return ModelTokenizer(KINDS[kind]())


def pieces_of(tokenizer: ModelTokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    detokenizer = tokenizer.detokenizer(context)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@every_kind
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_any_text_comes_out_as_the_tokenizer_decodes_it_at_once(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text)

    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@every_kind
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_nothing_that_was_emitted_is_half_a_character(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids, skip_special_tokens=True)

    assert "".join(pieces_of(tokenizer, ids)).count(REPLACEMENT) == whole.count(REPLACEMENT)


@pytest.mark.parametrize("kind", ["byte level", "metaspace"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_tokens_come_out_as_the_tokenizer_decodes_them(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))

    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_with_byte_fallback_only_runs_of_broken_bytes_may_differ(data: st.DataObject) -> None:
    """The tokenizer turns a whole run of bytes into U+FFFD if any of it is wrong; we keep the characters in
    it."""
    tokenizer = tokenizer_of("byte fallback")
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    at_once = tokenizer.decode(ids, skip_special_tokens=True)

    if REPLACEMENT not in at_once:
        assert "".join(pieces_of(tokenizer, ids)) == at_once


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_a_character_of_several_tokens_comes_with_its_last_one(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("a🚀b", add_special_tokens=False)

    pieces = pieces_of(tokenizer, ids)

    assert [piece for piece in pieces if piece] == ["a", "🚀", "b"]
    assert pieces.count("") >= 3  # its first bytes said nothing


@pytest.mark.parametrize(("kind", "broken"), [("byte level", 1), ("byte fallback", 2)])
def test_a_character_that_is_never_completed_shows_at_the_end_only(kind: str, broken: int) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("🚀", add_special_tokens=False)
    start = ids[-4:-2] if kind == "byte fallback" else ids[:2]

    pieces = pieces_of(tokenizer, start)

    assert pieces[:-1] == ["", ""]
    assert pieces[-1] == REPLACEMENT * broken == tokenizer.decode(start)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "metaspace"])
def test_an_answer_keeps_the_space_between_it_and_the_prompt(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = tokenizer.encode("The sky is")
    whole = tokenizer.encode("The sky is blue")
    assert whole[: len(prompt)] == prompt

    assert "".join(pieces_of(tokenizer, whole[len(prompt) :], context=prompt)) == " blue"


@pytest.mark.parametrize("kind", ["byte fallback", "metaspace"])
def test_after_special_tokens_alone_a_text_begins(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    begin, *ids = tokenizer.encode("The sky")

    assert "".join(pieces_of(tokenizer, ids, context=[begin])) == "The sky"


def test_a_character_that_begins_in_the_prompt_is_completed() -> None:
    tokenizer = tokenizer_of("byte level")
    ids = tokenizer.encode("🚀", add_special_tokens=False)

    assert "".join(pieces_of(tokenizer, ids[2:], context=ids[:2])) == "🚀"


@every_kind
def test_special_tokens_are_not_shown_and_added_ones_are(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(f"<|user|>{ADDED}</s>", add_special_tokens=False)

    assert "".join(pieces_of(tokenizer, ids)).strip() == ADDED


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "metaspace"])
def test_the_kinds_in_use_need_no_window(kind: str) -> None:
    assert isinstance(tokenizer_of(kind).detokenizer(), IncrementalDetokenizer)


def test_an_unknown_decoder_is_asked_itself() -> None:
    assert isinstance(tokenizer_of("word piece").detokenizer(), WindowDetokenizer)


def test_a_decoder_that_does_not_do_what_its_rules_say_is_asked_itself() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b▁": 1}, unk_token="a"))
    tokenizer.decoder = decoders.Metaspace()
    rules = read_decoder(tokenizer.decoder.__getstate__())
    assert rules is not None
    assert isinstance(ModelTokenizer(tokenizer).detokenizer(), IncrementalDetokenizer)

    tokenizer.decoder = decoders.Sequence([decoders.Replace("b▁", "c"), decoders.Strip("c", 1, 0)])

    assert isinstance(ModelTokenizer(tokenizer).detokenizer(), WindowDetokenizer)


@every_kind
def test_the_cost_of_a_token_does_not_grow_with_the_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("The quick brown fox 🚀 über ", add_special_tokens=False)
    detokenizer = tokenizer.detokenizer()

    def pass_once(count: int) -> float:
        begun = time.perf_counter()
        for index in range(count):
            detokenizer.push(ids[index % len(ids)])
        return time.perf_counter() - begun

    first = min(pass_once(2000) for _ in range(3))
    pass_once(20_000)
    last = min(pass_once(2000) for _ in range(3))

    assert last < 5 * first + 0.005
