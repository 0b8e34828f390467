"""The commands of the guide and of README.md, run from top to bottom as a reader would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .pages import GUIDE, README, Block, blocks
from .scene import Scene, shows


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def play(scene: Scene, page: list[Block]) -> int:
    """Runs the page; the number of commands that ran."""
    count, printed = 0, ""
    for block in page:
        if block.marker == "output":
            assert shows(block.text, printed), f"{block.place} shows\n{block.text}but this came:\n{printed}"
        elif block.marker == "run" and block.what in ("cluster", "worker"):
            scene.start(block)
        elif block.marker == "run":
            printed = scene.run(block)
            count += 1
    return count


def test_everything_on_the_pages_works_and_prints_what_they_show(scene: Scene) -> None:
    # README.md has no cluster of its own that could be run: its commands go to the guide's second one.
    assert play(scene, [*blocks(GUIDE), *blocks(README)]) > 15
