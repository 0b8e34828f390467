"""Flags that the documents name exist, and every flag that exists is named."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.api_reference import flags

from tests.docs.pages import GUIDE, ROOT, SHELL, blocks, pages, spans

#: Their flags by themselves are also those of programs of a checkout (test_module_commands).
_OTHERS = ("progress.md", "benchmarks.md")
PAGES = [page for page in pages() if page.parent in (ROOT, ROOT / "docs")]
#: Flags of other programs, which stand in backticks by themselves.
FOREIGN = frozenset({"--data-urlencode"})
#: "`--replacement-wait` (30 s)": a default.
_DEFAULT = re.compile(r"`(--[a-z-]+)` \((\d+(?:\.\d+)?)(?: s)?[),;]")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")


def _named(page: Path) -> Iterator[tuple[int, str]]:
    """Flags in backticks, and those of commands of ours in blocks."""
    for line, text in spans(page):
        if text.startswith("ryzanstein ") or (text.startswith("--") and page.name not in _OTHERS):
            for flag in _FLAG.findall(text):
                yield line, flag
    for block in blocks(page):
        if block.language in SHELL or block.marker:
            for number, command in enumerate(block.text.replace("\\\n", " ").splitlines()):
                for flag in _flags_of_ours(command):
                    yield block.line + number, flag


def _flags_of_ours(command: str) -> Iterator[str]:
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # a quote that ends on another line
        words = command.split()
    ours = False
    for word in words:
        if word in ("|", ";", "&&", "||"):
            ours = False
        elif word == "ryzanstein":
            ours = True
        elif ours and (match := _FLAG.match(word)):
            yield match[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_is_named_exists(page: Path) -> None:
    known = flags.spellings() | FOREIGN | {"--debug"}
    unknown = [f"line {line}: {flag}" for line, flag in _named(page) if flag not in known]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_defaults_in_brackets_are_those_of_the_programs(page: Path) -> None:
    defaults = {
        max(parameter.opts, key=len): parameter.default
        for parameters in reversed(flags.commands().values())
        for parameter in parameters
    }
    wrong = [
        f"{flag} is {defaults[flag]}, not {told}"
        for flag, told in _DEFAULT.findall(page.read_text(encoding="utf-8"))
        if isinstance(defaults.get(flag), int | float) and float(told) != defaults[flag]
    ]
    assert not wrong


def test_every_flag_is_in_the_guide() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    missing = [flag for flag in sorted(flags.declared()) if f"`{flag}" not in text]
    assert not missing
