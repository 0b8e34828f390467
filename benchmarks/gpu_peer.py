"""Decoding by transformers with a static cache and torch.compile, the shape and the streams of `benchmarks.engine`.

    python -m benchmarks.gpu_peer [--device cuda:0] [--shape 8b] [--streams 1 64] [--json FILE]

What a user gets who writes the loop: a static cache as long as is needed, the step compiled with CUDA graphs
(`mode="reduce-overhead"`), greedy. Prompts are not prefilled: the cache begins empty at the context's position, which
costs a step the same. On a CPU nothing is compiled: a rehearsal.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from .devices import choose_device, device_name, wait_for
from .engine_model import DTYPES
from .shapes import SHAPES, write_config

_WARM_STEPS = 6


@dataclass(frozen=True, slots=True)
class Decoding:
    """So many streams at once. Times in seconds."""

    streams: int
    context_tokens: int
    #: Median.
    step_s: float
    tokens_per_s: float
    compiled: bool
    #: The first steps, with the compiler's work.
    warm_up_s: float


@torch.inference_mode()
def measure(model: Any, streams: int, context: int, steps: int, device: torch.device) -> Decoding:
    """Times steps of a batch whose caches hold `context` tokens at the first timed step."""
    compiled = device.type == "cuda"
    cache = StaticCache(config=model.config, max_cache_len=context + steps + _WARM_STEPS)
    step = torch.compile(model, mode="reduce-overhead", fullgraph=False) if compiled else model
    tokens = torch.full((streams, 1), 5, dtype=torch.int64, device=device)
    times: list[float] = []
    started_at = time.perf_counter()
    warm_up_s = 0.0
    for number in range(_WARM_STEPS + steps):
        position = torch.full((streams, 1), context - _WARM_STEPS + number, dtype=torch.int64, device=device)
        wait_for(device)
        before = time.perf_counter()
        if compiled:
            torch.compiler.cudagraph_mark_step_begin()
        logits = step(
            input_ids=tokens,
            position_ids=position,
            cache_position=position[0],
            past_key_values=cache,
            use_cache=True,
        ).logits
        tokens = logits[:, -1:].argmax(-1).clone()
        tokens.tolist()  # a stream's user gets every token
        if number < _WARM_STEPS:
            warm_up_s = time.perf_counter() - started_at
        else:
            times.append(time.perf_counter() - before)
    step_s = statistics.median(times)
    return Decoding(streams, context, step_s, streams * len(times) / sum(times), compiled, warm_up_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="8b")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--context", type=int, default=512, help="tokens of each stream")
    parser.add_argument("--steps", type=int, default=32, help="timed ones")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        write_config(Path(directory), options.shape)
        raw = json.loads((Path(directory) / "config.json").read_text())
        (Path(directory) / "config.json").write_text(json.dumps({**raw, "model_type": "llama"}))
        config = AutoConfig.from_pretrained(directory)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[options.dtype]).eval()
    results = []
    for streams in options.streams:
        torch.compiler.reset()
        found = measure(model, streams, options.context, options.steps, device)
        print(
            f"transformers b{streams}: {found.tokens_per_s:.1f} tok/s, step {found.step_s * 1e3:.2f} ms, "
            f"{'compiled, ' if found.compiled else ''}warm after {found.warm_up_s:.0f} s",
            flush=True,
        )
        results.append(asdict(found))
    if options.json:
        report = {
            "device": device_name(device),
            "shape": options.shape,
            "dtype": options.dtype,
            "transformers": importlib.metadata.version("transformers"),
            "decoding": results,
        }
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
