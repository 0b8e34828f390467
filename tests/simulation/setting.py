"""The shape of a cluster: configuration and bounds, made once for all schedules that share it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ryzanstein_coordinator
from ryzanstein.model_plan import kv_bytes_per_token
from ryzanstein_coordinator.config import OrchestratorConfig
from ryzanstein_coordinator.control_plane import ControlPlane
from ryzanstein_coordinator.resource_allocator import ResourceAllocator
from ryzanstein_coordinator.tokenization import ModelTokenizer, read_tokenizer
from tests.unit.coordinator.cluster_builders import tiny_model

#: Tokens of prompt and output together.
MAX_MODEL_LEN = 48


@dataclass(frozen=True, slots=True)
class Shape:
    """What a schedule chooses."""

    ranks: int = 2
    groups: int = 1
    spares: int = 0
    #: Blocks of 16 tokens, with the scratch block.
    blocks: int = 8
    sequences: int = 3
    batched_tokens: int = 16
    replacement_wait_s: float = 2.0
    grace_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A shape, and what was planned for it."""

    shape: Shape
    config: OrchestratorConfig
    control: ControlPlane

    @property
    def grace_s(self) -> float:
        return self.shape.grace_s


@lru_cache(maxsize=256)
def setting_of(shape: Shape) -> Setting:
    """The control plane holds configuration only, so schedules may share it."""
    model = tiny_model()
    config = OrchestratorConfig(
        model_dir=Path("/models/tiny"),
        tensor_parallel_size=shape.ranks,
        data_parallel_size=shape.groups,
        spares=shape.spares,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=shape.sequences,
        max_batched_tokens=shape.batched_tokens,
        kv_cache_bytes=shape.blocks * 16 * kv_bytes_per_token(model, shape.ranks, "float32"),
        progress_deadline_s=2.0,
        join_timeout_s=3.0,
        replacement_wait_s=shape.replacement_wait_s,
        state_dir=Path("/nowhere"),
    )
    return Setting(shape, config, ControlPlane(config, ResourceAllocator(config, model)))


@lru_cache(maxsize=1)
def tokenizer() -> ModelTokenizer:
    """The bundled model's."""
    return read_tokenizer(Path(ryzanstein_coordinator.__file__).parent / "bundled_model")
