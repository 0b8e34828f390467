"""What flags of `ryzanstein bench` have in common: lists, and one-line errors that name the flag."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from ryzanstein.program import EXIT_USAGE, ProgramError

T = TypeVar("T")
N = TypeVar("N", int, float)


def number_list(flag: str, text: str, kind: type[N]) -> list[N]:
    """`1,8,16`: numbers above 0; an empty text is an empty list.

    Raises:
        ProgramError: something else is among them.
    """
    numbers: list[N] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        try:
            number = kind(word)
        except ValueError:
            what = "whole number" if kind is int else "number"
            raise ProgramError(f"{flag}: {word!r} is no {what}", exit_code=EXIT_USAGE) from None
        if not 0 < number < float("inf"):
            raise ProgramError(f"{flag}: {word} must be above 0", exit_code=EXIT_USAGE)
        numbers.append(number)
    return numbers


def choices(flag: str, text: str, known: Iterable[str]) -> list[str]:
    """`gloo,nccl`: names out of `known`; an empty text is all of them.

    Raises:
        ProgramError: another name is among them.
    """
    possible = list(known)
    chosen = [word.strip() for word in text.split(",") if word.strip()]
    for word in chosen:
        if word not in possible:
            raise ProgramError(
                f"{flag}: {word!r} is not known here: choose from {', '.join(possible)}", exit_code=EXIT_USAGE
            )
    return chosen or possible


def parsed(flag: str, parse: Callable[[str], T], text: str) -> T:
    """What `parse` makes of the text; its ValueError becomes one that names the flag."""
    try:
        return parse(text)
    except ValueError as error:
        raise ProgramError(f"{flag}: {error}", exit_code=EXIT_USAGE) from None
