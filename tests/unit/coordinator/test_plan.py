"""The ledger as people and programs read it."""

from __future__ import annotations

import json

import pytest

from ryzanstein.model_plan import ModelError
from ryzanstein_coordinator.plan import plan_for_devices, plan_json, render_plan

from .cluster_builders import GIB, configuration, llama_8b


def test_a_plan_that_fits_is_a_table_and_a_conclusion() -> None:
    plan = plan_for_devices(configuration(), device_bytes=80 * GIB, model=llama_8b())
    lines = render_plan(plan).splitlines()
    assert lines[0].split() == [
        *("rank", "weights", "kv_cache", "workspace", "runtime", "communicator", "reserve"),
        *("sum", "budget", "free"),
    ]
    assert [line.split()[0] for line in lines[1:3]] == ["0", "1"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[-1].startswith("fits: ")
    assert "64 KiB" not in lines[-1]
    assert "sequences of up to 131072 tokens, 64 at once" in lines[-1]


def test_a_plan_that_does_not_fit_says_what_would() -> None:
    plan = plan_for_devices(configuration(tensor_parallel_size=1), device_bytes=12 * GIB, model=llama_8b())
    text = render_plan(plan)
    assert "does not fit: rank 0 needs" in text
    assert "\n  --tensor-parallel-size 2 fits" in text


def test_the_json_is_complete_and_computable() -> None:
    plan = plan_for_devices(configuration(), device_bytes=80 * GIB, model=llama_8b())
    fields = json.loads(json.dumps(plan_json(plan)))
    assert fields["fits"] is True
    assert fields["kv_bytes_per_token"] == 64 * 1024
    assert fields["max_model_len"] == 131072
    assert fields["refusal"] == ""
    rank = fields["ranks"][1]
    spent = sum(component["bytes"] for component in rank["components"])
    assert spent + rank["free_bytes"] == rank["budget_bytes"]


def test_a_size_that_can_never_work_is_an_error() -> None:
    for size in (3, 4_000_000_000):
        with pytest.raises(ModelError, match="sizes that work"):
            plan_for_devices(configuration(tensor_parallel_size=size), device_bytes=GIB, model=llama_8b())
