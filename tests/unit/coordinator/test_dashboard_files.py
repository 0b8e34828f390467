"""The page's files: what is served is what lies there, and it loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from ryzanstein_coordinator import dashboard
from ryzanstein_coordinator.dashboard import CONTENT_SECURITY_POLICY, dashboard_routes, read_assets

HERE = Path(dashboard.__file__).parent
FILES = sorted(path.name for path in HERE.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))


def browser() -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(dashboard_routes())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://coordinator")


async def test_the_page_and_its_files_are_sent_with_a_strict_policy() -> None:
    async with browser() as client:
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        for name in FILES:
            answer = await client.get(f"/dashboard/{name}")
            assert answer.content == (HERE / name).read_bytes()
            assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert "'unsafe" not in CONTENT_SECURITY_POLICY
        assert (await client.head("/")).status_code == 200


async def test_a_file_that_has_not_changed_is_not_sent_again() -> None:
    async with browser() as client:
        first = await client.get("/dashboard/main.js")
        again = await client.get("/dashboard/main.js", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["__init__.py", "..%2fmain.py", "%2e%2e/flags.py", "nothing.js", "", "a/b.js", "main.js%00.css"]
)
async def test_nothing_else_is_served(path: str) -> None:
    async with browser() as client:
        assert (await client.get(f"/dashboard/{path}")).status_code == 404


def test_every_file_that_the_page_names_is_there_and_no_other_place_is_named() -> None:
    assets = read_assets()
    page = assets["index.html"].body.decode()
    for name in re.findall(r'(?:href|src)="dashboard/([^"]+)"', page):
        assert name in assets
    for name, asset in assets.items():
        text = asset.body.decode()
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in assets, f"{name} imports {imported}"
        elsewhere = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not elsewhere, name
        assert "innerHTML" not in text, name
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|<style|\sstyle=", page)
