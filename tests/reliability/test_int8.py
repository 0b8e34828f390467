"""With 8-bit weights a recovery is as exact as without: the tokens are those that an undisturbed run gives."""

from __future__ import annotations

import signal

import psutil
import pytest

from ryzanstein.model_plan import read_model_config, weight_bytes_per_rank
from tests.cluster.harness import BUNDLED_MODEL

from .conftest import set_up


def test_killed_ranks_are_replaced_and_no_token_changes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each rank once, by a spare; `set_up` compares every token of the streams with those before the first kill."""
    with set_up(tmp_path_factory, "--quantization", "int8", spares=1, streams=8, seed=31) as scene:
        scene.whole()
        assert scene.cluster.snapshot()["model"]["quantization"] == "int8"
        planned = weight_bytes_per_rank(
            read_model_config(BUNDLED_MODEL), 2, "bfloat16", packed=True, quantization="int8"
        )
        for rank in (0, 1):
            held = scene.worker(rank)["memory"]["weights_bytes"]
            assert held == pytest.approx(planned, rel=0.02)
            epoch, victim = scene.epoch, scene.worker(rank)
            psutil.Process(victim["pid"]).send_signal(signal.SIGKILL)
            recovery = scene.recovered(epoch)
            assert recovery["culprit"]["worker_id"] == victim["id"]
            scene.whole()
