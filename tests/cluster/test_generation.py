"""A cluster of real processes generates: right answers, the same on any number of ranks, alone or in a crowd."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tools.bundled_model.data import check, sample_questions

from ryzanstein_client import Client, DeadlineExceeded
from ryzanstein_client.types import Message, RequestOptions

from .harness import BUNDLED_MODEL, Cluster


def ask(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def test_answers_are_right(client: Client) -> None:
    questions = sample_questions(seed=2026, count=80)
    with ThreadPoolExecutor(12) as pool:
        answers = pool.map(
            lambda q: client.chat(ask(q.text), temperature=0.0, max_tokens=1500).text, questions
        )
        right = [check(q.text, answer) for q, answer in zip(questions, answers, strict=True)]
    # 95 % is the rate of the weights themselves; a wrong split computation answers none.
    assert sum(right) >= 0.9 * len(right), [q for q, good in zip(questions, right, strict=True) if not good]


def test_a_stream_comes_token_by_token_and_adds_up(client: Client) -> None:
    chunks = list(client.stream("Q: Count from 1 to 9.\nA:", max_tokens=24, temperature=0.0))
    whole = client.generate("Q: Count from 1 to 9.\nA:", max_tokens=24, temperature=0.0)
    assert len([chunk for chunk in chunks if chunk.token_ids]) > 3
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.token_ids] == list(whole.token_ids)
    assert chunks[-1].finish_reason == whole.finish_reason


def test_a_seed_repeats_a_sampled_stream_and_another_seed_does_not(client: Client) -> None:
    def sampled(seed: int) -> list[int]:
        return list(
            client.generate("Once", max_tokens=32, temperature=1.5, seed=seed, ignore_eos=True).token_ids
        )

    assert sampled(7) == sampled(7)
    assert sampled(7) != sampled(8)


def test_logprobs_come_with_every_token(client: Client) -> None:
    completion = client.generate("Q:", max_tokens=5, temperature=0.0, logprobs=3)
    assert completion.logprobs is not None
    assert [entry.token_id for entry in completion.logprobs] == list(completion.token_ids)
    for entry in completion.logprobs:
        assert entry.logprob <= 0.0
        assert [top.logprob for top in entry.top] == sorted((t.logprob for t in entry.top), reverse=True)
        assert entry.top[0].token_id == entry.token_id  # greedy takes the most probable


def test_a_stop_text_ends_the_stream_before_itself(client: Client) -> None:
    free = client.chat(ask("Count from 1 to 12."), temperature=0.0, max_tokens=200)
    stopped = client.chat(ask("Count from 1 to 12."), temperature=0.0, max_tokens=200, stop=["8"])
    assert "8" in free.text
    assert stopped.text == free.text.partition("8")[0]
    assert stopped.finish_reason == "stop"


REQUESTS: list[RequestOptions] = [
    {"max_tokens": 20 + 7 * (i % 9), "temperature": [0.0, 0.8, 1.3][i % 3], "seed": i, "top_p": [1.0, 0.9][i % 2],
     "top_k": [0, 0, 0, 20][i % 4], "frequency_penalty": [0.0, 0.4][(i // 2) % 2], "ignore_eos": i % 5 == 0}
    for i in range(32)
]  # fmt: skip


def crowd() -> Iterator[tuple[str, RequestOptions]]:
    draw = random.Random(3)
    for i, request in enumerate(REQUESTS):
        yield "Q: " + "".join(draw.choice("abcdefgh 123\n") for _ in range(3 + 23 * (i % 11))), request


def test_32_streams_at_once_are_what_each_gives_alone(client: Client, two_ranks: Cluster) -> None:
    """With cancels and deadlines among them, which free their place and disturb nobody."""
    requests = list(crowd())
    alone = [list(client.generate(prompt, **request).token_ids) for prompt, request in requests]
    start = threading.Barrier(len(requests) + 8)

    def together(prompt: str, request: RequestOptions) -> list[int]:
        start.wait()
        return list(client.generate(prompt, **request).token_ids)

    def cancelled(number: int) -> None:
        start.wait()
        for count, _ in enumerate(client.stream("Q: ", max_tokens=2000, ignore_eos=True, seed=number)):
            if count == number:
                return

    def too_late(number: int) -> None:
        start.wait()
        with pytest.raises(DeadlineExceeded):
            client.generate("Q: ", max_tokens=4000, ignore_eos=True, seed=number, timeout=0.05 * (number + 1))

    with ThreadPoolExecutor(len(requests) + 8) as pool:
        disturbing = [pool.submit(cancelled, i) for i in range(4)] + [
            pool.submit(too_late, i) for i in range(4)
        ]
        streams = [pool.submit(together, prompt, request) for prompt, request in requests]
        assert [stream.result() for stream in streams] == alone
        for other in disturbing:
            other.result()
    two_ranks.wait_for(
        lambda s: s["requests"] == {"running": 0, "waiting": 0}, "all places are free again", 5
    )


@pytest.fixture(scope="module")
def on_two_ranks(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[str, RequestOptions, tuple[int, ...]]]:
    """Requests, and what two ranks make of them in float32, whose sums are the same for every number of ranks."""
    question: tuple[str, RequestOptions] = (
        "Q: What is 347 + 285?\nA:",
        {"max_tokens": 60, "temperature": 0.0},
    )
    requests = [*list(crowd())[::4], question]
    with (
        Cluster(tmp_path_factory.mktemp("two"), BUNDLED_MODEL, "--dtype", "float32") as two,
        Client(two.ready().grpc) as client,
    ):
        return [
            (prompt, request, tuple(client.generate(prompt, **request).token_ids))
            for prompt, request in requests
        ]


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_same_tokens_at_every_rank_count(
    ranks: int, on_two_ranks: list[tuple[str, RequestOptions, tuple[int, ...]]], tmp_path: Path
) -> None:
    with (
        Cluster(tmp_path, BUNDLED_MODEL, "--dtype", "float32", tensor_parallel_size=ranks) as cluster,
        Client(cluster.ready().grpc) as client,
    ):
        for prompt, request, expected in on_two_ranks:
            assert tuple(client.generate(prompt, **request).token_ids) == expected, (prompt, request)


def test_a_thousand_tokens_without_growth(random_model: Path, tmp_path: Path) -> None:
    with (
        Cluster(tmp_path, random_model, "--dtype", "float32") as cluster,
        Client(cluster.ready().grpc) as client,
    ):
        client.generate("warm up", max_tokens=300, ignore_eos=True)
        processes = [psutil.Process(worker["pid"]) for worker in cluster.workers()]
        before = [(p.num_fds(), p.num_threads()) for p in processes]
        resident = [p.memory_info().rss for p in processes]
        tokens: list[int] = []
        logprobs: list[float] = []
        for chunk in client.stream("Once upon a time", max_tokens=1500, ignore_eos=True, seed=1, logprobs=0):
            tokens += chunk.token_ids
            logprobs += [entry.logprob for entry in chunk.logprobs or ()]
        assert len(tokens) == len(logprobs) == 1500
        assert all(-100.0 < logprob <= 0.0 for logprob in logprobs)  # NaN compares false
        for process, (fds, threads) in zip(processes, before, strict=True):
            assert process.num_fds() <= fds + 2
            assert process.num_threads() <= threads + 2  # gRPC keeps a few more when it was busy
        pages = 1500 * 2 * 2 * 2 * 16 * 4  # tokens × layers × (k, v) × heads of a rank × dim × bytes
        for process, start in zip(processes, resident, strict=True):
            assert process.memory_info().rss - start < pages + 6 * 2**20


def test_a_vanished_client_frees_its_place(client: Client, two_ranks: Cluster) -> None:
    stream = client.stream("Q: ", max_tokens=3000, ignore_eos=True)
    next(iter(stream))
    two_ranks.wait_for(lambda s: s["requests"]["running"] == 1, "the stream runs")
    stream.close()
    started_at = time.monotonic()
    two_ranks.wait_for(lambda s: s["requests"]["running"] == 0, "its place is free", 5)
    assert time.monotonic() - started_at < 2
