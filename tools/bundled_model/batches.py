"""Turns questions into rows of token ids to train on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from .data import Question, training_questions
from .tokenizer import ASSISTANT, BEGIN, END, SYSTEM, USER

# No target: what `torch.nn.functional.cross_entropy` ignores.
IGNORED = -100
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful and friendly assistant. Answer briefly.",
    "Answer in one sentence.",
    "Be concise.",
    "You are Ryzanstein, a small model.",
    "You are a careful teacher. Show your working.",
)
# Row lengths and how often each is drawn: most questions are short, a few counts are long.
_ROW_LENGTHS = (128, 256, 1024)
_ROW_SHARES = (0.3, 0.6, 0.1)


@dataclass(frozen=True)
class Segment:
    """A piece of a conversation; the model learns to say it only if it is `spoken`."""

    text: str
    spoken: bool


def conversation(questions: Iterator[Question], rng: random.Random) -> list[Segment]:
    """One conversation: most often in the chat format, else a plain text that the model goes on with.

    In plain text the answer follows the question after a space, or after "Q: ...\\nA:".
    """
    form = rng.random()
    if form < 0.10:
        question = next(questions)
        return [Segment(BEGIN + question.text, False), Segment(f" {question.answer}{END}", True)]
    if form < 0.17:
        question = next(questions)
        return [Segment(f"{BEGIN}Q: {question.text}\nA:", False), Segment(f" {question.answer}{END}", True)]
    opening = BEGIN
    if rng.random() < 0.1:
        opening += f"{SYSTEM}{rng.choice(_SYSTEM_PROMPTS)}{END}"
    segments = []
    for _ in range(rng.choices((1, 2, 3), (6, 2, 2))[0]):
        question = next(questions)
        segments.append(Segment(f"{opening}{USER}{question.text}{END}{ASSISTANT}", False))
        segments.append(Segment(question.answer + END, True))
        opening = ""
    return segments


@dataclass(frozen=True)
class Batch:
    """Rows of packed conversations; `inputs` and `targets` are int64 `[B, S]`.

    `mask` `[B, 1, S, S]` is what is added to the scores: 0 where a token may look (back, within its
    own conversation), minus infinity elsewhere.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor


class BatchStream:
    """Endless batches, the same for one seed. A row may cut its last conversation off."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(f"batches {seed}")
        self._questions = training_questions(self._rng)

    def batch(self, tokens: int, *, short: bool = False) -> Batch:
        """A batch of `tokens` tokens; a `short` one has the shortest rows."""
        length = _ROW_LENGTHS[0] if short else self._rng.choices(_ROW_LENGTHS, _ROW_SHARES)[0]
        rows = torch.tensor([self._row(length) for _ in range(tokens // length)])  # [B, 3, S + 1]
        ids, targets, owners = rows.unbind(1)
        owners = owners[:, :-1]
        apart = owners[:, :, None] != owners[:, None, :]  # [B, S, S]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mask = torch.zeros(apart.shape).masked_fill(apart | future, float("-inf"))
        return Batch(ids[:, :-1], targets[:, 1:], mask[:, None])

    def _row(self, length: int) -> tuple[list[int], list[int], list[int]]:
        """`length + 1` ids, the same ids where the model is to learn them, and whose they are."""
        ids: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        owner = 0
        while len(ids) <= length:
            segments = conversation(self._questions, self._rng)
            encoded = self._tokenizer.encode_batch_fast([s.text for s in segments], add_special_tokens=False)
            for segment, piece in zip(segments, encoded, strict=True):
                ids += piece.ids
                targets += piece.ids if segment.spoken else [IGNORED] * len(piece.ids)
                owners += [owner] * len(piece.ids)
            owner += 1
        return ids[: length + 1], targets[: length + 1], owners[: length + 1]
