"""One call that is wrong in some way: what is sent, how much of it, when it is left, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc

from ryzanstein.join_proof import PROOF_KEY, JoinTokens, Role
from ryzanstein.wire import CHANNEL_OPTIONS

from .messages import mutated, spoiled
from .targets import Target

#: What only a defect of the server answers.
DEFECTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})

#: Longest that one call is listened to; what goes on is left then, as a client does that went away.
_PATIENCE_S = 2.0


class Leaving(Enum):
    """When the caller goes away."""

    AT_THE_END = "at the end"
    AT_ONCE = "at once"
    AFTER_A_MOMENT = "after a moment"
    AFTER_THE_FIRST = "after the first message"
    AFTER_SOME = "after some messages"
    WITHOUT_TIME = "by a deadline that is over"


@dataclass(frozen=True, slots=True)
class Case:
    """A call, made before it is sent so that a failure can say what it was."""

    target: Target
    payloads: tuple[bytes, ...]
    leaving: Leaving
    metadata: tuple[tuple[str, str | bytes], ...]
    compression: grpc.Compression

    def __str__(self) -> str:
        sent = [data[:200].hex() + ("…" if len(data) > 200 else "") for data in self.payloads]
        return (
            f"{self.target.path} proven={self.target.proven} left {self.leaving.value}, "
            f"{len(self.metadata)} metadata, {self.compression.name}: {sent}"
        )


def make_case(target: Target, rng: random.Random) -> Case:
    """Any of the ways."""
    payloads = []
    for seed in target.seeds(rng):
        way = rng.random()
        message = seed if way < 0.15 else mutated(seed, rng, pinned=target.pinned)
        data = message.SerializeToString()
        payloads.append(spoiled(data, rng) if way > 0.7 and target.bytes_too else data)
    if target.method.client_streaming:
        payloads = payloads[: rng.randrange(len(payloads) + 1)]
    leaving = rng.choice(list(Leaving)) if rng.random() < 0.5 else Leaving.AT_THE_END
    compression = (
        rng.choice(list(grpc.Compression)) if rng.random() < 0.05 else grpc.Compression.NoCompression
    )
    return Case(target, tuple(payloads), leaving, _metadata(rng), compression)


def _metadata(rng: random.Random) -> tuple[tuple[str, str | bytes], ...]:
    kind = rng.random()
    if kind < 0.7:
        return ()
    if kind < 0.8:  # up to more than the server takes
        size = rng.choice((1, 30, 300, 900))
        return tuple((f"key-{number}", "v" * rng.choice((0, 10, 40))) for number in range(size))
    if kind < 0.9:
        return (("x-bin", rng.randbytes(rng.choice((0, 5, 20_000)))), ("x", "v"), ("x", "v"))
    return (
        ("authorization", rng.choice(("", "Bearer", "Bearer x", "Basic eDp5", "Bearer " + "k" * 5000))),
        (PROOF_KEY, rng.choice(("", "v1", "v1.1.2.3.4", "v1.0." + "0" * 32 + ".-." + "0" * 64))),
    )


class Caller:
    """Calls one server, with a proof where a case has one. `tokens` None: as a stranger only."""

    def __init__(self, address: str, tokens: JoinTokens | None, role: Role) -> None:
        options = [*CHANNEL_OPTIONS, ("grpc.max_send_message_length", -1)]
        self._channel: Any = grpc.aio.insecure_channel(address, options=options)
        self._threaded: Any = grpc.insecure_channel(address, options=options)
        self._tokens = tokens
        self._role = role

    async def close(self) -> None:
        await self._channel.close()
        self._threaded.close()

    async def make(self, case: Case) -> tuple[grpc.StatusCode, str]:
        """How it ended. CANCELLED also if the caller left."""
        if case.target.method.client_streaming:
            # grpc.aio says INTERNAL by itself if it writes to a call that the server has ended meanwhile.
            return await asyncio.to_thread(self._make_stream, case)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._make(case)
        except TimeoutError:
            return grpc.StatusCode.CANCELLED, "left after its patience"

    async def _make(self, case: Case) -> tuple[grpc.StatusCode, str]:
        call = self._begin(case)
        try:
            if case.leaving is Leaving.AT_ONCE:
                call.cancel()
            elif case.leaving is Leaving.AFTER_A_MOMENT:
                await asyncio.sleep(0.002)
                call.cancel()
            elif case.target.method.server_streaming:
                await _read(call, {Leaving.AFTER_THE_FIRST: 1, Leaving.AFTER_SOME: 4}.get(case.leaving))
            return await call.code(), await call.details() or ""
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        except grpc.aio.UsageError:  # left, and written to
            return grpc.StatusCode.CANCELLED, ""
        finally:
            call.cancel()

    def _make_stream(self, case: Case) -> tuple[grpc.StatusCode, str]:
        """A stream of requests, in a thread."""
        options = self._options(case)
        options["timeout"] = options["timeout"] or _PATIENCE_S
        call: Any = self._threaded.stream_stream(case.target.path)(iter(case.payloads), **options)
        most = {Leaving.AT_ONCE: 0, Leaving.AFTER_THE_FIRST: 1, Leaving.AFTER_SOME: 4}.get(
            case.leaving, 2**31
        )
        try:
            while most > 0 and next(call, None) is not None:
                most -= 1
            if not most:
                call.cancel()
            return call.code(), call.details() or ""
        except grpc.RpcError as error:
            failed: Any = error
            return failed.code(), failed.details() or ""
        finally:
            call.cancel()

    def _options(self, case: Case) -> dict[str, Any]:
        return {
            "metadata": case.metadata + self._proof(case),
            "timeout": 0.0005 if case.leaving is Leaving.WITHOUT_TIME else None,
            "compression": case.compression,
        }

    def _begin(self, case: Case) -> Any:
        target, path, options = case.target, case.target.path, self._options(case)
        if target.method.server_streaming:
            return self._channel.unary_stream(path)(case.payloads[0], **options)
        return self._channel.unary_unary(path)(case.payloads[0], **options)

    def _proof(self, case: Case) -> tuple[tuple[str, str], ...]:
        if self._tokens is None or not case.target.proven:
            return ()
        covered = None if case.target.method.client_streaming else case.payloads[0]
        return ((PROOF_KEY, self._tokens.prove(self._role, case.target.path, covered)),)


async def _read(call: Any, most: int | None) -> None:
    """So many messages, or all; then the caller leaves."""
    read = 0
    with contextlib.suppress(asyncio.CancelledError):
        while read != most:
            if await call.read() is grpc.aio.EOF:
                return
            read += 1
        call.cancel()
