"""What can go wrong at the start and at the end is told in one line, in seconds, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ryzanstein_client import Client, InvalidRequest, RyzansteinError

from ..checkpoints import make_checkpoint
from .harness import BUNDLED_MODEL, Cluster, Program


def error_line(program: Program, *, code: int, timeout_s: float = 20.0) -> str:
    """The one line that a program ends with that can't start."""
    assert program.wait(timeout_s) == code, program.stderr
    lines = [line for line in program.stderr.splitlines() if not line.startswith("{")]  # logs are JSON here
    assert len(lines) == 1, program.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@contextmanager
def occupied_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
def test_an_occupied_port_is_named(flag: str, tmp_path: Path) -> None:
    with occupied_port() as port, Cluster(tmp_path, BUNDLED_MODEL, flag, str(port)) as cluster:
        line = error_line(cluster, code=1)
        assert str(port) in line
        assert flag in line


def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with Cluster(tmp_path / "state", empty) as cluster:
        assert str(empty / "config.json") in error_line(cluster, code=2)


def test_a_rank_count_that_does_not_divide_the_heads_says_what_would(tmp_path: Path) -> None:
    with Cluster(tmp_path, tensor_parallel_size=3) as cluster:
        line = error_line(cluster, code=2)
        assert "sizes that work: 1, 2, 4, 8" in line


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(BUNDLED_MODEL, model)
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    with Cluster(tmp_path / "state", model) as cluster:
        assert str(weights) in error_line(cluster, code=2)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max-num-seqs", "0"], "--max-num-seqs"),
        (["--dtype", "int3"], "--dtype"),
        (["--memory-utilization", "1.5"], "--memory-utilization"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--kv-cache-memory", "lots"], "lots"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_a_bad_flag_is_named(flags: list[str], named: str, tmp_path: Path) -> None:
    with Cluster(tmp_path, BUNDLED_MODEL, *flags) as cluster:
        assert named in error_line(cluster, code=2)


def test_an_unknown_key_in_the_configuration_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("max-num-sequences = 8\n")
    with Cluster(tmp_path / "state", BUNDLED_MODEL, "--config", str(file)) as cluster:
        line = error_line(cluster, code=2)
        assert "max-num-sequences" in line
        assert str(file) in line


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (["--kv-cache-memory", "1KB"], "or more"),
        (["--kv-cache-memory", "900GiB"], "may use"),
        (["--kv-cache-memory", "1MiB", "--max-model-len", "4096"], "does not fit into a cache of"),
    ],
)
def test_too_little_memory_is_refused_with_what_would_fit(
    flags: list[str], advice: str, tmp_path: Path
) -> None:
    with Cluster(tmp_path, BUNDLED_MODEL, *flags) as cluster:
        assert advice in error_line(cluster, code=2)


def shared_segments() -> set[Path]:
    """What lies in shared memory, by name."""
    return set(Path("/dev/shm").iterdir())


#: What the log says when a phase has begun.
LOGGED = {
    "starting": "child_started",
    "waiting": "listening",
    "registering": "joining",
    "loading": "loading 2 ranks",
}


