"""How long the coordinator itself stood still: what it could not hear meanwhile is nobody's silence. Pure.

Stopped, starved of processor time, or busy with something long: heartbeats wait unread in its sockets. Only the time
in which it could have heard counts against a worker.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standstill:
    """Between two ticks that were too far apart."""

    begun_s: float
    ended_s: float

    def after_s(self, since_s: float) -> float:
        """How much of it came after that moment."""
        return max(0.0, self.ended_s - max(self.begun_s, since_s))


Standstills = tuple[Standstill, ...]


def lost_s(standstills: Standstills, since_s: float) -> float:
    """How much of the time since then the coordinator could hear nothing."""
    return sum(standstill.after_s(since_s) for standstill in standstills)


@dataclass(frozen=True, slots=True)
class Hearing:
    """When the coordinator could hear: not before `floor_s`, when it was not running, nor during `standstills`."""

    floor_s: float = 0.0
    standstills: Standstills = ()

    def silence_s(self, now_s: float, since_s: float) -> float:
        """For how long it could have heard since then."""
        since_s = max(since_s, self.floor_s)
        return max(0.0, now_s - since_s - lost_s(self.standstills, since_s))


def with_latest(
    standstills: Standstills, now_s: float, last_tick_s: float, usual_s: float, patience_s: float
) -> Standstills:
    """What is known at `now_s`, `last_tick_s` after the tick before.

    Args:
        standstills: what was known then.
        now_s: the clock's time.
        last_tick_s: when time was looked at last.
        usual_s: ticks may be so far apart; it counts as time in which the coordinator heard, so that one that is
            always late still finds who is silent.
        patience_s: nobody's silence is waited for any longer than so much of such time, whatever came before that.
    """
    if now_s - last_tick_s > usual_s:
        standstills = (*standstills, Standstill(last_tick_s + usual_s, now_s))
    elif not standstills:
        return standstills
    kept = tuple(known for known in standstills if _heard_s(standstills, now_s, known.ended_s) <= patience_s)
    return kept if len(kept) < len(standstills) else standstills


def _heard_s(standstills: Standstills, now_s: float, since_s: float) -> float:
    """For how long it could hear since then."""
    return now_s - since_s - lost_s(standstills, since_s)
