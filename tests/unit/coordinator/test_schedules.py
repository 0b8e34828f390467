"""Random faults in random moments, from a seed: nothing that must never happen happens, and when the faults are over
the group serves again, with all its ranks. `RYZANSTEIN_SCHEDULES` runs more of them; a failure names its seed.
"""

from __future__ import annotations

import os
import random
from functools import partial

import pytest

from ryzanstein_coordinator import events
from ryzanstein_coordinator.state import ClusterState

from .cluster_builders import configuration
from .simulated_cluster import SimulatedCluster

SCHEDULES = int(os.environ.get("RYZANSTEIN_SCHEDULES", "60"))
_BATCH = 20


def shaken(seed: int) -> SimulatedCluster:
    """A cluster of a random shape to which a dozen things happen, and then nothing more."""
    rng = random.Random(seed)
    config = configuration(
        tensor_parallel_size=rng.choice([1, 2, 4]),
        data_parallel_size=rng.choice([1, 1, 2]),
        spares=rng.randrange(3),
        progress_deadline_s=3.0,
        replacement_wait_s=rng.choice([0.0, 5.0]),
    )
    cluster = SimulatedCluster(config, seed)
    names = [f"w{i}" for i in range(config.worker_count)]
    rng.shuffle(names)
    cluster.start(*names)
    cluster.run_for(rng.uniform(0.0, 4.0))
    for _ in range(rng.randrange(1, 13)):
        process = cluster.processes[rng.choice(names)]
        match rng.choice(["kill", "kill", "stop", "stick", "drain", "disk", "restart", "pause"]):
            case "kill" if process.alive:
                cluster.kill(process.worker_id)
                if rng.random() < 0.8:
                    cluster.start(process.worker_id)
            case "restart" if not process.alive:
                cluster.start(process.worker_id)
            case "stop" if process.alive:
                if process.stopped:
                    cluster.resume(process.worker_id)
                else:
                    cluster.stop(process.worker_id)
            case "stick" if process.serving:
                cluster.stick(process.worker_id)
            case "drain" if process.worker_id in cluster.state.workers:
                cluster.send(events.DrainWorker(process.worker_id))
            case "disk":
                cluster.disk_works = not cluster.disk_works
            case "pause":
                cluster.pause(rng.uniform(0.0, 3.0))
        cluster.run_for(rng.choice([0.0, 0.01, 0.05, 0.3, 1.5]))
    return cluster


def healed(cluster: SimulatedCluster) -> SimulatedCluster:
    """Everything works again and every worker has a process."""
    cluster.disk_works = True
    for worker_id, process in list(cluster.processes.items()):
        if process.stopped and process.alive:
            cluster.resume(worker_id)
        if not process.alive:
            cluster.start(worker_id)
    return cluster


def restart_the_drained(cluster: SimulatedCluster) -> None:
    """What a supervisor does: a process that ended is started again."""
    for worker_id, process in list(cluster.processes.items()):
        if not process.alive:
            cluster.start(worker_id)


def serves(cluster: SimulatedCluster) -> bool:
    return cluster.all_serve and cluster.control.monitor.readiness(cluster.now_s, cluster.state)[0]


def is_whole(cluster: SimulatedCluster) -> bool:
    return serves(cluster) and not any(group.is_short for group in cluster.state.groups)


@pytest.mark.parametrize("batch", range(SCHEDULES // _BATCH))
def test_whatever_happens_the_cluster_serves_again(batch: int) -> None:
    for seed in range(batch * _BATCH, (batch + 1) * _BATCH):
        cluster = healed(shaken(seed))
        for _ in range(3):
            cluster.run_for(5.0)
            restart_the_drained(cluster)
        assert cluster.run_until(partial(serves, cluster), 30.0), report(seed, cluster.state)
        assert cluster.run_until(partial(is_whole, cluster), 300.0), report(seed, cluster.state)
        before = cluster.actions
        cluster.run_for(10.0)
        assert is_whole(cluster), report(seed, cluster.state)
        assert cluster.actions - before < 200, f"seed {seed}: it spins"


def report(seed: int, state: ClusterState) -> str:
    lines = [f"seed {seed}"]
    lines += [f"{g.group_id} {g.phase} epoch {g.epoch}: {g.reason}" for g in state.groups]
    lines += [str(record) for record in state.workers.values()]
    return "\n".join(lines)


def test_a_schedule_is_repeated_exactly_by_its_seed() -> None:
    first, second = shaken(7), shaken(7)
    assert first.state == second.state
    assert first.history == second.history
