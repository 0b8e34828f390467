"""Links inside of the project lead somewhere, and files that the documents name are there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import ROOT, anchors, links, pages, spans

ARCHITECTURE = ROOT / "docs" / "DISTRIBUTED_ARCHITECTURE.md"
_SCHEME = re.compile(r"[a-z]+:", re.IGNORECASE)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for line, target in links(page):
        if _SCHEME.match(target):
            continue  # outside of the project
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        if not file.exists():
            broken.append(f"line {line}: no file {path}")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            broken.append(f"line {line}: {file.name} has no heading #{anchor}")
    assert not broken


def test_every_source_that_the_architecture_names_is_there() -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in ("protos", "coordinator", "shard_worker", "client", "tests")
        for path in (ROOT / folder).rglob("*")
        if "__pycache__" not in path.parts
    }
    missing = []
    for line, text in spans(ARCHITECTURE):
        name = text.rstrip("/")
        if not re.fullmatch(r"[\w./*]+(\.(py|proto|c|h)|/)", text) or name.startswith("/"):
            continue
        wanted = re.compile(r"(.*/)?" + re.escape(name).replace(r"\*", "[^/]*"))
        if not any(wanted.fullmatch(source) for source in sources):
            missing.append(f"line {line}: {text}")
    assert not missing


def test_every_decision_is_in_the_architecture() -> None:
    named = {target for _, target in links(ARCHITECTURE)}
    records = {f"decisions/{path.name}" for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md")}
    assert records <= named, f"not linked: {sorted(records - named)}"
