"""The commands as processes: pipes that close, terminals, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.unit.client.scripted_coordinator import CoordinatorThread, expected_tokens, text_of

from .terminal import Terminal

RYZANSTEIN = [sys.executable, "-m", "ryzanstein_client.cli.main"]
OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def terminal() -> Iterator[OpenTerminal]:
    opened: list[Terminal] = []

    def open_terminal(*words: str, **environment: str) -> Terminal:
        opened.append(Terminal(words, environment))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


def test_a_reader_that_goes_away_ends_the_command_quietly_and_the_request_too(
    server: CoordinatorThread,
) -> None:
    words = [
        "generate",
        "hello",
        "--max-tokens",
        "100000",
        "--request-id",
        "r",
        "--coordinator",
        server.address,
    ]
    process = subprocess.Popen(
        [*RYZANSTEIN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(5) == text_of(expected_tokens(4711, 5))
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(20) == 0
    process.stderr.close()
    server.wait_until(lambda: "r" in server.coordinator.cancelled)


def test_a_table_whose_reader_goes_away_ends_quietly_too(server: CoordinatorThread) -> None:
    words = ["top", "--interval", "0.05", "--coordinator", server.address]
    process = subprocess.Popen(
        [*RYZANSTEIN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("no model  serving")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(20) == 0
    process.stderr.close()


def test_a_watched_status_is_a_line_of_json_per_change_and_ends_with_control_c(
    server: CoordinatorThread,
) -> None:
    words = ["status", "--watch", "--json", "--coordinator", server.address]
    process = subprocess.Popen(
        [*RYZANSTEIN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["state"] == "serving"

    async def change() -> None:
        server.coordinator.snapshot.state = "recovering"
        server.coordinator.snapshot.revision = 2
        await server.coordinator.release(1)

    server.do(change())
    assert json.loads(process.stdout.readline())["state"] == "recovering"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stderr.read() == ""
    process.stdout.close()
    process.stderr.close()


def test_generate_shows_tokens_as_they_come_and_control_c_cancels_the_request(
    server: CoordinatorThread, terminal: OpenTerminal
) -> None:
    server.coordinator.token_limit = 3
    shown = terminal("generate", "hello", "--request-id", "r", "--coordinator", server.address)
    shown.expect(text_of(expected_tokens(4711, 3)))
    shown.press_control_c()
    assert shown.wait() == 130
    assert "Traceback" not in shown.text
    server.wait_until(lambda: "r" in server.coordinator.cancelled)


def test_a_lost_connection_is_told_and_bridged(server: CoordinatorThread, terminal: OpenTerminal) -> None:
    server.coordinator.restart_after(10)
    words = ("generate", "hello", "--max-tokens", "20", "--seed", "5", "--coordinator", server.address)
    shown = terminal(*words)
    assert shown.wait() == 0
    assert "trying again" in shown.text
    letters = "".join(line for line in shown.text.splitlines() if "trying again" not in line)
    assert text_of(expected_tokens(5, 20))[-5:] in letters


def test_in_a_chat_control_c_stops_the_answer_and_the_conversation_goes_on(
    server: CoordinatorThread, terminal: OpenTerminal
) -> None:
    server.coordinator.token_limit = 3
    shown = terminal("chat", "--seed", "5", "--coordinator", server.address)
    shown.expect("letters (Ctrl-D leaves)")
    shown.expect("> ")
    shown.type("hi\n")
    shown.expect(text_of(expected_tokens(5, 3)))
    shown.press_control_c()
    shown.expect("(stopped)")
    server.wait_until(lambda: len(server.coordinator.cancelled) == 1)
    shown.expect("> ")
    shown.type("again\n")
    shown.expect(text_of(expected_tokens(5, 3)))
    request = list(server.coordinator.records.values())[-1].request
    assert [message.content for message in request.chat.messages] == [
        "hi",
        text_of(expected_tokens(5, 3)),
        "again",
    ]
    shown.press_control_c()
    shown.expect("> ")
    shown.press_control_c_at_prompt()
    assert shown.wait() == 0
    assert "Traceback" not in shown.text


def test_an_idle_chat_ends_with_the_second_control_c_or_with_control_d(
    server: CoordinatorThread, terminal: OpenTerminal
) -> None:
    shown = terminal("chat", "--coordinator", server.address)
    shown.expect("> ")
    shown.press_control_c_at_prompt()
    shown.expect("(Ctrl-C again, or Ctrl-D, leaves)")
    shown.expect("> ")
    shown.press_control_c_at_prompt()
    assert shown.wait() == 0
    other = terminal("chat", "--coordinator", server.address)
    other.expect("> ")
    other.press_control_d()
    assert other.wait() == 0


def test_an_interactive_chat_survives_a_message_that_is_refused(
    server: CoordinatorThread, terminal: OpenTerminal
) -> None:
    shown = terminal("chat", "--temperature", "3", "--coordinator", server.address)
    shown.expect("> ")
    shown.type("hi\n")
    shown.expect("error: temperature is 3; it must be in [0, 2]")
    shown.expect("> ")
    shown.press_control_d()
    assert shown.wait() == 0


def test_top_shows_changes_in_place_and_goes_on_without_a_coordinator_until_control_c(
    server: CoordinatorThread, terminal: OpenTerminal
) -> None:
    shown = terminal("top", "--interval", "0.05", "--coordinator", server.address)
    shown.expect("serving")
    server.coordinator.snapshot.state = "degraded"
    shown.expect("degraded")
    server.do(server.coordinator.stop())
    shown.expect("can't reach the coordinator")
    server.do(server.coordinator.start())
    shown.expect("degraded")
    shown.press_control_c()
    assert shown.wait() == 0


def test_no_color_is_respected(server: CoordinatorThread, terminal: OpenTerminal) -> None:
    colored = terminal("status", "--coordinator", server.address)
    plain = terminal("status", "--coordinator", server.address, NO_COLOR="1")
    assert (colored.wait(), plain.wait()) == (0, 0)
    assert "\x1b[32mserving" in colored.raw
    assert "\x1b[3" not in plain.raw
    assert plain.text.startswith("no model  serving  epoch 3")
