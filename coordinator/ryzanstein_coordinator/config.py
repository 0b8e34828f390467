"""The coordinator's configuration: read once by the command that starts it, validated, never changed."""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ryzanstein.model_plan import DTYPE_BYTES, QUANTIZATIONS, UNQUANTIZED, refusal
from ryzanstein.tls import TlsFiles

#: What may compute attention on GPUs; "auto": the first of the others that gives the right numbers there.
GPU_ATTENTION = ("auto", "flashinfer", "triton", "varlen", "torch")

#: Tokens per KV block. The attention kernels, the ledger and the scheduler agree on it.
BLOCK_SIZE = 16

_DEVICES = ("auto", "cpu", "cuda")
_PINNINGS = ("auto", "cores", "none")


class ConfigError(ValueError):
    """A setting that can't work; the message says which, why, and what to give instead."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorConfig:
    """Everything that `serve` and `coordinator` can be told. Units are in the names."""

    #: Hugging Face directory of the model that is served.
    model_dir: Path
    #: What clients call it. Empty: the directory's name.
    served_model_name: str = ""

    # --- the cluster's shape
    #: Ranks that one model is split over.
    tensor_parallel_size: int = 1
    #: Groups, each of which holds the whole model.
    data_parallel_size: int = 1
    #: Workers beyond those that hold a rank; `serve` starts them, and they load a likely rank's shard.
    spares: int = 0
    #: "auto", "cpu" or "cuda": what the workers that `serve` starts use.
    device: str = "auto"
    #: Of each local worker; 0: the host's processors shared out.
    cpu_threads: int = 0
    #: "auto", "cores" or "none": whether each local worker's threads get processors of their own.
    cpu_pinning: str = "auto"

    # --- the engine's bounds
    #: "auto" is the checkpoint's.
    dtype: str = "auto"
    #: A name of `model_plan.QUANTIZATIONS`: how the linear layers' weights are held.
    quantization: str = UNQUANTIZED
    #: Most tokens of prompt and output together. None: the model's, cut to what fits.
    max_model_len: int | None = None
    #: Sequences that one group runs at once.
    max_num_seqs: int = 64
    #: Tokens of one step, prefill and decode together. None: 512 on CPUs, 8192 on GPUs.
    max_batched_tokens: int | None = None
    #: What ended sequences computed is kept for others of the same API key that begin with the same tokens.
    prefix_caching: bool = True
    #: A step that prefills beside streams that decode should take at most so many times as long as without.
    #: 0: no bound.
    max_decode_slowdown: float = 1.7
    #: "auto" or "off": whether GPUs capture steps that only decode.
    cuda_graphs: str = "auto"
    #: At these numbers of rows. None: powers of two up to `max_num_seqs`, and that.
    cuda_graph_sizes: tuple[int, ...] | None = None
    #: What computes attention on GPUs, one of GPU_ATTENTION.
    gpu_attention: str = "auto"
    #: Share of each device's memory that may be used, in (0, 1].
    memory_utilization: float = 0.9
    #: Bytes of KV cache per rank. None: what the ledger leaves, on CPUs no more than is needed.
    kv_cache_bytes: int | None = None
    #: The same request and seed give the same tokens, whatever else is in the batch.
    reproducible: bool = True

    #: Requests that may wait for a place. None: eight for each that runs.
    max_waiting_requests: int | None = None
    #: Tokens, of prompts and expected outputs, that may wait for room in a KV cache. None: eight times what fits.
    max_waiting_tokens: int | None = None

    # --- the front door
    host: str = "127.0.0.1"
    #: 0 picks a free one.
    grpc_port: int = 50051
    http_port: int = 8000
    #: Who may ask for what; None: everybody who reaches the ports. See `api_keys`.
    api_key_file: Path | None = None
    #: What workers and this coordinator know, and nobody else. See `ryzanstein.join_proof`.
    join_token_file: Path | None = None
    tls: TlsFiles = field(default_factory=TlsFiles)
    #: Where the workers of `serve` register, on 127.0.0.1 and without TLS; 0 picks a free one. None: with all others.
    member_port: int | None = None
    #: Accepts a host that other machines reach although not everything is protected.
    insecure: bool = False
    #: Where epochs are kept. They must survive a restart of the coordinator.
    state_dir: Path = field(default_factory=lambda: default_state_dir(os.environ))
    #: Most time that running streams get when the coordinator is told to stop.
    drain_timeout_s: float = 30.0
    #: For `ryzanstein.logs`.
    log_format: str = "auto"
    log_level: str = "info"
    #: Workers end with the coordinator. Otherwise they keep their weights and wait for it to come back.
    stop_workers: bool = False

    # --- detection
    #: A worker that was not heard of for so long is hung.
    lease_ttl_s: float = 1.0
    #: A group whose engine finishes no step and no keep-alive for so long is stuck. Longer for a model whose
    #: steps may take longer.
    progress_deadline_s: float = 20.0
    #: No answer of a peer inside a collective for so long is a failure.
    collective_timeout_s: float = 30.0

    # --- forming and recovery
    #: For one rank to load its shard.
    load_timeout_s: float = 1800.0
    #: For all ranks to form the group and warm up.
    join_timeout_s: float = 60.0
    #: For a survivor to leave the old epoch; one that doesn't is left out of the next.
    fence_timeout_s: float = 1.0
    #: How long a group without a spare waits for a dead rank's replacement.
    replacement_wait_s: float = 30.0
    #: The pause after the second failure in a row; it doubles with every further one.
    backoff_s: float = 0.2
    backoff_limit_s: float = 10.0
    #: How long a standby must have been there before a group that had to shrink grows by it: every change of
    #: size stalls all streams.
    grow_after_s: float = 3.0
    #: A group that served for so long starts to count failures afresh.
    stable_after_s: float = 10.0
    #: A worker that was lost for so long is no longer shown.
    forget_lost_after_s: float = 3600.0

    def __post_init__(self) -> None:
        """Raises ConfigError for the first setting that can't work."""
        for flag, number, least in (
            ("--tensor-parallel-size", self.tensor_parallel_size, 1),
            ("--data-parallel-size", self.data_parallel_size, 1),
            ("--spares", self.spares, 0),
            ("--cpu-threads", self.cpu_threads, 0),
            ("--max-num-seqs", self.max_num_seqs, 1),
            ("--max-waiting-requests", self.max_waiting_requests or 0, 0),
            ("--max-waiting-tokens", self.max_waiting_tokens or 0, 0),
        ):
            if number < least:
                raise ConfigError(f"{flag}: {number} is too small, give {least} or more")
        self._check_numerics()
        if self.max_model_len is not None and self.max_model_len < BLOCK_SIZE:
            raise ConfigError(
                f"--max-model-len: {self.max_model_len} is too small, give {BLOCK_SIZE} or more"
            )
        if self.max_batched_tokens is not None and self.max_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"--max-batched-tokens: {self.max_batched_tokens} leaves no room for {self.max_num_seqs} "
                "decoding sequences; raise it or lower --max-num-seqs"
            )
        if self.max_decode_slowdown != 0.0 and not 1.0 < self.max_decode_slowdown < math.inf:
            raise ConfigError(
                f"--max-decode-slowdown: {self.max_decode_slowdown} is not above 1, e.g. 1.7; 0 sets no bound"
            )
        self._check_gpus()
        if not 0.0 < self.memory_utilization <= 1.0:
            raise ConfigError(f"--memory-utilization: {self.memory_utilization} is not in (0, 1], e.g. 0.9")
        if self.kv_cache_bytes is not None and self.kv_cache_bytes < 1:
            raise ConfigError(f"--kv-cache-memory: {self.kv_cache_bytes} bytes hold nothing")
        ports = (self.grpc_port, self.http_port, self.member_port or 0)
        for flag, port in zip(("--grpc-port", "--http-port", "--member-port"), ports, strict=True):
            if not 0 <= port < 65536:
                raise ConfigError(f"{flag}: {port} is not in 0..65535")
        self._check_times()
        if not self.insecure and not is_loopback(self.host):
            self._check_protected()

    def _check_numerics(self) -> None:
        if self.device not in _DEVICES:
            raise ConfigError(f"--device: {self.device!r} is not one of {', '.join(_DEVICES)}")
        if self.cpu_pinning not in _PINNINGS:
            raise ConfigError(f"--cpu-pinning: {self.cpu_pinning!r} is not one of {', '.join(_PINNINGS)}")
        if self.dtype != "auto" and self.dtype not in DTYPE_BYTES:
            raise ConfigError(f"--dtype: {self.dtype!r} is not one of auto, {', '.join(DTYPE_BYTES)}")
        if self.quantization not in QUANTIZATIONS:
            raise ConfigError(
                f"--quantization: {self.quantization!r} is not one of {', '.join(QUANTIZATIONS)}"
            )
        refused = "" if self.device == "auto" else refusal(self.quantization, self.device, self.dtype)
        if refused:
            raise ConfigError(f"--quantization: {refused}")

    def _check_protected(self) -> None:
        missing = [] if self.tls.serves else ["--tls-cert-file and --tls-key-file"]
        missing += [] if self.api_key_file is not None else ["--api-key-file"]
        if missing:
            raise ConfigError(
                f"--host: {self.host} is open to other machines; give {' and '.join(missing)}, "
                "or use 127.0.0.1, or add --insecure in a network that you trust"
            )

    def _check_gpus(self) -> None:
        if self.cuda_graphs not in ("auto", "off"):
            raise ConfigError(f"--cuda-graphs: {self.cuda_graphs!r} is neither auto nor off")
        if self.gpu_attention not in GPU_ATTENTION:
            raise ConfigError(
                f"--gpu-attention: {self.gpu_attention!r} is not one of {', '.join(GPU_ATTENTION)}"
            )
        for size in self.cuda_graph_sizes or ():
            if not 1 <= size <= self.max_num_seqs:
                raise ConfigError(
                    f"--cuda-graph-sizes: {size} is not in 1..{self.max_num_seqs}, the rows that a step which only "
                    "decodes can have (--max-num-seqs)"
                )

    def _check_times(self) -> None:
        for name in _SECONDS:
            seconds = getattr(self, name)
            least = (
                0.0
                if name in ("replacement_wait_s", "drain_timeout_s", "grow_after_s", "stable_after_s")
                else 1e-3
            )
            if not (math.isfinite(seconds) and seconds >= least):
                raise ConfigError(f"{name}: {seconds} is not a number of seconds from {least:g} on")
        if self.progress_deadline_s <= self.lease_ttl_s:
            raise ConfigError(
                f"progress_deadline_s: {self.progress_deadline_s} must be longer than the lease "
                f"({self.lease_ttl_s} s), or a missed heartbeat looks like a stuck engine"
            )
        if self.backoff_limit_s < self.backoff_s:
            raise ConfigError(
                f"backoff_limit_s: {self.backoff_limit_s} is shorter than backoff_s ({self.backoff_s})"
            )

    def graph_sizes(self, kind: str) -> tuple[int, ...]:
        """Numbers of rows at which devices of this kind ("cpu", "cuda") capture steps that only decode, ascending."""
        if kind != "cuda" or self.cuda_graphs == "off":
            return ()
        if self.cuda_graph_sizes is not None:
            return tuple(sorted(set(self.cuda_graph_sizes)))
        powers = (1 << power for power in range(self.max_num_seqs.bit_length()))
        return tuple(sorted({*powers, self.max_num_seqs}))

    @property
    def worker_count(self) -> int:
        """Workers that the cluster is meant to have."""
        return self.tensor_parallel_size * self.data_parallel_size + self.spares

    @property
    def heartbeat_interval_s(self) -> float:
        """Five beats fit into a lease: jitter of 230 ms was seen on busy processors."""
        return self.lease_ttl_s / 5

    @property
    def suspect_after_s(self) -> float:
        """Three beats missing: shown, not acted upon."""
        return self.lease_ttl_s * 0.6

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or self.model_dir.resolve().name


_SECONDS = tuple(name for name in OrchestratorConfig.__dataclass_fields__ if name.endswith("_s"))


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: it may stand for anything
        return False


def default_state_dir(environment: Mapping[str, str]) -> Path:
    """systemd's StateDirectory=, else the user's state directory by the XDG rules."""
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "ryzanstein"
