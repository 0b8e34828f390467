"""Under a real systemd, with streams that never stop: each of their tokens is compared with an undisturbed answer's."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator

import pytest

from .machine import BootError, Machine, missing
from .services import COORDINATOR, INSTALL, WORKERS, Services, installed

pytestmark = pytest.mark.skipif(bool(reason := missing()), reason=reason)

ALL = (COORDINATOR, *WORKERS)


@pytest.fixture(scope="module")
def shared_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    directory = tmp_path_factory.mktemp("machine")
    try:
        machine = Machine(directory)
    except BootError as error:
        pytest.skip(f"no systemd of its own can be started here: {error}")
    with machine, installed(machine, directory) as services:
        yield services


@pytest.fixture
def services(shared_services: Services) -> Services:
    """Whole before every test."""
    shared_services.whole()
    return shared_services


def test_it_starts_in_order_and_says_what_it_does(services: Services) -> None:
    machine = services.machine
    ready = int(machine.property(COORDINATOR, "ActiveEnterTimestampMonotonic"))
    for worker in WORKERS:
        assert int(machine.property(worker, "ExecMainStartTimestampMonotonic")) >= ready > 0
        assert machine.property(worker, "User") == "ryzanstein-worker"
    assert [services.restarts(unit) for unit in ALL] == [0, 0, 0, 0]
    epoch = services.cluster()["epoch"]
    assert machine.property(COORDINATOR, "StatusText") == f"serving epoch {epoch}"
    assert machine.property(services.unit_of(rank=1), "StatusText") == f"serving epoch {epoch} as rank 1 of 2"
    assert machine.property(services.unit_of(rank=None), "StatusText") == "standby: loaded"
    journal = machine.journal()
    assert '"backend": "shared_memory"' in journal
    assert "peer_not_watched" not in journal, "the sandbox keeps ranks from seeing each other die"
    assert services.key not in journal + machine.run("ps", "axww").stdout


@pytest.mark.parametrize("fault", ["hung", "out of memory"])
def test_services_come_back_and_streams_go_on(services: Services, fault: str) -> None:
    """The coordinator and a rank at once."""
    machine = services.machine
    rank = services.unit_of(rank=1)
    victims = (COORDINATOR, rank)
    survivors = [unit for unit in WORKERS if unit != rank]
    before = [services.restarts(unit) for unit in victims]
    kept = [machine.property(unit, "MainPID") for unit in survivors]
    if fault == "out of memory":  # which is a SIGKILL by the kernel
        for unit in victims:
            machine.systemctl("set-property", "--runtime", unit, "MemoryMax=400M", "MemorySwapMax=0")
        services.arm("step.decode", services.worker_id(rank), "hold 0.5")
        services.arm("request.recorded", "coordinator", "hold 0.5")
    else:
        for unit in victims:
            machine.signal(unit, signal.SIGSTOP)

    def started_again() -> bool:
        return all(services.restarts(unit) > count for unit, count in zip(victims, before, strict=True))

    machine.wait_for(started_again, "both are started again")
    services.whole()
    assert [services.restarts(unit) for unit in victims] == [count + 1 for count in before]
    assert [machine.property(unit, "MainPID") for unit in survivors] == kept, "the others keep what they hold"
    for unit in victims:
        # The kernel tells systemd what it killed for memory in the unified hierarchy of control groups only.
        signs = "Watchdog timeout" if fault == "hung" else "9/KILL|oom-kill"
        told = [line for line in machine.journal(unit).splitlines() if not line.startswith("{")]
        assert re.search(signs, "\n".join(told)), told


def test_a_bad_configuration_is_not_started_again(services: Services) -> None:
    machine = services.machine
    unit = "ryzanstein-shard-worker@7.service"
    machine.write("/etc/ryzanstein/shard-worker@7.env", "RYZANSTEIN_PORT=99999\n")
    machine.run("systemctl", "start", unit, check=False)
    assert machine.property(unit, "Result") == "exit-code"
    assert machine.property(unit, "ExecMainStatus") == "2"
    time.sleep(1.5)  # longer than RestartSec=
    assert services.restarts(unit) == 0
    assert machine.property(unit, "ActiveState") == "failed"
    assert "--port: 99999 is not in 0..65535" in machine.journal(unit)


def test_a_rolling_restart_under_load_loses_nothing(services: Services) -> None:
    machine = services.machine
    before = {unit: machine.property(unit, "MainPID") for unit in ALL}
    finished, journal = services.traffic.finished, len(machine.journal(COORDINATOR))
    said = machine.run(
        "/opt/ryzanstein/rolling_restart.py", "--coordinator", services.grpc, timeout_s=100
    ).stdout
    assert [line.split()[1] for line in said.splitlines()][-1] == COORDINATOR
    assert sorted(line.split()[1] for line in said.splitlines()) == sorted(ALL)
    after = {unit: machine.property(unit, "MainPID") for unit in ALL}
    assert all(before[unit] != after[unit] for unit in ALL)
    services.whole()
    assert services.traffic.finished > finished
    told = machine.journal(COORDINATOR)[journal:]
    assert told.count("is drained") >= 2, told
    assert "heartbeat stream broke" not in told, "ranks are handed over, not lost"


def test_stopping_everything_lets_a_running_stream_end(services: Services) -> None:
    """The last one: nothing runs behind it but the removal."""
    machine = services.machine
    services.pause()
    with services.client() as client:
        expected = client.generate([7, 8, 9], max_tokens=400, temperature=0, ignore_eos=True).token_ids
        tokens: list[int] = []
        stopping = None
        for chunk in client.stream([7, 8, 9], max_tokens=400, temperature=0, ignore_eos=True):
            tokens += chunk.token_ids
            if stopping is None:
                stopping = machine.start("systemctl", "stop", "ryzanstein.target", *ALL)
        assert tuple(tokens) == tuple(expected)
        assert stopping is not None
        said, _ = stopping.communicate(timeout=30)
        assert stopping.returncode == 0, said
    ends = {unit: [machine.property(unit, name) for name in ("ActiveState", "Result")] for unit in ALL}
    assert all(end == ["inactive", "success"] for end in ends.values()), (ends, machine.journal()[-8000:])
    machine.run(INSTALL, "uninstall", "--purge")
    left = machine.run(
        "find",
        "/etc/systemd/system",
        "/etc/ryzanstein",
        "/opt/ryzanstein",
        "/var/lib/ryzanstein",
        check=False,
    )
    assert "ryzanstein" not in left.stdout.replace("90-test.conf", "").replace(".service.d", ""), left.stdout
