"""Commands of a checkout that the documents give: the program is there and has the flags that they name."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, SHELL, blocks, pages, spans

#: Whose programs are of this checkout alone; those of the packages are `ryzanstein` commands.
_OURS = ("benchmarks", "tests", "tools")
_MODULE = re.compile(r"python3? -m ([\w.]+)(.*)")


def _commands(page: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(line, module, words after it)."""
    typed = [*spans(page)]
    for block in blocks(page):
        if block.language in SHELL or block.marker:
            commands = block.text.replace("\\\n", " ").splitlines()
            typed += [(block.line + number, command) for number, command in enumerate(commands)]
    for line, text in typed:
        for match in _MODULE.finditer(text):
            if match[1].split(".")[0] in _OURS:
                yield line, match[1], shlex.split(match[2], comments=True)


@cache
def _flags(module: str) -> frozenset[str] | None:
    """Those that the module adds to a parser, or None if it can't be run."""
    path = ROOT / Path(*module.split("."))
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    if not source.is_file():
        return None
    found = {"--help"}
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "add_argument"
        ):
            found |= {str(each.value) for each in node.args if isinstance(each, ast.Constant)}
    return frozenset(found)


def test_the_measurements_name_their_commands() -> None:
    assert len([*_commands(ROOT / "docs" / "benchmarks.md")]) > 10


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_that_is_run_is_there_and_has_the_flags_that_are_named(page: Path) -> None:
    wrong = []
    for line, module, words in _commands(page):
        known = _flags(module)
        if known is None:
            wrong.append(f"line {line}: there is no module {module} to run")
        else:
            named = {word.partition("=")[0] for word in words if word.startswith("--")}
            wrong += [f"line {line}: {module} has no {flag}" for flag in sorted(named - known)]
    assert not wrong
