"""When all is known of a recovery, and when the log tells of it: once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from ryzanstein_coordinator import events
from ryzanstein_coordinator.change_log import log_changes
from ryzanstein_coordinator.events import Event

from .cluster_builders import configuration
from .simulated_cluster import SimulatedCluster
from .test_control_plane import forms_again, recovery_of


class Logged(SimulatedCluster):
    """Writes the log as the coordinator does."""

    def _send(self, event: Event) -> None:
        before = self.state
        super()._send(event)
        log_changes(before, self.state)


class Recovered:
    """A group that has just formed again, and what the log says of it."""

    def __init__(self, logs: list[Any]) -> None:
        self._logs = logs
        self.cluster = Logged(configuration(spares=2))
        self.cluster.start("w0", "w1", "w2", "w3")
        assert self.cluster.run_until(lambda: self.cluster.all_serve, 5.0)
        self.cluster.run_for(2.0)
        self.break_again()

    def break_again(self) -> None:
        epoch = self.cluster.ready["g0"]
        self.cluster.kill(self.cluster.members()[1], seen_after_s=0.001)
        assert forms_again(self.cluster, epoch)
        self.epoch = self.cluster.ready["g0"]

    def resumed(self, count: int) -> None:
        self.cluster.send(events.RequestsResumed("g0", self.epoch, count))

    def first_token(self) -> None:
        self.cluster.send(events.FirstToken("g0", self.epoch, self.cluster.now_s))

    def gone(self) -> None:
        self.cluster.send(events.ResumedGone("g0", self.epoch))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [line for line in self._logs if line["event"] == "recovery"]


@pytest.fixture
def recovered() -> Iterator[Recovered]:
    with capture_logs() as logs:
        yield Recovered(logs)


def test_it_is_told_with_the_first_token_of_those_who_waited(recovered: Recovered) -> None:
    recovered.resumed(3)
    assert not recovered.lines
    recovered.first_token()
    (line,) = recovered.lines
    assert line["requests_resumed"] == 3
    assert line["reformed_s"] <= line["first_token_s"]
    recovered.cluster.run_for(5.0)
    assert len(recovered.lines) == 1


def test_it_is_told_when_all_who_waited_have_gone_and_later_callers_tokens_are_no_part_of_it(
    recovered: Recovered,
) -> None:
    recovered.resumed(3)
    recovered.gone()
    (line,) = recovered.lines
    assert (line["requests_resumed"], line["first_token_s"]) == (3, None)
    recovered.cluster.run_for(60.0)
    recovered.first_token()
    assert recovery_of(recovered.cluster).first_token_at_s is None
    assert len(recovered.lines) == 1


def test_it_is_told_in_time_though_the_first_token_takes_long(recovered: Recovered) -> None:
    recovered.resumed(3)
    recovered.cluster.run_for(2.2)
    (line,) = recovered.lines
    assert line["first_token_s"] is None
    recovered.first_token()
    assert recovery_of(recovered.cluster).first_token_at_s == recovered.cluster.now_s, "/cluster tells it"
    assert len(recovered.lines) == 1


def test_it_is_told_though_the_router_says_nothing(recovered: Recovered) -> None:
    recovered.cluster.run_for(2.2)
    assert len(recovered.lines) == 1


def test_it_is_told_before_the_next_one_begins_and_before_the_server_stops(recovered: Recovered) -> None:
    first = recovered.epoch
    recovered.resumed(3)
    recovered.break_again()
    assert [line["epoch"] for line in recovered.lines] == [first]
    recovered.cluster.send(events.DrainCluster())
    assert [line["epoch"] for line in recovered.lines] == [first, recovered.epoch]
