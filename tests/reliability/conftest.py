"""A cluster with a spare and failpoints, and streams that never stop, for the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.harness import BUNDLED_MODEL, Cluster

from .chaos import wait_for_spares
from .faults import Failpoints
from .traffic import Traffic, sampled_requests

STREAMS = 12


@dataclass(frozen=True, slots=True)
class Scene:
    """What a test breaks. Every test leaves it whole."""

    cluster: Cluster
    failpoints: Failpoints
    traffic: Traffic
    spares: int

    def whole(self) -> None:
        """Until all ranks and spares are there and every stream flows; no token was wrong."""
        wait_for_spares(self.cluster, self.spares)
        self.traffic.wait_for_flow()
        assert not self.traffic.failures, self.traffic.failures

    def recovered(self, epoch: int) -> dict[str, Any]:
        """Until tokens of an epoch after `epoch` have come; what /cluster says of the last recovery."""
        snapshot = self.cluster.wait_for(
            lambda s: (
                s["state"] in ("serving", "degraded")
                and s["epoch"] > epoch
                and s["last_recovery"] is not None
                and s["last_recovery"]["first_token_s"] is not None
            ),
            f"an epoch after {epoch} brings tokens",
        )
        recovery: dict[str, Any] = snapshot["last_recovery"]
        return recovery

    @property
    def epoch(self) -> int:
        return int(self.cluster.snapshot()["epoch"])

    def worker(self, rank: int) -> dict[str, Any]:
        return self.cluster.workers()[rank]

    def spare(self) -> dict[str, Any]:
        standby = [w for w in self.cluster.snapshot()["workers"] if w["state"] == "standby"]
        assert standby, "there is no spare"
        return dict(standby[0])


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two ranks and a spare, as the bundled model comes: bfloat16."""
    failpoints = Failpoints(tmp_path_factory.mktemp("failpoints"))
    state_dir = tmp_path_factory.mktemp("state")
    requests = sampled_requests(STREAMS + 6, seed=5, vocab_size=1003, tokens=160)
    with Cluster(state_dir, BUNDLED_MODEL, "--spares", "1", failpoints=failpoints.directory) as cluster:
        cluster.ready()
        wait_for_spares(cluster, 1)
        with Traffic(cluster.grpc, requests, streams=STREAMS) as traffic:
            yield Scene(cluster, failpoints, traffic, spares=1)
        assert not traffic.failures, traffic.failures
        assert traffic.finished > STREAMS, "hardly any request was compared to its end"


@pytest.fixture
def scene(shared_scene: Scene) -> Iterator[Scene]:
    """The shared one, whole before the test and after it."""
    shared_scene.failpoints.clear()
    shared_scene.whole()
    yield shared_scene
    shared_scene.failpoints.clear()
    shared_scene.whole()
