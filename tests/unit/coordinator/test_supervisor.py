"""A parent that keeps programs alive and hears what they have reached."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ryzanstein.service_manager import ServiceManager
from ryzanstein_coordinator.child_watch import ChildWatch
from ryzanstein_coordinator.serve import _Parent
from ryzanstein_coordinator.supervisor import Child, RestartPolicy, Supervisor, announcements

from .cluster_builders import configuration

_ANNOUNCES = """
import sys
from ryzanstein.program import announce
assert announce("listening grpc=a") and announce("ready model=my model")
sys.exit(3)
"""


def child(program: str) -> Child:
    return Child("child", lambda: ["-c", program], {})


async def test_a_child_tells_line_by_line_what_it_has_reached() -> None:
    lines: list[str] = []

    async def listen(reader: int) -> None:
        lines.extend([line async for line in announcements(reader)])

    code = await Supervisor().keep(child(_ANNOUNCES), is_final=lambda code: code == 3, on_start=listen)
    assert code == 3
    assert lines == ["listening grpc=a", "ready model=my model"]


async def test_a_child_that_dies_is_started_again_until_its_end_is_final() -> None:
    codes: list[int] = []

    def is_final(code: int) -> bool:
        codes.append(code)
        return len(codes) == 3

    supervisor = Supervisor(RestartPolicy(first_delay_s=0.0))
    await supervisor.keep(child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), is_final=is_final)
    assert codes == [-signal.SIGKILL] * 3


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    started = asyncio.Event()

    async def listen(reader: int) -> None:
        async for _ in announcements(reader):
            started.set()

    program = (
        "import signal, time; from ryzanstein.program import announce;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); announce('up'); time.sleep(60)"
    )
    supervisor = Supervisor()
    life = asyncio.create_task(supervisor.keep(child(program), is_final=lambda code: False, on_start=listen))
    await asyncio.wait_for(started.wait(), 20)
    await supervisor.stop("child", timeout_s=0.05)
    assert await life == -signal.SIGKILL


async def test_a_child_that_waits_for_its_next_start_can_be_told_to_end() -> None:
    deaths = 0
    second = asyncio.Event()

    def is_final(code: int) -> bool:
        nonlocal deaths
        deaths += 1
        if deaths == 2:
            second.set()
        return False

    supervisor = Supervisor(RestartPolicy(first_delay_s=600.0, longest_delay_s=600.0))
    life = asyncio.create_task(supervisor.keep(child("raise SystemExit(1)"), is_final=is_final))
    await asyncio.wait_for(second.wait(), 20)
    supervisor.expect_end(["child"])
    assert await asyncio.wait_for(life, 20) == 1
    assert deaths == 2


async def test_a_start_that_was_put_off_happens_at_once_when_nobody_else_is_left() -> None:
    supervisor = Supervisor(RestartPolicy(first_delay_s=0.0))
    pids: asyncio.Queue[int] = asyncio.Queue()

    async def tell(_reader: int) -> None:
        await pids.put(supervisor._processes["first"].pid)

    first = Child("first", lambda: ["-c", "raise SystemExit(1)"], {}, lambda: 600.0 * len(supervisor.running))
    second = Child("second", lambda: ["-c", "import time; time.sleep(600)"], {})
    other = asyncio.create_task(supervisor.keep(second, is_final=lambda code: True))
    while "second" not in supervisor.running:
        await asyncio.sleep(0.001)
    life = asyncio.create_task(supervisor.keep(first, is_final=lambda code: False, on_start=tell))
    await asyncio.wait_for(pids.get(), 20)
    while supervisor.running != {"second"}:
        await asyncio.sleep(0.001)
    assert pids.empty(), "it waits: the other one runs"
    os.kill(supervisor._processes["second"].pid, signal.SIGKILL)
    await asyncio.wait_for(pids.get(), 20)
    supervisor.expect_end(["first"])
    assert (await other, await asyncio.wait_for(life, 20)) == (-signal.SIGKILL, 1)


async def test_a_child_is_told_what_its_parent_learns_later() -> None:
    learned, started = asyncio.Event(), asyncio.Event()

    async def told() -> str:
        started.set()
        await learned.wait()
        return "7"

    reads = Child("child", lambda: ["-c", "import sys; sys.exit(int(sys.stdin.readline()))"], {}, told=told)
    life = asyncio.create_task(Supervisor().keep(reads, is_final=lambda code: True))
    await asyncio.wait_for(started.wait(), 20)
    learned.set()
    assert await asyncio.wait_for(life, 20) == 7


async def test_a_child_that_ends_before_it_can_be_told_is_not_waited_for() -> None:
    async def told() -> str:
        await asyncio.Event().wait()
        return ""

    gone = Child("child", lambda: ["-c", "raise SystemExit(3)"], {}, told=told)
    assert await asyncio.wait_for(Supervisor().keep(gone, is_final=lambda code: True), 20) == 3


async def test_a_child_that_can_not_be_started_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    attempts = 30  # other threads of this process open and close a few files, too
    supervisor, watched = Supervisor(), Child("child", lambda: ["-c", ""], {}, watchdog_s=60.0)
    await supervisor.keep(watched, is_final=lambda code: True)  # asyncio opens what it keeps
    before = open_files()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    for _ in range(attempts):
        with pytest.raises(FileNotFoundError, match="/nowhere/python"):
            await supervisor.keep(watched, is_final=lambda code: True)
    assert open_files() < before + attempts


_MANAGED = """
import os, signal, sys, time
from ryzanstein.service_manager import ServiceManager
manager = ServiceManager.from_environment(os.environ)
assert manager.watchdog_s
if sys.argv[1] != "never ready":
    manager.ready("up")
