"""Cases one after the other, several at once, until a number of them or a time is over."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc

from ryzanstein.join_proof import JoinTokens, Role

from .calls import DEFECTS, Caller, make_case
from .raw_http2 import ATTACKS, attack
from .targets import Target, coordinator_targets, worker_targets

#: Calls at the same time, over two connections each to the coordinator and to every worker.
_AT_ONCE = 8
#: One case of so many is HTTP/2 by hand.
_RAW_SHARE = 0.08
_LISTENS_S = 0.3


@dataclass(slots=True)
class Result:
    """What came back."""

    seed: int
    cases: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    #: In words: the case and what it was answered.
    defects: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        each = ", ".join(f"{name} {count}" for name, count in self.statuses.most_common())
        return f"{self.cases} cases (seed {self.seed}): {each}; {len(self.defects)} defects"


@dataclass(frozen=True, slots=True)
class Victims:
    """Where the servers are, and the join token of their cluster."""

    coordinator: str
    workers: tuple[str, ...]
    tokens: JoinTokens


async def run_campaign(victims: Victims, seed: int, *, most_cases: int, most_s: float) -> Result:
    """The same seed makes the same cases, in about the same order."""
    result = Result(seed)
    rng = random.Random(seed)
    deadline = time.monotonic() + most_s
    front = [Caller(victims.coordinator, victims.tokens, Role.WORKER) for _ in range(2)]
    backs = [Caller(address, victims.tokens, Role.COORDINATOR) for address in victims.workers]
    targets, members = coordinator_targets(), worker_targets()

    async def work() -> None:
        while result.cases < most_cases and time.monotonic() < deadline:
            result.cases += 1
            case_rng = random.Random(rng.randrange(2**63))
            if case_rng.random() < _RAW_SHARE:
                await _raw(victims, case_rng.choice(targets + members), case_rng, result)
            elif backs and case_rng.random() < 0.15:
                await _one(case_rng.choice(backs), case_rng.choice(members), case_rng, result)
            else:
                await _one(case_rng.choice(front), case_rng.choice(targets), case_rng, result)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_AT_ONCE):
                tasks.create_task(work())
    finally:
        for caller in front + backs:
            await caller.close()
    return result


async def _one(caller: Caller, target: Target, rng: random.Random, result: Result) -> None:
    case = make_case(target, rng)
    code, details = await caller.make(case)
    result.statuses[code.name] += 1
    gone = code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower()
    if code in DEFECTS or gone:
        result.defects.append(f"{code.name} ({details}) for {case}")


async def _raw(victims: Victims, target: Target, rng: random.Random, result: Result) -> None:
    name = rng.choice(sorted(ATTACKS))
    worker = "ShardWorker" in target.path and victims.workers
    address = rng.choice(victims.workers) if worker else victims.coordinator
    data = target.seeds(rng)[0].SerializeToString()
    sent = ATTACKS[name](target.path, data, rng)
    try:
        answer, defect = await asyncio.to_thread(attack, address, sent, patience_s=_LISTENS_S)
    except OSError as error:
        result.defects.append(f"{name}: {address} can't be reached: {error}")
        return
    result.statuses[f"raw {answer.partition(' ')[0]}"] += 1
    if defect:
        result.defects.append(f"{answer} for {name}, {target.path}")
