"""Standard output as people and scripts want it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Wide enough for every column when nobody's terminal sets a limit.
_PLAIN_WIDTH = 200


class OutputConsole(Console):
    """Standard output: styled on a terminal, plain and unwrapped elsewhere."""

    def __init__(self) -> None:
        super().__init__(highlight=False, emoji=False, markup=False)
        if not self.is_terminal:
            super().__init__(
                highlight=False, emoji=False, markup=False, width=_PLAIN_WIDTH, color_system=None
            )

    def on_broken_pipe(self) -> None:
        """rich would exit with 1; a reader that has seen enough is no failure."""
        raise BrokenPipeError


def figures_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1
) -> Table:
    """A table of figures: the first `names` columns say of what, the others stand at the right."""
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for index, column in enumerate(columns):
        table.add_column(
            column, justify="left" if index < names else "right", header_style="dim", no_wrap=True
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
