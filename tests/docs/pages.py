"""The documents as their readers see them: blocks of commands with their markers, headings, links, words in backticks.

A comment of HTML, which no reader sees, stands directly before a block of shell or Python:

    <!-- run -->             the suite runs it, in the order of the page, against a cluster
    <!-- run: exit 2 -->     the same; it ends with this exit code
    <!-- run: cluster -->    the suite starts it and leaves it running: the blocks after it speak to this cluster
    <!-- run: worker -->     the suite starts it and leaves it running beside the cluster
    <!-- not run: WHY -->    the suite can't: it installs, needs a GPU, needs another machine
    <!-- output -->          what the block before it printed, standard error included; … stands for anything

Blocks without a fence name their language: `<!-- run: python -->`, `<!-- run: sh -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "DISTRIBUTED_INFERENCE_GUIDE.md"
README = ROOT / "README.md"
#: Pages whose commands are run, or say why not.
RUN_PAGES = (README, GUIDE)

SHELL = frozenset({"sh", "bash", "shell", "console"})
PYTHON = frozenset({"python", "py"})
#: What no reader would type: pictures, files, what a program printed.
SHOWN = frozenset({"text", "json", "toml", "ini", "mermaid", "yaml"})

_MARKER = re.compile(r"<!--\s*(?P<kind>run|not run|output)(?::\s*(?P<what>.*?))?\s*-->\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code, and what the comment before it says of it."""

    page: Path
    #: Of its first line, counted from 1.
    line: int
    language: str
    text: str
    #: "run", "not run", "output"; empty without a comment.
    marker: str
    #: What follows the colon: "cluster", "worker", "exit 2", or why it is not run.
    what: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_command(self) -> bool:
        """Whether a reader would type it."""
        return self.language in SHELL | PYTHON or (not self.language and self.marker != "output")


@cache
def pages() -> tuple[Path, ...]:
    """All documents of the project."""
    found = {README, *ROOT.glob("*.md")}
    for folder in ("docs", "deploy", "benchmarks", "tools"):
        found.update((ROOT / folder).rglob("*.md"))
    return tuple(sorted(found))


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    return tuple(MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")))


def blocks(page: Path) -> list[Block]:
    """All blocks of code, in their order."""
    found: list[Block] = []
    before: Token | None = None
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            marker = _MARKER.fullmatch(before.content) if before and before.type == "html_block" else None
            kind, what = (marker["kind"], marker["what"] or "") if marker else ("", "")
            language = token.info.split()[0] if token.info.strip() else ""
            if not language and what in SHELL | PYTHON:
                language, what = what, ""
            line = (token.map or [0])[0] + (2 if token.type == "fence" else 1)
            found.append(Block(page, line, language, token.content, kind, what))
        before = token
    return found


def spans(page: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what stands in backticks inside of prose and tables."""
    for token in tokens(page):
        for child in token.children or ():
            if child.type == "code_inline":
                yield (token.map or [0])[0] + 1, child.content


def links(page: Path) -> Iterator[tuple[int, str]]:
    """(line, target) of every link and picture."""
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                yield (token.map or [0])[0] + 1, str(target)


@cache
def anchors(page: Path) -> frozenset[str]:
    """What `#…` may name on this page: its headings, as GitHub writes them."""
    seen: dict[str, int] = {}
    found = set()
    parsed = tokens(page)
    for opening, inline in pairwise(parsed):
        if opening.type != "heading_open":
            continue
        slug = _slug("".join(child.content for child in inline.children or ()))
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(slug if not count else f"{slug}-{count}")
    return frozenset(found)


def section(page: Path, title: str) -> Sequence[Token]:
    """The tokens below a heading of the second level, up to the next of that level.

    Raises:
        LookupError: there is none.
    """
    parsed = tokens(page)
    starts = [i for i, token in enumerate(parsed) if token.type == "heading_open" and token.tag == "h2"]
    for start, end in zip(starts, [*starts[1:], len(parsed)], strict=True):
        if parsed[start + 1].content == title:
            return parsed[start:end]
    raise LookupError(f"{page.name} has no section {title!r}")


def _slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
