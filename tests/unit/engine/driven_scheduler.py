"""A scheduler driven as the leader does it, with a function in place of a model and a look at every page."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from ryzanstein.v1 import sampling_pb2, shard_worker_pb2
from ryzanstein_shard_worker.batch import Batch
from ryzanstein_shard_worker.kv_cache import BlockAllocator
from ryzanstein_shard_worker.scheduler import Limits, Scheduler
from ryzanstein_shard_worker.sequence import Sequence

BLOCK = 4


def scheduler(
    *, blocks: int = 64, seqs: int = 8, tokens: int = 64, length: int = 512, caching: bool = False
) -> Scheduler:
    """`blocks` that can be handed out, of 4 tokens."""
    allocator = BlockAllocator(blocks + 1, BLOCK, prefix_caching=caching)
    return Scheduler(Limits(seqs, tokens, length), allocator)


def next_token(sequence_id: int, position: int) -> int:
    """What the model would say: a function of the sequence alone."""
    return (sequence_id * 7919 + position * 104729) % 97 + 3


@dataclass
class Engine:
    """Drives a scheduler as the leader does, with a token function in place of a model."""

    scheduler: Scheduler
    output: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[int, sampling_pb2.FinishReason.ValueType] = field(default_factory=dict)
    sampled: list[shard_worker_pb2.SampledTokens] = field(default_factory=list)
    #: (block, token within it) → what was computed there: everything from the first token on, as a hash.
    pages: dict[tuple[int, int], int] = field(default_factory=dict)
    last_plan: shard_worker_pb2.StepPlan = field(default_factory=shard_worker_pb2.StepPlan)
    _prefixes: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What a block held before it was handed out again is gone: it might be just what its new owner computes."""
        allocate = self.scheduler.allocator.allocate

        def emptied(count: int) -> list[int]:
            blocks = allocate(count)
            for block in blocks:
                for token in range(BLOCK):
                    self.pages.pop((block, token), None)
            return blocks

        setattr(self.scheduler.allocator, "allocate", emptied)  # noqa: B010 - a method, for type checkers

    def step(
        self,
        arrivals: SequenceOf[shard_worker_pb2.SubmitSequence] = (),
        cancel: SequenceOf[int] = (),
        *,
        failed: SequenceOf[int] = (),
        prefill: int | None = None,
    ) -> Batch:
        plan = shard_worker_pb2.StepPlan(
            arrivals=arrivals,
            sampled=[tokens for tokens in self.sampled if tokens.sequence_id not in failed],
            prefill_tokens=prefill,
        )
        for sequence_id in cancel:
            plan.departures.add(sequence_id=sequence_id, reason=sampling_pb2.FINISH_REASON_CANCELLED)
        for sequence_id in failed:
            plan.departures.add(sequence_id=sequence_id, reason=sampling_pb2.FINISH_REASON_ERROR)
        self.last_plan = plan
        self.scheduler.apply(plan)
        batch = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self._check_rows(batch)
        self.sampled = []
        for sequence in batch.sampling:
            token = next_token(sequence.sequence_id, sequence.num_output)
            reason = sequence.finish_reason(token, self.scheduler.limits.max_model_len)
            self.output.setdefault(sequence.sequence_id, []).append(token)
            if reason:
                self.ended[sequence.sequence_id] = reason
            self.sampled.append(
                shard_worker_pb2.SampledTokens(sequence_id=sequence.sequence_id, token_ids=[token])
            )
        for dropped, reason, _ in batch.dropped:
            self.ended[dropped.sequence_id] = reason
        return batch

    def finish(self, most_steps: int = 5000) -> None:
        for _ in range(most_steps):
            if not self.scheduler.has_work and not self.sampled:
                return
            self.step()
        raise AssertionError("the scheduler starves a sequence")

    def _check_rows(self, batch: Batch) -> None:
        """Every row goes to a page of its own sequence that nobody else reads, behind pages with the right rows."""
        limits = self.scheduler.limits
        assert batch.num_tokens <= limits.max_batched_tokens
        assert len(self.scheduler.running) <= limits.max_num_seqs
        holders: dict[int, list[Sequence]] = {}
        for sequence in self.scheduler.running:
            for block in sequence.blocks:
                holders.setdefault(block, []).append(sequence)
        written = {}
        for piece in batch.slices:
            assert piece.count > 0
            assert len(piece.sequence.blocks) * BLOCK >= piece.start + piece.count, "rows without a page"
            for position in range(piece.start, piece.start + piece.count):
                block = piece.sequence.blocks[position // BLOCK]
                slot = (block, position % BLOCK)
                for other in holders[block]:
                    right = other is not piece.sequence and self.pages.get(slot) == self._row(other, position)
                    assert not right, "a row is computed again where another sequence reads it"
                assert slot not in written, "two rows for one place"
                written[slot] = self._row(piece.sequence, position)
        self.pages.update(written)  # pages are written before any row attends
        for piece in batch.slices:
            for position in range(piece.start + piece.count):
                slot = (piece.sequence.blocks[position // BLOCK], position % BLOCK)
                assert self.pages[slot] == self._row(piece.sequence, position), (
                    "another sequence's row is read"
                )

    def _row(self, sequence: Sequence, position: int) -> int:
        """What keys and values at a position depend on: all tokens up to it."""
        rows = self._prefixes.setdefault(sequence.sequence_id, [hash(sequence.cache_salt)])
        while len(rows) <= position + 1:
            rows.append(hash((rows[-1], sequence.tokens[len(rows) - 1])))
        return rows[position + 1]
