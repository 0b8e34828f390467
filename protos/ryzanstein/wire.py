"""gRPC as this project uses it: channel options, one exception for every status, messages as plain values."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

#: Largest message either side accepts. A 128k-token prompt of ids is under 1 MB; a prompt of 10 MB is refused.
MAX_MESSAGE_BYTES = 8 * 1024 * 1024

#: Trailing metadata of RESOURCE_EXHAUSTED and UNAVAILABLE: when to try again, in whole milliseconds.
RETRY_AFTER_KEY = "retry-after-ms"

#: Initial metadata of Execute: the epoch whose leader has taken the stream. Sent at once.
EPOCH_KEY = "ryzanstein-epoch"

#: The leader sends a message without `stats` on its Execute stream so often, in seconds, whatever it computes.
EXECUTE_BEAT_S = 0.25

_COMMON_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

#: Calls that one connection may have open. A client with more of them waits for its own, or is refused.
MAX_STREAMS_PER_CONNECTION = 1024

#: Of all headers of a call together. A request id, a key and a proof have less than 1 KiB.
MAX_METADATA_BYTES = 16 * 1024

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_COMMON_OPTIONS,
    # Without it a second server on the same port starts without an error and takes half of the calls.
    ("grpc.so_reuseport", 0),
    # A client that pings more often is cut off after two more.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # Nothing compressed (the bit of "identity" alone; anything else is UNIMPLEMENTED): gRPC inflates a message before
    # it looks at its size, a thousand times what came, and calls one that can't be inflated INTERNAL.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # From the connection to the end of the TLS handshake and HTTP/2's settings; gRPC's default is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
]

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *_COMMON_OPTIONS,
    # A restarted peer is found again within a fraction of a second, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    # No pause, whatever its name says: so long an attempt to connect may take, with the handshake of TLS. Where packets
    # are lost, gRPC's default is 20 s; on a busy machine a tenth of a second, its least, is too short.
    ("grpc.min_reconnect_backoff_ms", 500),
    # A proxy from the environment must not stand between the processes of one cluster.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class StatusError(Exception):
    """A failure that a caller is told: a gRPC status and a message that says what, where and what to do.

    Raise it anywhere below a servicer; `StatusInterceptor` turns it into the status.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


def invalid_argument(message: str) -> StatusError:
    """The request itself is wrong; sending it again can't help."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> StatusError:
    """There is no such model, request or worker."""
    return StatusError(grpc.StatusCode.NOT_FOUND, message)


def stale_epoch(got: int, current: int) -> StatusError:
    """The caller belongs to an epoch that is over."""
    return StatusError(
        grpc.StatusCode.FAILED_PRECONDITION, f"epoch {got} is over; the current epoch is {current}"
    )


def unavailable(message: str, *, retry_after_s: float = 1.0) -> StatusError:
    """Nothing can be generated now; trying again later may help."""
    return StatusError(grpc.StatusCode.UNAVAILABLE, message, retry_after_s=retry_after_s)


def resource_exhausted(message: str, *, retry_after_s: float) -> StatusError:
    """The queue is full."""
    return StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, retry_after_s=retry_after_s)


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: StatusError) -> None:
    """Ends a call with the error's status; never returns normally."""
    trailing: tuple[tuple[str, str], ...] = ()
    if error.retry_after_s is not None:
        trailing = ((RETRY_AFTER_KEY, str(math.ceil(error.retry_after_s * 1000))),)
    await context.abort(error.code, error.message, trailing)


def refused_handler(error: StatusError) -> Any:
    """What an interceptor returns in place of a method's handler to end the call before any message of it is read."""

    async def refuse(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await abort_with(context, error)

    # The kind whose handler is called at once: the others wait for a message first.
    return grpc.stream_stream_rpc_method_handler(refuse)


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """The one place where an exception becomes a status.

    `on_internal(method, error)` is told of every exception that is not a `StatusError`: that is a defect of ours,
    and the caller gets INTERNAL with its type but without its text. Bytes that are no message are the caller's
    mistake: INVALID_ARGUMENT, and nothing is logged.
    """

    def __init__(self, on_internal: Callable[[str, BaseException], None]) -> None:
        self._on_internal = on_internal

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # unknown method: gRPC answers UNIMPLEMENTED by itself
            return handler
        method = handler_call_details.method
        deserializer = _tolerant_deserializer(method, handler)
        if handler.response_streaming:
            inner = handler.stream_stream or handler.unary_stream

            async def stream(request: Any, context: Any) -> Any:
                try:
                    if isinstance(request, _Unreadable):
                        raise invalid_argument(request.reason)
                    async for response in inner(request, context):
                        yield response
                except Exception as error:  # noqa: BLE001 - this is where every exception ends
                    await self._fail(method, context, error)

            wrap = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return wrap(stream, deserializer, handler.response_serializer)
        inner = handler.stream_unary or handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            try:
                if isinstance(request, _Unreadable):
                    raise invalid_argument(request.reason)
                return await inner(request, context)
            except Exception as error:  # noqa: BLE001 - this is where every exception ends
                await self._fail(method, context, error)

        wrap = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return wrap(unary, deserializer, handler.response_serializer)

    async def _fail(self, method: str, context: Any, error: Exception) -> None:
        if isinstance(
            error, grpc.aio.AbortError
        ):  # raised by context.abort itself: the status is set already
            raise error
        if isinstance(error, StatusError):
            await abort_with(context, error)
        self._on_internal(method, error)
        await context.abort(grpc.StatusCode.INTERNAL, f"internal error ({type(error).__name__}) in {method}")


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """In the place of a request whose bytes are no message."""

    reason: str


def _tolerant_deserializer(method: str, handler: Any) -> Callable[[bytes], Any] | None:
    """The handler's own deserializer, but bytes that are no message become INVALID_ARGUMENT.

    gRPC reads a stream's messages when the handler asks for them: the error is raised there. A single request is
    read before anything of ours is called, where an exception would be logged as a defect: `_Unreadable` is returned
    in its place.
    """
    deserialize = handler.request_deserializer
    if deserialize is None:
        return None

    def tolerant(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, UnicodeDecodeError) as error:
            reason = f"what came to {method} is not the message that it takes: {error}"
            if handler.request_streaming:
                raise invalid_argument(reason) from None
            return _Unreadable(reason)

    return tolerant


def to_plain(message: Message) -> dict[str, Any]:
    """The message as JSON-ready values: every field by its proto name, numbers as numbers, absent as None.

    Unlike google.protobuf.json_format it keeps 64-bit integers as numbers, so that the JSON of /cluster can be
    computed with. Enums become their name without prefix, in lower case.
    """
    return {field.name: _plain_field(message, field) for field in message.DESCRIPTOR.fields}


def _plain_field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {str(key): entry for key, entry in value.items()}
    if field.is_repeated:
        return [_plain_value(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _plain_value(field, value)


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_plain(value)
    if field.enum_type is not None:
        prefix = _enum_prefix(field.enum_type.name)
        return field.enum_type.values_by_number[value].name.removeprefix(prefix).lower()
    return value


def _enum_prefix(name: str) -> str:
    """WorkerState → WORKER_STATE_, as the lint rules of the protocol demand."""
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(name)).upper() + "_"
