"""The scheduler keeps its bounds, loses no block and no sequence, and two copies of it never differ."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein.v1 import sampling_pb2
from ryzanstein_shard_worker.kv_cache import BlockAllocator, blocks_for

from .driven_scheduler import Engine, next_token, scheduler
from .sequences import submission


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


def test_beside_running_streams_a_step_prefills_what_the_plan_says() -> None:
    engine = Engine(scheduler(tokens=32))
    engine.step([submission(1, [1, 2], max_tokens=30)])
    arrivals = [submission(2, list(range(40)), max_tokens=2), submission(3, list(range(7)), max_tokens=2)]
    assert [engine.step(arrivals if n == 0 else [], prefill=8).num_tokens for n in range(4)] == [9] * 4
    assert engine.step(prefill=0).num_tokens == 1, "none at all"
    assert [piece.count for piece in engine.step(prefill=10).slices] == [1, 8, 2]
    engine.finish()
    assert all(len(output) == n for output, n in zip(engine.output.values(), (30, 2, 2), strict=True))


def test_while_nobody_decodes_a_step_prefills_as_much_as_fits() -> None:
    engine = Engine(scheduler(tokens=32))
    batch = engine.step([submission(1, list(range(30))), submission(2, list(range(40)))], prefill=4)
    assert batch.num_tokens == 32


def test_streams_that_a_fault_interrupted_are_not_held_up() -> None:
    engine = Engine(scheduler(tokens=32))
    engine.step([submission(1, [1, 2], max_tokens=30)])
    arrivals = [submission(2, [2] * 20, emitted=[next_token(2, 0)]), submission(3, [3] * 20)]
    assert [piece.count for piece in engine.step(arrivals, prefill=4).slices] == [1, 21, 4]


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
    caching=st.booleans(),
)
def test_any_load_ends_with_every_stream_as_if_it_were_alone(
    seed: int, blocks: int, seqs: int, tokens: int, caching: bool
) -> None:
    """And a second scheduler that sees only the plans holds the same state at every step."""
    draw = random.Random(seed)
    engine = Engine(scheduler(blocks=blocks, seqs=seqs, tokens=tokens, caching=caching))
    follower = scheduler(blocks=blocks, seqs=seqs, tokens=tokens, caching=caching)
    wanted: dict[int, int] = {}
    cancelled: set[int] = set()
    for step in range(200):
        arrivals = []
        if step < 60 and draw.random() < 0.5:
            number = len(wanted) + 1
            wanted[number] = draw.randint(1, 12)
            prompt = [1] * draw.randint(1, 6) + [draw.randint(1, 2)] * draw.randint(0, 4)
            arrivals = [
                submission(
                    number,
                    prompt,
                    max_tokens=wanted[number],
                    priority=draw.choice([0, 0, 1]),
                    salt=draw.choice([b"", b"", b"other"]),
                )
            ]
        alive = [number for number in wanted if number not in engine.ended]
        cancel = [draw.choice(alive)] if alive and draw.random() < 0.05 else []
        cancelled.update(cancel)
        assert engine.scheduler.state_hash() == follower.state_hash()
        engine.step(arrivals, cancel, prefill=draw.choice([None, 0, 2, 16]))
        follower.apply(engine.last_plan)
        follower.schedule()
    engine.finish()
    for number, count in wanted.items():
        alone = [next_token(number, i) for i in range(count)]
        output = engine.output.get(number, [])
        assert output == alone[: len(output)]
        assert len(output) == count or number in cancelled
    assert engine.scheduler.allocator.num_used == 0


@pytest.mark.parametrize("caching", [False, True])
def test_no_block_is_lost_after_ten_thousand_requests(caching: bool) -> None:
    """None is freed while somebody refers to it, and nobody writes to what another reads: `Engine` sees all rows."""
    draw = random.Random(5)
    engine = Engine(scheduler(blocks=48, seqs=16, tokens=128, caching=caching))
    for number in range(1, 10_001):
        prompt = [draw.randint(1, 4)] * draw.randint(1, 16) + [draw.randint(1, 4)] * draw.randint(0, 8)
        salt = draw.choice([b"", b"one", b"two"])
        arrival = submission(number, prompt, max_tokens=draw.randint(1, 6), salt=salt)
        chosen = number - 5 if draw.random() < 0.1 and number > 5 else 0
        failed = chosen if chosen % 3 == 0 else 0
        engine.step([arrival], [chosen] if chosen and not failed else [], failed=[failed] if failed else [])
    engine.finish()
    assert engine.scheduler.allocator.num_free == 48
    if caching:
        prefixes = engine.scheduler.prefixes
        assert prefixes.hits_total > prefixes.queries_total / 4, "the load was to share a lot"


def test_blocks_are_counted_up() -> None:
    assert [blocks_for(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
