"""Boxes, checked point by point."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.model_plan import Box
from ryzanstein.model_plan.boxes import (
    intersection,
    is_within,
    relative,
    sizes,
    subtract,
    uncovered,
    volume,
    whole,
)

Points = set[tuple[int, ...]]


@st.composite
def boxes_of(draw: st.DrawFn, count: int) -> list[Box]:
    dimensions = draw(st.integers(0, 3))
    ends = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda pair: (min(pair), max(pair)))
    return [tuple(draw(ends) for _ in range(dimensions)) for _ in range(count)]


def _points(box: Box) -> Points:
    return set(itertools.product(*(range(start, stop) for start, stop in box)))


@given(boxes_of(2))
def test_an_intersection_has_the_points_that_both_have(pair: list[Box]) -> None:
    common = intersection(*pair)
    assert (_points(common) if common is not None else set()) == _points(pair[0]) & _points(pair[1])


@given(boxes_of(2))
def test_a_difference_has_the_other_points_once(pair: list[Box]) -> None:
    left = subtract(*pair)
    assert set().union(*map(_points, left)) == _points(pair[0]) - _points(pair[1])
    assert sum(map(volume, left)) == len(_points(pair[0]) - _points(pair[1]))


@given(boxes_of(4))
def test_what_is_uncovered_is_what_no_cover_has(boxes: list[Box]) -> None:
    box, *covers = boxes
    left = uncovered(box, covers)
    assert set().union(*map(_points, left)) == _points(box) - set().union(*map(_points, covers))
    assert sum(map(volume, left)) == len(set().union(*map(_points, left)))


def test_boxes_know_their_shape_and_place() -> None:
    box = ((1, 3), (2, 2))
    assert (sizes(box), volume(box), volume(())) == ((2, 0), 0, 1)
    assert whole((2, 3)) == ((0, 2), (0, 3))
    assert is_within(box, (3, 2))
    assert not is_within(box, (2, 2))
    assert not is_within(box, (3,))
    assert relative(((3, 5),), ((2, 9),)) == ((1, 3),)
