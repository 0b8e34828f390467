"""Boxes: rectangular parts of a tensor, one (start, stop) range per dimension.

A tensor without dimensions has the one box (), of volume 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from .tensors import Range

Box = tuple[Range, ...]


def whole(shape: tuple[int, ...]) -> Box:
    """The box of all of a tensor."""
    return tuple((0, size) for size in shape)


def sizes(box: Box) -> tuple[int, ...]:
    """The box's shape."""
    return tuple(stop - start for start, stop in box)


def volume(box: Box) -> int:
    """How many elements it has."""
    return math.prod(sizes(box))


def is_within(box: Box, shape: tuple[int, ...]) -> bool:
    """Whether it is a box of a tensor of that shape."""
    return len(box) == len(shape) and all(
        0 <= start <= stop <= size for (start, stop), size in zip(box, shape, strict=True)
    )


def intersection(a: Box, b: Box) -> Box | None:
    """What two boxes of one tensor share; None where that is nothing."""
    common = tuple((max(p[0], q[0]), min(p[1], q[1])) for p, q in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def subtract(box: Box, hole: Box) -> list[Box]:
    """What is left of a box without another one, as boxes that don't overlap."""
    common = intersection(box, hole)
    if common is None:
        return [box] if volume(box) else []
    left: list[Box] = []
    for i, ((start, stop), (low, high)) in enumerate(zip(box, common, strict=True)):
        # Before i the pieces are as narrow as the hole, after i as wide as the box: so they don't overlap.
        outside = (part for part in ((start, low), (high, stop)) if part[0] < part[1])
        left.extend((*common[:i], part, *box[i + 1 :]) for part in outside)
    return left


def uncovered(box: Box, covers: Iterable[Box]) -> list[Box]:
    """The parts of a box that no cover has, as boxes that don't overlap."""
    left = [box] if volume(box) else []
    for cover in covers:
        if not left:
            break
        left = [part for piece in left for part in subtract(piece, cover)]
    return left


def relative(box: Box, to: Box) -> Box:
    """The same box, counted from the corner of another."""
    return tuple((start - low, stop - low) for (start, stop), (low, _) in zip(box, to, strict=True))
