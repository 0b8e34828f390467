"""What may be delivered is fixed: joined in any pieces, it is the text up to the stop text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein.v1.sampling_pb2 import TokenLogprobs
from ryzanstein_coordinator.output import RecordedOutput
from ryzanstein_coordinator.stop_strings import StopAutomaton
from ryzanstein_coordinator.tokenization import ModelTokenizer

from .trained_tokenizers import byte_level

TOKENIZER = ModelTokenizer(byte_level())
texts = st.text("ab<🚀", max_size=24)
stop_texts = st.lists(st.text("ab<🚀", min_size=1, max_size=4), max_size=3)


def output_of(stops: list[str], *, with_logprobs: bool = False) -> RecordedOutput:
    automaton = StopAutomaton(stops) if stops else None
    return RecordedOutput(TOKENIZER.detokenizer(), stops=automaton, with_logprobs=with_logprobs)


def first_stop(text: str, stops: list[str]) -> str | None:
    """The text before the stop text that is complete first."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return None


@given(text=texts, stops=stop_texts, reads=st.sets(st.integers(0, 24)), limit=st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_what_a_reader_gets_is_the_text_before_the_stop_text(
    text: str, stops: list[str], reads: set[int], limit: int
) -> None:
    output = output_of(stops)
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    got, index = "", 0

    for step, token_id in enumerate(ids):
        output.extend([token_id])
        while step in reads and index < output.deliverable:
            span = output.span(index, limit)
            assert span.first_index == index
            got, index = got + span.text, index + len(span.token_ids)
        if output.stop is not None:
            break
    output.close(flush=True)
    got += "".join(output.span(i, 1).text for i in range(index, output.deliverable))

    cut = first_stop(text, stops)
    assert got == (text if cut is None else cut)
    assert (output.stop is not None) == (cut is not None)
    assert list(output.token_ids) == ids[: len(output)]


@given(text=texts, stops=stop_texts)
@settings(max_examples=200, deadline=None)
def test_tokens_end_with_the_one_that_completes_the_stop_text(text: str, stops: list[str]) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    output = output_of(stops)
    output.extend(ids)

    if output.stop is not None:
        kept = TOKENIZER.decode(ids[: len(output)])
        assert output.stop in kept
        assert not any(stop in TOKENIZER.decode(ids[: len(output) - 1]) for stop in stops)


def test_a_possible_start_of_a_stop_text_waits_and_comes_as_soon_as_it_is_clear() -> None:
    output = output_of(["</s>"])
    ids = [TOKENIZER.encode(c, add_special_tokens=False)[0] for c in "a</b"]

    released = []
    for token_id in ids:
        output.extend([token_id])
        released.append(output.deliverable)

    assert released == [1, 1, 1, 4]
    assert output.text == "a</b"


def test_what_waited_comes_with_the_end() -> None:
    output = output_of(["</s>"])
    output.extend(TOKENIZER.encode("a</", add_special_tokens=False))
    output.close(flush=True)

    assert output.text == "a</"


def test_an_id_that_ends_the_stream_is_recorded_but_not_shown() -> None:
    output = output_of([])
    ids = TOKENIZER.encode("ab", add_special_tokens=False)
    output.extend([*ids, ids[-1]], hide_last=True)

    assert list(output.token_ids) == [*ids, ids[-1]]
    assert output.text == "ab"


def test_a_broken_character_is_shown_only_with_the_last_token() -> None:
    rocket = TOKENIZER.encode("🚀", add_special_tokens=False)
    with_token, after_token = output_of([]), output_of([])
    for output in (with_token, after_token):
        output.extend(rocket[:2])
    with_token.close(flush=True)
    after_token.close(flush=False)

    assert with_token.text == "\N{REPLACEMENT CHARACTER}"
    assert after_token.text == ""


def test_there_is_one_logprob_per_token_and_nan_where_none_is_known() -> None:
    output = output_of([], with_logprobs=True)
    output.extend([20], [TokenLogprobs(token_id=20, logprob=-1.5)])
    output.extend([21])

    known, unknown = (TokenLogprobs.FromString(entry) for entry in output.span(0, 9).logprobs)
    assert (known.token_id, known.logprob) == (20, -1.5)
    assert unknown.token_id == 21
    assert unknown.logprob != unknown.logprob
