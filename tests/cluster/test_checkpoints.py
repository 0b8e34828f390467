"""Users' checkpoints through the whole cluster: the tokens that transformers gives, from any layout, on any host."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ryzanstein_client import Client
from ryzanstein_client.types import RequestOptions

from ..checkpoints import make_checkpoint
from .harness import Cluster, Program, environment

PROMPT = [5, 77, 301, 9, 9, 140, 22, 330, 6, 250, 13]

#: Family, ranks and what makes the checkpoint unusual; the vocabulary of 331 never splits evenly.
MODELS: list[tuple[str, int, dict[str, Any]]] = [
    ("llama", 1, {"tie_word_embeddings": True}),
    ("llama", 2, {"max_shard_size": "40KB", "num_key_value_heads": 1}),
    ("llama", 4, {
        "num_key_value_heads": 2, "head_dim": 32, "attention_bias": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    }),
    ("mistral", 2, {"sliding_window": 24}),
    ("qwen2", 2, {"num_key_value_heads": 8}),
    ("qwen3", 4, {}),
]  # fmt: skip


def greedy_by_transformers(directory: Path, count: int) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([PROMPT]), do_sample=False, min_new_tokens=count, max_new_tokens=count, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
    tokens: list[int] = out[0, len(PROMPT) :].tolist()
    return tokens


@pytest.mark.parametrize(("family", "ranks", "unusual"), MODELS)
def test_64_greedy_tokens_are_those_of_transformers(
    family: str, ranks: int, unusual: dict[str, Any], tmp_path: Path
) -> None:
    directory = make_checkpoint(tmp_path / "model", family=family, tokenizer=True, **unusual)
    expected = greedy_by_transformers(directory, 64)
    flags = ("--dtype", "float32", "--max-batched-tokens", "64")
    with (
        Cluster(tmp_path / "state", directory, *flags, tensor_parallel_size=ranks) as cluster,
        Client(cluster.ready().grpc) as client,
    ):
        completion = client.generate(PROMPT, max_tokens=64, temperature=0.0, ignore_eos=True)
    assert list(completion.token_ids) == expected


REQUEST: RequestOptions = {"max_tokens": 40, "temperature": 1.0, "seed": 3, "ignore_eos": True}


@pytest.fixture(scope="module")
def of_random_model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, ...]:
    """What two ranks make of a request with all files at hand."""
    with (
        Cluster(tmp_path_factory.mktemp("state"), random_model, "--dtype", "float32") as cluster,
        Client(cluster.ready().grpc) as client,
    ):
        return tuple(client.generate(PROMPT, **REQUEST).token_ids)


def test_a_checkpoint_split_for_four_ranks_serves_two_with_the_same_tokens(
    random_model: Path, of_random_model: tuple[int, ...], tmp_path: Path
) -> None:
    split = tmp_path / "split"
    subprocess.run(
        [sys.executable, "-m", "ryzanstein_shard_worker", "shard", str(random_model), str(split),
         "--tensor-parallel-size", "4"],
        check=True, timeout=100, env=environment(), capture_output=True,
    )  # fmt: skip
    with (
        Cluster(tmp_path / "state", split, "--dtype", "float32") as cluster,
        Client(cluster.ready().grpc) as client,
    ):
        assert tuple(client.generate(PROMPT, **REQUEST).token_ids) == of_random_model


def can_hide_directories() -> bool:
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not can_hide_directories(), reason="needs the right to make a mount namespace")
def test_a_worker_without_the_checkpoint_gets_its_shard_from_a_peer(
    random_model: Path, of_random_model: tuple[int, ...], tmp_path: Path
) -> None:
    coordinator = Program(
        "coordinator", str(random_model), "--tensor-parallel-size", "2", "--dtype", "float32", "--grpc-port", "0",
        "--http-port", "0", "--state-dir", str(tmp_path / "other"),
    )  # fmt: skip
    with coordinator:
        coordinator.wait_for_log("listening")
        grpc = coordinator.stderr.partition("grpc=")[2].split()[0]
        worker = [
            "-m", "ryzanstein_shard_worker", "shard-worker", "--coordinator", grpc, "--device", "cpu",
            "--cpu-threads", "1", "--worker-id",
        ]  # fmt: skip
        python = shlex.quote(sys.executable)
        hidden = (
            f"mount -t tmpfs none {shlex.quote(str(random_model))} && exec {python} {shlex.join(worker)} far"
        )
        with (
            Program(*worker[2:], "near", module="ryzanstein_shard_worker") as near,
            Program(command=["unshare", "--mount", "sh", "-c", hidden]) as far,
        ):
            assert coordinator.line(60).startswith("ready ")
            with Client(grpc) as client:
                assert tuple(client.generate(PROMPT, **REQUEST).token_ids) == of_random_model
            assert '"source": "peer"' in far.stderr
            assert '"source": "files"' in near.stderr
