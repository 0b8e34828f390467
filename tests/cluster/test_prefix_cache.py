"""What prompts have in common is computed once, through the whole cluster: clients see it in their usage, operators in
the metrics, and nobody in the tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai

from ryzanstein_client import Client, Completion

from .harness import BUNDLED_MODEL, Cluster

MODEL = BUNDLED_MODEL.name
BLOCK = 16


def counters(cluster: Cluster) -> dict[str, float]:
    lines = cluster.get("/metrics")[1].splitlines()
    names = ("prefix_cache_queries_total", "prefix_cache_hits_total", "preemptions_total")
    return {
        name: float(line.split()[1])
        for name in names
        for line in lines
        if line.startswith(f"ryzanstein_{name} ")
    }


def test_the_second_turn_of_a_chat_computes_what_is_new(two_ranks: Cluster, client: Client) -> None:
    with openai.OpenAI(base_url=f"{two_ranks.http}/v1", api_key="unused", max_retries=0) as api:
        before = counters(two_ranks)
        talk: list[Any] = [
            {"role": "user", "content": "Please count the seven bridges of the old town. " * 4}
        ]

        def turn() -> Any:
            return api.chat.completions.create(model=MODEL, messages=talk, temperature=0, max_tokens=48)

        first = turn()
        assert first.usage.prompt_tokens_details.cached_tokens < BLOCK * (first.usage.prompt_tokens // BLOCK)
        talk += [
            {"role": "assistant", "content": first.choices[0].message.content},
            {"role": "user", "content": "And the eighth?"},
        ]
        second = turn()
        cached = second.usage.prompt_tokens_details.cached_tokens
        assert cached >= first.usage.prompt_tokens // BLOCK * BLOCK - BLOCK
        assert cached % BLOCK == 0
        again = turn()
        assert again.choices[0].message.content == second.choices[0].message.content
        assert again.usage.prompt_tokens_details.cached_tokens >= cached
        grown = {name: value - before[name] for name, value in counters(two_ranks).items()}
        prompts = sum(answer.usage.prompt_tokens for answer in (first, second, again))
        assert grown["prefix_cache_queries_total"] == prompts
        assert grown["prefix_cache_hits_total"] >= 2 * cached

        ids = client.generate("The same words again, with the logprobs of all of them. " * 3, max_tokens=1)
        assert ids.usage.prompt_tokens > 2 * BLOCK
        echoed: Any = api.completions.create(
            model=MODEL,
            prompt="The same words again, with the logprobs of all of them. " * 3,
            max_tokens=1,
            echo=True,
            logprobs=1,
        )
        assert echoed.usage.prompt_tokens_details.cached_tokens == 0, "every row is wanted"
        assert len(echoed.choices[0].logprobs.token_logprobs) == ids.usage.prompt_tokens + 1


def test_blocks_that_run_out_cost_time_and_no_token(
    tmp_path: Path, two_ranks: Cluster, client: Client
) -> None:
    """In a cache for three streams six want to run: they are pre-empted, computed again, and say the same."""
    prompts = [f"{number} birds sat on the wire and sang. " * 2 for number in range(6)]

    def ask_all(cluster: Cluster) -> list[Completion]:
        def ask(prompt: str) -> Completion:
            with Client(cluster.grpc) as own:
                return own.generate(prompt, max_tokens=64, temperature=0.0, ignore_eos=True)

        with ThreadPoolExecutor(len(prompts)) as threads:
            return list(threads.map(ask, prompts))

    expected = ask_all(two_ranks)
    flags = ("--max-model-len", "128", "--kv-cache-memory", str(20 * BLOCK * 1280), "--max-num-seqs", "8")
    with Cluster(
        tmp_path, BUNDLED_MODEL, *flags, "--no-prefix-caching", "--max-decode-slowdown", "0"
    ) as small:
        small.ready()
        got = ask_all(small)
        assert [answer.token_ids for answer in got] == [answer.token_ids for answer in expected]
        assert all(answer.usage.cached_tokens == 0 for answer in got)
        assert counters(small)["preemptions_total"] > 0
        assert counters(small)["prefix_cache_queries_total"] == 0
