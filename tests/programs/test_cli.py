"""The commands, run in this process against a scripted coordinator."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from ryzanstein.program import run
from ryzanstein.v1 import operations_pb2
from ryzanstein.wire import StatusError
from ryzanstein_client.cli import main as cli_main
from ryzanstein_client.cli import options
from ryzanstein_client.cli.main import build_app
from tests.unit.client.scripted_coordinator import CoordinatorThread, expected_tokens, text_of

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs `ryzanstein WORDS…`; its exit code, standard output and standard error."""
    monkeypatch.setenv("RYZANSTEIN_DEBUG", "")

    def call(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = run(build_app(), words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def cluster_with_two_workers(snapshot: operations_pb2.ClusterSnapshot) -> None:
    snapshot.model.name = "letters"
    snapshot.model.dtype = "bfloat16"
    snapshot.model.parameters = 8_000_000
    snapshot.groups.add(id="g0", state="serving", epoch=3, tensor_parallel_size=2, leader="w0")
    for rank in range(2):
        worker = snapshot.workers.add(
            id=f"w{rank}", group="g0", rank=rank, state="active", phase="serving", host="h", pid=100 + rank
        )
        worker.memory.weights_bytes = 3 * 2**20
        worker.heartbeat_age_s = 0.042
    snapshot.last_recovery.cause = "process died"
    snapshot.last_recovery.culprit.worker_id = "w1"
    snapshot.last_recovery.culprit.rank = 1
    snapshot.last_recovery.first_token_s = 0.25
    snapshot.last_recovery.requests_resumed = 4


def test_generate_writes_the_text_and_nothing_else(server: CoordinatorThread, cli: Cli) -> None:
    result = cli("generate", "hello", "--max-tokens", "20", "--seed", "5", "--coordinator", server.address)
    assert result == (0, text_of(expected_tokens(5, 20)) + "\n", "")


def test_generate_reads_the_prompt_from_standard_input(server: CoordinatorThread, cli: Cli) -> None:
    words = ("generate", "-", "--max-tokens", "1", "--request-id", "r", "--coordinator", server.address)
    code, _, _ = cli(*words, stdin="two\nlines\n")
    assert code == 0
    assert server.coordinator.records["r"].request.text == "two\nlines\n"


def test_generate_as_json_tells_everything_about_the_answer(server: CoordinatorThread, cli: Cli) -> None:
    words = ("generate", "hello", "--json", "--max-tokens", "3", "--seed", "5", "--logprobs", "1")
    code, out, _ = cli(*words, "--coordinator", server.address)
    answer = json.loads(out)
    assert code == 0
    assert answer["token_ids"] == expected_tokens(5, 3)
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 1}
    assert answer["logprobs"][0]["top"][0]["logprob"] == -0.5
    assert answer["seed"] == 5


def test_every_sampling_option_reaches_the_server(server: CoordinatorThread, cli: Cli) -> None:
    words = shlex.split(
        "--max-tokens 4 --temperature 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --seed 3 --stop zz --stop yy "
        "--stop-token-id 5 --presence-penalty 0.25 --frequency-penalty 0.5 --repetition-penalty 1.25 "
        "--logit-bias 7=-100 --logit-bias 8=1.5 --ignore-eos --priority 2 --timeout 30 --request-id r "
        "--model letters"
    )
    code, _, error = cli("generate", "hello", *words, "--coordinator", server.address)
    assert (code, error) == (0, "")
    request = server.coordinator.records["r"].request
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (4, 0.5, 0.9, 7)
    assert (sampling.min_p, sampling.seed, list(sampling.stop)) == (0.1, 3, ["zz", "yy"])
    assert (list(sampling.stop_token_ids), dict(sampling.logit_bias)) == ([5], {7: -100.0, 8: 1.5})
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.25, 0.5)
    assert (sampling.repetition_penalty, sampling.ignore_eos) == (1.25, True)
    assert (request.priority, request.model, request.timeout.seconds >= 29) == (2, "letters", True)


def test_options_that_are_not_given_are_left_to_the_server(server: CoordinatorThread, cli: Cli) -> None:
    cli("generate", "hello", "--request-id", "r", "--coordinator", server.address)
    assert server.coordinator.records["r"].request.sampling.ListFields() == []


