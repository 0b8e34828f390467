"""Lets requests in or sends them away, at once: what `admission` decides, asked of everything that it depends on."""

from __future__ import annotations

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import StatusError, resource_exhausted, unavailable

from .admission import AdmissionLimits, Amount, Load, Refusal, RetryTimes, admit, can_be_met
from .errors import deadline_exceeded
from .intake import GenerateCall
from .prompts import TokenPrompt
from .request_store import RequestStore, Reservation
from .requests import Clock, RequestKey, RequestRecord
from .router import Router
from .sampling_params import least_tokens


class Entrance:
    """One for each front door."""

    def __init__(self, router: Router, store: RequestStore, limits: AdmissionLimits, clock: Clock) -> None:
        self._router = router
        self._store = store
        self._limits = limits
        self._clock = clock
        self._retry_times = RetryTimes()
        self._closed: str | None = None

    def close(self, reason: str) -> None:
        """From now on nothing new comes in."""
        self._closed = reason

    def ended(self) -> None:
        """A request ended: there is room for another."""
        self._retry_times.ended(self._clock())

    def reserve(self, key: RequestKey, call: GenerateCall, timeout_s: float | None) -> Reservation:
        """Takes the id and a place for a request that is about to be read.

        Raises ALREADY_EXISTS; UNAVAILABLE; RESOURCE_EXHAUSTED with a retry delay if too much waits, or if what waits
        before it takes longer than it has; DEADLINE_EXCEEDED if it takes longer by itself.
        """
        self._store.check_free(key)
        prompt, sampling = call.prompt, call.sampling
        tokens = len(prompt.token_ids) if isinstance(prompt, TokenPrompt) else 0  # a text's are not known yet
        amount = Amount(1, prompt.size_bytes, tokens + self._expected_tokens(sampling))
        self.check(call.owner, amount)
        if timeout_s is not None:
            refusal = can_be_met(
                timeout_s, least_tokens(sampling), self._router.forecast(call.owner, call.priority)
            )
            if refusal is not None:
                raise self._status_of(refusal)
        return self._store.reserve(key, amount)

    def was_read(self, reservation: Reservation, record: RequestRecord, asked: SamplingParams) -> None:
        """Now its tokens are known. Raises RESOURCE_EXHAUSTED with a retry delay if they are too many."""
        spec = record.spec
        record.expected_tokens = min(spec.sampling.max_tokens, self._expected_tokens(asked))
        more = record.amount.tokens - reservation.amount.tokens
        if more > 0:
            self._admit(spec.owner, Amount(tokens=more))
        self._store.resize(reservation, record.amount)

    def check(self, owner: str, new: Amount) -> None:
        """Raises UNAVAILABLE, or RESOURCE_EXHAUSTED with a retry delay, if so much more may not come in now."""
        hopeless = self._closed or self._router.groups.refusal(self._clock())
        if hopeless is not None:
            raise unavailable(hopeless)
        self._admit(owner, new)

    def _admit(self, owner: str, new: Amount) -> None:
        groups = self._router.groups
        load = Load(
            total=self._store.total,
            own=self._store.of_owner(owner),
            owners=self._store.owners_with(owner),
            capacity=groups.capacity,
            capacity_tokens=groups.capacity_tokens,
        )
        refusal = admit(load, self._limits, new)
        if refusal is not None:
            raise self._status_of(refusal)

    def _expected_tokens(self, sampling: SamplingParams) -> int:
        """Of the output. A request that names no bound is taken for an average one; for none while that is unknown."""
        if sampling.HasField("max_tokens"):
            return sampling.max_tokens
        return round(self._router.groups.rates.output_tokens or 0.0)

    def _status_of(self, refusal: Refusal) -> StatusError:
        if refusal.hopeless:
            return deadline_exceeded(refusal.reason)
        now, groups = self._clock(), self._router.groups
        request_s = groups.rates.request_s(now)
        endings_per_s = groups.capacity / request_s if request_s else None
        retry_after_s = max(refusal.not_within_s, self._retry_times.refused(now, endings_per_s))
        return resource_exhausted(refusal.reason, retry_after_s=retry_after_s)