@pytest.mark.parametrize("moment", [*LOGGED, "serving", "streaming"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_any_phase_ends_everything_in_order(
    moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    segments = shared_segments()
    with Cluster(tmp_path, BUNDLED_MODEL, "--drain-timeout", "1") as cluster:
        if moment in LOGGED:
            cluster.wait_for_log(LOGGED[moment])
        else:
            cluster.ready()
        outcome: list[object] = []
        if moment == "streaming":
            arrived = threading.Event()

            def stream() -> None:
                with Client(cluster.grpc) as client:
                    try:
                        for _ in client.stream("Q: ", max_tokens=4000, ignore_eos=True):
                            arrived.set()
                    except RyzansteinError as error:
                        outcome.append(error)
                        arrived.set()

            thread = threading.Thread(target=stream, daemon=True)
            thread.start()
            assert arrived.wait(20)
        tree = cluster.children()
        cluster.process.send_signal(number)
        assert cluster.wait(20) == 0, cluster.stderr
        assert not psutil.wait_procs(tree, timeout=5)[1]
        deadline = time.monotonic() + 5
        while left := shared_segments() - segments:  # another test's clusters have theirs for a moment
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def test_a_rank_that_dies_in_a_drain_is_replaced_and_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    with (
        Cluster(tmp_path, BUNDLED_MODEL, "--drain-timeout", "60") as cluster,
        Client(cluster.ready().grpc) as client,
    ):
        stream = iter(client.stream("Q: ", max_tokens=4000, ignore_eos=True))
        next(stream)
        epoch, victim = cluster.snapshot()["epoch"], cluster.workers()[1]
        cluster.process.send_signal(signal.SIGTERM)
        cluster.wait_for(lambda s: s["state"] == "draining", "it drains")
        psutil.Process(victim["pid"]).kill()
        cluster.wait_for(
            lambda s: s["epoch"] > epoch and s["state"] == "draining", "another process has its rank"
        )
        assert cluster.workers()[1]["id"] == victim["id"]
        for _ in range(20):  # the stream goes on
            next(stream)
        tree = cluster.children()
        assert cluster.process.poll() is None, "it drains"
        cluster.process.send_signal(signal.SIGTERM)
        assert cluster.wait(5) == 1
        assert not psutil.wait_procs(tree, timeout=5)[1]


def test_killing_the_parent_leaves_no_process(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.ready()
        tree = cluster.children()
        assert len(tree) >= 3
        cluster.process.kill()
        assert not psutil.wait_procs(tree, timeout=5)[1]


def test_garbage_on_the_grpc_port_harms_nobody(two_ranks: Cluster, client: Client) -> None:
    host, _, port = two_ranks.grpc.rpartition(":")
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(512),
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(garbage)
    assert client.generate("Q:", max_tokens=3).token_ids


def test_a_prompt_of_ten_megabytes_is_refused_at_once(client: Client) -> None:
    started_at = time.monotonic()
    with pytest.raises(RyzansteinError, match=r"(?i)larger|long|big"):
        client.generate("x" * 10_000_000, max_tokens=1)
    assert time.monotonic() - started_at < 5


def test_a_prompt_beyond_the_context_is_an_invalid_request_with_the_numbers(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="4096"):
        client.generate([5] * 5000, max_tokens=1)


def test_a_worker_with_another_checkpoint_is_refused_and_the_others_go_on(
    two_ranks: Cluster, client: Client, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "other", tokenizer=True)
    with Program(
        "shard-worker", "--coordinator", two_ranks.grpc, "--worker-id", "stranger", "--device", "cpu",
        "--cpu-threads", "1", "--model-dir", str(other),
        "--join-token-file", str(two_ranks.join_token_file(tmp_path)), module="ryzanstein_shard_worker",
    ):  # fmt: skip
        two_ranks.wait_for(lambda s: any(w["id"] == "stranger" for w in s["workers"]), "it registers")
        assert client.generate("Q:", max_tokens=3).token_ids
    two_ranks.wait_for(
        lambda s: all(w["state"] != "standby" for w in s["workers"] if w["id"] == "stranger"), "it is gone"
    )


def test_a_worker_may_start_before_its_coordinator(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = Program(
        "shard-worker", "--coordinator", f"127.0.0.1:{port}", "--worker-id", "early", "--device", "cpu",
        "--cpu-threads", "1", module="ryzanstein_shard_worker",
    )  # fmt: skip
    with worker:
        worker.wait_for_log("coordinator_away")
        coordinator = Program(
            "coordinator", str(BUNDLED_MODEL), "--grpc-port", str(port), "--http-port", "0",
            "--state-dir", str(tmp_path),
        )  # fmt: skip
        with coordinator:
            assert coordinator.line(60).startswith("ready ")
            with Client(f"127.0.0.1:{port}") as client:
                assert client.generate("Q:", max_tokens=3).token_ids
            assert coordinator.terminate() == 0
        assert worker.process.poll() is None, "it waits for the coordinator to come back"
        assert worker.terminate(10) == 0
