"""Layers that are split over the ranks of a group, and the wrapper that splits any module."""

from __future__ import annotations

from .attention import Attend, ParallelAttention
from .block import TensorParallelTransformerBlock
from .dense_attention import dense_causal_attend
from .embedding import ParallelEmbedding, VocabularyParallelHead
from .feature_slice import FeatureSlice, even_slice, head_slice
from .layer import TensorParallelLayer
from .linear import ColumnParallelLinear, RowParallelLinear
from .mlp import ParallelMLP
from .norm import RMSNorm
from .packable import PackableLinear
from .plan import PlanError, Style
from .rotary import RotaryEmbedding, Rotation
from .wrapper import DistributedModelWrapper, ParallelModelWrapper

__all__ = [
    "Attend",
    "ColumnParallelLinear",
    "DistributedModelWrapper",
    "FeatureSlice",
    "PackableLinear",
    "ParallelAttention",
    "ParallelEmbedding",
    "ParallelMLP",
    "ParallelModelWrapper",
    "PlanError",
    "RMSNorm",
    "RotaryEmbedding",
    "Rotation",
    "RowParallelLinear",
    "Style",
    "TensorParallelLayer",
    "TensorParallelTransformerBlock",
    "VocabularyParallelHead",
    "dense_causal_attend",
    "even_slice",
    "head_slice",
]
