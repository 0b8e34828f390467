"""Clusters with failpoints and streams that never stop, for all tests of this folder: a start costs seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import BUNDLED_MODEL, Cluster

from .chaos import wait_for_spares
from .faults import Failpoints
from .traffic import Traffic, sampled_requests

STREAMS = 12
#: Long enough for a busy machine, and a test need not wait for long.
COLLECTIVE_TIMEOUT_S = 2.0


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

    @contextmanager
    def used(self) -> Iterator[Scene]:
        """Whole before the test and after it; its streams rest while other tests have the processors."""
        self.failpoints.clear()
        self.traffic.go_on()
        self.whole()
        yield self
        self.failpoints.clear()
        self.whole()


@contextmanager
def set_up(
    directories: pytest.TempPathFactory, *flags: str, spares: int, streams: int, seed: int
) -> Iterator[Scene]:
    """Two ranks, as the bundled model comes: bfloat16. Compares every token with those before the first fault."""
    failpoints = Failpoints(directories.mktemp("failpoints"))
    requests = sampled_requests(streams + 6, seed=seed, vocab_size=1003, tokens=160)
    flags = ("--spares", str(spares), *flags)
    with Cluster(
        directories.mktemp("state"), BUNDLED_MODEL, *flags, failpoints=failpoints.directory
    ) as cluster:
        cluster.ready()
        wait_for_spares(cluster, spares)
        with Traffic(cluster.grpc, requests, streams=streams) as traffic:
            yield Scene(cluster, failpoints, traffic, spares=spares)
            traffic.go_on()
        assert not traffic.failures, traffic.failures
        assert traffic.finished > streams, "hardly any request was compared to its end"


class Stage:
    """The clusters that were set up. The streams of one flow while its tests run; those of the others rest."""

    def __init__(self) -> None:
        self.scenes: dict[str, Scene] = {}

    def let_flow(self, wanted: str) -> None:
        for name, scene in self.scenes.items():
            if name != wanted:
                scene.traffic.pause()


#: What a test asks for → whose streams flow during it.
_SCENES = {"scene": "shared_scene", "scene_without_spare": "shared_scene_without_spare"}


def _scene_of(names: Sequence[str]) -> str:
    return next((shared for asked, shared in _SCENES.items() if asked in names), "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one cluster stand together, so that streams need not rest and flow again all the time."""
    places = [place for place, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    order = [*_SCENES.values(), ""]
    ours = [items[place] for place in places]
    ours.sort(key=lambda item: order.index(_scene_of(getattr(item, "fixturenames", ()))))
    for place, item in zip(places, ours, strict=True):
        items[place] = item


@pytest.fixture(scope="package")
def stage() -> Stage:
    return Stage()


@pytest.fixture(autouse=True)
def _others_rest(stage: Stage, request: pytest.FixtureRequest) -> None:
    stage.let_flow(_scene_of(request.fixturenames))


@pytest.fixture(scope="package")
def shared_scene(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two ranks and a spare that don't wait long for each other."""
    flags = ("--collective-timeout", str(COLLECTIVE_TIMEOUT_S))
    with set_up(tmp_path_factory, *flags, spares=1, streams=STREAMS, seed=5) as scene:
        stage.scenes["shared_scene"] = scene
        yield scene


@pytest.fixture(scope="package")
def shared_scene_without_spare(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two ranks that are soon taken to be stuck, and nobody else."""
    with set_up(tmp_path_factory, "--progress-deadline", "2", spares=0, streams=6, seed=16) as scene:
        stage.scenes["shared_scene_without_spare"] = scene
        yield scene


@pytest.fixture
def scene(shared_scene: Scene) -> Iterator[Scene]:
    with shared_scene.used() as scene:
        yield scene


@pytest.fixture
def scene_without_spare(shared_scene_without_spare: Scene) -> Iterator[Scene]:
    with shared_scene_without_spare.used() as scene:
        yield scene


@pytest.fixture
def quiet(scene: Scene) -> Iterator[Scene]:
    """No streams for the time of the test."""
    scene.traffic.pause()
    yield scene
    scene.failpoints.clear()
    scene.traffic.go_on()
