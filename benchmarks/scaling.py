"""The tables of docs/scaling.md, from the model and the measurements: written between the document's marks.

    python -m benchmarks.scaling            # writes them
    python -m benchmarks.scaling --check    # says whether they are what would be written

After new measurements: put them into benchmarks/scaling_measured.json and run it. A test holds the document to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .scaling_known import (
    ETHERNET,
    INFINIBAND,
    ROCE,
    SHAPE_8B,
    SHAPE_70B,
    communication_share,
    devices,
    one_host,
    ours,
    ours_fit,
    published,
    published_fit,
    several_hosts,
    shared_memory_fits,
)
from .scaling_model import Cluster, Link, Load, Shape, fits, ordered_sum_s, step

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
CONTEXT, PROMPT = 1024, 2048
LOADS = {
    "b1": Load(1, 1, CONTEXT),
    "b8": Load(8, 1, CONTEXT),
    "b64": Load(64, 1, CONTEXT),
    "prefill": Load(1, PROMPT),
}
SIZES = (1, 2, 4, 8)
#: Twice the ranks for less than this is not worth it for one stream's sake.
PAYS = 1.3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = DOCUMENT.read_text()
    wanted = filled(text)
    if options.check:
        if text != wanted:
            print(f"{DOCUMENT}: not what the model says; run python -m benchmarks.scaling", file=sys.stderr)
        return int(text != wanted)
    DOCUMENT.write_text(wanted)
    return 0


def filled(text: str) -> str:
    """The document with every table anew.

    Raises:
        ValueError: it lacks the marks of a table.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        if text.count(begin) != 1:
            raise ValueError(f"{DOCUMENT.name} must have the mark {begin.strip()} once")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table()}\n\n{end}{rest.partition(end)[2]}"
    return text


def measured_here() -> str:
    """Our own steps against the three constants."""
    rows = [
        (
            one.name,
            str(one.ranks),
            _ms(one.measured_s),
            _ms(one.measured_s * (1 + residual)),
            f"{residual:+.1%}",
            f"{communication_share(one):.1%}",
        )
        for (one, _), residual in zip(ours(), ours_fit().residuals, strict=True)
    ]
    return _table(("step", "ranks", "measured", "model", "residual", "sums, by their benchmark"), rows)


def constants_here() -> str:
    per_byte, per_operation, per_step = ours_fit().coefficients
    rows = [
        ("reading, each rank", f"{1 / per_byte / 1e9:.1f} GB/s"),
        ("multiplying, each rank", f"{1 / per_operation / 1e9:.0f} GFLOP/s"),
        ("not shrinking with the ranks", _ms(per_step)),
    ]
    for ranks, fit in shared_memory_fits().items():
        base, per_byte = fit.coefficients
        rows.append(
            (
                f"a sum over {ranks} ranks in shared memory",
                f"{base * 1e6:.1f} µs + {per_byte * 1e6 * 2**20:.0f} µs/MiB, residuals up to {fit.worst:.0%}",
            )
        )
    return _table(("constant", "value"), rows)


def published_curve() -> str:
    """gpt-fast's, with what the three constants make of it."""
    alone = {
        one.name: one
        for one in published()
        if one.ranks == min(o.ranks for o in published() if o.name == one.name)
    }
    rows = []
    for one, residual in zip(published(), published_fit().residuals, strict=True):
        first = alone[one.name]
        gain = first.measured_s / one.measured_s
        rows.append(
            (
                one.name,
                str(one.ranks),
                f"{1 / one.measured_s:.1f}",
                f"{1 / (one.measured_s * (1 + residual)):.1f}",
                f"{gain:.2f} (from {first.ranks})",
                f"{gain * first.ranks / one.ranks:.0%}",
            )
        )
    return _table(("model", "GPUs", "tok/s", "fitted tok/s", "times as fast", "efficiency"), rows)


def one_host_table() -> str:
    rows = []
    for device in devices():
        for shape in (SHAPE_8B, SHAPE_70B):
            for name, load in LOADS.items():
                rows.append(
                    (device, shape.name, name, *_cells(shape, load, [one_host(device, n) for n in SIZES]))
                )
    return _table(("GPU", "model", "step", *(f"{n} GPUs" if n > 1 else "1 GPU" for n in SIZES)), rows)


def several_hosts_table() -> str:
    links = {"InfiniBand": INFINIBAND, "RoCE": ROCE, "Ethernet, TCP": ETHERNET}
    rows = []
    for shape in (SHAPE_8B, SHAPE_70B):
        for name, load in LOADS.items():
            for label, link in links.items():
                clusters = [_hosts(hosts, link) for hosts in (1, 2, 4)]
                rows.append((shape.name, name, label, *(_ms(step(shape, load, c).total_s) for c in clusters)))
    return _table(("model", "step", "between hosts", "1 host, 8 GPUs", "2 hosts, 16", "4 hosts, 32"), rows)


