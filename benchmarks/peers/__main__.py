"""Ryzanstein side by side with another engine on this machine's processors.

    python -m benchmarks.peers openvino|llama|vllm|transformers [--install] [--env DIR] [--variants bf16 int8]
                               [--model DIR] [--ranks 2] [--rounds 2] [--quick] [--json FILE]

The same checkpoint (`medium` of benchmarks.models unless --model names one) and the same prompts; greedy, end of
sequence ignored. Ryzanstein runs as a whole cluster (client, coordinator, one worker per rank with one core each), the
peer in its own process with as many cores together. They take turns, each started anew: ours, theirs, ours, theirs.
Between them the machine's bandwidth is probed. Believe a ratio only if the probes agree and others used little.

The peer lives in a virtual environment of its own: `--install` makes it (--env, or below --work) from
benchmarks/peers/requirements/NAME.txt; what is installed already is used as it is. Nothing of it comes into ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ryzanstein.model_plan import read_model_config

from ..models import make_medium
from . import environment
from .catalog import PEERS
from .comparison import Comparison, compare, machine_line, peer_round, prepared, table
from .environment import PeerError
from .measure import Plan
from .ours import one_round


def main() -> int:
    """The exit code: 1 if a peer could not be installed or run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("--variants", nargs="+", help="of the peer; all unless given")
    parser.add_argument("--env", type=Path, help="directory of the peer's virtual environment")
    parser.add_argument("--install", action="store_true", help="make or complete that environment with pip")
    parser.add_argument("--model", type=Path)
    parser.add_argument(
        "--ranks", type=int, default=2, help="of Ryzanstein; one core each, the peer gets as many"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="half the tokens, one round: to try the command out"
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ryzanstein-benchmarks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        comparisons = _compare_all(options)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps([_record(one) for one in comparisons], indent=2))
    return 0


def _compare_all(options: argparse.Namespace) -> list[Comparison]:
    peer = PEERS[options.peer]
    known = {variant.name: variant for variant in peer.variants}
    unknown = set(options.variants or ()) - set(known)
    if unknown:
        raise PeerError(f"{peer.name} has no variant {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    python = environment.ensure(
        peer, (options.env or work / f"env-{peer.name}").resolve(), install=options.install
    )
    model = (options.model or make_medium(work / "medium")).resolve()
    plan = Plan(read_model_config(model).vocab_size)
    if options.quick:
        plan = Plan(plan.vocab_size, output_tokens=64, first_tokens=1)
    done = []
    for name in options.variants or known:
        variant = known[name]
        converted = prepared(peer, variant, python, model, work)
        done.append(
            compare(
                peer,
                environment.version(peer, python),
                variant,
                partial(one_round, model, variant.weights, options.ranks, plan, work),
                partial(peer_round, peer, variant, python, model, converted, plan, work, options.ranks),
                our_ranks=options.ranks,
                rounds=1 if options.quick else options.rounds,
            )
        )
        print(f"\n{table(done[-1])}\n\n{machine_line(done[-1])}", flush=True)
    return done


def _record(comparison: Comparison) -> dict[str, object]:
    return {**asdict(comparison), "ratios": asdict(comparison.ratios())}


if __name__ == "__main__":
    sys.exit(main())
