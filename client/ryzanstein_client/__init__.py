"""The client library and command line of Ryzanstein."""

from __future__ import annotations
