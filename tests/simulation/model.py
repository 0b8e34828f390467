"""The only thing that is not real: a model whose next token is a pure function of all tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Ids of the bundled tokenizer.
VOCABULARY = 1000
#: Ids that end a stream: one token in forty.
END_IDS = frozenset(range(1, VOCABULARY, 40))


def next_token(tokens: Sequence[int], seed: int) -> int:
    """The token behind `tokens`, prompt and output. The hash of integers is the same in every process."""
    return hash((seed, len(tokens), *tokens)) % VOCABULARY


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a request must generate, and how it ends."""

    tokens: tuple[int, ...]
    #: "stop" or "length".
    outcome: str


def right_continuation(
    prompt: Sequence[int], seed: int, max_tokens: int, max_model_len: int, stop_ids: frozenset[int]
) -> Continuation:
    """The one right answer."""
    tokens = list(prompt)
    while True:
        token = next_token(tokens, seed)
        tokens.append(token)
        output = tuple(tokens[len(prompt) :])
        if token in stop_ids:
            return Continuation(output, "stop")
        if len(output) >= max_tokens or len(tokens) >= max_model_len:
            return Continuation(output, "length")
