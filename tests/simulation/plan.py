"""What happens in a schedule: a shape, requests, faults and their moments. A seed decides all of it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .model import VOCABULARY
from .setting import Shape

#: Faults begin within so many seconds, and are over for good after so many.
FAULTS_WITHIN_S = 2.0
HEALED_AFTER_S = 3.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    at_s: float
    request_id: str
    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    priority: int = 0
    #: 0: none.
    timeout_s: float = 0.0
    #: Between two reads of a slow reader; 0: reads at once.
    read_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that happens. `target` counts workers or requests, whichever it is about."""

    at_s: float
    #: A method of `World`.
    kind: str
    target: int = 0
    #: How long it lasts, or how strong it is.
    amount: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a schedule."""

    seed: int
    shape: Shape
    asks: tuple[Ask, ...]
    faults: tuple[Fault, ...]
    #: Of a dead process, until it is started again.
    restart_s: float = 0.5
    #: Longest time to load a shard that a worker does not hold.
    load_s: float = 0.05
    #: Workers that come only so much later.
    late_workers: int = 0
    late_by_s: float = 1.0


#: How many schedules have a poison request.
_POISONED = 0.08

#: Tokens that long prompts have in common.
_BEGINNING = 17

#: Kinds, and how likely each is.
KINDS = {
    "kill": 22,
    "kill_leader": 12,
    "kill_two": 5,
    "stop": 10,
    "stick": 6,
    "slow": 4,
    "late_beats": 4,
    "reset": 6,
    "cut": 5,
    "kill_coordinator": 10,
    "kill_coordinator_and_leader": 5,
    "stop_coordinator": 4,
    "disk_fails": 4,
    "disk_slow": 3,
    "drain": 3,
    "client_leaves": 8,
    "client_cut": 6,
    "cancel": 6,
    "poison": 0,  # a part of all schedules has it besides
}
_KINDS, _WEIGHTS = list(KINDS), list(KINDS.values())


def ask_of(rng: random.Random, number: int, at_s: float) -> Ask:
    """A random request. Long prompts begin in one of two ways, for a block and a bit."""
    prompt = tuple(int(rng.random() * VOCABULARY) for _ in range(1 + int(rng.random() * 24)))
    if len(prompt) > _BEGINNING:
        prompt = (*((prompt[0] % 2 + 7,) * _BEGINNING), *prompt[_BEGINNING:])
    return Ask(
        at_s=at_s,
        request_id=f"r{number}",
        prompt=prompt,
        seed=int(rng.random() * 2**40),
        max_tokens=1 + int(rng.random() * 20),
        priority=1 if rng.random() < 0.1 else 0,
        timeout_s=0.05 + 3 * rng.random() if rng.random() < 0.1 else 0.0,
        read_s=0.1 * rng.random() if rng.random() < 0.15 else 0.0,
    )


def plan_of(seed: int, kinds: tuple[str, ...] = ()) -> Plan:
    """The schedule of this seed; with `kinds`, only faults of these."""
    rng = random.Random(seed)
    shape = Shape(
        ranks=rng.choice((1, 2, 2, 2, 4)) if rng.random() < 0.9 else 4,
        groups=2 if rng.random() < 0.2 else 1,
        spares=rng.choice((0, 0, 1, 1, 2)),
        blocks=rng.choice((4, 6, 8, 10)),
        sequences=rng.choice((2, 3, 4)),
        batched_tokens=rng.choice((4, 16, 64)),
        replacement_wait_s=rng.choice((0.0, 2.0)),
        grace_s=rng.choice((0.5, 15.0)),
    )
    asks = tuple(
        ask_of(rng, number, FAULTS_WITHIN_S * rng.random() ** 2)
        for number in range(1 + int(rng.random() * 5))
    )
    faults = tuple(
        Fault(
            at_s=FAULTS_WITHIN_S * rng.random(),
            kind=kind,
            target=int(rng.random() * 64),
            amount=rng.random(),
        )
        for kind in rng.choices(kinds or _KINDS, None if kinds else _WEIGHTS, k=1 + int(rng.random() * 5))
    )
    restart_s, load_s = rng.choice((0.05, 0.5, 1.5)), rng.choice((0.005, 0.05, 0.4))
    late_workers = 1 if rng.random() < 0.1 else 0
    if rng.random() < _POISONED and not kinds:
        poison = Fault(FAULTS_WITHIN_S * rng.random() ** 2, "poison", int(rng.random() * 64), rng.random())
        faults = (*faults, poison)
    return Plan(
        seed=seed,
        shape=shape,
        asks=asks,
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
        restart_s=restart_s,
        load_s=load_s,
        late_workers=late_workers,
    )
