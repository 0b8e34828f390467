"""The scheduler keeps its bounds, loses no block and no sequence, and two copies of it never differ."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein.v1 import sampling_pb2, shard_worker_pb2
from ryzanstein_shard_worker.kv_cache import BlockAllocator, blocks_for
from ryzanstein_shard_worker.scheduler import Batch, Limits, Scheduler

from .sequences import submission


def scheduler(*, blocks: int = 64, seqs: int = 8, tokens: int = 64, length: int = 512) -> Scheduler:
    return Scheduler(Limits(seqs, tokens, length), BlockAllocator(blocks + 1, 4))


def next_token(sequence_id: int, position: int) -> int:
    """What the model would say: a function of the sequence alone."""
    return (sequence_id * 7919 + position * 104729) % 97 + 3


def test_every_token_of_a_prompt_is_scored_once_and_few_in_a_step() -> None:
    plain = scheduler(seqs=20, tokens=256)
    prompts = {1: 100, 2: 70, 3: 1}
    arrivals = [submission(i, list(range(n)), prompt_logprobs=0, max_tokens=3) for i, n in prompts.items()]
    arrivals.append(submission(4, list(range(50)), max_tokens=3))
    engine = Engine(plain)
    seen: dict[int, list[int]] = {i: [] for i in range(1, 5)}
    batch = engine.step(arrivals)
    while batch.slices:
        rows = [(p.sequence.sequence_id, p.start + 1 + i) for p in batch.slices for i in range(p.num_scored)]
        assert len(rows) <= 20
        for sequence_id, position in rows:
            seen[sequence_id].append(position)
        batch = engine.step()
    assert seen == {1: list(range(1, 100)), 2: list(range(1, 70)), 3: [], 4: []}
    assert all(len(output) == 3 for output in engine.output.values())


@dataclass
class Engine:
    """Drives a scheduler as the leader does, with a token function in place of a model."""

    scheduler: Scheduler
    output: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[int, sampling_pb2.FinishReason.ValueType] = field(default_factory=dict)
    sampled: list[shard_worker_pb2.SampledTokens] = field(default_factory=list)
    #: Tokens whose keys and values were computed, per sequence, in the pages that it holds now.
    computed: dict[int, int] = field(default_factory=dict)

    def step(
        self, arrivals: list[shard_worker_pb2.SubmitSequence] | None = None, cancel: list[int] | None = None
    ) -> Batch:
        plan = shard_worker_pb2.StepPlan(arrivals=arrivals or [], sampled=self.sampled)
        for sequence_id in cancel or []:
            plan.departures.add(sequence_id=sequence_id, reason=sampling_pb2.FINISH_REASON_CANCELLED)
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

    def _check_rows(self, batch: Batch) -> None:
        limits = self.scheduler.limits
        assert batch.num_tokens <= limits.max_batched_tokens
        assert len(self.scheduler.running) <= limits.max_num_seqs
        for piece in batch.slices:
            sequence = piece.sequence
            assert piece.count > 0
            assert len(sequence.blocks) * 4 >= piece.start + piece.count, "rows without a page"
            before = 0 if piece.start == 0 else self.computed[sequence.sequence_id]
            assert piece.start == before, "rows must follow what is in the cache"
            self.computed[sequence.sequence_id] = piece.start + piece.count

    def finish(self, most_steps: int = 5000) -> None:
        for _ in range(most_steps):
            if not self.scheduler.has_work and not self.sampled:
                return
            self.step()
        raise AssertionError("the scheduler starves a sequence")


def test_a_prompt_is_prefilled_in_chunks_and_then_decodes_token_by_token() -> None:
    engine = Engine(scheduler(tokens=8))
    counts = [engine.step([submission(1, list(range(20)), max_tokens=3)]).num_tokens]
    while engine.scheduler.has_work or engine.sampled:
        counts.append(engine.step().num_tokens)
    assert counts == [8, 8, 4, 1, 1, 0]
    assert engine.output[1] == [next_token(1, i) for i in range(3)]
    assert engine.ended[1] == sampling_pb2.FINISH_REASON_LENGTH


def test_running_streams_decode_while_a_long_prompt_is_prefilled() -> None:
    engine = Engine(scheduler(tokens=8))
    engine.step([submission(1, [1, 2], max_tokens=30)])
    engine.step([submission(2, list(range(40)), max_tokens=2)])
    for produced in range(2, 6):
        engine.step()
        assert len(engine.output[1]) == produced + 1
    assert 2 not in engine.output


def test_end_of_sequence_and_stop_ids_end_a_stream() -> None:
    engine = Engine(scheduler())
    third = next_token(1, 2)
    engine.step([submission(1, [5], eos=[third]), submission(2, [5], stop_token_ids=[next_token(2, 0)])])
    engine.finish()
    assert len(engine.output[1]) == 3
    assert len(engine.output[2]) == 1
    assert set(engine.ended.values()) == {sampling_pb2.FINISH_REASON_STOP}


def test_the_model_length_ends_a_stream() -> None:
    engine = Engine(scheduler(length=10))
    engine.step([submission(1, [1, 2, 3, 4], max_tokens=100)])
    engine.finish()
    assert len(engine.output[1]) == 6


def test_a_cancelled_sequence_gives_its_blocks_back_at_the_next_step() -> None:
    engine = Engine(scheduler())
    engine.step([submission(1, list(range(30)))])
    assert engine.scheduler.allocator.num_used > 0
    engine.step(cancel=[1])
    assert engine.scheduler.allocator.num_used == 0
    assert not engine.scheduler.has_work


def test_a_full_pool_preempts_the_last_comer_and_every_stream_still_comes_out_whole() -> None:
    engine = Engine(scheduler(blocks=10))
    engine.step([submission(number, [number] * 8, max_tokens=20) for number in range(1, 5)])
    engine.finish()
    assert engine.scheduler.preemptions_total > 0
    for number in range(1, 5):
        assert engine.output[number] == [next_token(number, i) for i in range(20)]
    assert engine.scheduler.allocator.num_used == 0


def test_a_sequence_that_can_never_fit_is_dropped_and_the_others_go_on() -> None:
    engine = Engine(scheduler(blocks=4))
    engine.step([submission(1, list(range(17)))])
    engine.step([submission(2, [1, 2, 3], max_tokens=4), submission(3, [1, 2, 3, 4], max_tokens=50)])
    engine.finish()
    assert engine.ended[1] == sampling_pb2.FINISH_REASON_ERROR
    assert engine.ended[2] == sampling_pb2.FINISH_REASON_LENGTH
    assert engine.ended[3] == sampling_pb2.FINISH_REASON_ERROR
    assert len(engine.output[3]) == 13  # 16 tokens have pages, and the last one was sampled without


def test_priority_goes_first_and_replays_before_new_prompts_shortest_first() -> None:
    engine = Engine(scheduler(seqs=1))
    engine.step(
        [
            submission(1, [1], max_tokens=2),
            submission(2, [1] * 9, emitted=[next_token(2, 0)], max_tokens=2),
            submission(3, [1] * 5, emitted=[next_token(3, 0)], max_tokens=2),
            submission(4, [1], max_tokens=1, priority=1),
        ]
    )
    engine.finish()
    assert list(engine.output) == [4, 3, 2, 1]


def test_a_replayed_sequence_goes_on_at_its_position() -> None:
    engine = Engine(scheduler())
    engine.step([submission(1, [1, 2], emitted=[next_token(1, 0), next_token(1, 1)], max_tokens=5)])
    engine.finish()
    assert engine.output[1] == [next_token(1, i) for i in range(2, 5)]


def test_block_zero_is_never_handed_out_and_a_lost_block_is_noticed() -> None:
    allocator = BlockAllocator(5, 16)
    blocks = allocator.allocate(4)
    assert sorted(blocks) == [1, 2, 3, 4]
    assert not allocator.can_allocate(1)
    allocator.check_integrity([blocks])
    with pytest.raises(AssertionError, match="lost"):
        allocator.check_integrity([blocks[1:]])
    with pytest.raises(AssertionError, match="in two places"):
        allocator.check_integrity([blocks, blocks[:1]])
    allocator.free(blocks)
    assert blocks == []
    assert allocator.num_free == 4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    blocks=st.integers(6, 40),
    seqs=st.integers(1, 8),
    tokens=st.integers(8, 40),
)
def test_any_load_ends_with_every_stream_as_if_it_were_alone(
    seed: int, blocks: int, seqs: int, tokens: int
) -> None:
    """And a second scheduler that sees only the plans holds the same state at every step."""
    draw = random.Random(seed)
    engine = Engine(scheduler(blocks=blocks, seqs=seqs, tokens=tokens))
    follower = scheduler(blocks=blocks, seqs=seqs, tokens=tokens)
    wanted: dict[int, int] = {}
    cancelled: set[int] = set()
    for step in range(200):
        arrivals = []
        if step < 60 and draw.random() < 0.5:
            number = len(wanted) + 1
            wanted[number] = draw.randint(1, 12)
            prompt = [1] * draw.randint(1, 10)
            arrivals = [
                submission(number, prompt, max_tokens=wanted[number], priority=draw.choice([0, 0, 1]))
            ]
        alive = [number for number in wanted if number not in engine.ended]
        cancel = [draw.choice(alive)] if alive and draw.random() < 0.05 else []
        cancelled.update(cancel)
        assert engine.scheduler.state_hash() == follower.state_hash()
        engine.step(arrivals, cancel)
        follower.apply(engine.last_plan)
        follower.schedule()
    engine.finish()
    for number, count in wanted.items():
        alone = [next_token(number, i) for i in range(count)]
        output = engine.output.get(number, [])
        assert output == alone[: len(output)]
        assert len(output) == count or number in cancelled
    assert engine.scheduler.allocator.num_used == 0


def test_no_block_is_lost_after_ten_thousand_requests() -> None:
    draw = random.Random(5)
    engine = Engine(scheduler(blocks=48, seqs=16, tokens=128))
    for number in range(1, 10_001):
        arrival = submission(number, [1] * draw.randint(1, 24), max_tokens=draw.randint(1, 3))
        engine.step([arrival], [number - 5] if draw.random() < 0.1 and number > 5 else [])
    engine.finish()
    assert engine.scheduler.allocator.num_free == 48


def test_blocks_are_counted_up() -> None:
    assert [blocks_for(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
