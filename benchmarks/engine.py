"""One rank's steps without a cluster around them: decoding, prefill, and what the device spends them on.

    python -m benchmarks.engine [--device cuda:0] [--shape 8b] [--quantization int8] [--streams 1 8 64]
        [--json FILE]

The leader's own loop runs: scheduler, runner, sampling, the message per step. Only the coordinator is missing.
Weights are random, the choice is greedy. Decoding is measured at the given context (tokens in the cache at the first
timed step); its share of the memory's bandwidth counts what a step has to read once: all weights but the embedding
table, and the keys and values of every stream. The host's share of a step is the time in which the device computes
nothing: its kernels' time comes from torch's profiler over steps of their own, because profiling slows the host.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ryzanstein.model_plan import FP8, QUANTIZATIONS, UNQUANTIZED, ModelConfig, parameter_count
from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.inbox import Inbox
from ryzanstein_shard_worker.parallel.fp8_weight import fp8_problem

from .devices import choose_device, copy_bandwidth, device_name, wait_for
from .engine_model import BLOCK, DTYPES, Bench, random_prompt
from .shapes import SHAPES, write_config

_WARM_STEPS, _PROFILED_STEPS = 8, 16


@dataclass(frozen=True, slots=True)
class Decoding:
    """So many streams at once. Times in seconds."""

    streams: int
    context_tokens: int
    #: Median, and the slowest of 20.
    step_s: float
    step_p95_s: float
    tokens_per_s: float
    #: What a step has to read, and that over its time, as a share of what a copy reaches.
    read_bytes: int
    bandwidth_share: float
    #: Kernels of one step; None on a CPU, or where the profiler sees no device.
    device_s: float | None
    host_share: float | None


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompts in one step."""

    prompts: int
    prompt_tokens: int
    step_s: float
    tokens_per_s: float
    #: 2 operations per parameter and token; attention not counted.
    operations_per_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """All of one model on one device."""

    device: str
    shape: str
    dtype: str
    quantization: str
    parameters: int
    weights_bytes: int
    copy_bytes_per_s: float
    #: What computes attention, the rows at which steps are captured, and how long that took.
    attention: str
    graph_sizes: tuple[int, ...]
    capture_s: float
    decoding: list[Decoding]
    prefill: list[Prefill]


