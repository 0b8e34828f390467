"""What a recovery is said to be about, and what counts as a failure, when one thing follows from another."""

from __future__ import annotations

import pytest

from ryzanstein_coordinator.group_record import Cause
from ryzanstein_coordinator.worker_record import FaultReport

from .simulated_cluster import SimulatedCluster
from .test_control_plane import forms_again, recovery_of, serving


def report(cluster: SimulatedCluster, rank: int, kind: str) -> str:
    """This rank leaves and says why; returns its worker's id."""
    process = cluster.processes[cluster.members()[rank]]
    process.fault = FaultReport(kind=kind, message="it says so", epoch=cluster.state.groups[0].epoch)
    process.inside, process.serving = None, False
    cluster._report(process)
    return process.worker_id


@pytest.mark.parametrize(("kind", "left"), [("memory", 1), ("engine", 1)])
def test_a_death_takes_back_the_failure_that_it_explains_and_no_other(kind: str, left: int) -> None:
    """After an engine's failure a moment ago: of those that may repeat only."""
    cluster = serving(spares=2)
    epoch = cluster.ready["g0"]
    report(cluster, 1, "engine")
    assert forms_again(cluster, epoch)
    assert cluster.state.groups[0].failures == 1
    other = cluster.members()[1]
    report(cluster, 0, kind)
    assert cluster.state.groups[0].recovering
    cluster.kill(other, seen_after_s=0.0)
    assert cluster.run_until(lambda: recovery_of(cluster).cause is Cause.PROCESS, 0.1)
    assert cluster.state.groups[0].failures == left


def test_a_process_that_ends_for_the_fault_that_it_told_of_is_not_called_a_death() -> None:
    cluster = serving()
    epoch = cluster.ready["g0"]
    culprit = report(cluster, 1, "engine")
    cluster.kill(culprit, seen_after_s=0.0)
    assert forms_again(cluster, epoch)
    recovery = recovery_of(cluster)
    assert recovery.culprit is not None
    assert (recovery.cause, recovery.culprit.worker_id) == (Cause.ENGINE, culprit)
    assert recovery.reason == f"{culprit} (rank 1) reports: it says so"
