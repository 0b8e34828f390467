"""The phases of generating, one by one: reading a prompt, and decoding so many streams at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from .arrivals import Concurrency, Limits
from .drive import Driver, Exchange, Outcome
from .fronts import AnswerError, Front
from .workload import Ask


async def prefill_seconds(front: Front, asks: Iterator[Ask], repeats: int) -> float:
    """The median time to the first token of a request that has the cluster for itself."""
    seconds = []
    for _ in range(repeats):
        (exchange,) = await at_once(front, asks, 1)
        assert exchange.first_token_s is not None, "an answer without a token"
        seconds.append(exchange.first_token_s)
    return median(seconds)


async def decode_tokens_per_s(front: Front, asks: Iterator[Ask], streams: int, repeats: int) -> float:
    """The median over repeats of the tokens per second of all streams, while all of them decode."""
    return median([decode_rate(await at_once(front, asks, streams)) for _ in range(repeats)])


def decode_rate(exchanges: Sequence[Exchange]) -> float:
    """Tokens per second from the first token of the stream that began last to the end of the first that ended.

    Raises:
        ValueError: at no time all of them decoded: answers are too short for so many streams.
    """
    begin_s = max(each.arrivals[0][0] for each in exchanges)
    end_s = min(each.arrivals[-1][0] for each in exchanges)
    if end_s <= begin_s:
        raise ValueError(
            f"{len(exchanges)} streams never decoded at the same time; ask for more output tokens"
        )
    tokens = sum(count for each in exchanges for at_s, count in each.arrivals if begin_s < at_s <= end_s)
    return tokens / (end_s - begin_s)


async def at_once(front: Front, asks: Iterator[Ask], streams: int) -> list[Exchange]:
    """So many requests, sent together.

    Raises:
        AnswerError: one did not come to its end.
    """
    driver = Driver(front, asks)
    await driver.run(Concurrency(streams), Limits(streams, None), 0)
    for exchange in driver.exchanges:
        if exchange.outcome is not Outcome.DONE:
            raise AnswerError(exchange.reason)
    return driver.exchanges