def measure_decoding(
    bench: Bench, streams: int, context: int, steps: int, copy_bytes_per_s: float
) -> Decoding:
    """Prefills, warms up, times `steps` steps, then profiles some on a GPU."""
    moments: list[float] = []
    profiled = profile(activities=[ProfilerActivity.CUDA]) if bench.device.type == "cuda" else None
    last = _WARM_STEPS + steps

    def on_step(response: shard_worker_pb2.ExecuteResponse, inbox: Inbox) -> None:
        assert not any(output.error for output in response.outputs), response
        if len(response.outputs) < streams:  # prompts are still prefilled
            return
        moments.append(time.perf_counter())
        if len(moments) == last + 1:
            if profiled is None:
                inbox.stop()
            else:
                profiled.start()
        elif len(moments) == last + 1 + _PROFILED_STEPS:
            wait_for(bench.device)
            assert profiled is not None
            profiled.stop()
            inbox.stop()

    prompts = [random_prompt(bench.config, number, context - _WARM_STEPS) for number in range(streams)]
    bench.run(prompts, last + _PROFILED_STEPS + 8, on_step, max_batched_tokens=8192)
    times = [after - before for before, after in itertools.pairwise(moments[_WARM_STEPS : last + 1])]
    step_s = statistics.median(times)
    device_s = _kernel_seconds(profiled) / _PROFILED_STEPS if profiled is not None else 0.0
    read_bytes = bench.read_bytes(streams, context + steps // 2)
    return Decoding(
        streams=streams,
        context_tokens=context,
        step_s=step_s,
        step_p95_s=sorted(times)[int(0.95 * (len(times) - 1))],
        tokens_per_s=streams * len(times) / sum(times),
        read_bytes=read_bytes,
        bandwidth_share=read_bytes / step_s / copy_bytes_per_s,
        device_s=device_s or None,
        host_share=max(0.0, 1.0 - device_s / step_s) if device_s else None,
    )


def measure_prefill(bench: Bench, prompts: int, tokens: int, repeats: int) -> Prefill:
    """The median over `repeats` steps, after two, that prefill whole prompts and nothing else."""
    times: list[float] = []
    for repeat in range(repeats + 2):

        def on_step(response: shard_worker_pb2.ExecuteResponse, inbox: Inbox) -> None:
            times.append(response.step_duration_s)
            inbox.stop()

        given = [random_prompt(bench.config, 1000 * repeat + number, tokens) for number in range(prompts)]
        bench.run(given, 1, on_step, max_batched_tokens=prompts * tokens)
    step_s = statistics.median(times[2:])
    rate = prompts * tokens / step_s
    return Prefill(prompts, tokens, step_s, rate, 2.0 * parameter_count(bench.config) * rate)


def measure(options: argparse.Namespace, config: ModelConfig, device: torch.device) -> Report:
    """Everything that the flags ask for."""
    copy = copy_bandwidth(device)
    print(f"{device_name(device)}: a copy moves {copy / 1e9:.0f} GB/s (read and written)", flush=True)
    each = options.context + _WARM_STEPS + options.steps + _PROFILED_STEPS + BLOCK
    prefilled = max(prompts * (tokens + BLOCK) for prompts, tokens in options.prefill)
    tokens = max(max(options.streams) * each, prefilled)
    graphs = options.cuda_graphs == "auto" and (device.type == "cuda" or options.as_gpu)
    sizes = tuple(sorted(set(options.streams))) if graphs else ()
    bench = Bench(
        config, options.dtype, device, tokens, options.quantization,
        graph_sizes=sizes, longest=each, rehearse=options.as_gpu,
    )  # fmt: skip
    print(f"attention: {bench.attention}; captured {list(sizes)} in {bench.capture_s:.2f} s", flush=True)
    report = Report(
        device=device_name(device),
        shape=options.shape,
        dtype=options.dtype,
        quantization=options.quantization,
        parameters=parameter_count(config),
        weights_bytes=bench.model.weights_bytes,
        copy_bytes_per_s=copy,
        attention=bench.attention,
        graph_sizes=sizes,
        capture_s=bench.capture_s,
        decoding=[],
        prefill=[],
    )
    for streams in options.streams:
        decoding = measure_decoding(bench, streams, options.context, options.steps, copy)
        host = "" if decoding.host_share is None else f", the host's share {decoding.host_share:.0%}"
        print(
            f"b{streams}: {decoding.tokens_per_s:.1f} tok/s, step {decoding.step_s * 1e3:.2f} ms, "
            f"{decoding.bandwidth_share:.0%} of the bandwidth{host}",
            flush=True,
        )
        report.decoding.append(decoding)
    for prompts, tokens in options.prefill:
        prefill = measure_prefill(bench, prompts, tokens, options.repeats)
        print(
            f"prefill {prompts} x {tokens}: {prefill.step_s * 1e3:.1f} ms, {prefill.tokens_per_s:.0f} tok/s, "
            f"{prefill.operations_per_s / 1e12:.1f} TFLOP/s",
            flush=True,
        )
        report.prefill.append(prefill)
    return report


def _kernel_seconds(profiled: profile) -> float:
    """Of all kernels and copies on the device; they run one after the other, on one stream."""
    on_device = (event for event in profiled.events() if event.device_type == DeviceType.CUDA)
    return float(sum(event.time_range.elapsed_us() for event in on_device)) / 1e6


def _pair(text: str) -> tuple[int, int]:
    prompts, _, tokens = text.partition("x")
    return int(prompts), int(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="8b")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default=UNQUANTIZED)
    parser.add_argument("--cuda-graphs", choices=("auto", "off"), default="auto")
    parser.add_argument("--as-gpu", action="store_true", help="launch as on a GPU, to rehearse it on a CPU")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--context", type=int, default=512, help="tokens of each stream")
    parser.add_argument("--steps", type=int, default=64, help="timed ones")
    parser.add_argument(
        "--prefill", type=_pair, nargs="+", default=[(1, 512), (4, 2048)], metavar="PROMPTSxTOKENS"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        config = write_config(Path(directory), options.shape)
    problem = ""
    if options.quantization == FP8 and device.type == "cuda":
        problem = fp8_problem(DTYPES[options.dtype], device)
    if problem:
        print(f"not measured: {problem}")
        report: dict[str, object] = {"not_measured": problem}
    else:
        report = asdict(measure(options, config, device))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
