"""Ranks with 8-bit weights: who takes a dead one's place computes the same bits, from files or from a peer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ryzanstein_coordinator
from ryzanstein.model_plan import encode_model_config, read_model_config
from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.parallel import dense_causal_attend
from ryzanstein_shard_worker.shard import Shard, build_shard

from .ranks import CPU_BACKENDS, Backend, Rank, Ranks

BUNDLED = Path(ryzanstein_coordinator.__file__).parent / "bundled_model"
CPU = torch.device("cpu")
PROMPT = [0, *range(40, 90)]

#: Of this process, which is a rank's.
_shards: dict[int, Shard] = {}


def load(rank: Rank, number: int, has_files: bool) -> None:
    request = shard_worker_pb2.LoadShardRequest(
        model=shard_worker_pb2.ModelSpec(
            path=str(BUNDLED) if has_files else "/nowhere",
            dtype="bfloat16",
            max_model_len=256,
            config_json=encode_model_config(read_model_config(BUNDLED)),
            reproducible=True,
            quantization="int8",
        ),
        rank=number,
        tensor_parallel_size=2,
    )
    shard = _shards[0] = build_shard(request, model_dir=None, device=CPU)
    if has_files:
        shard.read(CPU, lambda fraction: None)


def hand_over(rank: Rank, sources: dict[int, int]) -> None:
    _shards[0].exchange(rank.handler, sources, CPU, lambda fraction: None)


def logits(rank: Rank) -> Tensor:
    """Of the prompt and of what is chosen after it, four times."""
    model, tokens = _shards[0].model, list(PROMPT)
    _shards[0].handler.bind(rank.handler)
    with torch.inference_mode():
        for _ in range(4):
            positions = torch.arange(len(tokens))
            hidden = model(torch.tensor(tokens), positions, dense_causal_attend([len(tokens)]))
            last = model.logits(hidden)
            tokens.append(int(last[-1].argmax()))
    return last


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_who_takes_the_place_of_a_killed_rank_computes_the_same_bits(backend: Backend) -> None:
    with Ranks(2) as ranks:
        for index in (0, 1):
            ranks.call(load, index, True, on=[index])
        ranks.form(backend)
        undisturbed, other = ranks.call(logits)
        assert torch.equal(undisturbed, other)
        assert bool(undisturbed.isfinite().all())

        ranks.kill(1)
        from_files = ranks.add()
        ranks.call(load, 1, True, on=[from_files])
        ranks.form(backend, [0, from_files])
        assert all(torch.equal(undisturbed, again) for again in ranks.call(logits, on=[0, from_files]))

        ranks.kill(0)
        from_peer = ranks.add()
        ranks.call(load, 0, False, on=[from_peer])
        ranks.form(backend, [from_peer, from_files])
        ranks.call(hand_over, {0: 1}, on=[from_peer, from_files])
        assert all(
            torch.equal(undisturbed, again) for again in ranks.call(logits, on=[from_peer, from_files])
        )


_WITHOUT_VNNI = """
import structlog, torch
from ryzanstein_shard_worker.parallel import int8_product as ways
from ryzanstein_shard_worker.parallel.int8_rows import quantize_rows
torch.set_num_threads(1)
ways.native_int8_linear = lambda: None
weight, scales = quantize_rows(torch.randn(64, 128))
x, row_scales = quantize_rows(torch.randn(3, 128))
with structlog.testing.capture_logs() as lines:
    product, _ = ways.int8_product(weight, scales, torch.bfloat16)
exact = (x.double() @ weight.double().t()).float() * scales * row_scales[:, None]
print(type(product).__name__, [line["event"] for line in lines])
print(torch.equal(product(x, row_scales, None, torch.float32), exact))
"""


def test_a_cpu_without_8_bit_dot_products_computes_rightly_and_says_that_it_is_slow() -> None:
    """oneDNN that is told of no more than AVX2 multiplies with saturation; it is tried out and not trusted."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_VNNI], env=environment, capture_output=True, text=True, check=True
    )
    way, right = done.stdout.splitlines()
    assert right == "True"
    if way == "OneDnnProduct []":
        pytest.skip("oneDNN computes 8-bit products rightly here with AVX2, too")
    assert way == "PlainProduct ['int8_without_instructions']"
