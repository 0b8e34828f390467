"""llama.cpp's library in process, by its own interface: what llama-bench measures, with choosing the greatest logit."""

from __future__ import annotations

import argparse
import ctypes
import time

import numpy as np

from .command import run
from .gguf_file import write_gguf

_BATCH = 512


class LlamaCpp:
    """A context with one cache for all streams. Prompts are computed one after the other, steps all at once."""

    def __init__(self, options: argparse.Namespace) -> None:
        import llama_cpp

        self._api = llama_cpp
        llama_cpp.llama_backend_init()
        loading = llama_cpp.llama_model_default_params()
        # ggml 0.25.3 (llama-cpp-python 0.3.36) computes Q8_0 with AMX, and ends with a segmentation fault on the Xeon
        # that this was tried on. Without layouts of its own for weights it computes with VNNI.
        loading.use_extra_bufts = options.weights != "int8"
        self.model = llama_cpp.llama_model_load_from_file(str(options.converted).encode(), loading)
        if not self.model:
            raise ValueError(f"llama.cpp can't read {options.converted}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 16 * 1024, _BATCH, _BATCH, 16
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = options.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)

    def generate(self, prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        begun = time.perf_counter()
        self._api.llama_memory_clear(self._api.llama_get_memory(self.context), False)
        moments: list[list[float]] = []
        chosen = []
        for stream, prompt in enumerate(prompts):
            for begin in range(0, len(prompt), _BATCH):
                part = prompt[begin : begin + _BATCH]
                last = begin + len(part) == len(prompt)
                rows = [(token, begin + i, stream) for i, token in enumerate(part)]
                self._decode(rows, {len(part) - 1} if last else set())
            chosen.append(self._greatest(-1))
            moments.append([begun, time.perf_counter()])
        for step in range(output_tokens - 1):
            rows = [(chosen[i], len(prompt) + step, i) for i, prompt in enumerate(prompts)]
            self._decode(rows, set(range(len(rows))))
            chosen = [self._greatest(i) for i in range(len(rows))]
            now = time.perf_counter()
            for stream_moments in moments:
                stream_moments.append(now)
        return moments

    def _decode(self, rows: list[tuple[int, int, int]], wanted: set[int]) -> None:
        """One call for (token, position, stream) rows, with logits of those that are wanted."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, stream) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
            batch.logits[i] = i in wanted
        code = self._api.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode gave {code} for {len(rows)} tokens")

    def _greatest(self, row: int) -> int:
        logits = self._api.llama_get_logits_ith(self.context, row)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(np.argmax(np.ctypeslib.as_array(address, shape=(self.vocab_size,))))


def prepare(options: argparse.Namespace) -> None:
    unfinished = options.converted.with_suffix(".unfinished")
    write_gguf(options.model, unfinished, options.weights)
    unfinished.rename(options.converted)


if __name__ == "__main__":
    run(LlamaCpp, prepare)
