"""Small values for tests of the control plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ryzanstein.model_plan import ModelConfig
from ryzanstein_coordinator.config import OrchestratorConfig
from ryzanstein_coordinator.control_plane import ControlPlane
from ryzanstein_coordinator.resource_allocator import ResourceAllocator
from ryzanstein_coordinator.worker_record import DeviceRecord, Shard, ShardKey, WorkerRecord

GIB = 1024**3
MIB = 1024**2
#: KV cache per rank that holds the whole context of `tiny_model` in two ranks, and not in one.
FOR_TWO_RANKS_ONLY = (256 + 16) * 2 * 2 * 2 * 8 * 4


def tiny_model(**changes: Any) -> ModelConfig:
    """A Llama of a few hundred kilobytes."""
    fields: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "family": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "output_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "sliding_window": None,
        "sliding_layers": (False,) * changes.get("num_layers", 2),
        "hidden_act": "silu",
        "dtype": "float32",
        "eos_token_ids": (2,),
        "bos_token_id": 1,
    }
    return ModelConfig(**{**fields, **changes})


def llama_8b(**changes: Any) -> ModelConfig:
    """The shape of Llama 3.1 8B: 8,030,261,248 parameters, 128 KiB of KV cache per token in bfloat16."""
    return tiny_model(
        **{
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_layers": 32,
            "num_heads": 32,
            "num_kv_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "dtype": "bfloat16",
            **changes,
        }
    )


def configuration(**changes: Any) -> OrchestratorConfig:
    """Two ranks with a hot spare, without pauses that a test would have to wait for."""
    fields: dict[str, Any] = {"model_dir": Path("/models/tiny"), "tensor_parallel_size": 2, "spares": 1}
    return OrchestratorConfig(**{**fields, **changes})


def control_plane(config: OrchestratorConfig | None = None, model: ModelConfig | None = None) -> ControlPlane:
    config = config or configuration()
    return ControlPlane(config, ResourceAllocator(config, model or tiny_model()))


def cpu(total_bytes: int = 16 * GIB, **changes: Any) -> DeviceRecord:
    fields: dict[str, Any] = {
        "name": "cpu",
        "kind": "cpu",
        "total_bytes": total_bytes,
        "free_bytes": total_bytes,
        "baseline_bytes": 240 * MIB,
    }
    return DeviceRecord(**{**fields, **changes})


def gpu(
    index: int = 0, total_bytes: int = 80 * GIB, used_bytes: int = 600 * MIB, uuid: str = ""
) -> DeviceRecord:
    return DeviceRecord(
        name=f"cuda:{index}",
        kind="cuda",
        total_bytes=total_bytes,
        free_bytes=total_bytes - used_bytes,
        baseline_bytes=used_bytes,
        uuid=uuid,
    )


def worker(worker_id: str, **changes: Any) -> WorkerRecord:
    """A standby that is heard of."""
    fields: dict[str, Any] = {
        "worker_id": worker_id,
        "incarnation": f"{worker_id}-1",
        "registered_at_s": 0.0,
        "host": "alpha",
        "host_id": "alpha",
        "pid": 100,
        "address": "127.0.0.1:1",
        "device": cpu(),
        "stream": 1,
        "heard": True,
    }
    return WorkerRecord(**{**fields, **changes})


def shard(rank: int, size: int = 2, max_model_len: int = 256) -> Shard:
    return Shard(ShardKey(rank, size, max_model_len), loaded=True, has_files=True, weights_bytes=1000)
