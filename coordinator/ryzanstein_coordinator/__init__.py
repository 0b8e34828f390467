"""The control plane and the front door of a Ryzanstein cluster."""

from __future__ import annotations