def where_it_stops() -> str:
    """The most ranks whose last doubling still gives `PAYS`, and what replicas would give instead."""
    rows = []
    for device in devices():
        for shape in (SHAPE_8B, SHAPE_70B):
            cells = [_last_that_pays(shape, load, device) for load in LOADS.values()]
            rows.append((device, shape.name, *cells))
    return _table(("GPU", "model", *LOADS), rows)


def replicas() -> str:
    """Few and many streams on eight GPUs, in groups of N: tokens per second."""
    rows = []
    for device in devices():
        for shape in (SHAPE_8B, SHAPE_70B):
            for streams in (64, 512):
                cells = []
                for size in SIZES:
                    load = Load(streams * size // 8, 1, CONTEXT)
                    cluster = one_host(device, size)
                    rate = streams / step(shape, load, cluster).total_s
                    cells.append(f"{rate:.0f}" if fits(shape, load, cluster) else "does not fit")
                rows.append((device, shape.name, str(streams), *cells))
    return _table(("GPU", "model", "streams", *(f"{8 // n} × {n} GPU" for n in SIZES)), rows)


def what_392_takes() -> str:
    """8B at b1 on four H100, by how long a layer's fixed part and a sum take."""
    cluster = one_host("H100 SXM", 4)
    load = LOADS["b1"]
    rows = []
    for layer_us in (0, 10, 20, cluster.device.layer_s * 1e6):
        cells = [f"{layer_us:.0f} µs"]
        for times in (0.0, 0.5, 1.0):
            device = replace(
                cluster.device, layer_s=layer_us * 1e-6, step_s=cluster.device.step_s * (layer_us > 0)
            )
            four = step(SHAPE_8B, load, replace(cluster, device=device))
            one = step(SHAPE_8B, load, replace(cluster, device=device, per_host=1)).total_s
            cells.append(f"{one / (four.total_s - (1 - times) * four.communication_s):.2f}")
        rows.append(tuple(cells))
    return _table(("fixed per layer", "sums cost nothing", "half of the model's", "the model's"), rows)


def ordered_sums() -> str:
    """What sums in rank order cost over NCCL."""
    rows = []
    for name in ("b1", "b64", "prefill"):
        for size in (2, 4, 8):
            cluster, load = one_host("H100 SXM", size), LOADS[name]
            found = step(SHAPE_8B, load, cluster)
            width = load.rows * SHAPE_8B.hidden_size * SHAPE_8B.bytes_per_value
            ordered = (2 * SHAPE_8B.layers + 1) * ordered_sum_s(width, cluster)
            rows.append((name, str(size), _ms(found.communication_s), _ms(ordered), _ms(found.total_s)))
    return _table(
        ("step of 8B", "GPUs", "all exchanges, NCCL's sums", "sums in rank order", "whole step"), rows
    )


TABLES: dict[str, Callable[[], str]] = {
    "measured here": measured_here,
    "constants here": constants_here,
    "published": published_curve,
    "one host": one_host_table,
    "several hosts": several_hosts_table,
    "where it stops": where_it_stops,
    "replicas": replicas,
    "what 3.92 takes": what_392_takes,
    "ordered sums": ordered_sums,
}


def _hosts(hosts: int, link: Link) -> Cluster:
    return one_host("H100 SXM", 8) if hosts == 1 else several_hosts("H100 SXM", hosts, link)


def _cells(shape: Shape, load: Load, clusters: list[Cluster]) -> Iterator[str]:
    """Milliseconds, and times as fast as the fewest GPUs that hold it; the share of exchanges."""
    first: tuple[int, float] | None = None
    for cluster in clusters:
        if not fits(shape, load, cluster):
            yield "does not fit"
            continue
        found = step(shape, load, cluster)
        if first is None:
            first = cluster.ranks, found.total_s
            share = found.communication_s / found.total_s
            yield _ms(found.total_s) + (f" ({share:.0%})" if cluster.ranks > 1 else "")
        else:
            yield (
                f"{_ms(found.total_s)}, {first[1] / found.total_s:.2f} × ({found.communication_s / found.total_s:.0%})"
            )


def _last_that_pays(shape: Shape, load: Load, device: str) -> str:
    best, before = 0, None
    for size in SIZES:
        cluster = one_host(device, size)
        if not fits(shape, load, cluster):
            continue
        now = step(shape, load, cluster).total_s
        if before is not None and before / now < PAYS:
            break
        best, before = size, now
    return str(best) if best else "does not fit"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ("---",) * len(head), *rows])


if __name__ == "__main__":
    sys.exit(main())
