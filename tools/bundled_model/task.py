"""A kind of question: how it is phrased, what its parts may be, and the one right answer."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

Fields = Mapping[str, str]

# What a part of a phrasing such as "{a:int}" may look like when a question is read back.
_KINDS = {
    "int": r"\d+",
    "word": r"[A-Za-z]+",
    "ints": r"\d+(?:, \d+)+",
    "words": r"[a-z]+(?:, [a-z]+)+",
    "text": r"[^.?!]+",
}
_PART = re.compile(r"\{(\w+):(\w+)\}")
_HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Task:
    """One kind of question.

    `phrasings` hold parts such as `{a:int}`. `draw` makes the parts of a random question; `answer`
    computes the answer from the parts alone (never from the phrasing), so that a question that was
    read back has one right answer; it raises `ValueError` for parts that the task does not know.
    `weight` is the task's share of the training questions. The parts of one question in ten are held
    out of training, unless the task is `memorised`: then every answer is a fact that can't be
    derived, and all are trained on.
    """

    name: str
    phrasings: tuple[str, ...]
    draw: Callable[[random.Random], Fields]
    answer: Callable[[Fields], str]
    weight: float = 1.0
    memorised: bool = False

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(_pattern(phrasing) for phrasing in self.phrasings)

    def read(self, question: str) -> Fields | None:
        """The parts of a question of this task, or None if it is not one.

        Upper and lower case and the punctuation mark at the end don't matter.
        """
        for pattern in self._patterns:
            found = pattern.fullmatch(question.strip())
            if found:
                return found.groupdict()
        return None

    def phrase(self, fields: Fields, rng: random.Random) -> str:
        """The parts in one of the task's phrasings."""
        return _PART.sub(lambda part: fields[part[1]], rng.choice(self.phrasings))

    def held_out(self, fields: Fields) -> bool:
        """Whether training never sees these parts. It depends on nothing but the parts."""
        if self.memorised:
            return False
        key = repr((self.name, sorted(fields.items()))).encode()
        return hashlib.sha256(key).digest()[0] % _HELD_OUT_ONE_IN == 0

    def draw_from(self, rng: random.Random, *, held_out: bool) -> Fields:
        """Random parts from the held-out questions or from the others (from all, if memorised)."""
        while True:
            fields = self.draw(rng)
            if self.memorised or self.held_out(fields) == held_out:
                return fields


def _pattern(phrasing: str) -> re.Pattern[str]:
    """The phrasing as a regular expression; its closing mark becomes optional."""
    body = phrasing.rstrip(".?!")
    pieces = []
    start = 0
    for part in _PART.finditer(body):
        pieces.append(re.escape(body[start : part.start()]))
        pieces.append(f"(?P<{part[1]}>{_KINDS[part[2]]})")
        start = part.end()
    pieces.append(re.escape(body[start:]))
    return re.compile("".join(pieces) + r"[.?!]?", re.IGNORECASE)
