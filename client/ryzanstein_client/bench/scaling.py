"""The same work on one rank, on two, on more: what each is worth."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from ryzanstein.measuring.machine import MachineState
from ryzanstein.measuring.plots import finish
from ryzanstein.terminal import figures_table

from .fronts import Front
from .phases import decode_tokens_per_s, prefill_seconds
from .workload import Ask

PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class ScalingWork:
    """What every cluster is asked. Tokens; `streams` at once, one number after the other."""

    prefill_tokens: int
    prompt_tokens: int
    output_tokens: int
    streams: tuple[int, ...]
    repeats: int


@dataclass(frozen=True, slots=True)
class ScalingResult:
    """A cluster of one group."""

    ranks: int
    #: From the start of its processes until it could serve.
    start_s: float
    #: Of a prompt of `prefill_tokens`, to the first token.
    first_token_s: float
    #: Phase → tokens per second: "prefill", "b1", "b8", …
    tokens_per_s: dict[str, float]
    #: Phase → times as fast as the first of the clusters, and that by how many times as many ranks it has.
    speed_up: dict[str, float]
    efficiency: dict[str, float]
    #: While it was measured.
    machine: MachineState


async def measure(
    front: Front, work: ScalingWork, advance: Callable[[str], None], *, seed: int = 0
) -> tuple[float, dict[str, float]]:
    """→ seconds to the first token of the long prompt, and tokens per second by phase. `advance`: told each phase.

    Raises:
        RyzansteinError, AnswerError: the cluster failed. ValueError: the answers are too short.
    """
    vocabulary = await front.vocabulary()
    draw = random.Random(seed)  # noqa: S311 - no secret

    def asks(prompt_tokens: int, output_tokens: int) -> Iterator[Ask]:
        while True:
            yield Ask(max_tokens=output_tokens, prompt=tuple(draw.choices(vocabulary, k=prompt_tokens)))

    advance("warming up")
    await prefill_seconds(front, asks(work.prompt_tokens, 8), 2)
    advance(PREFILL)
    first_token_s = await prefill_seconds(front, asks(work.prefill_tokens, 2), work.repeats)
    rates = {PREFILL: work.prefill_tokens / first_token_s}
    for streams in work.streams:
        advance(f"b{streams}")
        rates[f"b{streams}"] = await decode_tokens_per_s(
            front, asks(work.prompt_tokens, work.output_tokens), streams, work.repeats
        )
    return first_token_s, rates


def compared(
    ranks: int,
    start_s: float,
    first_token_s: float,
    rates: dict[str, float],
    machine: MachineState,
    first: ScalingResult | None,
) -> ScalingResult:
    """The result of one cluster held against that of the first one; None: it is the first."""
    base_ranks, base = (ranks, rates) if first is None else (first.ranks, first.tokens_per_s)
    speed_up = {phase: rate / base[phase] for phase, rate in rates.items()}
    efficiency = {phase: factor * base_ranks / ranks for phase, factor in speed_up.items()}
    return ScalingResult(ranks, start_s, first_token_s, rates, speed_up, efficiency, machine)


def tables(results: Sequence[ScalingResult]) -> list[RenderableType]:
    """Speeds, and what more ranks are worth."""
    phases = list(results[0].tokens_per_s)
    speeds = [
        [
            str(each.ranks),
            f"{each.start_s:.1f}",
            f"{each.first_token_s * 1e3:.0f}",
            *(f"{each.tokens_per_s[phase]:.1f}" for phase in phases),
            f"{each.machine.read_bytes_per_s_before / 1e9:.1f} {each.machine.read_bytes_per_s_after / 1e9:.1f}",
        ]
        for each in results
    ]
    columns = ["ranks", "start s", "first token ms", *(f"{phase} tok/s" for phase in phases), "memory GB/s"]
    worth = [
        [str(each.ranks), *(f"{each.speed_up[phase]:.2f}, {each.efficiency[phase]:.0%}" for phase in phases)]
        for each in results[1:]
    ]
    found = [figures_table("Clusters", columns, speeds)]
    if worth:
        title = f"Times as fast as {results[0].ranks}, and efficiency"
        found.append(figures_table(title, ["ranks", *phases], worth))
    return list(found)


def draw(figure: Any, results: Sequence[ScalingResult]) -> None:
    """Speed-up and efficiency over the number of ranks, one line per phase."""
    left, right = figure.subplots(1, 2)
    ranks = [each.ranks for each in results]
    for phase in results[0].tokens_per_s:
        left.plot(ranks, [each.speed_up[phase] for each in results], marker="o", label=phase)
        right.plot(ranks, [each.efficiency[phase] * 100 for each in results], marker="o", label=phase)
    left.plot(ranks, [count / ranks[0] for count in ranks], color="gray", linestyle=":", label="ideal")
    right.axhline(100, color="gray", linestyle=":")
    for axes in (left, right):
        axes.set_xticks(ranks)
        axes.set_ylim(bottom=0)
    left.legend(frameon=False)
    finish(left, title="speed-up", xlabel="ranks", ylabel=f"times as fast as {ranks[0]}")
    finish(right, title="efficiency", xlabel="ranks", ylabel="percent")
    figure.set_size_inches(12, 5)
