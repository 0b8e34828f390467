"""Tokens into records: what one message of a leader, or the tokens of a caller, make of the requests.

A step becomes changed records, a list of what has to happen to some of them, and numbers for the metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ryzanstein.v1.sampling_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_DEADLINE,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_UNSPECIFIED,
)
from ryzanstein.v1.shard_worker_pb2 import ExecuteResponse, SequenceOutput

from .errors import internal
from .observers import RequestMetrics
from .requests import Ending, RequestRecord, Suspicion
from .suspicion import is_innocent

#: How often one request's stream from the leader may be wrong without a token in between before it is given up.
_MOST_VIOLATIONS = 3


@dataclass(frozen=True, slots=True)
class Ended:
    """A request whose last token is recorded. `at_leader`: the leader knows that it is over."""

    record: RequestRecord
    ending: Ending
    at_leader: bool
    #: Tokens came with the end: see RecordedOutput.close.
    flush: bool


@dataclass(frozen=True, slots=True)
class Broken:
    """A request whose stream from the leader does not continue what is recorded."""

    record: RequestRecord
    reason: str


@dataclass(slots=True)
class StepResult:
    """What a step brought."""

    generated: int = 0
    #: The same tokens, by owner.
    served: Counter[str] = field(default_factory=Counter)
    ended: list[Ended] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    #: Some request that a fault had touched has shown that it breaks nothing.
    cleared: bool = False
    #: Seconds from admission, of requests whose first token this was.
    first_tokens_s: list[float] = field(default_factory=list)
    #: Seconds since the token before → number of streams. Most streams of a step share one value.
    gaps_s: Counter[float] = field(default_factory=Counter)


def record_step(
    outputs: Sequence[SequenceOutput], running: Mapping[int, RequestRecord], now: float
) -> StepResult:
    """Records what a step sampled and wakes who listens. Sequences that are not in `running` were cancelled
    here before the leader heard of it."""
    result = StepResult()
    for output in outputs:
        record = running.get(output.sequence_id)
        if record is None:
            continue
        recorded = record.output
        before = len(recorded.token_ids)
        token_ids = output.token_ids
        reason = output.finish_reason
        if output.prompt_logprobs and not recorded.add_prompt_logprobs(
            output.prompt_index, output.prompt_logprobs
        ):
            result.broken.append(
                Broken(record, f"logprobs of prompt token {output.prompt_index} came too early")
            )
            continue
        if token_ids:
            if output.first_index != before:
                result.broken.append(Broken(record, f"token {output.first_index} came, {before} is next"))
                continue
            _take_time(record, now, result)
            record.violations = 0
            if record.suspicion.breaks and is_innocent(record, len(token_ids)):
                record.suspicion = Suspicion()
                result.cleared = True
            if not before:
                record.cached_tokens = output.cached_tokens
            try:
                recorded.extend(token_ids, output.logprobs, hide_last=reason == FINISH_REASON_STOP)
            except Exception as error:  # noqa: BLE001 - a text that can't be made must not take the others' streams along
                failure = internal(
                    f"the text of token {len(recorded)} can't be made: {type(error).__name__}: {error}"
                )
                at_leader = reason != FINISH_REASON_UNSPECIFIED
                result.ended.append(Ended(record, Ending("error", error=failure), at_leader, flush=False))
                continue
            new = len(recorded.token_ids) - before
            result.generated += new
            result.served[record.spec.owner] += new
        if reason == FINISH_REASON_UNSPECIFIED and recorded.stop is None:
            for listener in record.listeners:
                listener.wake()
        elif recorded.stop is None and reason in (FINISH_REASON_CANCELLED, FINISH_REASON_DEADLINE):
            # Nobody here asked for it.
            result.broken.append(Broken(record, "the leader gave it up"))
        else:
            ending = _ending(recorded.stop, output)
            at_leader = reason != FINISH_REASON_UNSPECIFIED
            result.ended.append(Ended(record, ending, at_leader, flush=bool(token_ids)))
    return result


def tell_step(metrics: RequestMetrics, group_id: str, response: ExecuteResponse, result: StepResult) -> None:
    """The numbers of a step, a few calls whatever the number of its streams."""
    if result.generated:
        metrics.generated_tokens(result.generated)
    for seconds in result.first_tokens_s:
        metrics.first_token(seconds)
    for seconds, streams in result.gaps_s.items():
        metrics.inter_token_latency(seconds, streams)
    metrics.step(group_id, response.stats, response.step_duration_s)


def record_from_caller(record: RequestRecord, token_ids: Sequence[int]) -> Ending | None:
    """Records tokens that the caller was given in a life of this coordinator that it has forgotten.

    The same ends apply as to sampled tokens; returns the ending if one is among them, and drops what is
    behind it.
    """
    spec, recorded = record.spec, record.output
    fitting = token_ids[: spec.sampling.max_tokens - len(recorded)]
    ends = {*spec.eos_token_ids, *spec.sampling.stop_token_ids}
    end = next((index for index, token_id in enumerate(fitting) if token_id in ends), None)
    recorded.extend(fitting if end is None else fitting[: end + 1], hide_last=end is not None)
    record.wake()
    if recorded.stop is not None:
        return Ending("stop", stop=recorded.stop)
    if end is not None:
        return Ending("stop")
    if len(recorded) >= spec.sampling.max_tokens:
        return Ending("length")
    return None


def broken_off(record: RequestRecord) -> Ending | None:
    """Counts that its stream from the leader is wrong; returns the ending if that was once too often since its last
    token."""
    record.violations += 1
    if record.violations <= _MOST_VIOLATIONS:
        return None
    error = internal(f"the engine broke off {record.violations} times at token {len(record.output)}")
    return Ending("error", error=error)


def _take_time(record: RequestRecord, now: float, result: StepResult) -> None:
    timings = record.timings
    if timings.first_token_at is None:
        timings.first_token_at = now
        result.first_tokens_s.append(now - timings.admitted_at)
    elif timings.last_token_at is not None:
        result.gaps_s[now - timings.last_token_at] += 1
    timings.last_token_at = now


def _ending(stop: str | None, output: SequenceOutput) -> Ending:
    if stop is not None:
        return Ending("stop", stop=stop)
    if output.finish_reason == FINISH_REASON_STOP:
        return Ending("stop")
    if output.finish_reason == FINISH_REASON_LENGTH:
        return Ending("length")
    error = internal(f"the engine could not go on: {output.error or 'it did not say why'}")
    return Ending("error", error=error)
