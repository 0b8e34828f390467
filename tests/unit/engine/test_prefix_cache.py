"""Sequences that begin alike share their blocks, for as long as nobody needs these for something else."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ryzanstein_shard_worker.kv_cache import BlockAllocator
from ryzanstein_shard_worker.prefix_cache import block_key, root_key

from .driven_scheduler import Engine, next_token, scheduler
from .sequences import sequence, submission

PROMPT = list(range(100, 114))  # three blocks of 4 and a half


def engine(**bounds: int) -> Engine:
    return Engine(scheduler(caching=True, **bounds))


def computed(engine: Engine, number: int, prompt: list[int], **changes: object) -> int:
    """Tokens that the sequence's first step computes; runs it to its end."""
    batch = engine.step([submission(number, prompt, **{"max_tokens": 2, **changes})])  # type: ignore[arg-type]
    counts = {piece.sequence.sequence_id: piece.count for piece in batch.slices}
    engine.finish()
    return counts[number]


def test_the_same_prompt_again_computes_only_what_no_block_holds() -> None:
    cached = engine()
    assert computed(cached, 1, PROMPT) == 14
    assert computed(cached, 2, PROMPT) == 2
    assert computed(cached, 3, [*PROMPT[:9], 7, 7, 7]) == 4
    assert computed(cached, 4, [7, *PROMPT]) == 15
    assert (cached.scheduler.prefixes.queries_total, cached.scheduler.prefixes.hits_total) == (55, 20)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    cached = engine()
    computed(cached, 1, PROMPT[:12])
    assert computed(cached, 2, PROMPT[:12]) == 4
    assert computed(cached, 3, PROMPT[:13]) == 1


def test_other_salts_share_nothing() -> None:
    cached = engine()
    computed(cached, 1, PROMPT, salt=b"one")
    assert computed(cached, 2, PROMPT, salt=b"two") == 14
    assert computed(cached, 3, PROMPT) == 14
    assert computed(cached, 4, PROMPT, salt=b"one") == 2


def test_the_next_turn_of_a_chat_finds_what_was_generated() -> None:
    cached = engine()
    computed(cached, 1, PROMPT, max_tokens=10)
    turn = [*PROMPT, *(next_token(1, i) for i in range(10)), 1, 2, 3]
    # Of the first turn's 24 tokens the last one was never computed, so 5 blocks are full.
    assert computed(cached, 2, turn) == len(turn) - 20


def test_sequences_that_arrive_together_share_at_once() -> None:
    """As in a replay: one of them computes what all need."""
    cached = engine()
    emitted = [next_token(1, 0)]
    arrivals = [
        submission(n, [*PROMPT, n], emitted=emitted if n == 1 else [], max_tokens=3) for n in (1, 2, 3)
    ]
    batch = cached.step(arrivals)
    assert [(piece.start, piece.count) for piece in batch.slices] == [(0, 16), (12, 3), (12, 3)]
    cached.finish()
    assert [len(output) for output in cached.output.values()] == [2, 3, 3]


def test_a_long_prompt_is_shared_as_far_as_it_has_come() -> None:
    cached = engine(tokens=8)
    cached.step([submission(1, PROMPT)])
    batch = cached.step([submission(2, PROMPT)])
    assert [(piece.start, piece.count) for piece in batch.slices] == [(8, 6), (12, 2)]
    cached.finish()


def test_a_prompt_that_is_scored_is_computed_whole_and_helps_others() -> None:
    cached = engine()
    assert computed(cached, 1, PROMPT, prompt_logprobs=0) == 14
    assert computed(cached, 2, PROMPT, prompt_logprobs=0) == 14
    assert computed(cached, 3, PROMPT) == 2
    assert cached.scheduler.prefixes.queries_total == 14, "who may not look does not count"


def test_what_a_failed_sequence_computed_is_found_by_nobody() -> None:
    cached = engine()
    cached.step([submission(1, PROMPT)])
    cached.step(failed=[1])
    assert computed(cached, 2, PROMPT) == 14


def test_the_block_used_longest_ago_goes_first_and_the_end_of_a_sequence_before_its_beginning() -> None:
    cached = engine(blocks=8)
    a, b = [1] * 13, [2] * 13
    computed(cached, 1, a)
    computed(cached, 2, b)
    assert computed(cached, 3, [*a, 9]) == 2, "both are there, and now b was used longest ago"
    computed(cached, 4, [3] * 8)
    assert cached.scheduler.prefixes.find(sequence([*a, 9])) != []
    assert 0 < len(cached.scheduler.prefixes.find(sequence([*b, 9]))) < 3


