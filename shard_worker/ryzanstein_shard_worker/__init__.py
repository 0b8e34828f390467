"""Holds one shard of a model and runs its part of every step."""

from __future__ import annotations
