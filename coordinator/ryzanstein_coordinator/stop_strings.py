"""Stop texts, found over token borders while the text is still growing.

The automaton is the one of Aho and Corasick (Communications of the ACM 18(6), 1975): one state per prefix
of a stop text. Its state after some text is the longest end of that text that may still become a stop text,
so the depth of the state is exactly what must be held back. Time is linear in the text, whatever the number
of stop texts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """The stop text that was completed first; of several that end together, the longest.

    Positions count characters from the start of the stream: the stop text is [start, end).
    """

    stop: str
    start: int
    end: int


class StopAutomaton:
    """Built once per request; immutable afterwards.

    `stops` must hold at least one text, none of them empty.
    """

    __slots__ = ("_depths", "_edges", "_failures", "_matches", "first_characters")

    def __init__(self, stops: Sequence[str]) -> None:
        if not stops or not all(stops):
            raise ValueError(f"stop texts must not be empty: {list(stops)!r}")
        self.first_characters = frozenset(stop[0] for stop in stops)
        self._edges: list[dict[str, int]] = [{}]
        self._depths = [0]
        self._matches: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._failures = [0] * len(self._edges)
        self._link()

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._edges[state].get(character)
            if following is None:
                following = len(self._edges)
                self._edges[state][character] = following
                self._edges.append({})
                self._depths.append(self._depths[state] + 1)
                self._matches.append(None)
            state = following
        self._matches[state] = stop

    def _link(self) -> None:
        """Breadth first: a state's failure state is the longest proper end of it that is a state too."""
        waiting = deque(self._edges[0].values())
        while waiting:
            state = waiting.popleft()
            for character, following in self._edges[state].items():
                self._failures[following] = self.step(self._failures[state], character)
                if self._matches[following] is None:
                    self._matches[following] = self._matches[self._failures[following]]
                waiting.append(following)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        edges = self._edges
        while True:
            following = edges[state].get(character)
            if following is not None:
                return following
            if state == 0:
                return 0
            state = self._failures[state]

    def match(self, state: int) -> str | None:
        """The longest stop text that ends in this state."""
        return self._matches[state]

    def depth(self, state: int) -> int:
        """Characters at the end of the text that may be the start of a stop text."""
        return self._depths[state]


class StopMatcher:
    """One stream's walk through the automaton.

    `feed` returns the match as soon as there is one and must not be called after it. `clear` is the number of
    characters from the start of the stream that no stop text can take back any more.
    """

    __slots__ = ("_automaton", "_length", "_state")

    def __init__(self, automaton: StopAutomaton) -> None:
        self._automaton = automaton
        self._state = 0
        self._length = 0

    @property
    def clear(self) -> int:
        return self._length - self._automaton.depth(self._state)

    def feed(self, text: str) -> StopMatch | None:
        automaton, state = self._automaton, self._state
        if state == 0 and automaton.first_characters.isdisjoint(text):
            self._length += len(text)  # the usual case: nothing in it begins a stop text
            return None
        for index, character in enumerate(text):
            state = automaton.step(state, character)
            stop = automaton.match(state)
            if stop is not None:
                end = self._length + index + 1
                return StopMatch(stop, end - len(stop), end)
        self._state = state
        self._length += len(text)
        return None
