"""The report as Markdown and JSON, from what the parts left. Pure but for writing the two files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .parts import Case, Outcome


def write_report(
    directory: Path, machine: dict[str, str], outcomes: Sequence[Outcome], missing: Sequence[str]
) -> None:
    """Writes report.md and report.json. `missing`: parts that have not run (yet)."""
    record = {
        "passed": not missing and all(outcome.passed for outcome in outcomes),
        "machine": machine,
        "parts": [asdict(outcome) for outcome in outcomes],
        "not_run": list(missing),
    }
    (directory / "report.json").write_text(json.dumps(record, indent=2) + "\n")
    (directory / "report.md").write_text(render(machine, outcomes, missing))


def render(machine: dict[str, str], outcomes: Sequence[Outcome], missing: Sequence[str]) -> str:
    """The report in Markdown."""
    lines = ["# Ryzanstein on a GPU", ""]
    lines += _table(("", ""), machine.items())
    lines += ["", "## Parts", ""]
    rows = [
        (outcome.name, "passed" if outcome.passed else f"**failed**: {outcome.reason}", f"{outcome.seconds:.0f} s",
         f"`{outcome.command}`")
        for outcome in outcomes
    ]  # fmt: skip
    rows += [(name, "not run", "", "") for name in missing]
    lines += _table(("part", "result", "time", "command"), rows)
    ratios = list(_ratios({outcome.name: outcome.data for outcome in outcomes if outcome.data is not None}))
    if ratios:
        lines += ["", "## Ratios", "", *_table(("", ""), ratios)]
    for outcome in outcomes:
        lines += ["", f"## {outcome.name.replace('_', ' ').capitalize()}", ""]
        if outcome.cases:
            lines += _tests(outcome.cases)
        elif outcome.data is not None:
            lines += _BENCHMARKS[outcome.name](outcome.data)
        if not outcome.passed:
            lines += [
                "",
                "The end of what it printed:",
                "",
                "```",
                outcome.output.replace("```", "'''"),
                "```",
            ]
    return "\n".join(lines) + "\n"


def _ratios(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the goals are stated in, as far as the parts that it takes have run."""

    def rates(name: str) -> dict[int, float]:
        return {row["streams"]: row["tokens_per_s"] for row in data.get(name, {}).get("decoding", ())}

    ours, without, peer = rates("engine"), rates("engine_without_graphs"), rates("peer")
    rounded = rates("engine_in_8_bits")
    shown: set[int] = set()
    for row in data.get("engine", {}).get("decoding", ()):
        streams = row["streams"]
        if streams in shown:
            continue
        shown.add(streams)
        what = f"decoding {streams} streams"
        yield f"{what}, share of the copy's bandwidth", f"{row['bandwidth_share']:.1%}"
        if streams in without:
            yield f"{what}, graphs against none", f"{ours[streams] / without[streams]:.2f} times"
        if streams in rounded:
            yield f"{what}, 8-bit floats against bfloat16", f"{rounded[streams] / ours[streams]:.2f} times"
        if streams in peer:
            yield f"{what}, against transformers", f"{ours[streams] / peer[streams]:.2f} times"


def _tests(cases: Sequence[Case]) -> list[str]:
    by_file: dict[str, Counter[str]] = {}
    for case in cases:
        by_file.setdefault(case.name.partition("::")[0], Counter())[case.outcome] += 1
    kinds = ("passed", "failed", "error", "skipped")
    lines = _table(
        ("file", *kinds), [(name, *(str(counts[kind]) for kind in kinds)) for name, counts in by_file.items()]
    )
    for kind, title in (("failed", "Failed"), ("error", "Broken"), ("skipped", "Skipped")):
        of_kind = [case for case in cases if case.outcome == kind]
        if not of_kind:
            continue
        if kind == "skipped":
            reasons = Counter(case.message for case in of_kind)
            lines += [
                "",
                f"{title}: " + "; ".join(f"{count} × {reason}" for reason, count in reasons.items()),
            ]
        else:
            lines += ["", f"{title}:", ""]
            lines += [f"- `{case.name}`: {_one_line(case.message)}" for case in of_kind]
    measured = [(case.name, name, value) for case in cases for name, value in case.properties.items()]
    if measured:
        lines += ["", "Measured by tests:", "", *_table(("test", "what", "value"), measured)]
    return lines


