"""Logs: events with fields, on standard error, one JSON object per line when nobody watches."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from ryzanstein.logs import ChangeLog, configure_logging, request_context
from ryzanstein.settings import SettingsError


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, before = list(root.handlers), root.level, structlog.get_config()
    yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_line_is_json_with_the_fields_of_process_task_and_event(capsys: pytest.CaptureFixture[str]) -> None:
    context = configure_logging(worker_id="w0")
    context.bind(rank=1, epoch=7)
    with request_context(request_id="r1"):
        structlog.get_logger().info("admitted", prompt_tokens=12)
    context.bind(rank=None)
    structlog.get_logger().warning("left", epoch=8)
    first, second = lines(capsys)
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "admitted",
        "level": "info",
        "worker_id": "w0",
        "rank": 1,
        "epoch": 7,
        "request_id": "r1",
        "prompt_tokens": 12,
    }
    assert second["epoch"] == 8  # what a line says itself wins
    assert "rank" not in second
    assert "request_id" not in second


def test_the_fields_of_the_process_are_in_the_lines_of_every_thread(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging().bind(rank=3)
    thread = threading.Thread(target=lambda: structlog.get_logger().info("stepped"))
    thread.start()
    thread.join()
    assert lines(capsys)[0]["rank"] == 3


def test_lines_of_the_standard_library_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(rank=2)
    logging.getLogger("somebody").warning("lost %s", "it", extra={"tokens": 3})
    logging.getLogger("asyncio").info("too chatty")
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["rank"], line["tokens"]) == ("lost it", "warning", 2, 3)


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="warning")
    structlog.get_logger().info("no")
    logging.getLogger("somebody").info("no")
    structlog.get_logger().error("yes")
    assert [line["event"] for line in lines(capsys)] == ["yes"]


def test_an_unknown_level_or_format_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="--log-level: 'loud' is not one of debug, info"):
        configure_logging(level="loud")
    with pytest.raises(SettingsError, match="--log-format: 'xml' is not one of auto, json, console"):
        configure_logging("xml")


def test_an_exception_is_a_field_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    try:
        raise KeyError("x")
    except KeyError:
        structlog.get_logger().exception("failed")
    (line,) = lines(capsys)
    assert "KeyError: 'x'" in line["exception"]


def test_text_for_people_has_no_colour_outside_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", rank=1)
    structlog.get_logger().info("formed", epoch=4)
    text = capsys.readouterr().err
    assert "formed" in text
    assert "epoch=4" in text
    assert "rank=1" in text
    assert "\x1b" not in text


def test_a_line_for_people_begins_with_the_time_and_who_speaks_and_leaves_out_what_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("console", service="shard-worker").bind(rank=1, epoch=4)
    structlog.get_logger().warning("step_failed", reason=None, kind="collective", request_id="a1")
    logging.getLogger("somebody").error("broken")
    first, second = capsys.readouterr().err.splitlines()
    fields = "service=shard-worker rank=1 epoch=4 request_id=a1 kind=collective"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d\.\d{{3}} \[warning\] step_failed +{fields}", first)
    assert re.fullmatch(r"\S+ \[error\] broken +service=shard-worker rank=1 epoch=4", second)


def test_json_is_asked_for_by_name_and_its_fields_have_an_order(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", service="coordinator")
    structlog.get_logger().info("worker", state="lost", rank=1, worker="w1", epoch=4)
    (line,) = lines(capsys)
    assert list(line) == ["timestamp", "level", "event", "service", "worker", "rank", "epoch", "state"]


def test_a_change_log_writes_a_line_when_something_changed_and_not_on_every_tick(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging()
    changes = ChangeLog(structlog.get_logger())
    assert changes.info("worker", key="w0", state="active")
    assert not changes.info("worker", key="w0", state="active")
    assert changes.info("worker", key="w1", state="active")
    assert changes.info("worker", key="w0", state="lost")
    changes.forget("w0")
    assert changes.info("worker", key="w0", state="lost")
    assert [line["state"] for line in lines(capsys)] == ["active", "active", "lost", "lost"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_line_that_can_not_be_written_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        configure_logging()
        structlog.get_logger().error("lost")
        monkeypatch.undo()
        with contextlib.suppress(OSError):  # what it holds back can't be written either
            full.close()


def test_strangers_calls_leave_no_lines_of_grpcs_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")  # as importing grpc sets it
    configure_logging()
    assert os.environ["GRPC_VERBOSITY"] == "NONE"
    grpcs = logging.getLogger("grpc._cython.cygrpc")
    grpcs.error("ExecuteBatchError raised in core by servicer method [%s]", "/a/b")
    grpcs.error("Unexpected [%s] raised by servicer method [%s]", "KeyError", "/a/b")
    assert [line["event"] for line in lines(capsys)] == [
        "Unexpected [KeyError] raised by servicer method [/a/b]"
    ]


def test_who_asks_for_grpcs_lines_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    configure_logging()
    assert os.environ["GRPC_VERBOSITY"] == "DEBUG"
