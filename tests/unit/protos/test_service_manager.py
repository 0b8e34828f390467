"""What systemd would receive, read from the socket that the environment names."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ryzanstein.service_manager import MOST_STATUS, ServiceManager


class Listener:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[list[str]]:
        """The lines of every message so far."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return messages

    def fill(self) -> None:
        """Until nothing more fits: a manager that is busy."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            name = self._socket.getsockname()
            while True:
                try:
                    sender.sendto(b"X", socket.MSG_DONTWAIT, name)
                except BlockingIOError:
                    return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    address = f"@ryzanstein-{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "notify")
    listener = Listener(address)
    yield listener
    listener.close()


@pytest.fixture
def manager(listener: Listener) -> Iterator[ServiceManager]:
    manager = ServiceManager(listener.address, watchdog_s=2.0)
    yield manager
    manager.close()


def test_the_life_of_a_service(manager: ServiceManager, listener: Listener) -> None:
    manager.status("starting")
    manager.ready("standby")
    manager.status("standby")
    manager.alive()
    manager.extend(1.5)
    manager.status("serving epoch 3")
    manager.stopping("draining", within_s=40)
    assert listener.heard() == [
        ["STATUS=starting"],
        ["READY=1", "STATUS=standby"],
        ["WATCHDOG=1"],
        ["EXTEND_TIMEOUT_USEC=1500000"],
        ["STATUS=serving epoch 3"],
        ["STOPPING=1", "EXTEND_TIMEOUT_USEC=40000000", "STATUS=draining"],
    ]


def test_a_status_is_one_line_of_bounded_length(manager: ServiceManager, listener: Listener) -> None:
    """Reasons come from elsewhere: none may add lines of its own."""
    manager.status("recovering: a peer said\nWATCHDOG=trigger\nMAINPID=1")
    manager.status("é" * 5000)
    first, second = listener.heard()
    assert first == ["STATUS=recovering: a peer said WATCHDOG=trigger MAINPID=1"]
    assert second == [f"STATUS={'é' * (MOST_STATUS - 1)}…"]


def test_what_a_busy_manager_did_not_take_comes_with_the_next_status(
    manager: ServiceManager, listener: Listener
) -> None:
    listener.fill()
    manager.ready("standby")
    manager.alive()
    manager.status("loading 1 %")
    manager.status("loading 2 %")
    listener.heard()
    manager.status("loading 2 %")
    manager.status("loading 2 %")
    assert listener.heard() == [["READY=1", "STATUS=loading 2 %"]]


def test_a_manager_that_is_gone_costs_nothing(manager: ServiceManager, listener: Listener) -> None:
    listener.close()
    manager.ready("standby")
    manager.alive()
    manager.stopping("draining", within_s=1)


def test_children_do_not_inherit_it() -> None:
    environment = {
        "NOTIFY_SOCKET": "@somewhere",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    manager = ServiceManager.from_environment(environment)
    assert manager.listens
    assert manager.watchdog_s == 3.0
    assert environment == {}


@pytest.mark.parametrize(
    "environment",
    [
        {"NOTIFY_SOCKET": "@somewhere"},
        {"NOTIFY_SOCKET": "@somewhere", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "@somewhere", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@somewhere", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "3000000"},
    ],
)
def test_there_is_no_watchdog_unless_it_is_this_process_s(environment: dict[str, str]) -> None:
    assert ServiceManager.from_environment(environment).watchdog_s is None


def test_without_a_manager_nothing_happens() -> None:
    manager = ServiceManager.from_environment({})
    assert not manager.listens
    manager.ready("standby")
    manager.alive()
    manager.stopping("draining", within_s=1)
