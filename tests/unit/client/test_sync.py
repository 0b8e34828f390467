"""The synchronous client: what threads and the missing event loop make different."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ryzanstein_client import (
    Client,
    CompletionStream,
    Disconnected,
    InvalidRequest,
    NotFound,
    RyzansteinError,
)

from .scripted_coordinator import CoordinatorThread, expected_tokens, text_of


def test_the_example_of_the_documentation_works(server: CoordinatorThread) -> None:
    with Client(server.address) as client:
        text = "".join(chunk.text for chunk in client.stream("The sky is", max_tokens=64, seed=7))
        completion = client.generate("2+2=", max_tokens=4, seed=7)
    assert text == text_of(expected_tokens(7, 64))
    assert completion.token_ids == tuple(expected_tokens(7, 4))


def test_every_call_works_without_an_event_loop(server: CoordinatorThread) -> None:
    with Client(server.address, api_key="k1") as client:
        assert [model.name for model in client.models()] == ["letters"]
        assert client.cluster()["epoch"] == 3
        assert client.tokenize("ab") == [97, 98]
        assert client.detokenize([97, 98]) == "ab"
        assert next(client.watch())["state"] == "serving"
        messages = [{"role": "user", "content": "hi"}]
        assert client.chat(messages, max_tokens=2, seed=1).text == text_of(expected_tokens(1, 2))
        stream = client.chat(messages, stream=True, max_tokens=2, seed=1)
        assert isinstance(stream, CompletionStream)
        assert "".join(chunk.text for chunk in stream) == text_of(expected_tokens(1, 2))
        with pytest.raises(NotFound):
            client.cancel("nobody")
        with pytest.raises(NotFound):
            client.drain("nobody")
    assert {metadata.get("authorization") for metadata in server.coordinator.metadata} == {"Bearer k1"}


def test_a_stream_survives_restarts_of_the_coordinator(server: CoordinatorThread) -> None:
    server.coordinator.restart_after(5, 17, 40)
    with Client(server.address) as client:
        assert client.generate("hello", max_tokens=60, seed=2).token_ids == tuple(expected_tokens(2, 60))
    assert server.coordinator.calls.count("Attach") >= 3


def test_several_threads_share_one_client(server: CoordinatorThread) -> None:
    server.coordinator.restart_after(20)
    with Client(server.address) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda s: client.generate("x", max_tokens=40, seed=s).token_ids, range(24)))
    assert answers == [tuple(expected_tokens(seed, 40)) for seed in range(24)]


def test_breaking_out_of_the_loop_cancels_the_request_on_the_server(server: CoordinatorThread) -> None:
    server.coordinator.token_limit = 3
    with Client(server.address) as client:
        for _ in client.stream("hello", request_id="left"):
            break
        server.wait_until(lambda: "left" in server.coordinator.cancelled)


def fail_while_reading(stream: CompletionStream) -> None:
    for _ in stream:
        raise KeyError


def test_an_exception_in_the_loop_cancels_the_request_on_the_server(server: CoordinatorThread) -> None:
    server.coordinator.token_limit = 3
    with Client(server.address) as client:
        with pytest.raises(KeyError):
            fail_while_reading(client.stream("hello", request_id="left"))
        server.wait_until(lambda: "left" in server.coordinator.cancelled)


def test_close_tells_the_server_at_once_and_only_once(server: CoordinatorThread) -> None:
    server.coordinator.token_limit = 3
    with Client(server.address) as client:
        with client.stream("hello", request_id="left") as stream:
            next(stream)
        stream.close()
        assert server.coordinator.cancelled == ["left"]
        with pytest.raises(StopIteration):
            next(stream)


def test_a_stream_in_a_reference_cycle_is_cancelled_when_it_is_collected(server: CoordinatorThread) -> None:
    server.coordinator.token_limit = 3
    with Client(server.address) as client:
        stream = client.stream("hello", request_id="left")
        next(stream)
        cycle: list[object] = [stream]
        cycle.append(cycle)
        del stream, cycle
        gc.collect()
        server.wait_until(lambda: "left" in server.coordinator.cancelled)


def test_a_client_that_is_dropped_without_being_closed_leaves_no_thread(server: CoordinatorThread) -> None:
    client = Client(server.address)
    client.generate("hello", max_tokens=1)
    thread = next(thread for thread in threading.enumerate() if thread.name == "ryzanstein-calls")
    del client
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_no_stream_begins_in_the_thread_that_ctrl_c_strikes(
    server: CoordinatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    began_in: list[threading.Thread] = []
    with Client(server.address) as client:
        connection = client._connection
        for stub, name in ((connection.inference(), "Generate"), (connection.operations(), "WatchCluster")):
            begin = getattr(stub, name)

            def recording(*args: Any, begin: Any = begin, **options: Any) -> Any:
                began_in.append(threading.current_thread())
                return begin(*args, **options)

            monkeypatch.setattr(stub, name, recording)
        client.generate("hello", max_tokens=2)
        assert next(client.watch())["state"] == "serving"
    assert len(began_in) == 2
    assert threading.main_thread() not in began_in


def test_a_channel_that_can_not_be_closed_keeps_nobody(
    server: CoordinatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ryzanstein_client.call_thread.LEAVE_TIMEOUT_S", 0.05)
    released = threading.Event()
    client = Client(server.address)
    client.generate("hello", max_tokens=2)
    channel = client._connection._channel
    close = channel.close
    monkeypatch.setattr(channel, "close", lambda: released.wait(60) and close())
    begun_s = time.monotonic()
    client.close()
    assert time.monotonic() - begun_s < 10
    released.set()


def test_who_begins_a_stream_while_another_thread_closes_the_client_is_told(
    server: CoordinatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ryzanstein_client.call_thread._LOOK_S", 0.01)
    client = Client(server.address)
    client.generate("hello", max_tokens=2)
    connection = client._connection
    client.close()
    connection._closed = False  # as it was when the other thread looked
    with pytest.raises(InvalidRequest, match="closed"):
        client.generate("hello", max_tokens=2)


def test_a_closed_client_says_so(server: CoordinatorThread) -> None:
    client = Client(server.address)
    client.close()
    client.close()
    with pytest.raises(InvalidRequest, match="closed"):
        client.models()
    with pytest.raises(InvalidRequest, match="closed"):
        client.generate("hello")


def test_closing_the_client_cancels_the_streams_that_are_still_open(server: CoordinatorThread) -> None:
    server.coordinator.token_limit = 3
    with Client(server.address) as client:
        stream = client.stream("hello", request_id="open")
        next(stream)
    assert server.coordinator.cancelled == ["open"]
    with pytest.raises(StopIteration):
        next(stream)


def test_a_coordinator_that_is_not_there_is_an_error(server: CoordinatorThread) -> None:
    server.do(server.coordinator.stop())
    with Client(server.address, connect_timeout_s=0.1) as client, pytest.raises(Disconnected) as caught:
        client.models()
    assert isinstance(caught.value, RyzansteinError)
    assert (caught.value.code, caught.value.exit_code) == ("UNAVAILABLE", 69)


def test_a_coordinator_that_comes_back_is_found_without_the_pause_of_five_seconds(
    server: CoordinatorThread,
) -> None:
    server.do(server.coordinator.stop())
    with Client(server.address, connect_timeout_s=2.5) as client:
        with pytest.raises(Disconnected):
            client.models()
        server.do(server.coordinator.start())
        assert [model.name for model in client.models()] == ["letters"]


PROGRAM = """
import sys
from ryzanstein_client import Client
client = Client(sys.argv[1])
for chunk in client.stream("hello", request_id="left"):
    print(chunk.text, flush=True)
    if sys.argv[2] == "break":
        break
"""


@pytest.mark.parametrize("way", ["break", "interrupt"])
def test_a_program_that_ends_in_mid_stream_cancels_its_request(server: CoordinatorThread, way: str) -> None:
    server.coordinator.token_limit = 1
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.address, way],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline(), process.stderr.read()
    if way == "interrupt":
        process.send_signal(signal.SIGINT)
    process.wait(10)
    process.stdout.close()
    process.stderr.close()
    server.wait_until(lambda: "left" in server.coordinator.cancelled)
