"""The commands of docs/security.md, as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ryzanstein.join_proof import read_tokens
from ryzanstein.tls import TlsFiles
from ryzanstein_coordinator.api_keys import read_keys

PAGE = (Path(__file__).parents[3] / "docs" / "security.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None or shutil.which("bash") is None, reason="bash and openssl make the files"
)


def run_what_makes(file: str, directory: Path) -> None:
    """Runs the commands before `ryzanstein` in the first block that speaks of a file."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    block = next(block for block in blocks if file in block)
    commands = "".join(
        line for line in block.splitlines(keepends=True) if not line.startswith(("ryzanstein ", "curl "))
    )
    subprocess.run(["bash", "-eu", "-c", commands], cwd=directory, check=True, capture_output=True)


def test_the_keys_of_the_page_are_such_as_are_taken(tmp_path: Path) -> None:
    run_what_makes("api-keys", tmp_path)
    keys = {key.name: sorted(key.roles) for key in read_keys(tmp_path / "api-keys")}
    assert keys == {
        "alice": ["inference"],
        "dashboard": ["operations"],
        "admin": ["inference", "operations"],
    }


def test_the_token_of_the_page_is_such_as_is_taken(tmp_path: Path) -> None:
    run_what_makes("> join-token", tmp_path)
    assert len(read_tokens(tmp_path / "join-token")) == 1


def test_the_certificates_of_the_page_are_such_as_are_taken(tmp_path: Path) -> None:
    run_what_makes("ca.key", tmp_path)
    for name in ("server", "client"):
        TlsFiles(
            cert_file=tmp_path / f"{name}.pem",
            key_file=tmp_path / f"{name}.key",
            client_ca_file=tmp_path / "ca.pem",
        ).check()
