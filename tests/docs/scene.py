"""Runs a page from top to bottom as its reader would: programs that go on in the background, commands one by one.

Ports and state are given by the environment, which is what the guide says that one can do; addresses in the text are
those of the defaults, and are replaced.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.cluster.harness import BUNDLED_MODEL, Program, environment

from .pages import PYTHON, Block

_BIN = str(Path(sys.executable).parent)
_LISTENING = re.compile(r"grpc=(\S+) http=http://(\S+?)[\s\"]")
_READY_S = 60.0
_COMMAND_S = 60.0


class Scene:
    """One page's programs and commands, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._programs: list[Program] = []
        self._clusters = 0
        self._grpc = self._http = ""
        self._ready = False

    def start(self, block: Block) -> None:
        """A program that goes on: a cluster takes the place of the one before it."""
        if block.what == "cluster":
            self.close()
            self._clusters += 1
        variables = [f"{name}={value}" for name, value in self._environment().items()]
        script = f"cd {self.directory}; exec {self._local(block.text).strip()}"
        self._programs.append(Program(command=["env", *variables, "bash", "-eu", "-c", script]))
        if block.what == "cluster":
            self._grpc, self._http = self._listening(self._programs[-1])
            self._ready = False

    def run(self, block: Block) -> str:
        """What a command printed. Fails if it ends with another exit code than the page says."""
        self.wait_ready()
        text = self._local(block.text)
        if block.language in PYTHON:
            command = [sys.executable, "-W", "error", "-c", text]
        else:
            command = ["bash", "-eu", "-o", "pipefail", "-c", text]
        done = subprocess.run(
            command,
            cwd=self.directory,
            env={**environment(), **self._environment()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        expected = int(block.what.removeprefix("exit ")) if block.what else 0
        assert done.returncode == expected, f"{block.place} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def wait_ready(self) -> None:
        """Until the cluster that was started last serves, and its spare can take any rank."""
        if self._ready or not self._http:
            return
        deadline = time.monotonic() + _READY_S
        while not self._serves():
            assert time.monotonic() < deadline, self._programs[0].stderr[-4000:]
            time.sleep(0.05)
        self._ready = True

    def close(self) -> None:
        """Ends all programs, those that joined before the one that they joined."""
        while self._programs:
            self._programs.pop().close()

    def _serves(self) -> bool:
        assert self._programs[0].process.poll() is None, self._programs[0].stderr[-4000:]
        try:
            with urllib.request.urlopen(f"http://{self._http}/cluster", timeout=5) as reply:
                cluster = json.loads(reply.read())
        except (urllib.error.URLError, ConnectionError):
            return False
        spares = [worker for worker in cluster["workers"] if worker["rank"] is None]
        return cluster["state"] == "serving" and all(w["load_progress"] == 1.0 for w in spares)

    def _listening(self, program: Program) -> tuple[str, str]:
        program.wait_for_log('"listening"', _READY_S)
        line = next(line for line in program.stderr.splitlines() if '"listening"' in line)
        found = _LISTENING.search(line)
        assert found, line
        return found[1], found[2]

    def _environment(self) -> dict[str, str]:
        variables = {
            "PATH": os.pathsep.join([_BIN, os.environ.get("PATH", "/usr/bin:/bin")]),
            "HOME": str(self.directory),
            "MODEL": str(BUNDLED_MODEL),
            "RYZANSTEIN_GRPC_PORT": "0",
            "RYZANSTEIN_HTTP_PORT": "0",
            "RYZANSTEIN_STATE_DIR": str(self.directory / f"state-{self._clusters}"),
        }
        if self._grpc:
            variables["RYZANSTEIN_COORDINATOR"] = self._grpc
        return variables

    def _local(self, text: str) -> str:
        """The text with the addresses of this cluster."""
        if self._grpc:
            text = re.sub(r"\b(127\.0\.0\.1|localhost):50051\b", self._grpc, text)
            text = re.sub(r"\b(127\.0\.0\.1|localhost):8000\b", self._http, text)
        return text


def output_pattern(expected: str) -> re.Pattern[str]:
    """What a page shows of a program's output: … in a line stands for any text, a line of its own for any lines."""
    pieces = []
    for line in expected.strip("\n").splitlines():
        if line.strip() == "…":
            pieces.append(r"(?:.*\n)*?")
            continue
        words = [re.escape(" ".join(part.split())) for part in line.split("…")]
        pieces.append(r" ?.*? ?".join(word.replace(r"\ ", r"\s+") for word in words) + r"\s*\n")
    return re.compile("".join(pieces))


def shows(expected: str, actual: str) -> bool:
    """Whether a program printed what the page says, from the beginning to the end. Blanks in a row are one."""
    lines = [" ".join(line.split()) for line in actual.splitlines() if line.strip()]
    wanted = "\n".join(line for line in expected.splitlines() if line.strip())
    return output_pattern(wanted).fullmatch("\n".join(lines) + "\n") is not None
