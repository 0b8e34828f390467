"""`ryzanstein demo`: the main job on the bundled model, end to end: start, ask, check, show, stop."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ryzanstein.program import ProgramError

from .demo_cluster import DemoCluster, bundled_model, free_port

if TYPE_CHECKING:
    from ryzanstein_client.sync import Client

    from .demo_view import Asked, DemoView

READY_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
MAX_TOKENS = 400
#: The question whose answer is long enough to be disturbed, and when that happens.
STORY = "Tell me a story."
KILLED_AFTER_TOKENS = 40
SPARE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Question:
    """With the one right answer."""

    question: str
    answer: str


def commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("demo")(demo)


def demo(
    tensor_parallel_size: Annotated[
        int,
        typer.Option(
            "--tensor-parallel-size", metavar="N", min=1, help="Shard workers to split the model over."
        ),
    ] = 2,
    questions: Annotated[int, typer.Option("--questions", metavar="N", min=1, help="How many to ask.")] = 6,
) -> None:
    """Start a cluster on this machine, ask the bundled model some questions, check the answers, and stop it."""
    from .demo_view import DemoView

    model_dir = bundled_model()
    chosen = read_questions(model_dir / "questions.json")[:questions]
    view = DemoView()
    story = next((q for q in read_questions(model_dir / "questions.json") if q.question == STORY), None)
    view.title(
        f"Starting a coordinator, {tensor_parallel_size} shard workers and a spare one on this machine"
    )
    with tempfile.TemporaryDirectory(prefix="ryzanstein-demo-") as state_dir, _interrupt_on_signals():
        port = free_port()
        serve = [sys.executable, "-m", "ryzanstein_coordinator", "serve", str(model_dir)]
        serve += ["--tensor-parallel-size", str(tensor_parallel_size), "--spares", "1"]
        serve += ["--state-dir", state_dir]
        serve += ["--host", "127.0.0.1", "--grpc-port", str(port), "--http-port", "0"]
        show(DemoCluster(serve, grpc_port=port), chosen, view, disturbed=story)


def show(
    cluster: DemoCluster, questions: list[Question], view: DemoView, *, disturbed: Question | None = None
) -> None:
    """The whole demonstration on a cluster that is not started yet; raises ProgramError unless all went well.

    `disturbed`: asked last; in the middle of its answer a worker is killed.
    """
    started_s = time.monotonic()
    with cluster:
        from ryzanstein_client.sync import (
            Client,  # after the start: the child must not inherit gRPC's threads
        )

        with (
            Client(f"127.0.0.1:{cluster.grpc_port}", connect_timeout_s=0.2) as client,
            view.starting() as phase,
        ):
            ready = cluster.wait_ready(READY_TIMEOUT_S, lambda: phase(_snapshot(client)))
        view.ready(ready, time.monotonic() - started_s)
        with Client(ready.grpc) as client:
            view.title(f"Asking {len(questions)} questions")
            asked = [ask(client, question, view) for question in questions]
            view.title("The cluster that answered")
            view.cluster(client.cluster())
            if disturbed is not None:
                view.title("Killing a worker in the middle of an answer")
                asked.append(ask_and_kill(client, disturbed, view))
        view.title("Stopping")
        stopping_s = time.monotonic()
        code = cluster.stop()
    view.summary(asked, stop_s=time.monotonic() - stopping_s)
    if code != 0:
        raise ProgramError(f"the cluster ended with code {code} instead of 0")
    wrong = sum(not each.right for each in asked)
    if wrong:
        raise ProgramError(f"{wrong} of {len(asked)} answers were wrong: please report this as a defect")


def ask(
    client: Client, question: Question, view: DemoView, *, on_tokens: Callable[[int], None] | None = None
) -> Asked:
    """Streams one answer and checks it. `on_tokens` is told how many there are, after each chunk."""
    from .demo_view import Asked

    view.question(question.question)
    sent_s = last_s = time.monotonic()
    first_s, tokens, text, pause_s = None, 0, "", 0.0
    messages = [{"role": "user", "content": question.question}]
    for chunk in client.chat(
        messages, stream=True, temperature=0.0, max_tokens=MAX_TOKENS, timeout=ANSWER_TIMEOUT_S
    ):
        now_s = time.monotonic()
        if chunk.token_ids and first_s is None:
            first_s = last_s = now_s
        last_s, pause_s = now_s, max(pause_s, now_s - last_s)
        tokens += len(chunk.token_ids)
        text += chunk.text
        view.answer_part(chunk.text)
        if on_tokens is not None:
            on_tokens(tokens)
    ended_s = time.monotonic()
    asked = Asked(
        right=text.strip() == question.answer.strip(),
        tokens=tokens,
        first_token_s=(first_s or ended_s) - sent_s,
        seconds=ended_s - sent_s,
        longest_pause_s=pause_s,
    )
    view.answer_end(asked, question.answer)
    return asked


def ask_and_kill(client: Client, question: Question, view: DemoView) -> Asked:
    """Asks, and sends SIGKILL to the last rank in the middle of the answer."""
    cluster = _with_spare(client)
    ranked = [worker for worker in cluster["workers"] if worker["rank"] is not None]
    victim = max(ranked, key=lambda worker: int(worker["rank"]))
    killed = False

    def kill_once(tokens: int) -> None:
        nonlocal killed
        if tokens >= KILLED_AFTER_TOKENS and not killed:
            killed = True
            os.kill(victim["pid"], signal.SIGKILL)

    asked = ask(client, question, view, on_tokens=kill_once)
    view.recovery(victim, client.cluster()["last_recovery"], asked, KILLED_AFTER_TOKENS)
    return asked


def _with_spare(client: Client) -> dict[str, Any]:
    """The cluster when its spare holds weights; as it is, if that takes too long."""
    deadline_s = time.monotonic() + SPARE_TIMEOUT_S
    while True:
        cluster = client.cluster()
        spares = [worker for worker in cluster["workers"] if worker["state"] == "standby"]
        if any(spare["load_progress"] == 1.0 for spare in spares) or time.monotonic() > deadline_s:
            return cluster
        time.sleep(0.05)


def read_questions(path: Path) -> list[Question]:
    """The questions of a bundled model; raises ProgramError for a file that is not one."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Question(entry["question"], entry["answer"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProgramError(
            f"can't read the questions in {path}: {error}; install the package again"
        ) from error


def _snapshot(client: Client) -> dict[str, Any] | None:
    """The cluster as far as it has come; None while nobody answers."""
    from ryzanstein_client.errors import RyzansteinError

    try:
        return client.cluster()
    except RyzansteinError:
        return None


@contextmanager
def _interrupt_on_signals() -> Iterator[None]:
    """A closed terminal and `kill` end the demonstration as Ctrl-C does, with everything that it started."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
