"""The command line: `ryzanstein`."""

from __future__ import annotations
