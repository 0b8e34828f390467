"""One group as the router sees it: its stream, what was submitted on it, and what waits for it to come
back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ryzanstein.v1.shard_worker_pb2 import EngineLimits, ExecuteResponse

from .dispatch import GroupLoad
from .group_stream import GroupStream
from .requests import Place, RequestRecord

if TYPE_CHECKING:  # the name exists for type checkers only
    from ryzanstein.v1.shard_worker_pb2_grpc import ShardWorkerServiceAsyncStub


@dataclass(slots=True)
class ServingGroup:
    """Changed by the router only."""

    group_id: str
    epoch: int = 0
    limits: EngineLimits = field(default_factory=EngineLimits)
    #: Since when it does not serve; None while it should.
    lost_at: float | None = None
    #: No token has come since it became ready.
    silent: bool = True
    #: Submitted on the open stream, by sequence id.
    running: dict[int, RequestRecord] = field(default_factory=dict)
    #: Streams that had begun when theirs broke, by arrival.
    stalled: dict[int, RequestRecord] = field(default_factory=dict)
    #: Of those that were submitted again when it became ready: which have not ended, by arrival.
    awaited: set[int] = field(default_factory=set)
    #: What was submitted when the stream broke that was open last.
    cut_off: tuple[RequestRecord, ...] = ()
    _stream: GroupStream | None = None
    _open: bool = False

    @property
    def ready(self) -> bool:
        """Its stream is open: sequences can be submitted."""
        return self._open

    @property
    def isolating(self) -> bool:
        """It computes one suspect, and nothing may be computed beside it."""
        return len(self.running) == 1 and next(iter(self.running.values())).suspicion.needs_isolation

    @property
    def load(self) -> GroupLoad:
        most = max(1, self.limits.max_num_seqs)
        return GroupLoad(self.group_id, len(self.running), most, closed=self.isolating)

    def open(
        self,
        stub: ShardWorkerServiceAsyncStub,
        *,
        on_open: Callable[[], None],
        on_alive: Callable[[bool], None],
        on_step: Callable[[ExecuteResponse], None],
        on_broken: Callable[[str], None],
    ) -> None:
        """Opens the stream of its epoch, in the background, and again whenever it breaks."""

        def opened() -> None:
            self._open = True
            self.cut_off = ()
            on_open()

        self._stream = GroupStream(
            stub, self.epoch, on_open=opened, on_alive=on_alive, on_step=on_step, on_broken=on_broken
        )
        self._stream.start()

    def close(self) -> None:
        """Closes the stream; nothing is heard of it any more."""
        self._open = False
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def submit(self, record: RequestRecord, sequence_id: int) -> None:
        """Gives it to the leader under this id; while there is none it stalls."""
        record.group_id = self.group_id
        if self._stream is None or not self._open:
            record.place = Place.STALLED
            self.stalled[record.arrival] = record
            return
        record.place, record.sequence_id = Place.RUNNING, sequence_id
        record.tokens_at_submission = len(record.output)
        self.running[sequence_id] = record
        self._stream.submit(record)

    def remove(self, record: RequestRecord, *, at_leader: bool = False) -> None:
        """It is no business of this group any more. `at_leader`: the leader knows."""
        self.stalled.pop(record.arrival, None)
        submitted = self.running.pop(record.sequence_id, None) is not None
        if submitted and not at_leader and self._stream is not None:
            self._stream.cancel(record.sequence_id)
        record.sequence_id, record.group_id = 0, None

    def take_running(self) -> list[RequestRecord]:
        """Takes all out, the leader's step that is under way aside."""
        taken = list(self.running.values())
        for record in taken:
            self.remove(record)
        return taken

    def stall(self) -> list[RequestRecord]:
        """No message about what was submitted counts any more. Streams that had begun wait for this group;
        returns the others, which any group can take."""
        self._open = False
        self.cut_off += tuple(self.running.values())
        free = []
        for record in self.running.values():
            record.sequence_id = 0
            if len(record.output):
                record.place = Place.STALLED
                self.stalled[record.arrival] = record
            else:
                record.group_id = None
                free.append(record)
        self.running.clear()
        return free

    def was_last_awaited(self, ended: RequestRecord) -> bool:
        """Whether nobody who waited for the group is left now that this one has ended, and nobody has a token."""
        if not self.silent or ended.arrival not in self.awaited:
            return False
        self.awaited.remove(ended.arrival)
        return not self.awaited

    def take_stalled(self) -> list[RequestRecord]:
        """Those that waited for it; they are in no place then."""
        stalled, self.stalled = list(self.stalled.values()), {}
        for record in stalled:
            record.group_id = None
        return stalled
