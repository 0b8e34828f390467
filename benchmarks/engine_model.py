"""A model with random weights and the leader's loop over it, without a cluster: what the engine's benchmark times."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ryzanstein.model_plan import UNQUANTIZED, ModelConfig, kv_bytes_per_token
from ryzanstein.v1 import sampling_pb2, shard_worker_pb2
from ryzanstein_shard_worker.communication import CommunicationProfiler, SingleHandler
from ryzanstein_shard_worker.communication.single import SingleStepChannel
from ryzanstein_shard_worker.inbox import Inbox
from ryzanstein_shard_worker.kv_cache import BlockAllocator, blocks_for
from ryzanstein_shard_worker.models import Decoder, build_model
from ryzanstein_shard_worker.paged_attention import KVPool
from ryzanstein_shard_worker.runner import Runner
from ryzanstein_shard_worker.scheduler import Limits, Scheduler
from ryzanstein_shard_worker.step_device import step_device
from ryzanstein_shard_worker.step_loop import Progress, StepLoop, lead

BLOCK = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Bench:
    """A model with random weights, and pages for `max_tokens` tokens."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: str,
        device: torch.device,
        max_tokens: int,
        quantization: str = UNQUANTIZED,
        *,
        graph_sizes: tuple[int, ...] = (),
        longest: int | None = None,
        rehearse: bool = False,
    ) -> None:
        """
        Args:
            graph_sizes: rows at which a GPU captures steps that only decode.
            longest: tokens of the longest stream that decodes; None: `max_tokens`.
            rehearse: launch as a GPU does, also on a CPU.
        """
        self.config, self.device, self.dtype = config, device, dtype
        self.handler = CommunicationProfiler(SingleHandler())
        self.max_model_len = min(config.context_length, max_tokens)
        self.model = _random_model(
            config, self.handler, DTYPES[dtype], device, self.max_model_len, quantization
        )
        self.blocks = blocks_for(max_tokens, BLOCK) + 1
        pool = KVPool(
            config.num_layers,
            self.blocks,
            config.num_kv_heads,
            config.head_dim,
            dtype=DTYPES[dtype],
            device=device,
            kernel=None if rehearse else "auto",
        )
        pool.data.zero_()
        self.step_device = step_device(
            self.model,
            pool,
            graph_sizes,
            max_model_len=longest or self.max_model_len,
            reproducible=False,
            rehearse=rehearse,
        )
        threads = torch.get_num_threads()
        self.runner = Runner(self.model, pool, cpu_threads=threads, device=self.step_device)
        self.runner.warm_up(BLOCK)
        self.runner.enter(self.handler)
        self.attention = pool.attention if self.step_device is None else self.step_device.attention.name

    @property
    def capture_s(self) -> float:
        """Seconds that capturing all sizes took; 0 without graphs."""
        graphs = None if self.step_device is None else self.step_device.graphs
        return 0.0 if graphs is None else graphs.capture_s

    def run(
        self,
        prompts: list[list[int]],
        max_output: int,
        on_step: Callable[[shard_worker_pb2.ExecuteResponse, Inbox], None],
        *,
        max_batched_tokens: int,
    ) -> None:
        """The leader's loop over these prompts, until `on_step` stops the inbox. A step without outputs is told too."""
        inbox = Inbox()
        for number, prompt in enumerate(prompts):
            inbox.submit(submission(number + 1, prompt, max_output))
        limits = Limits(max(1, len(prompts)), max_batched_tokens, self.max_model_len)
        scheduler = Scheduler(limits, BlockAllocator(self.blocks, BLOCK))
        loop = StepLoop(1, self.handler, SingleStepChannel(), scheduler, self.runner, Progress())
        lead(loop, inbox, lambda response: on_step(response, inbox), keep_alive_s=1.0)

    def read_bytes(self, streams: int, context: int) -> int:
        """What one step of decoding has to read: all weights but the embedding table, and every stream's keys and
        values."""
        table = (
            0
            if self.config.tie_word_embeddings
            else self.config.vocab_size * self.config.hidden_size * DTYPES[self.dtype].itemsize
        )
        return (
            self.model.weights_bytes
            - table
            + streams * context * kv_bytes_per_token(self.config, 1, self.dtype)
        )


def submission(number: int, prompt: list[int], max_output: int) -> shard_worker_pb2.SubmitSequence:
    """A greedy stream without an end of sequence."""
    return shard_worker_pb2.SubmitSequence(
        sequence_id=number,
        request_id=f"bench-{number}",
        prompt_token_ids=prompt,
        sampling=sampling_pb2.SamplingParams(
            max_tokens=max_output, temperature=0.0, top_p=1.0, repetition_penalty=1.0
        ),
    )


def random_prompt(config: ModelConfig, number: int, tokens: int) -> list[int]:
    """The same for the same number."""
    generator = torch.Generator().manual_seed(number)
    drawn: list[int] = torch.randint(3, config.vocab_size, (tokens,), generator=generator).tolist()
    return drawn


def _random_model(
    config: ModelConfig,
    handler: CommunicationProfiler,
    dtype: torch.dtype,
    device: torch.device,
    max_positions: int,
    quantization: str,
) -> Decoder:
    """Weights as a fresh model has them; packed where workers pack."""
    model = build_model(config, handler, dtype, device, max_positions=max_positions)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02)
    for name, _ in model.layers_in_order():
        model.pack_module(name, quantization=quantization)
    return model
