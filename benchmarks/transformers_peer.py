"""transformers in one process, on the weights and prompts of `benchmarks.cluster`: the peer that installs everywhere.

    python -m benchmarks.transformers_peer --model DIR [--threads 2] [--streams 1 8 16] [--repeats 3]

bfloat16 as the checkpoint has it, scaled dot product attention, greedy, no end of sequence. Prints one line of JSON.
Tokens per second count while decoding: a run of 128 tokens less the time of its first one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

PROMPT, OUTPUT, LONG_PROMPT = 128, 128, 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begun = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype="auto", attn_implementation="sdpa"
    ).eval()
    start_s = time.monotonic() - begun
    draw = random.Random(0)

    @torch.inference_mode()
    def seconds(streams: int, prompt: int, output: int) -> float:
        ids = torch.tensor(
            [[draw.randrange(5, model.config.vocab_size) for _ in range(prompt)] for _ in range(streams)]
        )
        begun = time.perf_counter()
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=output,
            min_new_tokens=output,
            pad_token_id=0,
        )
        assert made.shape == (streams, prompt + output)
        return time.perf_counter() - begun

    seconds(1, PROMPT, 4)  # warm
    first = statistics.median(seconds(1, LONG_PROMPT, 1) for _ in range(options.repeats))
    decode = {}
    for streams in options.streams:
        rates = [
            streams * (OUTPUT - 1) / (seconds(streams, PROMPT, OUTPUT) - seconds(streams, PROMPT, 1))
            for _ in range(options.repeats)
        ]
        decode[streams] = statistics.median(rates)
    print(json.dumps({"start_s": start_s, "first_token_s": first, "decode": decode}))


if __name__ == "__main__":
    main()
