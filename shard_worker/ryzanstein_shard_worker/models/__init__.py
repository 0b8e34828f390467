"""The model families that are served, built from the parallel layers."""

from __future__ import annotations

from .build import build_model
from .decoder import Decoder
from .layer_options import LayerOptions

__all__ = ["Decoder", "LayerOptions", "build_model"]
