"""Every command in the documents is run by the suite, or says why it is not."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import PYTHON, RUN_PAGES, SHELL, SHOWN, Block, blocks, pages

COMMANDS = [block for page in RUN_PAGES for block in blocks(page) if block.is_command]
TYPED = [block for page in pages() for block in blocks(page) if block.language in SHELL | PYTHON]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 20
    assert any(block.marker == "run" for block in COMMANDS)


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_every_block_of_commands_says_whether_it_is_run(page: Path) -> None:
    silent = [block.place for block in blocks(page) if block.is_command and not block.marker]
    assert not silent, f"put <!-- run --> or <!-- not run: WHY --> before {silent}"


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_what_is_not_run_says_why(page: Path) -> None:
    for block in blocks(page):
        if block.marker == "not run":
            assert len(block.what.split()) >= 2, f"{block.place}: {block.what!r} is no reason"


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_blocks_name_their_language(page: Path) -> None:
    for block in blocks(page):
        if block.marker == "run" or block.language:
            assert block.language in SHELL | PYTHON | SHOWN, f"{block.place}: {block.language!r}"


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_an_output_follows_what_is_run(page: Path) -> None:
    before: Block | None = None
    for block in blocks(page):
        if block.marker == "output":
            assert before is not None
            assert before.marker == "run", f"{block.place}: nothing ran"
        before = block


@pytest.mark.parametrize("block", TYPED, ids=lambda block: block.place)
def test_every_block_can_be_parsed(block: Block) -> None:
    if block.language in PYTHON:
        ast.parse(block.text)
    elif block.language in SHELL:
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block.place}: {done.stderr}"
