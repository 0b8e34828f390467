"""From logits to tokens, at the leader rank.

The chosen token is the maximum of logit/temperature plus Gumbel noise over the ids that top-k, top-p and min-p keep:
a draw from their softmax (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030). The noise is keyed by seed, choice,
output position and token id, so nothing but the request itself decides what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ryzanstein.v1 import sampling_pb2

from .batch import Slice
from .native.greedy import native_greedy
from .native.sampling import native_draw
from .philox import gumbel_noise
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Sampled:
    """One new token of one sequence."""

    sequence: Sequence
    token: int
    logprobs: sampling_pb2.TokenLogprobs | None
    #: Not empty if the logits were not finite: then `token` means nothing.
    error: str = ""


def sample(logits: Tensor, sequences: list[Sequence]) -> list[Sampled]:
    """The next token of each sequence.

    Args:
        logits: [R, V] float32, a row for each sequence; not changed.
        sequences: R of them, in the order of the rows.
    """
    if not sequences:
        return []
    on_device = logits.is_cuda
    finite, found = _draw_all(logits, sequences) if on_device else _finite_and_greedy(logits)
    results = []
    for row, sequence in enumerate(sequences):
        if not finite[row]:
            results.append(Sampled(sequence, 0, None, "the logits hold NaN or infinity"))
            continue
        params = sequence.params
        token = found[row] if on_device or _is_plain_greedy(params) else _draw(logits[row], sequence)
        wanted = params.HasField("logprobs")
        results.append(
            Sampled(sequence, token, _logprobs(logits[row], token, params.logprobs) if wanted else None)
        )
    return results


@dataclass(frozen=True, slots=True)
class Scored:
    """Logprobs of the tokens [first, first + len(logprobs)) of one sequence's prompt."""

    sequence: Sequence
    first: int
    logprobs: list[sampling_pb2.TokenLogprobs]


def score(logits: Tensor, pieces: Iterable[Slice]) -> list[Scored]:
    """The logprobs of the prompts' own tokens.

    Args:
        logits: [P, V] float32, the rows that are scored of all slices, in their order.
        pieces: the slices of the batch.
    """
    results = []
    row = 0
    for piece in pieces:
        if piece.num_scored:
            sequence, first = piece.sequence, piece.start + 1
            tokens = sequence.tokens[first : first + piece.num_scored]
            top = sequence.params.prompt_logprobs
            logprobs = [_logprobs(logits[row + i], token, top) for i, token in enumerate(tokens)]
            results.append(Scored(sequence, first, logprobs))
            row += piece.num_scored
    return results


def _finite_and_greedy(logits: Tensor) -> tuple[list[bool], list[int]]:
    """Of each row: whether it holds neither NaN nor infinity, and the place of its largest logit."""
    found = native_greedy(logits)
    if found is not None:
        return found
    # One reduction finds every row with a NaN or an infinity: a sum keeps both.
    return torch.isfinite(logits.sum(dim=-1)).tolist(), logits.argmax(dim=-1).tolist()


def _draw_all(logits: Tensor, sequences: list[Sequence]) -> tuple[list[bool], list[int]]:
    """On a GPU: whether each row is finite, and its token, with one wait for the device."""
    from .gpu.draws import Draw, draw_rows

    if any(_changes_logits(sequence.params) for sequence in sequences):
        rows = zip(logits, sequences, strict=True)
        logits = torch.stack([_penalised(row, s) if _changes_logits(s.params) else row for row, s in rows])
    draws = [
        Draw(
            temperature=sequence.params.temperature,
            top_k=sequence.params.top_k,
            top_p=sequence.params.top_p,
            min_p=sequence.params.min_p,
            seed=sequence.params.seed,
            choice=sequence.params.choice,
            position=sequence.num_output,
        )
        for sequence in sequences
    ]
    return draw_rows(logits, draws)


def _is_plain_greedy(params: sampling_pb2.SamplingParams) -> bool:
    return params.temperature == 0.0 and not _changes_logits(params)


def _changes_logits(params: sampling_pb2.SamplingParams) -> bool:
    return bool(
        params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty not in (0.0, 1.0)
        or params.logit_bias
    )


