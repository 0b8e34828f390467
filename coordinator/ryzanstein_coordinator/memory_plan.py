"""One plan of a group's memory: the bytes of every rank, and the bounds of the engine that follow from them.

Pure: from the model's configuration and what the workers said about their devices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ryzanstein.model_plan import ModelConfig, ModelError, parameter_count, refusal

from .config import BLOCK_SIZE, OrchestratorConfig
from .group_record import EngineBounds
from .memory_ledger import (
    GIB,
    RUNTIME_BYTES,
    Needs,
    format_bytes,
    kernel_bytes,
    rank_needs,
    slowest_step_s,
    tiles_serve,
)

#: On a CPU more cache than this per rank is taken only when it is asked for: the host has other uses for
#: memory.
CPU_CACHE_BYTES = 4 * GIB
#: On a GPU so many times what all sequences at full length can use: the rest keeps prefixes of ended ones.
PREFIX_SHARE = 4
#: A model that is cut to less context than this is refused: it would answer hardly anything.
LEAST_MODEL_LEN = 128
_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}
#: A CPU's step may have up to so many times as many tokens if it stays below so many operations, about 50 ms of one
#: core: where a model is small, what each step costs besides (planning, drawing, messages) is a third of a prefill.
_SMALL_MODELS_TIMES, _SMALL_STEP_OPERATIONS = 4, 1e10


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """What one worker may count on: a device, or its share of one that several workers use."""

    kind: str
    total_bytes: int
    #: Free when the worker registered.
    free_bytes: int
    #: Held by the worker's process (on a GPU: by whatever) before it loaded anything.
    baseline_bytes: int
    #: Workers that share it.
    sharing: int = 1
    #: A CPU whose products are computed in tiles where the dtype allows it. None: not known before its worker runs;
    #: what takes more is planned with.
    tiles: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """One rank's bytes by what they are for."""

    rank: int
    #: All that the rank may use.
    budget: int
    weights: int
    kv_cache: int
    workspace: int
    runtime: int
    communicator: int
    reserve: int

    @property
    def components(self) -> tuple[tuple[str, int], ...]:
        """(name, bytes), in the order in which they are shown."""
        names = ("weights", "kv_cache", "workspace", "runtime", "communicator", "reserve")
        return tuple((name, getattr(self, name)) for name in names)

    @property
    def free(self) -> int:
        """What is left of the budget; negative if it does not fit."""
        return self.budget - sum(count for _, count in self.components)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The answer to "does it fit": bounds for the engine, or a refusal with advice."""

    ledgers: tuple[Ledger, ...]
    kv_bytes_per_token: int
    #: None: it does not fit.
    bounds: EngineBounds | None
    #: One line; empty if it fits.
    refusal: str = ""
    #: Sentences: what would fit.
    advice: tuple[str, ...] = ()
    #: Sentences: what was decided for the user.
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.bounds is not None


class MemoryPlanner:
    """Plans under one configuration."""

    def __init__(self, config: OrchestratorConfig, model: ModelConfig) -> None:
        self._config = config
        self._model = model

    @property
    def dtype(self) -> str:
        """What the ranks compute in."""
        return self._model.dtype if self._config.dtype == "auto" else self._config.dtype

    def plan(self, size: int, shares: tuple[DeviceShare, ...]) -> MemoryPlan:
        """Plans a group of `size` ranks on these devices, one per rank; a refusal comes without advice."""
        try:
            self._check_quantization(shares)
            needs = self._needs(size, shares[0].kind)
        except ModelError as error:
            return MemoryPlan(ledgers=(), kv_bytes_per_token=0, bounds=None, refusal=str(error))
        budgets = [self._budget(share) for share in shares]
        runtimes = [
            (share.baseline_bytes or RUNTIME_BYTES[share.kind]) + self._kernel_bytes(share, needs)
            for share in shares
        ]
        room = min(budget - runtime - needs.fixed for budget, runtime in zip(budgets, runtimes, strict=True))
        wanted = self._wanted_cache_bytes(needs, shares[0].kind, room)
        num_blocks = max(0, wanted // needs.kv_block)
        ledgers = tuple(
            Ledger(
                rank=rank,
                budget=budget,
                weights=needs.weights,
                kv_cache=num_blocks * needs.kv_block,
                workspace=needs.workspace,
                runtime=runtime,
                communicator=needs.communicator,
                reserve=needs.reserve,
            )
            for rank, (budget, runtime) in enumerate(zip(budgets, runtimes, strict=True))
        )
        plan = MemoryPlan(ledgers=ledgers, kv_bytes_per_token=needs.kv_per_token, bounds=None)
        return self._judged(plan, shares, num_blocks)

    def allowed(self, share: DeviceShare) -> int:
        """Bytes of its device that the rank may use."""
        return int(self._config.memory_utilization * share.total_bytes) // share.sharing

    def _judged(self, plan: MemoryPlan, shares: tuple[DeviceShare, ...], num_blocks: int) -> MemoryPlan:
        """The plan with its bounds, or with the reason why there are none."""
        tightest = min(plan.ledgers, key=lambda ledger: ledger.free)
        if tightest.free >= 0 and num_blocks < 2 and self._config.kv_cache_bytes is not None:
            given = format_bytes(self._config.kv_cache_bytes)
            least = format_bytes(2 * BLOCK_SIZE * plan.kv_bytes_per_token)
            return replace(plan, refusal=f"--kv-cache-memory {given} holds nothing; give {least} or more")
        if tightest.free < 0 or num_blocks < 2:
            return replace(plan, refusal=self._shortage(tightest, shares[tightest.rank]))
        held = (num_blocks - 1) * BLOCK_SIZE  # block 0 is the scratch block
        longest = self._model.context_length
        asked = self._config.max_model_len
        notes: tuple[str, ...] = ()
        if asked is not None and held < asked:
            return replace(
                plan, refusal=f"a sequence of {asked} tokens does not fit into a cache of {held} tokens"
            )
        if asked is None and held < min(longest, LEAST_MODEL_LEN):
            return replace(plan, refusal=f"the cache has room for only {held} tokens")
        if asked is None and held < longest:
            cache = format_bytes(tightest.kv_cache)
            notes = (
                f"max-model-len is {held}, not the model's {longest}: a KV cache of {cache} per rank holds "
                "no more; --kv-cache-memory or --memory-utilization can give it more",
            )
        kind = shares[0].kind
        bounds = EngineBounds(
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks,
            max_num_seqs=self._config.max_num_seqs,
            max_batched_tokens=self._batched_tokens(kind),
            max_model_len=asked or min(longest, held),
            slowest_step_s=slowest_step_s(
                self._model, len(shares), kind=kind, max_batched_tokens=self._batched_tokens(kind)
            ),
            needed_bytes=max(ledger.budget - ledger.free for ledger in plan.ledgers),
            memory_bytes=min(ledger.budget for ledger in plan.ledgers),
            prefix_caching=self._config.prefix_caching,
            max_decode_slowdown=self._config.max_decode_slowdown,
            graph_sizes=self._config.graph_sizes(kind),
            gpu_attention=self._config.gpu_attention if kind == "cuda" else "",
        )
        return replace(plan, bounds=bounds, notes=notes)

    def _shortage(self, ledger: Ledger, share: DeviceShare) -> str:
        without_cache = sum(count for name, count in ledger.components if name != "kv_cache")
        parts = ", ".join(f"{name} {format_bytes(count)}" for name, count in ledger.components if count)
        shared = f", shared by {share.sharing} workers" if share.sharing > 1 else ""
        needed = format_bytes(max(without_cache, ledger.budget - ledger.free))
        return (
            f"rank {ledger.rank} needs {needed} ({parts}) and "
            f"may use {format_bytes(ledger.budget)} of {format_bytes(share.total_bytes)}{shared}"
        )

    def _check_quantization(self, shares: tuple[DeviceShare, ...]) -> None:
        for share in shares:
            refused = refusal(self._config.quantization, share.kind, self.dtype)
            if refused:
                raise ModelError(refused)

    def _needs(self, size: int, kind: str) -> Needs:
        return rank_needs(
            self._model,
            size,
            dtype=self.dtype,
            quantization=self._config.quantization,
            kind=kind,
            max_batched_tokens=self._batched_tokens(kind),
            max_num_seqs=self._config.max_num_seqs,
            graph_sizes=self._config.graph_sizes(kind),
        )

    def _kernel_bytes(self, share: DeviceShare, needs: Needs) -> int:
        possible = {share.tiles} if share.tiles is not None else {False, share.kind == "cpu"}
        served = tiles_serve(self.dtype, self._config.quantization)
        return max(
            kernel_bytes(self._model, share.kind, needs.weights, tiles=tiles and served) for tiles in possible
        )

    def _batched_tokens(self, kind: str) -> int:
        if self._config.max_batched_tokens:
            return self._config.max_batched_tokens
        tokens = most = _BATCHED_TOKENS[kind]
        if kind == "cpu":
            most *= _SMALL_MODELS_TIMES
        while (
            2 * tokens <= most and 2.0 * parameter_count(self._model) * 2 * tokens <= _SMALL_STEP_OPERATIONS
        ):
            tokens *= 2
        return max(tokens, self._config.max_num_seqs)

    def _wanted_cache_bytes(self, needs: Needs, kind: str, room: int) -> int:
        """Bytes of cache per rank: as told; on GPUs what there is, on CPUs what can be used, both within reason."""
        if self._config.kv_cache_bytes is not None:
            return self._config.kv_cache_bytes
        longest = self._config.max_model_len or self._model.context_length
        usable = (1 + self._config.max_num_seqs * -(-longest // BLOCK_SIZE)) * needs.kv_block
        if kind != "cpu":
            return min(room, PREFIX_SHARE * usable)
        return min(room, usable, CPU_CACHE_BYTES)

    def _budget(self, share: DeviceShare) -> int:
        """What the rank may use, and what is really there: other processes may hold some."""
        there = share.free_bytes // share.sharing + share.baseline_bytes
        return min(self.allowed(share), there)
