"""A cached page holds the bits that its finder would have computed: the bundled model, step by step, on real pages."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

import ryzanstein_coordinator
from ryzanstein.v1 import sampling_pb2, shard_worker_pb2
from ryzanstein_shard_worker.communication import CommunicationProfiler, SingleHandler
from ryzanstein_shard_worker.communication.single import SingleStepChannel
from ryzanstein_shard_worker.inbox import Inbox
from ryzanstein_shard_worker.kv_cache import BlockAllocator
from ryzanstein_shard_worker.models import Decoder
from ryzanstein_shard_worker.native.attention import native_attention
from ryzanstein_shard_worker.paged_attention import KVPool
from ryzanstein_shard_worker.parallel.packed_weight import can_pack
from ryzanstein_shard_worker.prefill_pace import PrefillPace
from ryzanstein_shard_worker.runner import Runner
from ryzanstein_shard_worker.scheduler import Limits, Scheduler
from ryzanstein_shard_worker.step_loop import Progress, StepLoop, lead
from tests.loaded_models import load_model

from .sequences import submission

BUNDLED_MODEL = Path(ryzanstein_coordinator.__file__).parent / "bundled_model"
BLOCK, OUTPUT = 16, 20
#: What came of a sequence: tokens, with the logprobs of each and its runners-up as they are, bit by bit.
Outcome = list[tuple[int, float, tuple[float, ...]]]


@cache
def model(dtype: str) -> Decoder:
    torch.set_num_threads(1)
    return load_model(BUNDLED_MODEL, SingleHandler(), dtype=dtype, pack=True)


def prompts() -> list[list[int]]:
    """Two families with a long beginning in common, one of exactly some blocks, and the second turn of a chat."""
    draw = random.Random(3)
    system, other = ([draw.randrange(6, 1000) for _ in range(n)] for n in (52, 32))
    tails = [[draw.randrange(6, 1000) for _ in range(draw.randrange(1, 30))] for _ in range(4)]
    return [*(system + tail for tail in tails), system, other, other, [*other, 9]]


def generate(
    dtype: str,
    asked: Sequence[tuple[int, list[int]]],
    *,
    caching: bool,
    every: int = 0,
    tokens: int = 512,
    blocks: int = 64,
) -> tuple[dict[int, Outcome], Scheduler]:
    """The leader's own loop over these numbered prompts, a new one every so many steps (0: all at once)."""
    torch.set_num_threads(1)
    decoder = model(dtype)
    config = decoder.config
    pool = KVPool(
        config.num_layers, blocks, config.num_kv_heads, config.head_dim, dtype=getattr(torch, dtype)
    )
    pool.data.fill_(float("nan"))  # whoever reads what nobody wrote is seen
    scheduler = Scheduler(Limits(8, tokens, 512), BlockAllocator(blocks, BLOCK, prefix_caching=caching))
    inbox = Inbox()
    outcomes: dict[int, Outcome] = {number: [] for number, _ in asked}
    steps = itertools.count(1)
    waiting = [
        submission(number, prompt, max_tokens=OUTPUT, logprobs=2, temperature=0.7 * (number % 2), seed=number)
        for number, prompt in asked
    ]
    given: list[int] = []

    def submit_next() -> None:
        if waiting:
            given.append(waiting[0].sequence_id)
            inbox.submit(waiting.pop(0))

    def stepped(response: shard_worker_pb2.ExecuteResponse) -> None:
        for output in response.outputs:
            assert output.finish_reason != sampling_pb2.FINISH_REASON_ERROR, output.error
            for token, logprobs in zip(output.token_ids, output.logprobs, strict=True):
                runners_up = tuple(entry.logprob for entry in logprobs.top)
                outcomes[output.sequence_id].append((token, logprobs.logprob, runners_up))
        idle = all(len(outcomes[number]) == OUTPUT for number in given)
        if idle and not waiting:
            inbox.stop()
        elif every and (idle or next(steps) % every == 0):
            submit_next()

    for _ in range(1 if every else len(waiting)):
        submit_next()
    loop = StepLoop(
        1,
        CommunicationProfiler(SingleHandler()),
        SingleStepChannel(),
        scheduler,
        Runner(decoder, pool, cpu_threads=1),
        Progress(),
        PrefillPace(1.5, tokens),
    )
    lead(loop, inbox, stepped, keep_alive_s=0.001)
    return outcomes, scheduler


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_and_logprobs_are_the_same_bits_with_the_cache_and_without_in_any_order(dtype: str) -> None:
    if native_attention() is None or not can_pack(getattr(torch, dtype), torch.device("cpu")):
        pytest.skip("without packed weights and the C kernels rows depend on the batch")
    asked = list(enumerate(prompts(), 1))
    alone = {n: generate(dtype, [(n, prompt)], caching=False)[0][n] for n, prompt in asked}
    turn = (99, [*prompts()[0], *(token for token, _, _ in alone[1]), 5, 6, 7])
    alone[99] = generate(dtype, [turn], caching=False)[0][99]
    draw = random.Random(1)
    for every, tokens, blocks in (
        (0, 512, 64),
        (0, 48, 64),
        (1, 48, 64),
        (3, 512, 64),
        (30, 512, 64),
        (2, 48, 20),
    ):
        order = [*draw.sample(asked, len(asked)), turn]
        outcomes, scheduler = generate(dtype, order, caching=True, every=every, tokens=tokens, blocks=blocks)
        assert outcomes == alone, f"every {every} steps, {tokens} tokens a step, {blocks} blocks"
        assert scheduler.prefixes.hits_total > 0
        scheduler.check_integrity()
