"""What would fit, when something does not: found by planning it, so that advice that is followed works."""

from __future__ import annotations

from dataclasses import replace

from ryzanstein.model_plan import FP8, INT8, UNQUANTIZED, ModelConfig, tensor_parallel_sizes

from .config import BLOCK_SIZE, OrchestratorConfig
from .memory_ledger import MIB, format_bytes
from .memory_plan import LEAST_MODEL_LEN, DeviceShare, MemoryPlan, MemoryPlanner

_UTILIZATIONS = (0.92, 0.95, 0.97)
_FEWER_SEQUENCES = (32, 16, 8, 4, 1)


def what_would_fit(
    config: OrchestratorConfig,
    model: ModelConfig,
    size: int,
    shares: tuple[DeviceShare, ...],
    refused: MemoryPlan,
) -> tuple[str, ...]:
    """Sentences, the least change first."""
    found = [
        _shorter(config, model, size, shares, refused),
        _more_cache(config, model, size, shares, refused),
        _fewer_sequences(config, model, size, shares),
        _more_of_the_device(config, model, size, shares),
        _smaller_numbers(config, model, size, shares),
        _smaller_weights(config, model, size, shares),
        _more_ranks(config, model, size, shares),
    ]
    return tuple(sentence for sentence in found if sentence)


def _shorter(
    config: OrchestratorConfig,
    model: ModelConfig,
    size: int,
    shares: tuple[DeviceShare, ...],
    refused: MemoryPlan,
) -> str:
    if config.max_model_len is None or not refused.ledgers:
        return ""
    plan = MemoryPlanner(replace(config, max_model_len=None), model).plan(size, shares)
    if plan.bounds is None:
        return ""
    most = min(plan.bounds.kv_tokens, config.max_model_len) // BLOCK_SIZE * BLOCK_SIZE
    return f"--max-model-len {most} fits" if most >= LEAST_MODEL_LEN else ""


def _more_cache(
    config: OrchestratorConfig,
    model: ModelConfig,
    size: int,
    shares: tuple[DeviceShare, ...],
    refused: MemoryPlan,
) -> str:
    if config.kv_cache_bytes is None or config.max_model_len is None:
        return ""
    blocks = 1 + -(-config.max_model_len // BLOCK_SIZE)  # block 0 is the scratch block
    mebibytes = -(-blocks * BLOCK_SIZE * refused.kv_bytes_per_token // MIB)
    if mebibytes == 0:  # the model can't be split so
        return ""
    fits = MemoryPlanner(replace(config, kv_cache_bytes=mebibytes * MIB), model).plan(size, shares).fits
    return f"--kv-cache-memory {mebibytes}MiB fits" if fits else ""


def _fewer_sequences(
    config: OrchestratorConfig, model: ModelConfig, size: int, shares: tuple[DeviceShare, ...]
) -> str:
    for count in _FEWER_SEQUENCES:
        if count < config.max_num_seqs:
            changed = replace(config, max_num_seqs=count)
            if MemoryPlanner(changed, model).plan(size, shares).fits:
                return f"--max-num-seqs {count} fits"
    return ""


def _more_of_the_device(
    config: OrchestratorConfig, model: ModelConfig, size: int, shares: tuple[DeviceShare, ...]
) -> str:
    for share in _UTILIZATIONS:
        if share > config.memory_utilization:
            changed = replace(config, memory_utilization=share)
            if MemoryPlanner(changed, model).plan(size, shares).fits:
                return f"--memory-utilization {share} fits"
    return ""


def _smaller_numbers(
    config: OrchestratorConfig, model: ModelConfig, size: int, shares: tuple[DeviceShare, ...]
) -> str:
    if MemoryPlanner(config, model).dtype != "float32":
        return ""
    changed = replace(config, dtype="bfloat16")
    fits = MemoryPlanner(changed, model).plan(size, shares).fits
    return "--dtype bfloat16 fits: half the bytes, rounded numbers" if fits else ""


def _smaller_weights(
    config: OrchestratorConfig, model: ModelConfig, size: int, shares: tuple[DeviceShare, ...]
) -> str:
    if config.quantization != UNQUANTIZED:
        return ""
    on_cpus = all(share.kind == "cpu" for share in shares)
    changed = replace(config, device="auto", quantization=INT8 if on_cpus else FP8)
    if not MemoryPlanner(changed, model).plan(size, shares).fits:
        return ""
    if on_cpus:
        return "--quantization int8 fits: linear layers' weights in 8-bit integers"
    return "--quantization fp8 fits: linear layers' weights in 8-bit floats, on GPUs since Ada and Hopper"


def _more_ranks(
    config: OrchestratorConfig, model: ModelConfig, size: int, shares: tuple[DeviceShare, ...]
) -> str:
    share = min(shares, key=lambda share: share.total_bytes)
    for more in tensor_parallel_sizes(model):
        if more <= size:
            continue
        # Workers that share one device or host share it with the new ones, too.
        sharing = share.sharing if share.sharing == 1 and share.kind != "cpu" else share.sharing + more - size
        changed = replace(config, tensor_parallel_size=more)
        shared = (replace(share, sharing=sharing),) * more
        if MemoryPlanner(changed, model).plan(more, shared).fits:
            device = format_bytes(share.total_bytes)
            return f"--tensor-parallel-size {more} fits, with {more} devices of {device}"
    return ""
