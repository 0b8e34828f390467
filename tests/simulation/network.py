"""Connections between processes: order is kept within one, delays vary, and what is under way may be lost."""

from __future__ import annotations

import random
from collections import deque

from .timeline import Run, Timeline


class Endpoint:
    """A process, as its connections see it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        #: SIGSTOP: what is sent to it waits in its sockets.
        self.stopped = False
        #: Nothing gets through to the other side, and nobody is told.
        self.cut = False
        self.connections: dict[Connection, None] = {}
        self._waiting: deque[Run] = deque()
        self._held: deque[Run] = deque()

    @property
    def runs(self) -> bool:
        return self.alive and not self.stopped

    def take(self, run: Run) -> None:
        """Something has arrived."""
        if self.stopped:
            self._waiting.append(run)
        elif self.alive:
            run()

    def hold(self, run: Run) -> None:
        """Something is stuck in the network until that is whole again."""
        self._held.append(run)

    def release_waiting(self) -> None:
        """After SIGCONT: takes in what has arrived meanwhile."""
        while self._waiting and self.runs:
            self._waiting.popleft()()

    def release_held(self) -> None:
        """After the network is whole again."""
        held, self._held = self._held, deque()
        for run in held:
            run()


class Lane:
    """What keeps the order: several streams of one HTTP/2 connection share it."""

    __slots__ = ("last_at_s",)

    def __init__(self) -> None:
        #: When the last of what was sent arrives.
        self.last_at_s = 0.0


class _Direction:
    """One way of a connection."""

    __slots__ = ("arrived", "lane", "lost_from", "sent")

    def __init__(self, lane: Lane) -> None:
        self.sent = 0
        self.arrived = 0
        self.lane = lane
        #: Messages from this number on never arrive; -1: all do.
        self.lost_from = -1


class Connection:
    """Between `near`, which opened it, and `far`. `on_end_*` is told when that side learns that it is over."""

    def __init__(
        self,
        timeline: Timeline,
        rng: random.Random,
        near: Endpoint,
        far: Endpoint,
        *,
        on_end_near: Run | None = None,
        on_end_far: Run | None = None,
        lanes: tuple[Lane, Lane] | None = None,
    ) -> None:
        """`lanes`: up and down, of the connection that this is a stream of; None: one of its own."""
        self._timeline = timeline
        self._random = rng.random
        self.near, self.far = near, far
        self.on_end_near, self.on_end_far = on_end_near, on_end_far
        up, down = lanes or (Lane(), Lane())
        self._up, self._down = _Direction(up), _Direction(down)
        self.over = False
        near.connections[self] = None
        far.connections[self] = None

    def to_far(self, run: Run) -> None:
        self._send(self._up, self.far, run)

    def to_near(self, run: Run) -> None:
        self._send(self._down, self.near, run)

    def close(self, by: Endpoint) -> None:
        """One side ends it in order: the other learns it behind all that was sent. What comes to the closing side is
        lost."""
        self._end(by, lose_sent=False, delay_s=0.0)

    def die(self, with_: Endpoint) -> None:
        """One side's process ended: of what it sent, some may not have left it."""
        self._end(with_, lose_sent=True, delay_s=self._random() * self._random() * 0.3)

    def reset(self) -> None:
        """The network breaks it: both sides learn it, and what was under way is lost."""
        if self.over:
            return
        self._forget()
        for direction, side, told in (
            (self._up, self.far, self.on_end_far),
            (self._down, self.near, self.on_end_near),
        ):
            direction.lost_from = direction.arrived
            self._tell(direction, side, told, 0.0)

    def _end(self, by: Endpoint, *, lose_sent: bool, delay_s: float) -> None:
        if self.over:
            return
        self._forget()
        outgoing, incoming = (self._up, self._down) if by is self.near else (self._down, self._up)
        incoming.lost_from = incoming.arrived
        if lose_sent:
            outgoing.lost_from = outgoing.arrived + int(
                self._random() * (outgoing.sent - outgoing.arrived + 1)
            )
        other, told = (self.far, self.on_end_far) if by is self.near else (self.near, self.on_end_near)
        self._tell(outgoing, other, told, delay_s)

    def _forget(self) -> None:
        self.over = True
        self.near.connections.pop(self, None)
        self.far.connections.pop(self, None)

    def _tell(self, direction: _Direction, side: Endpoint, told: Run | None, delay_s: float) -> None:
        if told is None:
            return
        at_s = max(direction.lane.last_at_s, self._timeline.now_s + delay_s) + 0.0005
        self._timeline.at(at_s, lambda: self._through(lambda: side.take(told)))

    def _send(self, direction: _Direction, receiver: Endpoint, run: Run) -> None:
        if self.over:
            return
        number = direction.sent
        direction.sent += 1
        # Mostly under a millisecond, now and then five.
        delay_s = 0.0001 + 0.005 * self._random() ** 4
        direction.lane.last_at_s = at_s = max(direction.lane.last_at_s, self._timeline.now_s + delay_s)

        def arrive() -> None:
            if 0 <= direction.lost_from <= number:
                return
            if self.near.cut or self.far.cut:
                (self.near if self.near.cut else self.far).hold(arrive)
                return
            direction.arrived = number + 1
            if receiver.stopped or not receiver.alive:
                receiver.take(run)
            else:
                run()

        self._timeline.at(at_s, arrive)

    def _through(self, run: Run) -> None:
        """At once, or when the network is whole again."""
        if self.near.cut or self.far.cut:
            (self.near if self.near.cut else self.far).hold(lambda: self._through(run))
        else:
            run()
