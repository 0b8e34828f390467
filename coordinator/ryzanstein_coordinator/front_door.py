"""Where requests come in: validated, tokenised, admitted or refused at once, then given to the router.

gRPC and HTTP both call this. A caller gets a `Subscription`, reads it, and gives it back with `leave`: when
the last one leaves before the end, the request is cancelled but kept for a while, so that `attach` can go
on with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from ryzanstein.failpoints import failpoint
from ryzanstein.wire import StatusError, unavailable

from .admission import AdmissionLimits, Amount
from .counting import EndCounter
from .deadlines import DeadlineQueue
from .endings import deadline_ending, late_restart_ending, refused_outcome, restart_ending
from .entrance import Entrance
from .errors import cancelled, failed_precondition, shown
from .intake import GenerateCall, Intake
from .observers import NoMetrics, RequestMetrics
from .request_lines import log_ended
from .request_log import NoRequestLog, RequestLog
from .request_store import RequestStore, Reservation, RetentionLimits
from .requests import Clock, Ending, RequestRecord, RequestSpec, Subscription
from .router import Router
from .validation import check_priority, check_received, checked_request_id, checked_timeout

_log = structlog.get_logger()

#: A call whose deadline is this near has met it: gRPC's clock and ours need not agree on the last moment.
_SAME_MOMENT_S = 0.05


class FrontDoor:
    """See the module. Construct, then `await run()` in a task for as long as it serves."""

    def __init__(
        self,
        *,
        intake: Intake,
        router: Router,
        admission: AdmissionLimits | None = None,
        retention: RetentionLimits | None = None,
        log: RequestLog | None = None,
        metrics: RequestMetrics | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._intake = intake
        self._router = router
        self._store = RequestStore(retention or RetentionLimits())
        self._entrance = Entrance(router, self._store, admission or AdmissionLimits(), clock)
        self._log = log or NoRequestLog()
        self._metrics: RequestMetrics = metrics or NoMetrics()
        self._ends = EndCounter(self._metrics)
        self._clock = clock
        self._deadlines: DeadlineQueue[RequestRecord] = DeadlineQueue()
        self._sooner = asyncio.Event()
        self._idle = asyncio.Event()
        router.connect(on_ended=self._ended, on_changed=self._sooner.set)

    # --- life

    async def run(self) -> None:
        """Does what only time decides, until it is cancelled."""
        while True:
            next_at = self.tick(self._clock())
            self._sooner.clear()
            wait_s = None if next_at is None else max(0.0, next_at - self._clock())
            try:
                async with asyncio.timeout(wait_s):
                    await self._sooner.wait()
            except TimeoutError:
                continue

    def tick(self, now: float) -> float | None:
        """Ends what is over, forgets what is old. Returns when to call again at the latest."""
        for record in self._deadlines.expired(now):
            self._router.end(record, deadline_ending(record))
        forgotten = [record.key for record in self._store.forget(now)]
        # A new request that comes in with the id of one of them may have its row in the log by now.
        rows = [key for key in forgotten if not self._store.is_coming(key)]
        if rows:
            self._log.forgotten(rows)
        self._ends.tick(now)
        times = (
            self._router.tick(now),
            self._deadlines.next_at(),
            self._store.next_forget_at(),
            self._ends.next_at(),
        )
        return min((at for at in times if at is not None), default=None)

    def restore(self, records: Sequence[tuple[RequestSpec, float | None]]) -> None:
        """Requests of a former life, each with the seconds that it has left: they wait for their callers,
        who come back with the tokens that they have. One without time left has missed its deadline."""
        now = self._clock()
        for spec, left_s in records:
            record = self._intake.record(spec, now, left_s)
            record.end(
                late_restart_ending() if left_s is not None and left_s <= 0.0 else restart_ending(), now
            )
            self._store.add_ended(record)
        if records:
            _log.info("requests_restored", requests=len(records))
        self._sooner.set()

    def refuse(self, reason: str) -> None:
        """From now on nothing new comes in; what lives goes on."""
        self._entrance.close(reason)

    async def idle(self) -> None:
        """Waits until no request lives."""
        while self._store.unfinished:
            self._idle.clear()
            await self._idle.wait()

    def end_all(self, reason: str) -> None:
        """Ends every request as UNAVAILABLE: callers can attach again when the coordinator is back."""
        for record in self._store.living():
            self._router.end(record, Ending("unavailable", error=unavailable(reason), revivable=True))

    # --- what callers do

    async def generate(self, call: GenerateCall) -> Subscription:
        """Admits a request. The first token may take its time, this does not.

        Raises a StatusError: INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, RESOURCE_EXHAUSTED, UNAVAILABLE.
        """
        begun = self._clock()
        try:
            return await self._generate(call, begun)
        except StatusError as error:
            self._metrics.request_ended(refused_outcome(error), self._clock() - begun)
            raise
        except asyncio.CancelledError:
            self._metrics.request_ended("cancelled", self._clock() - begun)
            raise

    def check_room(self, owner: str) -> None:
        """Before a request is read: whether one more of this owner could come in at all.

        Raises UNAVAILABLE or RESOURCE_EXHAUSTED, as `generate` would.
        """
        try:
            self._entrance.check(owner, Amount(requests=1))
        except StatusError as error:
            self._metrics.request_ended(refused_outcome(error), 0.0)
            raise

    async def attach(
        self, request_id: str, received: Sequence[int], *, owner: str = "", from_index: int | None = None
    ) -> Subscription:
        """Goes on behind the tokens that the caller has.

        Theirs count where they are more than are recorded. A caller who knows only how many they are gives
        `from_index` in their place: what is not recorded of them is generated again and not delivered. A
        request that is being admitted is waited for; one that ended only because nobody listened or no group
        served is taken up again. Raises NOT_FOUND, FAILED_PRECONDITION if the tokens are not those of the
        request, RESOURCE_EXHAUSTED or UNAVAILABLE if it can't be taken up now.
        """
        while isinstance(record := self._store.find((owner, request_id)), Reservation):
            await record.settled.wait()
        check_received(record, received, vocab_size=self._intake.model().vocab_size)
        extra = received[len(record.output) :]
        ending = record.ending
        if ending is None:
            if extra:
                self._router.extend(record, extra)
        elif ending.revivable:
            self._revive(record, extra)
        index = len(received) if from_index is None else from_index
        ended_well = record.ending is not None and record.ending.error is None
        if len(record.output) < index and ended_well:
            raise failed_precondition(
                f"{index} tokens of request {shown(request_id)} can't have been received: it ended with "
                f"{len(record.output)}"
            )
        return Subscription(record, index)

    def cancel(self, request_id: str, *, owner: str = "") -> bool:
        """Ends a request; False if it had ended already. Raises NOT_FOUND."""
        record = self._store.find((owner, request_id))
        ending = Ending("cancelled", error=cancelled(f"request {shown(request_id)} was cancelled"))
        if isinstance(record, Reservation):
            already, record.cancelled = record.cancelled, True
            return not already
        if record.ending is None:
            self._router.end(record, ending)
            return True
        if record.ending.revivable:
            record.ending = ending
            return True
        return False

    def leave(self, subscription: Subscription) -> None:
        """The caller does not listen any more, for whatever reason. Must be called for each subscription; a
        second call does nothing."""
        subscription.close()
        record = subscription.record
        if record.ending is not None or record.listeners:
            return
        if record.deadline_at is not None and self._clock() >= record.deadline_at - _SAME_MOMENT_S:
            self._router.end(record, deadline_ending(record))
            return
        # The blocks are free at the next step. Whoever comes back in time has it prefilled again.
        gone = cancelled("the client went away")
        self._router.end(record, Ending("cancelled", error=gone, revivable=True))

    @property
    def epoch(self) -> int:
        """For replies."""
        return self._router.groups.epoch

    # --- inside

    async def _generate(self, call: GenerateCall, begun: float) -> Subscription:
        self._intake.check(call)
        request_id = checked_request_id(call.request_id)
        timeout_s = checked_timeout(call.timeout_s)
        check_priority(call.priority)
        key = call.owner, request_id
        reservation = self._entrance.reserve(key, call, timeout_s)
        try:
            spec = await self._intake.read(call, request_id)
            record = self._intake.record(spec, begun, timeout_s)
            self._entrance.was_read(reservation, record, call.sampling)
            await self._keep(spec, timeout_s, reservation)
        except BaseException:
            # The log may have the row of one that was forgotten meanwhile.
            if not self._store.has_ended(key):
                self._log.forgotten([key])
            raise
        finally:
            self._store.release(reservation)
            self._tell_if_idle()
        self._store.add(record)
        self._metrics.prompt_tokens(len(spec.prompt))
        subscription = Subscription(record)
        self._watch_deadline(record)
        self._router.enqueue(record)
        return subscription

    async def _keep(self, spec: RequestSpec, timeout_s: float | None, reservation: Reservation) -> None:
        """Writes it down, before anybody is told that it is accepted."""
        try:
            await self._log.admitted(spec, timeout_s)
            failpoint("request.logged")
            if reservation.cancelled:
                raise cancelled(f"request {shown(spec.request_id)} was cancelled")
        except BaseException:
            self._log.forgotten([spec.key])
            raise

    def _revive(self, record: RequestRecord, extra: Sequence[int]) -> None:
        if record.deadline_at is not None and self._clock() >= record.deadline_at:
            record.ending = deadline_ending(record)
            return
        # It was let in before: only how many there are now counts.
        self._entrance.check(record.spec.owner, Amount(requests=1, prompt_bytes=record.amount.prompt_bytes))
        self._store.revive(record)
        self._ends.revived(record)
        record.revive()
        self._watch_deadline(record)
        if extra:
            self._router.extend(record, extra)
        else:
            self._router.enqueue(record)

    def _watch_deadline(self, record: RequestRecord) -> None:
        if record.deadline_at is not None:
            self._deadlines.add(record, record.deadline_at)
            self._sooner.set()

    def _ended(self, record: RequestRecord) -> None:
        """Hears of every end."""
        assert record.ending is not None
        now = self._clock()
        self._deadlines.discard(record)
        self._store.retire(record)
        self._entrance.ended()
        self._ends.ended(record, now)
        log_ended(record, epoch=self._router.groups.epoch, now=now)
        self._tell_if_idle()
        self._sooner.set()

    def _tell_if_idle(self) -> None:
        if not self._store.unfinished:
            self._idle.set()
