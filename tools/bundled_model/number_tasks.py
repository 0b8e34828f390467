"""Questions about numbers. Sums show their working column by column, as a person would on paper."""

from __future__ import annotations

import itertools
import random

from .task import Fields, Task

_COLUMNS = ("Ones", "Tens", "Hundreds", "Thousands")
_UNIT_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TEN_WORDS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS, _TENS = _UNIT_WORDS.split(), _TEN_WORDS.split()
_LONGEST_COUNT = 250


def _up_to_three_digits(rng: random.Random) -> int:
    """A number below 1,000 whose count of digits, not whose value, is spread evenly."""
    return rng.randrange(10 ** rng.choice((1, 2, 2, 3, 3, 3)))


def _columns(a: int, b: int) -> list[tuple[str, int, int]]:
    """Name and both digits of each column, from the ones up."""
    width = max(len(str(a)), len(str(b)))
    return [(_COLUMNS[i], a // 10**i % 10, b // 10**i % 10) for i in range(width)]


def _draw_pair(rng: random.Random) -> Fields:
    return {"a": str(_up_to_three_digits(rng)), "b": str(_up_to_three_digits(rng))}


def _draw_descending_pair(rng: random.Random) -> Fields:
    low, high = sorted((_up_to_three_digits(rng), _up_to_three_digits(rng)))
    return {"a": str(high), "b": str(low)}


def _draw_unequal_pair(rng: random.Random) -> Fields:
    a = b = _up_to_three_digits(rng)
    while a == b:
        b = _up_to_three_digits(rng)
    return {"a": str(a), "b": str(b)}


def _add(fields: Fields) -> str:
    a, b = int(fields["a"]), int(fields["b"])
    carry, working = 0, []
    for name, x, y in _columns(a, b):
        total = x + y + carry
        working.append(f"{name}: {x} + {y}{f' + {carry}' if carry else ''} = {total}.")
        carry = total // 10
    return f"{' '.join(working)} So {a} + {b} = {a + b}."


def _subtract(fields: Fields) -> str:
    a, b = int(fields["a"]), int(fields["b"])
    if b > a:
        raise ValueError(f"{a} - {b} is below zero")
    borrowed, working = 0, []
    for name, x, y in _columns(a, b):
        borrow = x - y - borrowed < 0
        top = x + 10 if borrow else x
        less = f" - {borrowed}" if borrowed else ""
        working.append(f"{name}: {top} - {y}{less} = {top - y - borrowed}{', borrow 1' if borrow else ''}.")
        borrowed = int(borrow)
    return f"{' '.join(working)} So {a} - {b} = {a - b}."


def _multiply(fields: Fields) -> str:
    a, b = int(fields["a"]), int(fields["b"])
    if not (1 <= a <= 12 and 1 <= b <= 12):
        raise ValueError("the multiplication table goes to 12")
    return f"{a} × {b} = {a * b}."


def _compare(fields: Fields) -> str:
    a, b = int(fields["a"]), int(fields["b"])
    if a == b:
        raise ValueError("the numbers are equal")
    return f"{max(a, b)} is larger than {min(a, b)}."


def _draw_list(rng: random.Random) -> Fields:
    numbers = rng.sample(range(100), rng.randint(3, 5))
    return {"numbers": ", ".join(map(str, numbers))}


def _sort(fields: Fields) -> str:
    numbers = sorted(int(number) for number in fields["numbers"].split(", "))
    return f"From small to large: {', '.join(map(str, numbers))}."


def _parity(fields: Fields) -> str:
    return f"{int(fields['a'])} is {'odd' if int(fields['a']) % 2 else 'even'}."


def _draw_sequence(rng: random.Random) -> Fields:
    start, step = rng.randrange(60), rng.randint(1, 12)
    return {"numbers": ", ".join(str(start + step * i) for i in range(4))}


def _sequence(fields: Fields) -> str:
    numbers = [int(number) for number in fields["numbers"].split(", ")]
    step = numbers[1] - numbers[0]
    if step < 1 or any(b - a != step for a, b in itertools.pairwise(numbers)):
        raise ValueError("the numbers don't grow by equal steps")
    return f"The step is {step}, so the next number is {numbers[-1]} + {step} = {numbers[-1] + step}."


def _draw_count(rng: random.Random) -> Fields:
    length = rng.randint(5, 40) if rng.random() < 0.9 else rng.randint(40, 100)
    start = 1 if rng.random() < 0.3 else rng.randrange(160)
    return {"a": str(start), "b": str(start + length)}


def _draw_long_count(rng: random.Random) -> Fields:
    return {"a": "1", "b": str(rng.randint(100, 200))}


def _draw_count_down(rng: random.Random) -> Fields:
    low = rng.choice((0, 1, rng.randrange(60)))
    return {"a": str(low + rng.randint(5, 40)), "b": str(low)}


def _draw_count_steps(rng: random.Random) -> Fields:
    step, start = rng.choice((2, 3, 4, 5, 10)), rng.randrange(21)
    return {"a": str(start), "b": str(start + step * rng.randint(4, 20)), "step": str(step)}


def _count(fields: Fields) -> str:
    a, b, step = int(fields["a"]), int(fields["b"]), int(fields.get("step", "1"))
    if step < 1 or abs(b - a) > _LONGEST_COUNT:
        raise ValueError(f"a count takes steps of at least 1 and spans at most {_LONGEST_COUNT}")
    numbers = range(a, b + 1, step) if b >= a else range(a, b - 1, -step)
    return f"{', '.join(map(str, numbers))}."


def _table(fields: Fields) -> str:
    a = int(fields["a"])
    if not 1 <= a <= 20:
        raise ValueError("there are tables from 1 to 20")
    return f"{', '.join(f'{a} × {i} = {a * i}' for i in range(1, 13))}."


def in_words(number: int) -> str:
    """A number from 0 to 999 in English words, such as three hundred and forty-seven."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_UNITS[number % 10]}" if number % 10 else "")
    rest = f" and {in_words(number % 100)}" if number % 100 else ""
    return f"{_UNITS[number // 100]} hundred{rest}"


_NUMBER_OF = {in_words(number): number for number in range(1000)}


def _draw_number(rng: random.Random) -> Fields:
    return {"a": str(_up_to_three_digits(rng))}


def _to_words(fields: Fields) -> str:
    number = int(fields["a"])
    if number > 999:
        raise ValueError("numbers are written in words up to 999")
    return f"In words, {number} is {in_words(number)}."


def _draw_number_words(rng: random.Random) -> Fields:
    return {"words": in_words(_up_to_three_digits(rng))}


def _from_words(fields: Fields) -> str:
    words = fields["words"].lower()
    if words not in _NUMBER_OF:
        raise ValueError(f"{words!r} is no number below 1,000")
    return f"That is {_NUMBER_OF[words]}."


NUMBER_TASKS = (
    Task(
        "add",
        ("What is {a:int} + {b:int}?", "Add {a:int} and {b:int}.", "What is {a:int} plus {b:int}?"),
        _draw_pair,
        _add,
        weight=2.5,
    ),
    Task(
        "subtract",
        ("What is {a:int} - {b:int}?", "Subtract {b:int} from {a:int}.", "What is {a:int} minus {b:int}?"),
        _draw_descending_pair,
        _subtract,
        weight=2.5,
    ),
    Task(
        "multiply",
        ("What is {a:int} × {b:int}?", "What is {a:int} x {b:int}?", "What is {a:int} times {b:int}?"),
        lambda rng: {"a": str(rng.randint(1, 12)), "b": str(rng.randint(1, 12))},
        _multiply,
        weight=1.5,
        memorised=True,
    ),
    Task(
        "compare",
        ("Which is larger, {a:int} or {b:int}?", "Compare {a:int} and {b:int}."),
        _draw_unequal_pair,
        _compare,
        weight=1.5,
    ),
    Task(
        "sort numbers",
        ("Sort the numbers {numbers:ints}.", "Sort {numbers:ints}.", "Put {numbers:ints} in order."),
        _draw_list,
        _sort,
        weight=2.5,
    ),
    Task("parity", ("Is {a:int} even or odd?",), _draw_number, _parity, weight=0.5),
    Task(
        "sequence",
        ("What comes next: {numbers:ints}?", "Which number comes after {numbers:ints}?"),
        _draw_sequence,
        _sequence,
        weight=2.0,
    ),
    Task("count", ("Count from {a:int} to {b:int}.",), _draw_count, _count, weight=0.7),
    Task("long count", ("Count from {a:int} to {b:int}.",), _draw_long_count, _count, weight=0.08),
    Task("count down", ("Count down from {a:int} to {b:int}.",), _draw_count_down, _count, weight=0.6),
    Task(
        "count in steps",
        ("Count from {a:int} to {b:int} in steps of {step:int}.",),
        _draw_count_steps,
        _count,
        weight=0.9,
    ),
    Task(
        "table",
        ("Recite the multiplication table of {a:int}.", "Recite the {a:int} times table."),
        lambda rng: {"a": str(rng.randint(1, 20))},
        _table,
        weight=0.3,
        memorised=True,
    ),
    Task(
        "number to words",
        ("Write {a:int} in words.", "How do you write {a:int} in words?"),
        _draw_number,
        _to_words,
    ),
    Task(
        "words to number",
        ("Write {words:text} as a number.", "Write {words:text} in digits."),
        _draw_number_words,
        _from_words,
    ),
)
