"""A table that leaves out what matters least until it fits: a terminal has 80 columns, or fewer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
_GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """`weight`: those with the smallest are left out first; `show` gives a cell."""

    title: str
    weight: int
    show: Callable[[Row], str | Text]
    justify: Literal["left", "right"] = "left"


def fitted_table(columns: Sequence[Column], rows: Iterable[Row], width: int) -> Table:
    """All rows with as many columns as `width` has room for."""
    cells = [[_text(column.show(row)) for column in columns] for row in rows]
    widths = [
        max([len(column.title), *(line[index].cell_len for line in cells)]) + _GAP
        for index, column in enumerate(columns)
    ]
    kept = set(range(len(columns)))
    while len(kept) > 1 and sum(widths[index] for index in kept) - _GAP > width:
        kept.remove(min(kept, key=lambda index: columns[index].weight))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for index, column in enumerate(columns):
        if index in kept:
            table.add_column(column.title, justify=column.justify, no_wrap=True, header_style="dim")
    for line in cells:
        table.add_row(*(cell for index, cell in enumerate(line) if index in kept))
    return table


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)
