"""How long prompts and outputs are, in tokens."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

_FORM = re.compile(r"(\d+)|(\d+)-(\d+)|normal:(\d+):(\d+)|exponential:(\d+)")
_FORMS = "a number (128), a range (64-512), normal:MEAN:DEVIATION or exponential:MEAN"


@dataclass(frozen=True, slots=True)
class Length:
    """A distribution of whole numbers from 1 on. `first` and `second` are what its text names."""

    kind: Literal["fixed", "uniform", "normal", "exponential"]
    first: int
    second: int = 0

    def draw(self, random_: random.Random) -> int:
        """One number."""
        match self.kind:
            case "fixed":
                return self.first
            case "uniform":
                return random_.randint(self.first, self.second)
            case "normal":
                return max(1, round(random_.gauss(self.first, self.second)))
            case "exponential":
                return max(1, round(random_.expovariate(1 / self.first)))

    def __str__(self) -> str:
        match self.kind:
            case "fixed":
                return str(self.first)
            case "uniform":
                return f"{self.first}-{self.second}"
            case "normal":
                return f"normal:{self.first}:{self.second}"
            case "exponential":
                return f"exponential:{self.first}"


def parse_length(text: str) -> Length:
    """`128`, `64-512`, `normal:256:64`, `exponential:256`.

    Raises:
        ValueError: it is none of these, or a length below 1.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no length: give {_FORMS}")
    fixed, low, high, mean, deviation, exponential = match.groups()
    if fixed:
        length = Length("fixed", int(fixed))
    elif low:
        length = Length("uniform", int(low), int(high))
    elif mean:
        length = Length("normal", int(mean), int(deviation))
    else:
        length = Length("exponential", int(exponential))
    if length.first < 1 or (length.kind == "uniform" and length.second < length.first):
        raise ValueError(f"{text!r} is no length: it must be 1 or more, the smaller end first")
    return length
