"""vLLM for CPU in process: its engine's steps are driven from here; tensor parallel with one worker per rank."""

from __future__ import annotations

import argparse
import os
import time

from .command import cores, nothing_to_prepare, run


class Vllm:
    """The engine below `LLM`, with its defaults."""

    def __init__(self, options: argparse.Namespace) -> None:
        bound = [sorted(cores(rank, options.ranks)) for rank in range(options.ranks)]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, some)) for some in bound)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GiB
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["VLLM_HOST_IP"] = "127.0.0.1"
        from vllm import LLM, SamplingParams

        self._sampling = SamplingParams
        self.engine = LLM(
            str(options.model),
            dtype="bfloat16",
            tensor_parallel_size=options.ranks,
            max_model_len=1024,
            max_num_seqs=16,
        ).llm_engine
        self._asked = 0

    def generate(self, prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        sampling = self._sampling(
            temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False
        )
        moments: dict[str, list[float]] = {}
        for prompt in prompts:
            self._asked += 1
            moments[str(self._asked)] = [time.perf_counter()]
            self.engine.add_request(str(self._asked), {"prompt_token_ids": prompt}, sampling)
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            now = time.perf_counter()
            for output in outputs:
                stream = moments[output.request_id]
                stream += [now] * (1 + len(output.outputs[0].token_ids) - len(stream))
        return list(moments.values())


if __name__ == "__main__":
    run(Vllm, nothing_to_prepare)
