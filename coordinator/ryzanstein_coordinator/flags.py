"""The flags that `serve` and `coordinator` share, declared once, and the configuration that they make."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ryzanstein.model_plan import UNQUANTIZED
from ryzanstein.program import ConfigFile, LogFormat, LogLevel
from ryzanstein.sizes import parse_bytes
from ryzanstein.tls import TlsFiles

from .config import GPU_ATTENTION, ConfigError, OrchestratorConfig, default_state_dir


def configuration(
    model_dir: Annotated[
        Path, typer.Argument(help="Hugging Face directory: config.json, tokenizer, safetensors")
    ],
    tensor_parallel_size: Annotated[int, typer.Option(help="ranks that the model is split over")] = 1,
    spares: Annotated[int, typer.Option(help="workers that stand by for a dead one")] = 0,
    data_parallel_size: Annotated[int, typer.Option(help="groups that each hold the whole model")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16")
    ] = "auto",
    quantization: Annotated[
        str,
        typer.Option(
            help="none; int8 (on CPUs) or fp8 (on GPUs since Ada and Hopper): half of bfloat16's bytes"
        ),
    ] = UNQUANTIZED,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="0 picks a free one")] = 50051,
    http_port: Annotated[int, typer.Option(help="0 picks a free one")] = 8000,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help="most tokens of prompt and output together; default: what the model allows and fits"
        ),
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="sequences that run at once")] = 64,
    max_batched_tokens: Annotated[
        int | None,
        typer.Option(
            help="tokens of one step, prefill and decode together; default 512 on CPUs (up to 2048 for small "
            "models), 8192 on GPUs"
        ),
    ] = None,
    prefix_caching: Annotated[
        bool, typer.Option(help="keep what prompts have in common, for all requests with the same API key")
    ] = True,
    max_decode_slowdown: Annotated[
        float,
        typer.Option(
            metavar="FACTOR",
            help="how many times as long a step may take when it prefills beside running streams; 0: no bound",
        ),
    ] = 1.7,
    cuda_graphs: Annotated[
        str, typer.Option(metavar="auto|off", help="GPUs launch steps that only decode with one call")
    ] = "auto",
    cuda_graph_sizes: Annotated[
        str,
        typer.Option(
            metavar="N,N,…",
            help="at these numbers of streams; default: powers of two up to max-num-seqs, and that",
        ),
    ] = "",
    gpu_attention: Annotated[
        str,
        typer.Option(
            metavar="|".join(GPU_ATTENTION),
            help="what computes attention on GPUs; auto takes the first that gives the right numbers there",
        ),
    ] = "auto",
    max_waiting_requests: Annotated[
        int | None, typer.Option(help="requests that may wait for a place; default: eight for each that runs")
    ] = None,
    max_waiting_tokens: Annotated[
        int | None,
        typer.Option(
            help="tokens of prompts and outputs that may wait; default: eight times what the KV caches hold"
        ),
    ] = None,
    memory_utilization: Annotated[
        float, typer.Option(help="share of each device's memory to use, in (0, 1]")
    ] = 0.9,
    kv_cache_memory: Annotated[
        int | None, typer.Option(parser=parse_bytes, metavar="BYTES", help="KV cache per rank, e.g. 4GiB")
    ] = None,
    cpu_threads: Annotated[
        int, typer.Option(help="threads of each local worker; 0 shares the processors out")
    ] = 0,
    cpu_pinning: Annotated[
        str,
        typer.Option(
            metavar="auto|cores|none",
            help="processors of each local worker's threads: own ones where there are several NUMA nodes; always; any",
        ),
    ] = "auto",
    replacement_wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="how long a dead rank's replacement is waited for")
    ] = 30.0,
    collective_timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="a rank that keeps the others waiting for so long is replaced"),
    ] = 30.0,
    progress_deadline: Annotated[
        float, typer.Option(metavar="SECONDS", help="a group that finishes no step for so long is stuck")
    ] = 20.0,
    served_model_name: Annotated[str, typer.Option(help="default: the directory's name")] = "",
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="one key per line, its owner's name, its roles")
    ] = None,
    join_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what workers must know to join; one line, or several")
    ] = None,
    tls_cert_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="certificate (PEM) of gRPC and HTTP")
    ] = None,
    tls_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="its private key (PEM)")] = None,
    tls_client_ca_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="who calls over gRPC must show a certificate of these authorities"),
    ] = None,
    tls_ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="authorities of the workers' certificates; default: of the clients'"
        ),
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="where epochs are kept over restarts")] = None,
    drain_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="most time that running streams get at the end")
    ] = 30.0,
    stop_workers: Annotated[
        bool, typer.Option(help="ask the shard workers to end when the coordinator is stopped")
    ] = False,
    log_format: LogFormat = "auto",
    log_level: LogLevel = "info",
    reproducible: Annotated[bool, typer.Option(help="the same request and seed give the same tokens")] = True,
    insecure: Annotated[
        bool, typer.Option(help="listen on an address that other machines reach, not or half protected")
    ] = False,
    member_port: Annotated[
        int | None, typer.Option(hidden=True)
    ] = None,  # `serve` gives it to its coordinator
    config: ConfigFile = None,
) -> OrchestratorConfig:
    """The configuration that the flags make; raises ConfigError for the first that can't work."""
    return OrchestratorConfig(
        model_dir=model_dir,
        tensor_parallel_size=tensor_parallel_size,
        spares=spares,
        data_parallel_size=data_parallel_size,
        device=device,
        dtype=dtype,
        quantization=quantization,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        prefix_caching=prefix_caching,
        max_decode_slowdown=max_decode_slowdown,
        cuda_graphs=cuda_graphs,
        cuda_graph_sizes=_numbers("--cuda-graph-sizes", cuda_graph_sizes),
        gpu_attention=gpu_attention,
        max_waiting_requests=max_waiting_requests,
        max_waiting_tokens=max_waiting_tokens,
        memory_utilization=memory_utilization,
        kv_cache_bytes=kv_cache_memory,
        cpu_threads=cpu_threads,
        cpu_pinning=cpu_pinning,
        replacement_wait_s=replacement_wait,
        collective_timeout_s=collective_timeout,
        progress_deadline_s=progress_deadline,
        served_model_name=served_model_name,
        api_key_file=api_key_file,
        join_token_file=join_token_file,
        tls=TlsFiles(
            cert_file=tls_cert_file,
            key_file=tls_key_file,
            client_ca_file=tls_client_ca_file,
            ca_file=tls_ca_file,
        ),
        member_port=member_port,
        state_dir=state_dir or default_state_dir(os.environ),
        drain_timeout_s=drain_timeout,
        stop_workers=stop_workers,
        reproducible=reproducible,
        log_format=log_format,
        log_level=log_level,
        insecure=insecure,
    )


def _numbers(flag: str, text: str) -> tuple[int, ...] | None:
    """ "1,2,4" → (1, 2, 4); nothing → None."""
    if not text.strip():
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag}: {text!r} is not a list of numbers, e.g. 1,2,4,8") from None


def command(action: Callable[[OrchestratorConfig], None]) -> Callable[..., None]:
    """A command with all of these flags that hands the configuration to `action`."""

    @functools.wraps(configuration)
    def run(*args: object, **kwargs: object) -> None:
        action(configuration(*args, **kwargs))  # type: ignore[arg-type]

    run.__doc__ = action.__doc__
    return run
