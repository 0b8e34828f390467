"""`python -m tools.api_reference` writes what follows from the code into the documents; `--check` only looks.

Run it after a change of a .proto's comments, of the client library, or of a command's flags.
"""

from __future__ import annotations

import sys

from .pages import stale, write


def main() -> int:
    """The exit code: 1 if `--check` found a page that is not what would be written."""
    if "--check" in sys.argv[1:]:
        behind = stale()
        if behind:
            names = ", ".join(str(path) for path in behind)
            sys.stderr.write(f"{names}: not what the code says; run python -m tools.api_reference\n")
        return 1 if behind else 0
    for path in write():
        sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
