"""Which request goes to which group next. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from .requests import RequestRecord
from .sampling_params import least_tokens


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """A group that serves: what it has and what it takes."""

    group_id: str
    #: Submitted and not ended.
    sequences: int
    max_num_seqs: int
    #: It takes nothing now, whatever room it has.
    closed: bool = False

    @property
    def window(self) -> int:
        """Sequences that are submitted at most: a few more than run, so that a place that gets free is
        taken in the very next step. The rest waits here, where priorities, cancellations and faults cost
        nothing."""
        return self.max_num_seqs + max(2, self.max_num_seqs // 4)


def choose_group(groups: Iterable[GroupLoad]) -> str | None:
    """The group with the smallest share of its places taken; None if all have as much as they take."""
    open_groups = [group for group in groups if group.sequences < group.window and not group.closed]
    if not open_groups:
        return None
    return min(open_groups, key=lambda group: (group.sequences / group.max_num_seqs, group.group_id)).group_id


def replay_order(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """After a fault: streams that had begun, the one with the fewest tokens to prefill first, because it is
    back soonest; then those that had none, as they would have waited."""
    return sorted(records, key=_replay_key)


def _replay_key(record: RequestRecord) -> tuple[int, int, int]:
    if len(record.output):
        return 0, record.replay_tokens, record.arrival
    return 1, -record.spec.priority, record.arrival


def tokens_ahead(
    waiting: Iterable[RequestRecord], owner: str, priority: int, output_tokens: float | None
) -> float:
    """Output tokens, at least, that are generated before it is the turn of a new request: those of streams that had
    begun and of higher priorities, those of its owner's other requests, and as many of every other owner, because
    turns go round. `output_tokens`: of a request that may stop, on average; while that is not known nothing is."""
    if output_tokens is None:
        return 0.0
    first = own = 0.0
    others: defaultdict[str, float] = defaultdict(float)
    for record in waiting:
        sampling = record.spec.sampling
        expected = max(least_tokens(sampling), min(sampling.max_tokens, output_tokens))
        if len(record.output) or record.spec.priority > priority:
            first += max(0.0, expected - len(record.output))
        elif record.spec.priority == priority:
            if record.spec.owner == owner:
                own += expected
            else:
                others[record.spec.owner] += expected
    return first + own + sum(min(own, theirs) for theirs in others.values())
