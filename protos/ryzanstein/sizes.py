"""Sizes of memory as people write them."""

from __future__ import annotations

import re

import typer

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>|B|[KMGT]i?B?)", re.IGNORECASE)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str | int) -> int:
    """`80GiB`, `512MB`, `1.5G` or a plain number of bytes. KiB, MiB … are powers of 1024, KB, MB … and K, M … of 1000.

    Raises:
        typer.BadParameter: it is none of these.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not a size: give bytes, or a number with a unit, such as 80GiB"
        )
    unit = match["unit"].upper()
    base = 1024 if "I" in unit else 1000
    return int(float(match["number"]) * base ** _POWERS.get(unit[:1], 0))
