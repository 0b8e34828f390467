"""From prompts to token ids, and what is refused on the way, quickly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ryzanstein.model_plan import ModelError
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.chat_template import ChatTemplate
from ryzanstein_coordinator.prompts import ChatPrompt, ModelFacts, PromptReader, TextPrompt, TokenPrompt
from ryzanstein_coordinator.tokenization import ModelTokenizer, read_tokenizer

from .trained_tokenizers import byte_level

MODEL = ModelFacts(name="tiny", max_model_len=1000, vocab_size=700)
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}</s>{% endfor %}"


@pytest.fixture
def tokenizer() -> ModelTokenizer:
    return ModelTokenizer(byte_level(), ChatTemplate(TEMPLATE, {}))


@pytest.fixture
async def reader(tokenizer: ModelTokenizer) -> AsyncIterator[PromptReader]:
    reader = PromptReader(tokenizer)
    yield reader
    reader.close()


async def test_text_gets_the_tokens_that_the_model_expects_around_a_prompt(
    reader: PromptReader, tokenizer: ModelTokenizer
) -> None:
    begin = byte_level().token_to_id("<s>")

    ids = await reader.token_ids(TextPrompt("The sky"), MODEL)

    assert list(ids) == [begin, *tokenizer.encode("The sky", add_special_tokens=False)]
    assert begin not in await reader.tokenize(TextPrompt("The sky", add_special_tokens=False), MODEL)


async def test_messages_go_through_the_template_which_writes_special_tokens_itself(
    reader: PromptReader, tokenizer: ModelTokenizer
) -> None:
    ids = await reader.token_ids(ChatPrompt([{"role": "user", "content": "hi"}]), MODEL)

    assert tokenizer.decode(ids) == "<|user|>hi</s>"
    assert byte_level().token_to_id("<|user|>") in ids
    assert byte_level().token_to_id("<s>") not in ids


async def test_token_ids_are_taken_as_they_are(reader: PromptReader) -> None:
    assert list(await reader.token_ids(TokenPrompt([5, 699, 0]), MODEL)) == [5, 699, 0]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (TextPrompt(""), "empty text"),
        (TokenPrompt([]), "the prompt is empty"),
        (ChatPrompt([]), "messages is empty"),
        (TokenPrompt([1, 700]), r"token_ids\[1\] is 700; it must be between 0 and 699"),
        (TokenPrompt([1, -1]), r"token_ids\[1\] is -1"),
        (TokenPrompt([1] * 1000), "has 1000 tokens, .* at most 1000 tokens"),
        (TextPrompt("x y " * 1000), r"has \d+ tokens, .* at most 1000 tokens"),
        (TextPrompt("a\ud800"), "half of a surrogate pair"),
        (TextPrompt("\ud800" * 5000), "half of a surrogate pair"),
        (ChatPrompt([{"role": "user", "content": "a\udfff"}]), "half of a surrogate pair"),
    ],
)
async def test_what_can_not_be_a_prompt_is_refused(
    reader: PromptReader, prompt: TextPrompt | TokenPrompt | ChatPrompt, message: str
) -> None:
    with pytest.raises(StatusError, match=message):
        await reader.token_ids(prompt, MODEL)


async def test_text_that_can_not_fit_is_refused_without_being_tokenised(
    reader: PromptReader, tokenizer: ModelTokenizer
) -> None:
    most = MODEL.max_model_len * tokenizer.longest_token_bytes
    begun = time.perf_counter()

    with pytest.raises(StatusError, match=rf"has {10_000_000} bytes; .* more than {most} bytes"):
        await reader.token_ids(TextPrompt("x" * 10_000_000), MODEL)
    assert time.perf_counter() - begun < 0.05  # tokenising it takes seconds


async def test_streams_go_on_while_a_large_prompt_is_tokenised(reader: PromptReader) -> None:
    model = ModelFacts(name="long", max_model_len=10**7, vocab_size=700)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(others())
    await reader.token_ids(TextPrompt("The quick brown fox. " * 20_000), model)
    counting.cancel()

    assert turns > 100


async def test_a_prompt_that_waits_for_the_thread_can_be_given_up(reader: PromptReader) -> None:
    model = ModelFacts(name="long", max_model_len=10**7, vocab_size=700)
    first = asyncio.create_task(reader.token_ids(TextPrompt("The quick brown fox. " * 20_000), model))
    waiting = asyncio.create_task(reader.token_ids(TextPrompt("x" * 5000), model))
    await asyncio.sleep(0)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(await first) > 20_000


async def test_detokenising_shows_special_tokens_and_refuses_unknown_ids(reader: PromptReader) -> None:
    assert await reader.detokenize(byte_level().encode("hi").ids, MODEL) == "<s>hi"
    with pytest.raises(StatusError, match=r"token_ids\[0\] is 700"):
        await reader.detokenize([700], MODEL)


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(StatusError, match="no chat template"):
        ModelTokenizer(byte_level()).chat_text([{"role": "user", "content": "hi"}])


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: no such file"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        read_tokenizer(tmp_path)


def test_a_directory_is_read_as_transformers_wrote_it(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)

    tokenizer = read_tokenizer(tmp_path)

    assert tokenizer.has_chat_template
    assert tokenizer.encode("The sky") == byte_level().encode("The sky").ids
