"""Least squares on relative errors, in plain Python: what makes the model's constants out of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fit:
    """`coefficients` in the order of the columns; `residuals` of each observation: predicted / measured - 1."""

    coefficients: tuple[float, ...]
    residuals: tuple[float, ...]

    @property
    def worst(self) -> float:
        return max(abs(residual) for residual in self.residuals)


def fit(
    rows: Sequence[Sequence[float]], measured: Sequence[float], offsets: Sequence[float] | None = None
) -> Fit:
    """Non-negative c with rows @ c + offsets ≈ measured, every error counted relative to what was measured.

    A column whose coefficient would be negative is left out (its coefficient is 0): no time is negative.

    Raises:
        ValueError: fewer observations than columns, or columns that are multiples of each other.
    """
    offsets = offsets or [0.0] * len(measured)
    columns = list(range(len(rows[0])))
    if len(rows) < len(columns):
        raise ValueError(f"{len(rows)} observations can't tell {len(columns)} coefficients")
    while True:
        weighted = [[row[c] / t for c in columns] for row, t in zip(rows, measured, strict=True)]
        targets = [1.0 - offset / t for offset, t in zip(offsets, measured, strict=True)]
        found = _solve(
            [
                [sum(row[i] * row[j] for row in weighted) for j in range(len(columns))]
                for i in range(len(columns))
            ],
            [
                sum(row[i] * target for row, target in zip(weighted, targets, strict=True))
                for i in range(len(columns))
            ],
        )
        if min(found) >= 0:
            break
        del columns[found.index(min(found))]
    coefficients = [0.0] * len(rows[0])
    for column, value in zip(columns, found, strict=True):
        coefficients[column] = value
    predicted = [
        sum(c * x for c, x in zip(coefficients, row, strict=True)) + offset
        for row, offset in zip(rows, offsets, strict=True)
    ]
    return Fit(tuple(coefficients), tuple(p / t - 1 for p, t in zip(predicted, measured, strict=True)))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss with pivots, of a small symmetric system whose columns may differ by many orders of magnitude."""
    scale = [matrix[i][i] ** 0.5 for i in range(len(right))]
    if min(scale) == 0.0:
        raise ValueError("a column is zero in every observation")
    rows = [
        [value / scale[i] / scale[j] for j, value in enumerate(row)] + [right[i] / scale[i]]
        for i, row in enumerate(matrix)
    ]
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(rows[i][column]))
        if abs(rows[pivot][column]) < 1e-9:
            raise ValueError("the observations can't tell these columns apart")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for i in range(size):
            if i != column:
                factor = rows[i][column] / rows[column][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [rows[i][size] / rows[i][i] / scale[i] for i in range(size)]
