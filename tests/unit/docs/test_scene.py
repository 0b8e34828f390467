"""What a page shows of an output is compared with what was printed."""

from __future__ import annotations

import pytest

from tests.docs.scene import shows


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ("a  b\n", " a b \n"),
        ("a … d", "a b c d"),
        ("…\nlast", "first\nsecond\nlast\n"),
        ("…\nlast", "last"),
        ("first\n…", "first\n"),
        ("rank …\n…\nfits: …", "rank x\n0 1\n\nfits: 2"),
        ("…= 4.", " Ones: 2 + 2 = 4.\n"),
    ],
)
def test_what_is_shown_is_found(expected: str, actual: str) -> None:
    assert shows(expected, actual)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [("a", "b"), ("a", "a\nb"), ("a\nb", "a"), ("a …", "b a c"), ("first\n…\nlast", "first\nlast\nmore")],
)
def test_what_is_not_printed_is_missed(expected: str, actual: str) -> None:
    assert not shows(expected, actual)