def test_a_pre_empted_sequence_finds_its_own_blocks_again() -> None:
    cached = engine(blocks=10)
    cached.step([submission(number, [number] * 12, max_tokens=12) for number in (1, 2)])
    recomputed = 0
    seen = {1: 0, 2: 0}
    while cached.scheduler.has_work or cached.sampled:
        for piece in cached.step().slices:
            number = piece.sequence.sequence_id
            recomputed += max(0, seen[number] - piece.start)
            seen[number] = max(seen[number], piece.start + piece.count)
    assert cached.scheduler.preemptions_total > 0
    assert recomputed < 12, "the whole prompt and more would be without the cache"
    assert cached.output == {n: [next_token(n, i) for i in range(12)] for n in (1, 2)}


def test_what_was_found_is_counted_once_whatever_is_pre_empted() -> None:
    cached = engine(blocks=10)
    cached.step([submission(number, [number] * 12, max_tokens=12) for number in (1, 2)])
    cached.finish()
    assert cached.scheduler.preemptions_total > 0
    stats = cached.scheduler.stats()
    assert (stats.prefix_queries_total, stats.prefix_hits_total) == (24, 0)


def test_without_caching_nothing_is_kept() -> None:
    plain = Engine(scheduler())
    for number in (1, 2):
        batch = plain.step([submission(number, PROMPT, max_tokens=2)])
        assert batch.num_tokens == 14
        plain.finish()
    stats = plain.scheduler.stats()
    assert (stats.prefix_queries_total, plain.scheduler.allocator.num_idle) == (0, 0)


def test_a_key_stands_for_everything_from_the_first_token_on_and_is_the_same_in_every_process() -> None:
    root = root_key(b"salt")
    keys = [block_key(before, bytes(16)) for before in (root, root_key(b""), block_key(root, bytes(16)))]
    assert len({root, *keys}) == 4
    assert keys[0].hex() == "9eb74b37c8065d79b6a36bc950bb509a"


class Pool(RuleBasedStateMachine):
    """Owners of blocks do anything that they may do."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(9, 4, prefix_caching=True)
        self.owners: list[list[int]] = []
        self.known: dict[bytes, int] = {}

    @rule(count=st.integers(1, 4), family=st.integers(0, 1), found=st.integers(0, 3))
    def begin(self, count: int, family: int, found: int) -> None:
        """A sequence: some blocks of others, and new ones."""
        shared = self.allocator.find(_keys(family, found))
        assert shared == [self.known[key] for key in _keys(family, len(shared))]
        if not self.allocator.can_allocate(count, beside=shared):
            return
        used = {block for blocks in self.owners for block in blocks}
        self.allocator.share(shared)
        new = self.allocator.allocate(count)
        assert not used.intersection(new), "a block that somebody refers to was handed out"
        assert not set(shared).intersection(new)
        self.known = {key: block for key, block in self.known.items() if block not in new}
        self.owners.append([*shared, *new])

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 99), family=st.integers(0, 1))
    def publish(self, which: int, family: int) -> None:
        for block, key in zip(self.owners[which % len(self.owners)], _keys(family, 4), strict=False):
            if key not in self.known and block not in self.known.values():
                self.known[key] = block
            self.allocator.publish(block, key)

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 99))
    def forget(self, which: int) -> None:
        blocks = self.owners[which % len(self.owners)]
        self.known = {key: block for key, block in self.known.items() if block not in blocks}
        self.allocator.forget(blocks)

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 99))
    def end(self, which: int) -> None:
        blocks = self.owners.pop(which % len(self.owners))
        self.allocator.free(blocks)
        assert blocks == []

    @invariant()
    def is_whole(self) -> None:
        self.allocator.check_integrity(self.owners)
        for key, block in self.known.items():
            assert self.allocator.find([key]) == [block]
        used = {block for blocks in self.owners for block in blocks}
        assert self.allocator.num_used == len(used)


def _keys(family: int, count: int) -> list[bytes]:
    return [bytes([family, index]) * 8 for index in range(count)]


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, deadline=None, stateful_step_count=40)
