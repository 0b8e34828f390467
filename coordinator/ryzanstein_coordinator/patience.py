"""How long requests wait for a group that does not serve. Pure: the time is passed in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .serving_group import ServingGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Bounds of waiting. All in seconds."""

    #: Without any group that serves, requests wait so long and are then UNAVAILABLE. Longer than the wait
    #: for a dead rank's replacement, or streams would end just before a smaller group takes them up.
    no_group_grace_s: float = 45.0
    #: A stream whose group is gone moves to another group that serves after so long. Longer than a group
    #: with a hot spare needs to come back, because moving means prefilling elsewhere.
    move_after_s: float = 2.0
    #: Sequences that a group runs at once, for as long as none has said.
    default_max_num_seqs: int = 64


@dataclass(frozen=True, slots=True)
class Overdue:
    """What has waited long enough by now."""

    #: Nobody serves and nobody is waited for any more: all that waits ends.
    give_up: bool = False
    #: Groups whose streams move to one that serves.
    moving: tuple[ServingGroup, ...] = ()
    #: When something else may be overdue; None: nothing waits for time.
    next_at: float | None = None


def overdue(
    now: float,
    groups: Iterable[ServingGroup],
    config: RouterConfig,
    *,
    no_group_since: float | None,
) -> Overdue:
    """Without any group everybody waits for the first that comes; with one, streams of a lost group move there
    after a while. `no_group_since`: None while a group should serve."""
    if no_group_since is not None:
        over_at = no_group_since + config.no_group_grace_s
        return Overdue(give_up=True) if now >= over_at else Overdue(next_at=over_at)
    if not any(group.ready for group in groups):
        return Overdue()
    waiting = [
        (group.lost_at + config.move_after_s, group)
        for group in groups
        if group.lost_at is not None and group.stalled
    ]
    return Overdue(
        moving=tuple(group for move_at, group in waiting if now >= move_at),
        next_at=min((move_at for move_at, _ in waiting if now < move_at), default=None),
    )
