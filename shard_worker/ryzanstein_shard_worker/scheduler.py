"""What the next step computes: continuous batching with chunked prefill, as one deterministic state machine.

Every rank runs this scheduler on the same numbered plans, so all ranks hold the same state without asking each other.
No clock, no gRPC, no torch: deadlines and cancellations arrive as departures in a plan.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from ryzanstein.v1 import sampling_pb2, shard_worker_pb2

from .batch import Batch, Room, Slice
from .kv_cache import BlockAllocator, blocks_for
from .prefix_cache import PrefixCache
from .sequence import UNFINISHED, FinishReason, Sequence

#: Prompt tokens whose logprobs one step can always give. Each takes a row of logits, as wide as the vocabulary; more
#: are given if so many sequences could run that don't: the ledger has a row for each.
MIN_SCORED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one group; the same on every rank."""

    max_num_seqs: int
    #: Tokens of one step, prefill and decode together.
    max_batched_tokens: int
    #: Tokens of one sequence, prompt and output together.
    max_model_len: int


class Scheduler:
    """The queue, the running sequences and the blocks of one rank."""

    def __init__(self, limits: Limits, allocator: BlockAllocator) -> None:
        self.limits = limits
        self.allocator = allocator
        self.prefixes = PrefixCache(allocator)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions_total = 0
        self._prefill_tokens = limits.max_batched_tokens

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def apply(self, plan: shard_worker_pb2.StepPlan) -> None:
        """Brings the state up to the start of the plan's step: tokens of the step before, departures, arrivals."""
        by_id = {sequence.sequence_id: sequence for sequence in self.running}
        for sampled in plan.sampled:
            self._append(by_id[sampled.sequence_id], sampled.token_ids)
        for departure in plan.departures:
            self._depart(departure)
        for arrival in plan.arrivals:
            self.waiting.append(Sequence.from_wire(arrival))
        if plan.arrivals:
            self.waiting.sort(key=_queue_order)
        self._prefill_tokens = (
            plan.prefill_tokens if plan.HasField("prefill_tokens") else self.limits.max_batched_tokens
        )

    def remove(self, sequence_id: int) -> Sequence | None:
        """Takes a sequence out, wherever it is, and frees its blocks. None if it had ended by itself."""
        for queue in (self.running, self.waiting):
            for index, sequence in enumerate(queue):
                if sequence.sequence_id == sequence_id:
                    del queue[index]
                    self.allocator.free(sequence.blocks)
                    return sequence
        return None

    def schedule(self) -> Batch:
        """The next batch; its slices count as computed from now on.

        Decoding sequences come first, all of them, so that a long prompt never makes a running stream stutter. What
        is left of the tokens goes to prefills in the order of the queue, and while anybody decodes no more than the
        plan allows.
        """
        dropped: list[tuple[Sequence, FinishReason.ValueType, str]] = []
        room = Room(
            tokens=self.limits.max_batched_tokens,
            scored=max(MIN_SCORED_TOKENS, self.limits.max_num_seqs - len(self.running)),
            prefill=self._prefill_tokens,
        )
        self._go_on(room, dropped)
        self._admit(room, dropped)
        return Batch(tuple(room.slices), tuple(dropped))

    def _go_on(self, room: Room, dropped: list[tuple[Sequence, FinishReason.ValueType, str]]) -> None:
        """Slices of the sequences that run, those that decode first."""
        kept: set[int] = set()  # ids of the sequences in the batch
        for sequence in sorted(self.running, key=_prefills):
            if room.tokens == 0:
                break
            if not sequence.blocks:  # pre-empted for one before it
                continue
            count = room.count(sequence, sequence.num_computed)
            if count == 0:
                continue
            if not self._make_room(sequence, count, kept):
                if len(self.running) == 1 and not room.slices:
                    dropped.append(self._drop_too_long(sequence))
                else:
                    self._preempt(sequence)
                continue
            room.take(self._take(sequence, count))
            kept.add(sequence.sequence_id)

    def _admit(self, room: Room, dropped: list[tuple[Sequence, FinishReason.ValueType, str]]) -> None:
        """Slices of sequences that waited."""
        size = self.allocator.block_size
        while self.waiting and room.tokens > 0 and len(self.running) < self.limits.max_num_seqs:
            sequence = self.waiting[0]
            # Room for all of its tokens and the next: admitting less would only pre-empt it again.
            needed = blocks_for(len(sequence.tokens) + 1, size)
            if needed > self.allocator.num_blocks - 1:
                dropped.append(self._drop_too_long(sequence))
                continue
            found = self.prefixes.find(sequence)
            count = room.count(sequence, len(found) * size)
            # And for the next block of everybody who runs: whoever comes last is the first to be pre-empted.
            new = needed - len(found)
            if count == 0 or not self.allocator.can_allocate(new + len(self.running), beside=found):
                break
            self.waiting.pop(0)
            self.running.append(sequence)
            self.allocator.share(found)
            sequence.blocks = found + self.allocator.allocate(new)
            sequence.num_computed = len(found) * size
            self.prefixes.admitted(sequence, len(found))
            room.take(self._take(sequence, count))

    def state_hash(self) -> int:
        """64 bits over everything that the next batch depends on: equal on all ranks or something is wrong."""
        allocator = self.allocator
        numbers = [
            allocator.num_free,
            allocator.num_idle,
            allocator.fingerprint,
            len(self.running),
            len(self.waiting),
        ]
        for sequence in self.running:
            numbers += (
                sequence.sequence_id,
                len(sequence.tokens),
                sequence.num_computed,
                sequence.tokens[-1],
            )
            numbers += sequence.blocks[-1:]
        numbers += [sequence.sequence_id for sequence in self.waiting]
        packed = struct.pack(f"<{len(numbers)}Q", *numbers)
        return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")

    def stats(self) -> shard_worker_pb2.SchedulerStats:
        return shard_worker_pb2.SchedulerStats(
            running=len(self.running),
            waiting=len(self.waiting),
            blocks_used=self.allocator.num_used,
            blocks_total=self.allocator.num_blocks - 1,
            preemptions_total=self.preemptions_total,
            prefix_queries_total=self.prefixes.queries_total,
            prefix_hits_total=self.prefixes.hits_total,
        )

    def check_integrity(self) -> None:
        """Every block is free, kept for others, or belongs to running sequences; nothing waits with blocks."""
        self.allocator.check_integrity(sequence.blocks for sequence in self.running)
        assert not any(sequence.blocks for sequence in self.waiting)

    def _depart(self, departure: shard_worker_pb2.Departure) -> None:
        if departure.reason == sampling_pb2.FINISH_REASON_ERROR:  # NaN, perhaps: nobody is to begin with it
            for sequence in self.running:
                if sequence.sequence_id == departure.sequence_id:
                    self.allocator.forget(sequence.blocks)
        self.remove(departure.sequence_id)

    def _append(self, sequence: Sequence, tokens: SequenceOf[int]) -> None:
        for token in tokens:
            reason = sequence.finish_reason(token, self.limits.max_model_len)
            sequence.tokens.append(token)
            if reason != UNFINISHED:
                self.remove(sequence.sequence_id)
                return

    def _take(self, sequence: Sequence, count: int) -> Slice:
        start = sequence.num_computed
        sequence.num_computed += count
        self.prefixes.publish(sequence)
        return Slice(sequence, start, count, samples=sequence.num_computed == len(sequence.tokens))

    def _make_room(self, sequence: Sequence, count: int, kept: set[int]) -> bool:
        """Blocks for `count` more tokens, pre-empting those that arrived last. `kept` are in the batch already."""
        needed = blocks_for(sequence.num_computed + count, self.allocator.block_size) - len(sequence.blocks)
        if needed <= 0:
            return True
        while not self.allocator.can_allocate(needed):
            victims = [
                s
                for s in self.running
                if s.sequence_id not in kept and _queue_order(s) > _queue_order(sequence)
            ]
            if not victims:
                return False
            self._preempt(max(victims, key=_queue_order))
        sequence.blocks += self.allocator.allocate(needed)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue; its tokens stay, their keys and values are computed again, but for those still found."""
        self.running.remove(sequence)
        self.allocator.free(sequence.blocks)
        sequence.num_computed = sequence.num_published = 0
        self.waiting.append(sequence)
        self.waiting.sort(key=_queue_order)
        self.preemptions_total += 1

    def _drop_too_long(self, sequence: Sequence) -> tuple[Sequence, FinishReason.ValueType, str]:
        self.remove(sequence.sequence_id)
        message = (
            f"{len(sequence.tokens)} tokens don't fit into the KV cache of {self.allocator.capacity_tokens}"
        )
        return sequence, sampling_pb2.FINISH_REASON_ERROR, message


def _prefills(sequence: Sequence) -> bool:
    return len(sequence.tokens) - sequence.num_computed > 1


def _queue_order(sequence: Sequence) -> tuple[int, bool, int, int]:
    """Priority, then those that go on from an earlier epoch (shortest first), then the order of arrival."""
    replayed = sequence.num_replayed > 0
    length = sequence.num_prompt + sequence.num_replayed if replayed else 0
    return -sequence.priority, not replayed, length, sequence.sequence_id
