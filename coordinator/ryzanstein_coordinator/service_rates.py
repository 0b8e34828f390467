"""What was measured of serving: how long a token takes, and how many a request takes. Pure.

From the last steps and the last requests only, so that it follows what is asked; and None until there is enough of
it: nobody is refused on a guess.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping

_STEPS = 256
_LEAST_STEPS = 32
_REQUESTS = 64
_LEAST_REQUESTS = 8


class ServiceRates:
    """Told of every step and every end."""

    def __init__(self) -> None:
        self._gaps_s: deque[float] = deque(maxlen=_STEPS)
        self._outputs: deque[int] = deque(maxlen=_REQUESTS)

    def stepped(self, gaps_s: Mapping[float, int]) -> None:
        """Seconds since the token before, and how many streams waited so long for theirs of this step."""
        if gaps_s:
            self._gaps_s.append(max(gaps_s, key=gaps_s.__getitem__))

    def ended(self, output_tokens: int) -> None:
        """A request came to its own end with so many tokens."""
        self._outputs.append(output_tokens)

    @property
    def token_s(self) -> float | None:
        """Seconds from a stream's token to its next. The median: a recovery or two among them don't count."""
        return statistics.median(self._gaps_s) if len(self._gaps_s) >= _LEAST_STEPS else None

    @property
    def request_s(self) -> float | None:
        """Seconds that a request runs, on average, its prefill aside."""
        token_s, tokens = self.token_s, self.output_tokens
        return None if token_s is None or tokens is None else token_s * tokens

    @property
    def output_tokens(self) -> float | None:
        """Of a request, on average."""
        return statistics.fmean(self._outputs) if len(self._outputs) >= _LEAST_REQUESTS else None