def test_flags_win_over_the_environment_over_the_file_over_defaults(
    server: CoordinatorThread, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "client.toml"
    file.write_text(f'coordinator = "{server.address}"\nmax-tokens = 1\ntop_k = 11\nseed = 21\n')
    monkeypatch.setenv("RYZANSTEIN_MAX_TOKENS", "2")
    monkeypatch.setenv("RYZANSTEIN_TOP_K", "12")
    words = ("generate", "hello", "--config", str(file), "--max-tokens", "3", "--request-id", "r")
    code, _, error = cli(*words)
    assert (code, error) == (0, "")
    sampling = server.coordinator.records["r"].request.sampling
    assert (sampling.max_tokens, sampling.top_k, sampling.seed) == (3, 12, 21)
    assert not sampling.HasField("temperature")


def test_the_configuration_file_can_itself_come_from_the_environment(
    server: CoordinatorThread, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "client.toml"
    file.write_text(f'coordinator = "{server.address}"\n')
    monkeypatch.setenv("RYZANSTEIN_CONFIG", str(file))
    assert cli("status")[0] == 0


def test_an_unknown_key_of_the_file_is_an_error_that_names_it(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text("max-tokns = 1\n")
    expected = f"error: {file}: unknown key 'max-tokns': did you mean 'max-tokens'?\n"
    assert cli("generate", "hello", "--config", str(file)) == (2, "", expected)


def test_the_api_key_comes_from_the_environment(
    server: CoordinatorThread, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RYZANSTEIN_API_KEY", "k1")
    cli("status", "--coordinator", server.address)
    assert server.coordinator.metadata[0]["authorization"] == "Bearer k1"


def test_what_the_server_refuses_is_one_line_and_exit_code_2(server: CoordinatorThread, cli: Cli) -> None:
    words = ("generate", "hello", "--temperature", "3", "--coordinator", server.address)
    assert cli(*words) == (2, "", "error: temperature is 3; it must be in [0, 2]\n")


def test_a_model_that_is_not_served_is_exit_code_1(server: CoordinatorThread, cli: Cli) -> None:
    code, out, error = cli("generate", "hello", "--model", "x", "--coordinator", server.address)
    assert (code, out) == (1, "")
    assert error == "error: model 'x' is not served; there is: letters\n"


def test_a_coordinator_that_is_not_there_is_exit_code_69(
    server: CoordinatorThread, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "CONNECT_TIMEOUT_S", 0.1)
    server.do(server.coordinator.stop())
    for words in (("generate", "hello"), ("status",), ("drain", "w0"), ("top",)):
        code, out, error = cli(*words, "--coordinator", server.address)
        assert (code, out) == (69, "")
        assert error.startswith(f"error: can't reach the coordinator at {server.address}, tried ")
        assert error.endswith("; is the coordinator running there?\n")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate",), "Missing argument"),
        (("generate", "x", "--max-tokens", "many"), "--max-tokens"),
        (("generate", "x", "--logit-bias", "7:1"), "'7:1' is not ID=X"),
        (("generate", "x", "--coordinator", "nowhere"), "'nowhere'; it must be HOST:PORT"),
        (("generate", "x", "--tls-ca-file", "/no/such/file"), "/no/such/file"),
        (("status", "--colour"), "--colour"),
        (("statsu",), "'statsu'"),
        (("generate", "x", "--config", "/no/such/file"), "/no/such/file"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(cli: Cli, words: tuple[str, ...], said: str) -> None:
    code, out, error = cli(*words)
    assert (code, out) == (2, "")
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [("--debug", "status"), ("status", "--debug")])
def test_debug_shows_a_traceback_before_the_line(
    server: CoordinatorThread, cli: Cli, words: tuple[str, ...]
) -> None:
    server.do(server.coordinator.stop())
    code, _, error = cli(*words, "--coordinator", server.address)
    assert code == 69
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("error: can't reach")


def test_status_shows_workers_ranks_memory_and_the_last_recovery(server: CoordinatorThread, cli: Cli) -> None:
    cluster_with_two_workers(server.coordinator.snapshot)
    code, out, _ = cli("status", "--coordinator", server.address)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "letters  serving  epoch 3  8.0 M parameters, bfloat16"
    assert lines[1] == "requests: 0 running, 0 waiting"
    assert " ".join(lines[2].split()) == "worker rank state pid weights kv cache used step heartbeat"
    assert lines[3].split() == ["w0", "0", "active", "100", "3.0", "MiB", "0", "42", "ms"]
    assert lines[4].startswith("w1")
    assert lines[5].startswith("last recovery: process died of worker w1 (rank 1), epoch 0: ")
    assert lines[5].endswith("next token after 250 ms; 4 requests resumed")
    assert "\x1b" not in out


def test_status_says_why_a_group_does_not_serve(server: CoordinatorThread, cli: Cli) -> None:
    snapshot = server.coordinator.snapshot
    snapshot.state = "waiting"
    snapshot.groups.add(id="g0", state="waiting", reason="1 of 2 workers registered")
    snapshot.workers.add(id="w0", state="loading", phase="loading", load_progress=0.5, host="a")
    _, out, _ = cli("status", "--coordinator", server.address)
    assert "group g0: waiting: 1 of 2 workers registered" in out
    assert "loading 50%" in out


def test_status_as_json_has_the_keys_of_the_http_endpoint(server: CoordinatorThread, cli: Cli) -> None:
    cluster_with_two_workers(server.coordinator.snapshot)
    code, out, _ = cli("status", "--json", "--coordinator", server.address)
    cluster = json.loads(out)
    assert code == 0
    assert set(cluster) == {field.name for field in operations_pb2.ClusterSnapshot.DESCRIPTOR.fields}
    assert cluster["workers"][1]["memory"]["weights_bytes"] == 3 * 2**20
    assert cluster["last_recovery"]["fenced_s"] is None


def test_drain_names_the_worker_and_the_epoch(server: CoordinatorThread, cli: Cli) -> None:
    cluster_with_two_workers(server.coordinator.snapshot)
    assert cli("drain", "w1", "--coordinator", server.address) == (0, "draining w1, epoch 3\n", "")
    assert cli("drain", "w9", "--coordinator", server.address)[0] == 1


def test_chat_answers_each_line_of_a_pipe_and_remembers_the_conversation(
    server: CoordinatorThread, cli: Cli
) -> None:
    words = (
        "chat",
        "--system",
        "be brief",
        "--max-tokens",
        "4",
        "--seed",
        "5",
        "--coordinator",
        server.address,
    )
    answer = text_of(expected_tokens(5, 4))
    code, out, error = cli(*words, stdin="one\n\ntwo\n")
    assert (code, out, error) == (0, f"{answer}\n{answer}\n", "")
    last = list(server.coordinator.records.values())[-1].request.chat.messages
    assert [(message.role, message.content) for message in last] == [
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", answer),
        ("user", "two"),
    ]


def test_a_piped_chat_that_fails_ends_with_the_error(server: CoordinatorThread, cli: Cli) -> None:
    words = ("chat", "--temperature", "3", "--coordinator", server.address)
    code, _, error = cli(*words, stdin="one\ntwo\n")
    assert code == 2
    assert error == "error: temperature is 3; it must be in [0, 2]\n"


def test_an_answer_that_breaks_off_ends_its_line_before_the_error(
    server: CoordinatorThread, cli: Cli
) -> None:
    async def fail(count: int) -> None:
        if count == 3:
            raise StatusError(grpc.StatusCode.INTERNAL, "it broke")

    server.coordinator.on_sent = fail
    begun = text_of(expected_tokens(5, 3)) + "\n"
    for command, stdin in (("generate hello", ""), ("chat", "hello\n")):
        code, out, error = cli(*command.split(), "--seed", "5", "--coordinator", server.address, stdin=stdin)
        assert (code, out) == (1, begun)
        assert error.startswith("error: it broke")


def test_a_pipe_that_is_no_text_is_said_in_one_line(server: CoordinatorThread) -> None:
    for words in (["generate", "-"], ["chat"]):
        ended = subprocess.run(
            [sys.executable, "-m", "ryzanstein_client.cli.main", *words, "--coordinator", server.address],
            input=b"\xff\xfe\n",
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"},
            timeout=60,
        )
        assert ended.returncode == 2
        assert ended.stderr.startswith(b"error: standard input is not UTF-8 text")
        assert ended.stderr.count(b"\n") == 1


def test_version_and_help_go_to_standard_output(cli: Cli) -> None:
    assert cli("--version") == (0, "ryzanstein 0.1.0\n", "")
    code, out, _ = cli("--help")
    assert code == 0
    listed = [line.split()[1] for line in out.splitlines() if line.startswith("│ ") and line[2] not in " -"]
    own = ["generate", "chat", "status", "top", "drain", "demo"]
    assert listed == [*own, "serve", "coordinator", "plan", "shard-worker", "shard", "bench"]
    assert "RYZANSTEIN_<FLAG>" in cli("generate", "--help")[1]


def test_commands_of_a_package_whose_extra_is_missing_are_listed_and_say_what_to_install(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ryzanstein_coordinator.main", None)
    monkeypatch.delitem(sys.modules, "ryzanstein_shard_worker.main", raising=False)
    monkeypatch.setitem(sys.modules, "ryzanstein_shard_worker", None)
    assert "serve" in cli("--help")[1]
    for words, extra in (
        (("serve", "model", "--tensor-parallel-size", "2"), "coordinator"),
        (("plan", "--help"), "coordinator"),
        (("shard-worker", "--device", "cuda:0"), "worker"),
    ):
        code, out, error = cli(*words)
        assert (code, out) == (2, "")
        assert f"pip install 'ryzanstein[{extra}]'" in error


def test_a_command_that_misses_a_module_of_an_extra_names_the_extra(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ryzanstein_client.sync", None)
    assert "internal error: ModuleNotFoundError" in cli("status")[2]
    (tmp_path / "needs_torch.py").write_text(
        "def commands(app):\n    app.command('spin')(spin)\ndef spin():\n    import torch.nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(cli_main, "KNOWN", {"spinner": ("needs_torch:commands", {"spin": "Spin."})})
    code, _, error = cli("spin")
    assert code == 2
    assert "'torch' is not installed" in error
    assert "pip install 'ryzanstein[worker]'" in error


def test_one_broken_plugin_takes_no_other_command_away(
    server: CoordinatorThread, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli_main, "KNOWN", {"broken": ("broken_plugin:commands", {"broken": "Broken."})})
    assert cli("status", "--coordinator", server.address)[0] == 0
    code, _, error = cli("broken")
    assert code == 1
    assert error.startswith("internal error: RuntimeError: no")
