"""A virtual environment for each peer, so that nothing of theirs comes into ours."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from .catalog import Peer


class PeerError(Exception):
    """A peer can't be installed or run; the message says what to do."""


def ensure(peer: Peer, directory: Path, *, install: bool) -> Path:
    """The Python of the peer's environment, made and filled if `install` says so.

    torch goes first and by itself, so that pip does not choose another build for it.

    Raises:
        PeerError: it is not installed there and may not be, or pip failed.
    """
    python = directory / "bin" / "python"
    if python.exists() and version(peer, python):
        return python
    if not install:
        raise PeerError(
            f"{peer.distribution} is not installed in {directory}: give --install, or --env with the directory of a "
            f"virtual environment that has what {peer.requirements} lists"
        )
    if not python.exists():
        venv.create(directory, with_pip=True)
    pinned = [line for line in peer.requirements.read_text().splitlines() if line.startswith("torch==")]
    print(f"installing {peer.name} into {directory}", file=sys.stderr, flush=True)
    for what in ([*pinned], ["-r", str(peer.requirements)]):
        if (
            what
            and subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=False).returncode
        ):
            raise PeerError(
                f"pip could not install {' '.join(what)} into {directory}: what it said stands above"
            )
    if peer.unwanted:
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *peer.unwanted], check=False)
    return python


def version(peer: Peer, python: Path) -> str:
    """Of the installed peer; empty if it is not there."""
    ask = f"import importlib.metadata as m; print(m.version({peer.distribution!r}))"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def environment() -> dict[str, str]:
    """Of a peer's process: our source tree to import the runners from, nothing from a network."""
    root = Path(__file__).parents[2]
    kept = {key: value for key, value in os.environ.items() if key not in {"PYTHONHOME", "VIRTUAL_ENV"}}
    return {**kept, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
