"""The demonstration on a scripted cluster: what it shows, and that it leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ryzanstein.program import ProgramError
from ryzanstein_client.cli.demo import MAX_TOKENS, Question, read_questions, show
from ryzanstein_client.cli.demo_cluster import DemoCluster, bundled_model, free_port
from ryzanstein_client.cli.demo_view import DemoView, phase_text
from tests.unit.client.scripted_coordinator import expected_tokens, text_of

ROOT = Path(__file__).parents[2]
RIGHT = text_of(expected_tokens(4711, MAX_TOKENS))


def scripted_cluster(mode: str = "", **patience_s: float) -> DemoCluster:
    port = free_port()
    command = [sys.executable, "-m", "tests.unit.client.scripted_serve", str(port), mode]
    return DemoCluster(command, grpc_port=port, **patience_s)


@pytest.fixture(autouse=True)
def at_the_root_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until_ended(pid: int, timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not has_ended(pid):
        assert time.monotonic() < deadline_s, f"process {pid} still runs"
        time.sleep(0.01)


def test_it_starts_asks_checks_shows_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = scripted_cluster()
    show(cluster, [Question("What?", RIGHT), Question("Why?", RIGHT)], DemoView())
    out = capsys.readouterr().out
    assert "loading the weights, 50%" in out
    assert "letters is ready, after " in out
    assert f"gRPC 127.0.0.1:{cluster.grpc_port}" in out
    assert "  What?\n" in out
    assert out.count(f"  {RIGHT}\n  ✓ 400 tokens, first after") == 2
    assert "letters  serving  epoch 3" in out
    assert "2 of 2 answers right, 800 tokens" in out
    assert "\x1b" not in out
    assert has_ended(cluster.pid)
    assert not cluster.log_path.exists()


def test_a_wrong_answer_is_shown_and_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = scripted_cluster()
    with pytest.raises(ProgramError, match="1 of 2 answers were wrong"):
        show(cluster, [Question("What?", RIGHT), Question("Why?", "because")], DemoView())
    out = capsys.readouterr().out
    assert "✗ 400 tokens" in out
    assert "  right is: because\n" in out
    assert "1 of 2 answers right" in out


def test_a_cluster_that_fails_to_start_shows_the_end_of_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = scripted_cluster("fails")
    with pytest.raises(ProgramError, match="ended with code 1 before it was ready") as caught:
        show(cluster, [], DemoView())
    assert "  the model is broken\n" in capsys.readouterr().err
    assert str(cluster.log_path) in str(caught.value)
    cluster.log_path.unlink()


def test_a_cluster_that_is_never_ready_is_given_up_and_ended() -> None:
    cluster = scripted_cluster("never-ready")
    with cluster, pytest.raises(ProgramError, match=r"not ready within 0\.3 s"):
        cluster.wait_ready(0.3, lambda: None)
    assert has_ended(cluster.pid)
    cluster.log_path.unlink(missing_ok=True)


def test_a_cluster_that_hears_no_signal_is_killed() -> None:
    cluster = scripted_cluster("deaf", drain_s=0.2, kill_s=0.1)
    with cluster:
        from ryzanstein_client import Client

        with Client(f"127.0.0.1:{cluster.grpc_port}", connect_timeout_s=20) as client:
            client.cluster()  # its handlers are in place
        assert cluster.stop() == -signal.SIGKILL
    assert has_ended(cluster.pid)


def test_the_environment_of_the_user_does_not_reach_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYZANSTEIN_GRPC_PORT", "1")
    program = (
        "import os; print('ready grpc=h:1 http=x model=' + os.environ.get('RYZANSTEIN_GRPC_PORT', 'none'))"
    )
    with DemoCluster([sys.executable, "-c", program], grpc_port=1) as cluster:
        assert cluster.wait_ready(20, lambda: None).model == "none"


PROGRAM = """
import sys
from tests.programs.test_demo import RIGHT, scripted_cluster
from ryzanstein_client.cli.demo import Question, _interrupt_on_signals, show
from ryzanstein_client.cli.demo_view import DemoView
class View(DemoView):
    def starting(self):
        print("child", cluster.pid, cluster.log_path, flush=True)
        return super().starting()
cluster = scripted_cluster(sys.argv[1])
try:
    with _interrupt_on_signals():
        show(cluster, [Question("What?", RIGHT)] * 10_000, View())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize(("mode", "moment"), [("never-ready", "child"), ("", "What?")])
def test_whatever_ends_it_no_process_stays(number: signal.Signals, mode: str, moment: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child, log = 0, Path()
    for line in process.stdout:
        if line.startswith("child"):
            _, pid, log_name = line.split()
            child, log = int(pid), Path(log_name)
        if moment in line:
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    wait_until_ended(child)
    if number != signal.SIGKILL:
        assert not log.exists()
    log.unlink(missing_ok=True)
    assert "Traceback" not in error
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)


def test_the_phases_of_a_start_are_said_in_words() -> None:
    worker = {"load_progress": 0.3}
    assert phase_text(None) == "starting the processes"
    assert phase_text({"state": "waiting", "workers": []}) == "waiting for shard workers, 0 registered"
    assert phase_text({"state": "loading", "workers": [worker, worker]}) == "loading the weights, 30%"
    assert phase_text({"state": "loading", "workers": [worker]}, steps=4) == "loading the weights, 25%"
    assert phase_text({"state": "forming", "workers": [worker], "epoch": 2}) == "forming, epoch 2"


def test_the_bundled_questions_can_be_read() -> None:
    questions = read_questions(bundled_model() / "questions.json")
    assert len(questions) >= 6
    assert all(question.question and question.answer for question in questions)


def test_a_broken_file_of_questions_is_named(tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    for content in ("[1]", "{", json.dumps([{"question": "x"}])):
        file.write_text(content)
        with pytest.raises(ProgramError, match=str(file)):
            read_questions(file)


def test_without_the_coordinator_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ProgramError, match=r"pip install 'ryzanstein\[coordinator,worker\]'") as caught:
        bundled_model()
    assert caught.value.exit_code == 2