if sys.argv[1] != "stops":
    time.sleep(0.4)
os.kill(os.getpid(), signal.SIGSTOP if sys.argv[1] == "stops" else signal.SIGTERM)
"""


def managed(what: str, watchdog_s: float) -> Child:
    return Child("child", lambda: ["-c", _MANAGED, what], {}, watchdog_s=watchdog_s)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("stops", "a signal has stopped it (SIGSTOP): it is killed and started again"),
        ("is silent", "it runs, but gets nothing done: it is killed and started again"),
    ],
)
async def test_a_child_that_gets_on_no_more_is_killed_and_started_again(what: str, reason: str) -> None:
    codes: list[int] = []

    def is_final(code: int) -> bool:
        codes.append(code)
        return len(codes) == 2

    watchdog_s = 0.12
    with capture_logs() as logs:
        await Supervisor(RestartPolicy(first_delay_s=0.0)).keep(managed(what, watchdog_s), is_final=is_final)
    assert codes == [-signal.SIGKILL] * 2
    hung = [line for line in logs if line["event"] == "child_hung"]
    assert [(line["child"], line["silent_s"], line["reason"]) for line in hung] == [
        ("child", watchdog_s, reason)
    ] * 2


async def test_a_child_that_starts_slowly_is_left_alone() -> None:
    code = await Supervisor().keep(managed("never ready", 0.12), is_final=lambda code: True)
    assert code == -signal.SIGTERM


async def test_a_child_that_gets_on_is_left_alone_though_its_parent_stands_still_now_and_then() -> None:
    watch = ChildWatch(0.24)
    manager = ServiceManager.from_environment(dict(watch.environment))
    manager.ready("up")
    waiting = asyncio.create_task(watch.hung())
    for _ in range(3):
        await asyncio.sleep(0.1)
        manager.alive()
        time.sleep(0.3)
    assert not waiting.done()
    await asyncio.wait_for(waiting, 20)
    watch.close()
    manager.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can send as another user")
async def test_what_another_user_tells_of_a_child_is_not_believed() -> None:
    watch = ChildWatch(0.1)
    name = "\0" + watch.environment["NOTIFY_SOCKET"][1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        somebody = struct.pack("3i", os.getpid(), 65534, 65534)
        for _ in range(100):
            stranger.sendmsg([b"READY=1"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, somebody)], 0, name)
            await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch.hung(), 0.5)  # it is not ready yet: only then silence counts
    watch.close()


@pytest.mark.parametrize(
    ("spares", "running", "after_s"),
    [(1, {"worker-0", "worker-2"}, 1.0), (1, {"worker-2"}, 0.0), (0, {"worker-0"}, 0.0), (0, set(), 0.0)],
)
def test_a_worker_whose_rank_a_spare_can_take_is_started_when_the_streams_flow_again(
    monkeypatch: pytest.MonkeyPatch, spares: int, running: set[str], after_s: float
) -> None:
    monkeypatch.setattr(Supervisor, "running", frozenset({"coordinator", *running}))
    parent = _Parent(configuration(spares=spares), ["cpu"] * (2 + spares), ["serve"], Path("token"), ())
    assert parent._restart_after_s() == after_s


def test_short_lives_make_the_pause_longer_and_a_long_one_ends_it() -> None:
    policy = RestartPolicy(healthy_after_s=10.0, first_delay_s=0.1, longest_delay_s=5.0)
    assert [policy.delay_s(1.0, failures) for failures in (0, 1, 2, 3, 20)] == [0.0, 0.1, 0.2, 0.4, 5.0]
    assert policy.delay_s(10.0, 20) == 0.0
