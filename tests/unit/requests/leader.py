"""A leader behind real gRPC whose tokens are a function of prompt, seed and position, as an engine's are.

It steps as fast as it is let, one token per sequence and step, and can be stopped like a process that dies.
"""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from ryzanstein.v1.sampling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_UNSPECIFIED,
    FinishReason,
    TokenLogprobs,
    TopLogprob,
)
from ryzanstein.v1.shard_worker_pb2 import (
    EngineLimits,
    ExecuteRequest,
    ExecuteResponse,
    SchedulerStats,
    SequenceOutput,
    SubmitSequence,
)
from ryzanstein.v1.shard_worker_pb2_grpc import ShardWorkerServiceStub
from ryzanstein.wire import CHANNEL_OPTIONS, EPOCH_KEY, SERVER_OPTIONS

if TYPE_CHECKING:  # the name exists for type checkers only
    from ryzanstein.v1.shard_worker_pb2_grpc import ShardWorkerServiceAsyncStub

#: The token after prompt and output so far.
NextToken = Callable[[SubmitSequence, Sequence[int]], int]


def hashed_token(vocab_size: int = 500, *, lowest: int = 10) -> NextToken:
    """Depends on the prompt, the seed and the position alone."""

    def next_token(submitted: SubmitSequence, output: Sequence[int]) -> int:
        key = f"{list(submitted.prompt_token_ids)} {submitted.sampling.seed} {len(output)}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return lowest + int.from_bytes(digest, "little") % (vocab_size - lowest)

    return next_token


def script(token_ids: Sequence[int]) -> NextToken:
    """The same answer to every prompt."""
    return lambda _submitted, output: token_ids[len(output)]


@dataclass
class _Sequence:
    submitted: SubmitSequence
    output: list[int]
    ends: frozenset[int]
    #: Tokens that are prefilled before the first one is sampled.
    uncomputed: int = 0
    #: Tokens sampled since it was submitted.
    sampled: int = 0


