"""The checker sees: each defect that is put into the real code is found within a few hundred schedules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .defects import DEFECTS
from .plan import plan_of
from .schedule import run_plan

_WITHIN = 300


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_found(
    defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    assert any(run_plan(plan_of(seed, DEFECTS[defect])).violations for seed in range(_WITHIN))
