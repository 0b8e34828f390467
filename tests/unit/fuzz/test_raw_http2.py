"""What the fuzz reads of an answer: the status and its message, however long it is and however it arrives."""

from __future__ import annotations

import pytest

from tests.fuzz.raw_http2 import frame, head, status_in

_SETTINGS, _HEADERS, _END = 4, 1, 5


def answer(message: str) -> bytes:
    fields = {"grpc_status": "13"} | ({"grpc_message": message} if message else {})
    return frame(_SETTINGS, 0, 0, b"") + frame(_HEADERS, _END, 1, head("/", **fields))


@pytest.mark.parametrize("length", [0, 10, 126, 127, 170, 255, 300, 5000])
def test_a_message_is_read_whatever_its_length(length: int) -> None:
    message = "Failed parsing HTTP/2".ljust(length, "x")[:length]
    assert status_in(answer(message)) == (b"13", message.encode())


def test_half_of_an_answer_is_waited_for() -> None:
    whole = answer("Failed parsing HTTP/2 (Invalid HPACK index)")
    assert [status_in(whole[:end]) for end in range(len(whole))] == [None] * len(whole)
    assert status_in(whole + b"more") is not None


def test_what_is_no_http2_has_no_status() -> None:
    assert status_in(b"HTTP/1.1 400 Bad Request\r\n\r\n") is None
