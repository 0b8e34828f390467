"""Stop texts are found wherever the token borders are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein_coordinator.stop_strings import StopAutomaton, StopMatch, StopMatcher

#: Few letters, so that stop texts overlap, repeat and contain each other.
letters = st.text("ab🚀", min_size=1, max_size=4)


def reference(text: str, stops: list[str]) -> StopMatch | None:
    """The first end at which a stop text is complete; of those the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return StopMatch(longest, end - len(longest), end)
    return None


def may_become_a_stop(text: str, stops: list[str]) -> int:
    """Characters at the end of the text with which a stop text begins."""
    lengths = [n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
    return max(lengths)


@given(
    pieces=st.lists(st.text("ab🚀", max_size=4), max_size=12),
    stops=st.lists(letters, min_size=1, max_size=4),
)
@settings(max_examples=250, deadline=None)
def test_the_match_and_what_is_held_back_are_those_of_the_reference(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopMatcher(StopAutomaton(stops))
    text = ""
    for piece in pieces:
        text += piece
        match = matcher.feed(piece)
        assert match == reference(text, stops)
        if match is not None:
            return
        assert matcher.clear == len(text) - may_become_a_stop(text, stops)


@given(text=st.text("ab", max_size=30), cuts=st.sets(st.integers(0, 30)), stops=st.lists(letters, min_size=1))
@settings(max_examples=200, deadline=None)
def test_where_the_text_is_cut_makes_no_difference(text: str, cuts: set[int], stops: list[str]) -> None:
    borders = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    matcher = StopMatcher(StopAutomaton(stops))
    found = None
    for start, end in itertools.pairwise(borders):
        found = found or matcher.feed(text[start:end])

    assert found == StopMatcher(StopAutomaton(stops)).feed(text)


def test_a_false_start_is_released() -> None:
    matcher = StopMatcher(StopAutomaton(["</answer>"]))

    assert matcher.feed("1 </ans") is None
    assert matcher.clear == 2
    assert matcher.feed("x") is None
    assert matcher.clear == 8


def test_a_stop_text_within_a_false_start_is_found() -> None:
    matcher = StopMatcher(StopAutomaton(["abcd", "bc"]))

    assert matcher.feed("abc") == StopMatch("bc", 1, 3)


@pytest.mark.parametrize("stops", [[], [""], ["a", ""]])
def test_empty_stop_texts_are_refused(stops: list[str]) -> None:
    with pytest.raises(ValueError, match="empty"):
        StopAutomaton(stops)
