"""What the requests of one run say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ryzanstein.measuring.statistics import Spread, percentile, spread

from .arrivals import Concurrency, Limits, Load, Rate
from .drive import Exchange, Outcome


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a user may expect of a request, in seconds. None: nothing."""

    first_token_s: float | None = None
    #: Mean time per token after the first.
    per_token_s: float | None = None
    end_to_end_s: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is one at all."""
        return (self.first_token_s, self.per_token_s, self.end_to_end_s) != (None, None, None)

    def met(self, exchange: Exchange) -> bool:
        """A request that did not get to its end meets none."""
        if exchange.outcome is not Outcome.DONE:
            return False
        return all(
            bound is None or (taken is not None and taken <= bound)
            for bound, taken in (
                (self.first_token_s, exchange.first_token_s),
                # An answer of one token has no time between tokens, so it can't be too long.
                (self.per_token_s, exchange.per_token_s or 0.0),
                (self.end_to_end_s, exchange.ended_s - exchange.due_s),
            )
        )


@dataclass(frozen=True, slots=True)
class Distribution:
    """A spread, and the percentiles 0 to 100 that a curve needs. Seconds."""

    spread: Spread
    percentiles: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ServingResult:
    """One load. Rates count what came while requests were sent (with a duration), else until the last end.

    Requests that were refused, failed or were interrupted are counted, and are in no time.
    """

    load: str
    rate_per_s: float | None
    concurrency: int | None
    seconds: float
    sent: int
    done: int
    refused: int
    failed: int
    interrupted: int
    #: Reason → how many failed for it.
    failures: dict[str, int]
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    #: Requests per second that met all objectives; None: there were none.
    goodput_per_s: float | None
    good_share: float | None
    prompt_tokens: Spread | None
    output_tokens: Spread | None
    first_token_s: Distribution | None
    #: From one arrival of tokens to the next.
    inter_token_s: Distribution | None
    #: Mean of each request.
    per_token_s: Distribution | None
    end_to_end_s: Distribution | None


def summarise(
    exchanges: Sequence[Exchange], load: Load, limits: Limits, objectives: Objectives, ended_s: float
) -> ServingResult:
    """`ended_s`: since the begin of the run."""
    # What ends behind the time of sending ran at a falling load.
    seconds = max(ended_s if limits.duration_s is None else min(ended_s, limits.duration_s), 1e-9)
    done = [each for each in exchanges if each.outcome is Outcome.DONE]
    outcomes = Counter(each.outcome for each in exchanges)
    within = [each for each in done if each.ended_s <= seconds]
    good = [each for each in within if objectives.met(each)]
    tokens = sum(count for each in exchanges for at_s, count in each.arrivals if at_s <= seconds)
    prompts = sum(each.prompt_tokens for each in done if each.arrivals and each.arrivals[0][0] <= seconds)
    return ServingResult(
        load=str(load),
        rate_per_s=load.per_second if isinstance(load, Rate) else None,
        concurrency=load.streams if isinstance(load, Concurrency) else None,
        seconds=seconds,
        sent=len(exchanges),
        done=len(done),
        refused=outcomes[Outcome.REFUSED],
        failed=outcomes[Outcome.FAILED],
        interrupted=outcomes[Outcome.INTERRUPTED],
        failures=dict(Counter(each.reason for each in exchanges if each.outcome is Outcome.FAILED)),
        requests_per_s=len(within) / seconds,
        prompt_tokens_per_s=prompts / seconds,
        output_tokens_per_s=tokens / seconds,
        goodput_per_s=len(good) / seconds if objectives.any else None,
        good_share=sum(map(objectives.met, exchanges)) / len(exchanges)
        if objectives.any and exchanges
        else None,
        prompt_tokens=spread(each.prompt_tokens for each in done),
        output_tokens=spread(each.output_tokens for each in done),
        first_token_s=_distribution(each.first_token_s for each in done),
        inter_token_s=_distribution(gap for each in done for gap in each.gaps_s),
        per_token_s=_distribution(each.per_token_s for each in done),
        end_to_end_s=_distribution(each.ended_s - each.due_s for each in done),
    )


def _distribution(values: Iterable[float | None]) -> Distribution | None:
    ordered = sorted(value for value in values if value is not None)
    found = spread(ordered)
    if found is None:
        return None
    return Distribution(found, tuple(percentile(ordered, percent) for percent in range(101)))
