"""What one step computes: the rows of slices of sequences, and how a batch of them is put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from .sequence import FinishReason, Sequence


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of one sequence that a step computes: tokens [start, start + count)."""

    sequence: Sequence
    start: int
    count: int
    #: The slice reaches the last token, so the next one can be sampled from its last row.
    samples: bool

    @property
    def decodes(self) -> bool:
        """It is the one token behind those that are in the cache."""
        return self.count == 1 and self.samples

    @property
    def num_scored(self) -> int:
        """Rows from the start whose logits predict a token of the prompt that was asked about."""
        rows = min(self.start + self.count, self.sequence.num_prompt - 1) - self.start
        return rows if rows > 0 and self.sequence.scores_prompt else 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: the rows of all slices, one after another."""

    slices: tuple[Slice, ...]
    #: Sequences that ended without a token of this step, with the reason.
    dropped: tuple[tuple[Sequence, FinishReason.ValueType, str], ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(piece.count for piece in self.slices)

    @property
    def kind(self) -> str:
        """ "idle", "decode" or, if any sequence computes more than its last token, "prefill"."""
        if not self.slices:
            return "idle"
        return "prefill" if any(piece.count > 1 for piece in self.slices) else "decode"

    @property
    def num_decoding(self) -> int:
        """Sequences that compute just their last token."""
        return sum(piece.decodes for piece in self.slices)

    @property
    def sampling(self) -> list[Sequence]:
        """The sequences that get a token, in the order of their rows."""
        return [piece.sequence for piece in self.slices if piece.samples]


@dataclass(slots=True)
class Room:
    """A batch while it is put together: what it has, and how many tokens it may still take."""

    tokens: int
    #: Tokens of prompts that are scored.
    scored: int
    #: Tokens of prompts, if it decodes.
    prefill: int
    decodes: bool = False
    slices: list[Slice] = field(default_factory=list)

    def count(self, sequence: Sequence, computed: int) -> int:
        """Tokens of the sequence that may be taken, the first `computed` of which are in the cache."""
        left, most = len(sequence.tokens) - computed, self.tokens
        if left == 1:  # it decodes, nearly always: every microsecond counts
            return min(1, most)
        if sequence.scores_prompt and computed < sequence.num_prompt - 1:
            most = min(most, self.scored)
        # A stream that a fault interrupted is not held up once more.
        if self.decodes and not sequence.num_replayed:
            most = min(most, self.prefill)
        return min(left, most)

    def take(self, piece: Slice) -> None:
        self.slices.append(piece)
        self.tokens -= piece.count
        if piece.decodes:
            self.decodes = True
            return
        self.scored -= piece.num_scored
        if not piece.sequence.num_replayed:
            self.prefill = max(0, self.prefill - piece.count)
