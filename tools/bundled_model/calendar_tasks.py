"""Questions about days of the week and months of the year, counted out one by one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .task import Fields, Task

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_FURTHEST = 20


def _index(names: Sequence[str], name: str) -> int:
    if name.capitalize() not in names:
        raise ValueError(f"{name!r} is none of {', '.join(names)}")
    return names.index(name.capitalize())


def _shifted(names: Sequence[str], unit: str, direction: int) -> Callable[[Fields], str]:
    """The answer that walks `n` names forth (direction 1) or back (-1) and says each."""

    def answer(fields: Fields) -> str:
        start, n = _index(names, fields["name"]), int(fields["n"])
        if not 1 <= n <= _FURTHEST:
            raise ValueError(f"days and months are counted up to {_FURTHEST}")
        walk = [names[(start + direction * i) % len(names)] for i in range(1, n + 1)]
        counted = ", ".join(f"{i} {name}" for i, name in enumerate(walk, start=1))
        span = f"{n} {unit}{'' if n == 1 else 's'}"
        return f"{counted}. So {span} {'after' if direction > 0 else 'before'} {names[start]} is {walk[-1]}."

    return answer


def _draw_shift(names: Sequence[str], furthest: int) -> Callable[[random.Random], Fields]:
    return lambda rng: {"name": rng.choice(names), "n": str(rng.randint(2, furthest))}


def _draw_month(rng: random.Random) -> Fields:
    return {"name": rng.choice(MONTHS)}


def _month_length(fields: Fields) -> str:
    i = _index(MONTHS, fields["name"])
    leap = ", or 29 in a leap year" if i == 1 else ""
    return f"{MONTHS[i]} has {_MONTH_DAYS[i]} days{leap}."


def _neighbour(names: Sequence[str], direction: int) -> Callable[[Fields], str]:
    def answer(fields: Fields) -> str:
        i = _index(names, fields["name"])
        verb = "comes after" if direction > 0 else "comes before"
        return f"{names[(i + direction) % len(names)]} {verb} {names[i]}."

    return answer


CALENDAR_TASKS = (
    Task(
        "days after",
        (
            "What day is {n:int} days after {name:word}?",
            "Which day of the week is {n:int} days after {name:word}?",
        ),
        _draw_shift(DAYS, 14),
        _shifted(DAYS, "day", 1),
        0.8,
    ),
    Task(
        "days before",
        (
            "What day is {n:int} days before {name:word}?",
            "Which day of the week is {n:int} days before {name:word}?",
        ),
        _draw_shift(DAYS, 14),
        _shifted(DAYS, "day", -1),
        0.8,
    ),
    Task(
        "months after",
        (
            "What month is {n:int} months after {name:word}?",
            "Which month is {n:int} months after {name:word}?",
        ),
        _draw_shift(MONTHS, 14),
        _shifted(MONTHS, "month", 1),
        0.8,
    ),
    Task(
        "month length",
        ("How many days does {name:word} have?", "How many days are in {name:word}?"),
        _draw_month,
        _month_length,
        0.3,
        memorised=True,
    ),
    Task(
        "next month",
        ("Which month comes after {name:word}?", "What month comes after {name:word}?"),
        _draw_month,
        _neighbour(MONTHS, 1),
        0.2,
        memorised=True,
    ),
    Task(
        "previous month",
        ("Which month comes before {name:word}?", "What month comes before {name:word}?"),
        _draw_month,
        _neighbour(MONTHS, -1),
        0.2,
        memorised=True,
    ),
    Task(
        "next day",
        ("Which day comes after {name:word}?", "What day comes after {name:word}?"),
        lambda rng: {"name": rng.choice(DAYS)},
        _neighbour(DAYS, 1),
        0.15,
        memorised=True,
    ),
    Task(
        "previous day",
        ("Which day comes before {name:word}?", "What day comes before {name:word}?"),
        lambda rng: {"name": rng.choice(DAYS)},
        _neighbour(DAYS, -1),
        0.15,
        memorised=True,
    ),
)
