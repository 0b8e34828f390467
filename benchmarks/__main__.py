"""`make bench`: the measurements of docs/benchmarks.md that this machine can make."""

from __future__ import annotations

from .cluster import main

main()