@dataclass(eq=False)
class Leader:
    """`await start()`, then its `stub` is what a router gets."""

    next_token: NextToken = field(default_factory=hashed_token)
    epoch: int = 1
    max_num_seqs: int = 64
    #: Tokens that are generated in all before it stands still; None: no bound.
    budget: int | None = None
    #: Called before every step with the outputs it is about to send, which it may change.
    spoil: Callable[[ExecuteResponse], None] = lambda _response: None
    step_s: float = 0.0
    #: It says at once that it has taken the stream.
    answers: bool = True
    #: It gives so many signs of life on each stream, at once.
    beats: int = 0
    #: Tokens of each sequence that a step prefills; 0: all at once.
    prefill: int = 0

    def __post_init__(self) -> None:
        self.submissions: list[SubmitSequence] = []
        self.cancellations: list[int] = []
        self.steps = 0
        self.address = ""
        self._sequences: dict[int, _Sequence] = {}
        self._scored: set[int] = set()
        self._work = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._channel: grpc.aio.Channel | None = None

    async def start(self) -> Leader:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        execute = grpc.stream_stream_rpc_method_handler(
            self._execute, ExecuteRequest.FromString, ExecuteResponse.SerializeToString
        )
        service = grpc.method_handlers_generic_handler(
            "ryzanstein.v1.ShardWorkerService", {"Execute": execute}
        )
        self._server.add_generic_rpc_handlers((service,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        return self

    @property
    def stub(self) -> ShardWorkerServiceAsyncStub:
        assert self._channel is not None
        return ShardWorkerServiceStub(self._channel)

    @property
    def limits(self) -> EngineLimits:
        return EngineLimits(block_size=16, num_blocks=1024, max_num_seqs=self.max_num_seqs)

    @property
    def running(self) -> int:
        return len(self._sequences)

    @property
    def sampled(self) -> dict[str, int]:
        """By request id, of what runs: tokens since it was submitted, with those of the step that is about to be
        sent."""
        return {one.submitted.request_id: one.sampled for one in self._sequences.values()}

    @property
    def lengths(self) -> dict[str, int]:
        """As `sampled`, with the tokens that it was submitted with."""
        return {one.submitted.request_id: len(one.output) for one in self._sequences.values()}

    def allow(self, tokens: int | None) -> None:
        """So many more tokens; None: as many as are asked for."""
        self.budget = tokens
        self._work.set()

    async def die(self) -> None:
        """Its connections are cut in whatever they are doing."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def close(self) -> None:
        await self.die()
        if self._channel is not None:
            await self._channel.close()

    def expected(self, prompt: Sequence[int], *, seed: int = 0, max_tokens: int) -> list[int]:
        """All tokens of an answer."""
        submitted = SubmitSequence(prompt_token_ids=prompt)
        submitted.sampling.seed = seed
        output: list[int] = []
        while len(output) < max_tokens:
            output.append(self.next_token(submitted, output))
        return output

    async def _execute(
        self, request_iterator: AsyncIterator[ExecuteRequest], context: Any
    ) -> AsyncIterator[ExecuteResponse]:
        if self.answers:
            await context.send_initial_metadata(((EPOCH_KEY, str(self.epoch)),))
        for _ in range(self.beats):
            yield ExecuteResponse(epoch=self.epoch)
        mine = self._sequences = {}
        commands = asyncio.create_task(self._take(request_iterator))
        try:
            while True:
                await self._work.wait()
                response = self._step()
                if response is None:
                    self._work.clear()
                    continue
                self.steps += 1
                self.spoil(response)
                yield response
                await asyncio.sleep(self.step_s)
        finally:
            commands.cancel()
            mine.clear()

    async def _take(self, commands: AsyncIterator[ExecuteRequest]) -> None:
        async for command in commands:
            if command.HasField("cancel"):
                self.cancellations.append(command.cancel.sequence_id)
                self._sequences.pop(command.cancel.sequence_id, None)
            else:
                submitted = command.submit
                self.submissions.append(submitted)
                ends = frozenset([*submitted.eos_token_ids, *submitted.sampling.stop_token_ids])
                emitted = list(submitted.emitted_token_ids)
                uncomputed = len(submitted.prompt_token_ids) + len(emitted) if self.prefill else 0
                self._sequences[submitted.sequence_id] = _Sequence(submitted, emitted, ends, uncomputed)
            self._work.set()

    def _step(self) -> ExecuteResponse | None:
        batch = list(self._sequences.values())[: self.max_num_seqs]
        if self.budget is not None:
            batch = batch[: self.budget]
            self.budget -= len(batch)
        if not batch:
            return None
        scored = [output for sequence in batch for output in self._score(sequence)]
        stats = SchedulerStats(running=len(batch), waiting=len(self._sequences) - len(batch))
        outputs = [*scored, *map(self._advance, filter(self._computed, batch))]
        return ExecuteResponse(epoch=self.epoch, step=self.steps, outputs=outputs, stats=stats)

    def _computed(self, sequence: _Sequence) -> bool:
        """Prefills a piece of it; whether that was the last one."""
        sequence.uncomputed = max(0, sequence.uncomputed - self.prefill)
        return sequence.uncomputed == 0

    def _score(self, sequence: _Sequence) -> list[SequenceOutput]:
        """The logprobs of a prompt, in two parts, when it is computed: the token's own id is its logprob."""
        submitted, tokens = sequence.submitted, sequence.submitted.prompt_token_ids
        if not submitted.sampling.HasField("prompt_logprobs") or submitted.sequence_id in self._scored:
            return []
        self._scored.add(submitted.sequence_id)
        entries = [
            TokenLogprobs(
                token_id=token_id,
                logprob=-token_id,
                top=[TopLogprob(token_id=9, logprob=-0.5)] * submitted.sampling.prompt_logprobs,
            )
            for token_id in tokens[1:]
        ]
        half = len(entries) // 2
        return [
            SequenceOutput(
                sequence_id=submitted.sequence_id,
                first_index=len(sequence.output),
                prompt_index=1 + start,
                prompt_logprobs=part,
            )
            for start, part in ((0, entries[:half]), (half, entries[half:]))
            if part
        ]

    def _advance(self, sequence: _Sequence) -> SequenceOutput:
        submitted = sequence.submitted
        token_id = self.next_token(submitted, sequence.output)
        index = len(sequence.output)
        sequence.output.append(token_id)
        sequence.sampled += 1
        reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED
        if token_id in sequence.ends:
            reason = FINISH_REASON_STOP
        elif len(sequence.output) >= submitted.sampling.max_tokens:
            reason = FINISH_REASON_LENGTH
        if reason:
            del self._sequences[submitted.sequence_id]
        output = SequenceOutput(
            sequence_id=submitted.sequence_id,
            first_index=index,
            token_ids=array("I", [token_id]),
            finish_reason=reason,
            cached_tokens=1,
        )
        if submitted.sampling.HasField("logprobs"):
            top = [TopLogprob(token_id=token_id, logprob=-0.25)] * submitted.sampling.logprobs
            output.logprobs.append(TokenLogprobs(token_id=token_id, logprob=-0.25, top=top))
        return output
