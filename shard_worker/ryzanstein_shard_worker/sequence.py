"""One request inside the engine: its tokens, how far they are computed, and when it ends.

Everything here is a plain value that every rank holds in the same state, because every rank applies the same step
plans. Nothing imports gRPC or torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ryzanstein.v1 import sampling_pb2, shard_worker_pb2

FinishReason = sampling_pb2.FinishReason
UNFINISHED = sampling_pb2.FINISH_REASON_UNSPECIFIED


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt that grows token by token.

    `tokens` holds prompt and output; the keys and values of the first `num_computed` of them are in the cache.
    """

    sequence_id: int
    request_id: str
    tokens: list[int]
    num_prompt: int
    #: Output tokens that an earlier epoch had emitted: they are prefilled, never sampled again.
    num_replayed: int
    params: sampling_pb2.SamplingParams
    priority: int
    stop_ids: frozenset[int]
    max_tokens: int
    #: Shares cached blocks with sequences of the same salt only.
    cache_salt: bytes = b""
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    #: Prompt tokens that others had computed when it began; None: it has not begun, or was not to look.
    num_cached: int | None = None
    #: Keys of its first full blocks, as far as anybody asked; the first `num_published` blocks can be found by them.
    block_keys: list[bytes] = field(default_factory=list)
    num_published: int = 0

    @classmethod
    def from_wire(cls, message: shard_worker_pb2.SubmitSequence) -> Sequence:
        """The sequence that the coordinator submitted; `sampling` has every default filled in."""
        prompt = list(message.prompt_token_ids)
        return cls(
            sequence_id=message.sequence_id,
            request_id=message.request_id,
            tokens=prompt + list(message.emitted_token_ids),
            num_prompt=len(prompt),
            num_replayed=len(message.emitted_token_ids),
            params=message.sampling,
            priority=message.priority,
            stop_ids=frozenset((*message.eos_token_ids, *message.sampling.stop_token_ids)),
            max_tokens=message.sampling.max_tokens,
            cache_salt=message.cache_salt,
        )

    @property
    def num_output(self) -> int:
        """Tokens generated so far, those of earlier epochs included."""
        return len(self.tokens) - self.num_prompt

    @property
    def scores_prompt(self) -> bool:
        """Whether the logprobs of its prompt are wanted, which takes the logits of all of its rows."""
        return self.params.HasField("prompt_logprobs")

    @property
    def num_uncomputed(self) -> int:
        """Tokens whose keys and values are not in the cache: 1 while it decodes, more while it prefills."""
        return len(self.tokens) - self.num_computed

    def finish_reason(self, token: int, max_model_len: int) -> FinishReason.ValueType:
        """Whether the stream ends with `token` as its next one; asked before it is appended."""
        if token in self.stop_ids:
            return sampling_pb2.FINISH_REASON_STOP
        if self.num_output + 1 >= self.max_tokens or len(self.tokens) + 1 >= max_model_len:
            return sampling_pb2.FINISH_REASON_LENGTH
        return UNFINISHED
