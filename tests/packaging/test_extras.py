"""What an installation pulls in: a client host never gets torch or a web server, a coordinator host never torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WEB_SERVERS = {"fastapi", "uvicorn", "starlette"}
TENSORS = {"torch", "numpy", "safetensors", "transformers"}


def resolved(requirement: str, tmp_path: Path) -> set[str]:
    """Names of all distributions that pip would install into an empty environment."""
    report = tmp_path / "report.json"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
            "--ignore-installed", "--report", str(report), requirement,
        ],
        check=True,
        cwd=ROOT,
        timeout=110,
    )  # fmt: skip
    items = json.loads(report.read_text())["install"]
    return {re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower() for item in items}


def test_the_client_pulls_neither_torch_nor_a_web_server(tmp_path: Path) -> None:
    names = resolved(".", tmp_path)
    assert {"ryzanstein", "grpcio", "protobuf", "typer"} <= names
    assert not names & (TENSORS | WEB_SERVERS)


def test_the_coordinator_pulls_no_torch(tmp_path: Path) -> None:
    names = resolved(".[coordinator]", tmp_path)
    assert {"tokenizers", "fastapi", "prometheus-client"} <= names
    assert not names & {"torch", "transformers", "safetensors"}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("ryzanstein_client", ["torch", "fastapi", "tokenizers", "numpy", "rich", "typer"]),
        ("ryzanstein_coordinator.server", ["torch", "transformers", "safetensors"]),
    ],
)
def test_what_is_imported(package: str, forbidden: list[str]) -> None:
    code = f"import sys, {package}; print([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
