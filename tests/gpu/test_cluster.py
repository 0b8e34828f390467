"""The whole cluster on one GPU: the tokens that transformers gives, also after a worker was killed."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
import torch

from ryzanstein.model_plan import FP8, read_model_config, weight_bytes_per_rank
from ryzanstein_client import Client
from ryzanstein_client.types import RequestOptions
from ryzanstein_shard_worker.parallel.fp8_weight import fp8_problem
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.cluster.harness import BUNDLED_MODEL
from tests.cluster.test_checkpoints import PROMPT, greedy_by_transformers

from .clusters import READY_S, one_rank, two_ranks

pytestmark = pytest.mark.timeout(400)

COUNT = 64


@pytest.mark.parametrize("family", FAMILIES)
def test_64_greedy_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", family=family, tokenizer=True)
    with (
        one_rank(tmp_path / "state", directory, "--dtype", "float32") as cluster,
        Client(cluster.ready(READY_S).grpc) as client,
    ):
        assert cluster.workers()[0]["device"] == "cuda:0"
        completion = client.generate(PROMPT, max_tokens=COUNT, temperature=0.0, ignore_eos=True)
    assert list(completion.token_ids) == greedy_by_transformers(directory, COUNT)


def test_two_ranks_on_one_gpu_give_the_same_tokens(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", tokenizer=True)
    flags = ("--dtype", "float32", "--kv-cache-memory", "64MiB")
    with two_ranks(tmp_path / "state", directory, *flags) as address, Client(address) as client:
        completion = client.generate(PROMPT, max_tokens=COUNT, temperature=0.0, ignore_eos=True)
    assert list(completion.token_ids) == greedy_by_transformers(directory, COUNT)


def test_a_killed_worker_comes_back_and_the_stream_goes_on(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", tokenizer=True, max_position_embeddings=1024)
    request: RequestOptions = {"max_tokens": 400, "ignore_eos": True, "temperature": 0.0}
    with (
        one_rank(tmp_path / "state", directory, "--dtype", "float32") as cluster,
        Client(cluster.ready(READY_S).grpc) as client,
    ):
        undisturbed = client.generate(PROMPT, **request).token_ids
        victim: int | None = cluster.workers()[0]["pid"]
        tokens: list[int] = []
        for chunk in client.stream(PROMPT, **request):
            tokens += chunk.token_ids
            if victim is not None and len(tokens) >= 40:
                psutil.Process(victim).send_signal(signal.SIGKILL)
                victim = None
        assert victim is None
        assert tokens == list(undisturbed)
        assert cluster.snapshot()["last_recovery"]["requests_resumed"] == 1


def test_8_bit_floats_serve_within_their_ledger_and_come_back_after_a_kill(tmp_path: Path) -> None:
    problem = fp8_problem(torch.bfloat16, torch.device("cuda:0"))
    if "compute capability" in problem:
        pytest.skip(problem)
    planned = weight_bytes_per_rank(
        read_model_config(BUNDLED_MODEL), 1, "bfloat16", packed=True, quantization=FP8
    )
    flags = ("--quantization", "fp8", "--dtype", "bfloat16")
    with (
        one_rank(tmp_path / "state", BUNDLED_MODEL, *flags) as cluster,
        Client(cluster.ready(READY_S).grpc) as client,
    ):
        worker = cluster.workers()[0]
        assert worker["memory"]["weights_bytes"] == planned
        victim: int | None = worker["pid"]
        tokens: list[int] = []
        for chunk in client.stream(PROMPT, max_tokens=200, ignore_eos=True, temperature=0.0):
            tokens += chunk.token_ids
            if victim is not None and len(tokens) >= 40:
                psutil.Process(victim).send_signal(signal.SIGKILL)
                victim = None
        assert victim is None
        assert len(tokens) == 200
        assert cluster.snapshot()["model"]["quantization"] == "fp8"
        assert cluster.snapshot()["last_recovery"]["requests_resumed"] == 1


def test_more_than_a_thousand_tokens_without_a_nan(tmp_path: Path) -> None:
    directory = make_checkpoint(
        tmp_path / "model", tokenizer=True, dtype="bfloat16", max_position_embeddings=4096
    )
    with (
        one_rank(tmp_path / "state", directory) as cluster,
        Client(cluster.ready(READY_S).grpc) as client,
    ):
        tokens: list[int] = []
        logprobs: list[float] = []
        for chunk in client.stream("Once upon a time", max_tokens=1500, ignore_eos=True, seed=1, logprobs=0):
            tokens += chunk.token_ids
            logprobs += [entry.logprob for entry in chunk.logprobs or ()]
    assert len(tokens) == len(logprobs) == 1500
    assert all(-100.0 < logprob <= 0.0 for logprob in logprobs)  # NaN compares false
