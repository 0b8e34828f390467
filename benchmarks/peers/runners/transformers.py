"""transformers in one process, or tensor parallel over gloo with one process per rank (started by torchrun)."""

from __future__ import annotations

import argparse
import os
import time

from .command import cores, nothing_to_prepare, run


class Transformers:
    """`generate` with the defaults: scaled dot product attention, dynamic cache."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(max(1, options.threads // options.ranks))
        parallel = {"tp_plan": "auto"} if options.ranks > 1 else {}
        self._torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=torch.bfloat16, attn_implementation="sdpa", **parallel
        ).eval()

    def generate(self, prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        torch = self._torch
        ids = torch.tensor(prompts)
        moments = [time.perf_counter()]

        def note(input_ids: object, scores: object, **_: object) -> object:
            """A criterion that never stops; it is asked once a step."""
            moments.append(time.perf_counter())
            return torch.zeros(len(prompts), dtype=torch.bool)

        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=output_tokens,
                min_new_tokens=output_tokens,
                pad_token_id=0,
                stopping_criteria=[note],
            )
        return [moments] * len(prompts)


def start(options: argparse.Namespace) -> Transformers:
    if options.ranks > 1:
        os.sched_setaffinity(0, cores(int(os.environ["RANK"]), options.ranks))
    return Transformers(options)


if __name__ == "__main__":
    run(start, nothing_to_prepare)