def _draw(logits: Tensor, sequence: Sequence) -> int:
    """One row: [V] float32 → token id."""
    params = sequence.params
    if _changes_logits(params):
        logits = _penalised(logits, sequence)
    if params.temperature == 0.0:
        return int(logits.argmax())
    if _keeps_all(params, logits.shape[0]):
        values, ids, temperature = logits, None, params.temperature
    else:
        values, ids = _kept(logits / params.temperature, params)
        temperature = 1.0
    place = native_draw(
        values,
        ids,
        temperature=temperature,
        seed=params.seed,
        choice=params.choice,
        position=sequence.num_output,
    )
    if place is None:
        if ids is None:
            ids = torch.arange(logits.shape[0], device=logits.device)
        noise = gumbel_noise(ids, seed=params.seed, choice=params.choice, position=sequence.num_output)
        place = int((values / temperature + noise).argmax())
    return place if ids is None else int(ids[place])


def _keeps_all(params: sampling_pb2.SamplingParams, vocabulary: int) -> bool:
    return (
        (not params.top_k or params.top_k >= vocabulary)
        and not 0.0 < params.top_p < 1.0
        and params.min_p == 0.0
    )


def _penalised(logits: Tensor, sequence: Sequence) -> Tensor:
    """Repetition penalty (Keskar et al. 2019, arXiv:1909.05858, over prompt and output), frequency and presence
    penalty (over the output, as the OpenAI API has them), then logit bias."""
    params = sequence.params
    logits = logits.clone()
    vocabulary = logits.shape[0]
    if params.repetition_penalty not in (0.0, 1.0):
        seen = torch.tensor(sorted(set(sequence.tokens)), device=logits.device)
        rows = logits[seen]
        logits[seen] = torch.where(
            rows > 0, rows / params.repetition_penalty, rows * params.repetition_penalty
        )
    if params.frequency_penalty or params.presence_penalty:
        output = torch.tensor(sequence.tokens[sequence.num_prompt :], dtype=torch.int64, device=logits.device)
        counts = torch.bincount(output, minlength=vocabulary)
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
    return logits


def _kept(scaled: Tensor, params: sampling_pb2.SamplingParams) -> tuple[Tensor, Tensor]:
    """The logits that top-k, top-p and min-p leave, and their ids: ([K], [K]).

    Top-k first, then top-p on what is left, then min-p against the most probable. Equal logits are kept or dropped
    in the order of their ids (the sort is stable), so that the choice is the same on every run.
    """
    vocabulary = scaled.shape[0]
    top_k = min(params.top_k, vocabulary) if params.top_k else vocabulary
    top_p = params.top_p if 0.0 < params.top_p < 1.0 else 1.0
    if top_k == vocabulary and top_p == 1.0:
        ids = torch.nonzero(scaled >= scaled.max() + math.log(params.min_p)).flatten()
        return scaled[ids], ids
    values, ids = torch.sort(scaled, descending=True, stable=True)
    values, ids = values[:top_k], ids[:top_k]
    if top_p < 1.0:
        probabilities = torch.softmax(values, dim=0)
        before = torch.cumsum(probabilities, dim=0) - probabilities  # mass of all that are more probable
        keep = int((before < top_p).sum())
        values, ids = values[: max(1, keep)], ids[: max(1, keep)]
    if params.min_p > 0.0:
        keep = int((values >= values[0] + math.log(params.min_p)).sum())
        values, ids = values[: max(1, keep)], ids[: max(1, keep)]
    return values, ids


def _logprobs(logits: Tensor, token: int, top: int) -> sampling_pb2.TokenLogprobs:
    """Of the raw logits [V]: the chosen token's and the `top` most probable ones', equal ones by id."""
    normaliser = torch.logsumexp(logits, dim=0)
    message = sampling_pb2.TokenLogprobs(token_id=token, logprob=float(logits[token] - normaliser))
    if top:
        values, ids = torch.topk(logits, min(top, logits.shape[0]))
        ranked = sorted(
            zip((values - normaliser).tolist(), ids.tolist(), strict=True), key=lambda p: (-p[0], p[1])
        )
        for logprob, token_id in ranked:
            message.top.add(token_id=token_id, logprob=logprob)
    return message
