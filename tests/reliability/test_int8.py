"""With 8-bit weights a recovery is as exact as without: the tokens are those that an undisturbed run gives."""

from __future__ import annotations

import signal

import psutil
import pytest

from ryzanstein.model_plan import read_model_config, weight_bytes_per_rank
from tests.cluster.harness import BUNDLED_MODEL

from .conftest import set_up


def test_a_killed_leader_is_replaced_and_no_token_changes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By a spare that rounded the weights itself; `set_up` compares every token with those before the kill."""
    with set_up(tmp_path_factory, "--quantization", "int8", spares=1, streams=8, seed=31) as scene:
        assert scene.cluster.snapshot()["model"]["quantization"] == "int8"
        planned = weight_bytes_per_rank(
            read_model_config(BUNDLED_MODEL), 2, "bfloat16", packed=True, quantization="int8"
        )
        scene.traffic.wait_for_flow()
        epoch, victim = scene.epoch, scene.worker(0)
        assert victim["memory"]["weights_bytes"] == pytest.approx(planned, rel=0.02)
        psutil.Process(victim["pid"]).send_signal(signal.SIGKILL)
        recovery = scene.recovered(epoch)
        assert recovery["culprit"]["worker_id"] == victim["id"]
        assert recovery["requests_resumed"] > 0
        scene.whole()
