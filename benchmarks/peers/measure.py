"""The one measure for every engine: time to the first token, tokens per second while decoding. No dependencies."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import Protocol

#: Ids below are special tokens of the tokenizer.
_FIRST_PLAIN_ID = 5


@dataclass(frozen=True)
class Plan:
    """What is asked of an engine, in tokens. Every engine gets the same prompts for the same seed."""

    vocab_size: int
    prompt_tokens: int = 128
    output_tokens: int = 128
    long_prompt_tokens: int = 512
    #: How many streams at once.
    streams: tuple[int, ...] = (1, 8, 16)
    #: How often the time to the first token is taken.
    first_tokens: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Figures:
    """One start of one engine. Times in seconds."""

    start_s: float
    first_token_s: float
    #: Streams at once → tokens per second of all of them together.
    decode: dict[int, float]


class Engine(Protocol):
    """A loaded model that generates greedily and does not stop at an end of sequence."""

    def generate(self, prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        """All prompts at once. For each the moment of every token of its output, by `time.perf_counter`, after the
        moment of the call as the first number."""


def measure(engine: Engine, plan: Plan, start_s: float) -> Figures:
    """Warms up, then measures. No prompt comes twice, so that no cache of prefixes helps anybody."""
    draw = random.Random(plan.seed)

    def prompts(count: int, tokens: int) -> list[list[int]]:
        return [
            [draw.randrange(_FIRST_PLAIN_ID, plan.vocab_size) for _ in range(tokens)] for _ in range(count)
        ]

    engine.generate(prompts(1, plan.prompt_tokens), 8)
    engine.generate(prompts(1, plan.long_prompt_tokens), 2)
    first = []
    for _ in range(plan.first_tokens):
        (moments,) = engine.generate(prompts(1, plan.long_prompt_tokens), 2)
        first.append(moments[1] - moments[0])
    decode = {
        count: decode_rate(
            [stream[1:] for stream in engine.generate(prompts(count, plan.prompt_tokens), plan.output_tokens)]
        )
        for count in plan.streams
    }
    return Figures(start_s, statistics.median(first), decode)


def decode_rate(moments: list[list[float]]) -> float:
    """Tokens per second while all streams decode: from the first token of the last stream that began to the first end.

    Raises:
        ValueError: one stream ended before another began; ask for more tokens.
    """
    begin, end = max(stream[0] for stream in moments), min(stream[-1] for stream in moments)
    if begin >= end:
        raise ValueError(
            f"{len(moments)} streams of {len(moments[0])} tokens never decoded all at once: one ended before another "
            "began; ask for more tokens"
        )
    return sum(begin < moment <= end for stream in moments for moment in stream) / (end - begin)
