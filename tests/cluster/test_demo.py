"""What a person sees first: `ryzanstein demo`, and the streaming commands against a cluster that serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .harness import Cluster, environment

RYZANSTEIN = str(Path(sys.executable).with_name("ryzanstein"))


def run(*words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RYZANSTEIN, *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(),
        check=False,
    )


def test_the_demonstration_answers_right_and_leaves_nothing_behind() -> None:
    done = run("demo", timeout_s=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert "7 of 7 answers right" in done.stdout
    assert "kill -9 of worker-" in done.stdout
    assert "and is whole, token for token" in done.stdout
    assert "every process ended" in done.stdout


def test_generate_streams_and_reports_as_json(two_ranks: Cluster) -> None:
    prompt = "Q: What is 347 + 285?\nA:"
    words = ["generate", prompt, "--coordinator", two_ranks.grpc, "--max-tokens", "60", "--temperature", "0"]
    plain, structured = run(*words), run(*words, "--json")
    assert plain.returncode == structured.returncode == 0, plain.stderr + structured.stderr
    completion = json.loads(structured.stdout)
    assert "632" in plain.stdout
    assert completion["text"].strip() == plain.stdout.strip()


def test_status_shows_both_ranks(two_ranks: Cluster) -> None:
    plain = run("status", "--coordinator", two_ranks.grpc)
    structured = run("status", "--coordinator", two_ranks.grpc, "--json")
    assert "worker-0" in plain.stdout
    assert "worker-1" in plain.stdout
    ranked = [worker for worker in json.loads(structured.stdout)["workers"] if worker["rank"] is not None]
    assert [worker["state"] for worker in ranked] == ["active", "active"]


def test_nobody_listening_is_exit_code_69() -> None:
    done = run("generate", "Q:", "--coordinator", "127.0.0.1:1")
    assert done.returncode == 69
    assert "127.0.0.1:1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_control_c_cancels_the_request_on_the_server(two_ranks: Cluster) -> None:
    process = subprocess.Popen(
        [
            RYZANSTEIN,
            "generate",
            "Q:",
            "--coordinator",
            two_ranks.grpc,
            "--max-tokens",
            "4000",
            "--ignore-eos",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        two_ranks.wait_for(lambda s: s["requests"]["running"] == 1, "it runs")
        process.send_signal(signal.SIGINT)
        interrupted_at = time.monotonic()
        assert process.wait(10) == 130
        two_ranks.wait_for(lambda s: s["requests"]["running"] == 0, "its place is free", 5)
        assert time.monotonic() - interrupted_at < 5
    finally:
        process.kill()
        process.communicate()