def _engine(data: Any) -> list[str]:
    if "not_measured" in data:
        return [f"Not measured: {data['not_measured']}."]
    lines = [
        f"{data['device']}, shape `{data['shape']}` ({data['parameters'] / 1e9:.2f} billion parameters, "
        f"{data['dtype']}, {data['weights_bytes'] / 1e9:.2f} GB of weights). A copy within the device moves "
        f"{data['copy_bytes_per_s'] / 1e9:.0f} GB/s, read and written. Attention by {data['attention']}; steps of "
        f"{', '.join(map(str, data['graph_sizes'])) or 'no'} rows captured in {data['capture_s']:.2f} s.",
        "",
    ]
    rows = [
        (str(row["streams"]), str(row["context_tokens"]), f"{row['tokens_per_s']:.1f}", f"{1e3 * row['step_s']:.2f} ms",
         f"{1e3 * row['step_p95_s']:.2f} ms", f"{row['bandwidth_share']:.1%}", _milliseconds(row["device_s"]),
         _percent(row["host_share"]))
        for row in data["decoding"]
    ]  # fmt: skip
    heads = (
        "streams",
        "context",
        "tokens/s",
        "step",
        "95 %",
        "of the bandwidth",
        "kernels of a step",
        "host's share",
    )
    lines += _table(heads, rows)
    prefills = [
        (f"{row['prompts']} × {row['prompt_tokens']}", f"{1e3 * row['step_s']:.1f} ms", f"{row['tokens_per_s']:.0f}",
         f"{row['operations_per_s'] / 1e12:.1f}")
        for row in data["prefill"]
    ]  # fmt: skip
    return [*lines, "", *_table(("prefill", "step", "tokens/s", "TFLOP/s"), prefills)]


def _loading(data: Any) -> list[str]:
    row = (
        f"{data['layers']} layers of `{data['shape']}`",
        f"{data['file_bytes'] / 1e9:.2f} GB",
        f"{data['cold_s']:.2f} s",
        f"{data['warm_s']:.2f} s",
        f"{data['warm_bytes_per_s'] / 1e9:.2f} GB/s",
    )
    return _table(("checkpoint", "size", "pages cold", "warm", "warm"), [row])


def _cluster(data: Any) -> list[str]:
    rows = []
    for result in data:
        decode = ", ".join(f"b{streams} {rate:.1f}" for streams, rate in result["decode"].items())
        memory = ", ".join(
            f"{planned / 2**20:.0f} / {peak / 2**20:.0f} MiB"
            for planned, peak in zip(result["ledger_bytes"], result["peak_bytes"], strict=True)
        )
        start, first = f"{result['start_s']:.1f} s", f"{1e3 * result['first_token_s']:.0f} ms"
        rows.append((str(result["ranks"]), start, first, decode, f"{result['rpc_share']:.1%}", memory))
    heads = ("ranks", "ready after", "first token (512 tokens)", "tokens/s", "share of RPC", "ledger / peak")
    return _table(heads, rows)


def _peer(data: Any) -> list[str]:
    rows = [
        (str(row["streams"]), str(row["context_tokens"]), f"{row['tokens_per_s']:.1f}", f"{1e3 * row['step_s']:.2f} ms",
         "compiled" if row["compiled"] else "not compiled", f"{row['warm_up_s']:.0f} s")
        for row in data["decoding"]
    ]  # fmt: skip
    heads = ("streams", "context", "tokens/s", "step", "", "until warm")
    return [
        f"transformers {data['transformers']}, static cache, the same shape `{data['shape']}` in {data['dtype']}.",
        "",
        *_table(heads, rows),
    ]


_BENCHMARKS = {
    "engine": _engine,
    "engine_without_graphs": _engine,
    "engine_in_8_bits": _engine,
    "peer": _peer,
    "loading": _loading,
    "cluster": _cluster,
}


def _table(heads: Sequence[str], rows: Any) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(_one_line(cell) for cell in row) + " |" for row in rows]


def _one_line(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= 400 else flat[:400] + " …"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.2f} ms"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
