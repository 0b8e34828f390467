"""Pieces of Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; cells may hold newlines and bars. A column without any text is left out."""
    cells = [[cell(text) for text in row] for row in rows]
    kept = [column for column in range(len(header)) if any(row[column] for row in cells)]
    lines = [_row([header[column] for column in kept]), "|" + "---|" * len(kept)]
    return lines + [_row([row[column] for column in kept]) for row in cells]


def fenced(lines: Iterable[str]) -> list[str]:
    """Indented parts become fenced text, so that nothing takes them for a list's continuation."""
    out: list[str] = []
    inside: list[str] = []
    for line in [*lines, ""]:
        if line.startswith("  ") or (inside and not line.strip()):
            inside.append(line)
            continue
        out += _fence(inside)
        inside = []
        out.append(line)
    return out + _fence(inside)


def _fence(lines: list[str]) -> list[str]:
    text = textwrap.dedent("\n".join(lines)).strip("\n")
    return ["```text", *text.splitlines(), "```", ""] if text else []


def cell(text: str) -> str:
    """A text as one cell can hold it."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """In backticks; empty for nothing."""
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """Lines of one paragraph joined; what is indented stays as it is, as code."""
    paragraphs: list[str] = []
    open_paragraph = False
    for line in text.splitlines():
        if not line.strip():
            open_paragraph = False
            paragraphs.append("")
        elif line.startswith("    "):
            open_paragraph = False
            paragraphs.append(line.rstrip())
        elif open_paragraph:
            paragraphs[-1] += " " + line.strip()
        else:
            open_paragraph = True
            paragraphs.append(line.strip())
    return "\n".join(paragraphs).strip("\n")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
