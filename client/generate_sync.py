"""Writes the synchronous client from the asynchronous one.

    python client/generate_sync.py            # writes sync.py and sync_stream.py
    python client/generate_sync.py --check    # exit code 1 if they are not what would be written

The two differ only in words: `await` and `async` go, names change as listed below. Everything that differs in
kind (channels, threads, event loops) is in aio_connection.py and sync_connection.py, written by hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "ryzanstein_client"
PAIRS = {"aio.py": "sync.py", "aio_stream.py": "sync_stream.py"}

_HEADER = "# Generated from {source} by client/generate_sync.py: edit that file, not this one.\n"
_WORDS = (
    (r"The asynchronous client\. .*?\"\"\"", 'The synchronous client."""'),
    (r"\[chunk async for chunk in self\]", "list(self)"),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"`async for`", "`for`"),
    (r"\bawait ", ""),
    (r"\bAsync(Client|CompletionStream|Connection|StreamCall|Iterator|Iterable)\b", r"\1"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\b__a(iter|next|enter|exit)__\b", r"__\1__"),
    (r"\baclose\b", "close"),
    (r"\baio_(connection|stream)\b", r"sync_\1"),
)


def synchronous(source: str, name: str) -> str:
    """The synchronous twin of a module's source, formatted."""
    for pattern, replacement in _WORDS:
        source = re.sub(pattern, replacement, source, flags=re.DOTALL)
    source = _HEADER.format(source=name) + source
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        arguments = [
            sys.executable,
            "-m",
            "ruff",
            *command,
            "--stdin-filename",
            str(PACKAGE / PAIRS[name]),
            "-",
        ]
        source = subprocess.run(arguments, input=source, capture_output=True, text=True, check=True).stdout
    return source


def main() -> int:
    """Writes or checks all pairs; the exit code."""
    stale = []
    for name, target in PAIRS.items():
        generated = synchronous((PACKAGE / name).read_text(encoding="utf-8"), name)
        path = PACKAGE / target
        if not path.exists() or path.read_text(encoding="utf-8") != generated:
            stale.append(target)
            if "--check" not in sys.argv:
                path.write_text(generated, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"{', '.join(stale)} differ from what client/generate_sync.py writes: run it\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
