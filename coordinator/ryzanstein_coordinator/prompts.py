"""A prompt as it is asked, as text, token ids or messages, and its way to token ids."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ryzanstein.wire import invalid_argument

from .errors import out_of_range
from .tokenization import ModelTokenizer

#: Longer text is tokenised in a thread: at about 1 MB/s this one takes 4 ms of the event loop.
_INLINE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a request needs to know of the model that is served."""

    name: str
    #: Most tokens of prompt and output together.
    max_model_len: int
    #: Width of the logits: token ids are below it.
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    architecture: str = ""
    dtype: str = ""
    parameters: int = 0


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text, with what the model's tokenizer puts around a prompt unless that is not wanted."""

    text: str
    add_special_tokens: bool = True

    @property
    def size_bytes(self) -> int:
        return len(self.text)


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, taken as they are."""

    token_ids: Sequence[int]

    @property
    def size_bytes(self) -> int:
        return 4 * len(self.token_ids)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages, each with at least `role` and `content`, for the model's own template.

    `extra` are variables that a template may know besides: tools, switches.
    """

    messages: Sequence[Mapping[str, Any]]
    add_generation_prompt: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    #: The template writes special tokens itself; True adds those of a plain prompt around it.
    add_special_tokens: bool = False

    @property
    def size_bytes(self) -> int:
        texts = (str(value) for message in [*self.messages, self.extra] for value in message.values())
        # Something for each message too: a million empty ones are work all the same.
        return sum(map(len, texts)) + 16 * len(self.messages)


Prompt = TextPrompt | TokenPrompt | ChatPrompt


class PromptReader:
    """Tokenises prompts, large ones in threads so that streams go on meanwhile.

    No more prompts than threads are in the threads at a time; the others wait where they can be cancelled.
    """

    def __init__(self, tokenizer: ModelTokenizer, *, threads: int = 1) -> None:
        self._tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._free = asyncio.Semaphore(threads)

    def close(self) -> None:
        """Ends the threads when they have done what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def token_ids(self, prompt: Prompt, model: ModelFacts) -> array[int]:
        """The prompt's token ids. Raises INVALID_ARGUMENT if there are none, too many, or ids the model
        lacks."""
        ids = await self.tokenize(prompt, model)
        if not ids:
            raise invalid_argument("the prompt is empty; send at least one token")
        if len(ids) >= model.max_model_len:
            raise too_long(len(ids), model.max_model_len)
        return ids

    async def tokenize(self, prompt: Prompt, model: ModelFacts) -> array[int]:
        """The same, whatever number of tokens it has."""
        if isinstance(prompt, TokenPrompt):
            return _checked_ids(prompt.token_ids, model)
        if isinstance(prompt, ChatPrompt) and not prompt.messages:
            raise invalid_argument("messages is empty; send at least one")
        if prompt.size_bytes <= _INLINE_CHARACTERS:
            return self._read(prompt, model)
        self._check_length(prompt.size_bytes, model)
        async with self._free:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._read, prompt, model)

    async def detokenize(self, token_ids: Sequence[int], model: ModelFacts) -> str:
        """The text of any number of tokens, special ones included."""
        ids = list(token_ids)
        _check_ids("token_ids", ids, model)
        if len(ids) <= _INLINE_CHARACTERS:
            return self._tokenizer.decode(ids)
        async with self._free:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._tokenizer.decode, ids
            )

    def _read(self, prompt: TextPrompt | ChatPrompt, model: ModelFacts) -> array[int]:
        if isinstance(prompt, TextPrompt):
            text = prompt.text
        else:
            text = self._tokenizer.chat_text(
                prompt.messages, add_generation_prompt=prompt.add_generation_prompt, extra=prompt.extra
            )
        if not text:
            raise invalid_argument("the prompt is an empty text; send at least one character")
        try:
            size_bytes = len(text.encode())
        except UnicodeEncodeError:
            raise invalid_argument(
                "the prompt holds half of a surrogate pair, which is no character"
            ) from None
        self._check_length(size_bytes, model)
        return array("I", self._tokenizer.encode(text, add_special_tokens=prompt.add_special_tokens))

    def _check_length(self, size_bytes: int, model: ModelFacts) -> None:
        """Refuses what can't fit before any work is done on it: no token stands for more bytes than the
        longest."""
        most = model.max_model_len * self._tokenizer.longest_token_bytes
        if size_bytes > most:
            raise invalid_argument(
                f"the prompt has {size_bytes} bytes; the model takes at most {model.max_model_len} tokens, "
                f"which can't be more than {most} bytes"
            )


def too_long(prompt_tokens: int, max_model_len: int) -> Exception:
    """INVALID_ARGUMENT with the numbers."""
    return invalid_argument(
        f"the prompt has {prompt_tokens} tokens, which leaves no room for an answer: the model takes at most "
        f"{max_model_len} tokens of prompt and answer together"
    )


def _checked_ids(token_ids: Sequence[int], model: ModelFacts) -> array[int]:
    if len(token_ids) >= model.max_model_len:
        raise too_long(len(token_ids), model.max_model_len)
    _check_ids("prompt token_ids", token_ids, model)
    return array("I", token_ids)


def _check_ids(field_name: str, token_ids: Sequence[int], model: ModelFacts) -> None:
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < model.vocab_size):
        return
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < model.vocab_size:
            raise out_of_range(f"{field_name}[{index}]", token_id, f"between 0 and {model.vocab_size - 1}")
