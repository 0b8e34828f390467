"""What the interceptor makes of bytes that are no message, for every method of every service of the project."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from ryzanstein.v1 import cluster_pb2, inference_pb2, operations_pb2, shard_worker_pb2
from ryzanstein.wire import CHANNEL_OPTIONS, SERVER_OPTIONS, StatusError, StatusInterceptor

SERVICES: list[ServiceDescriptor] = [
    service
    for file in (inference_pb2, operations_pb2, cluster_pb2, shard_worker_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
NO_MESSAGE = b"\xff\xff\xff\xff"


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def handler_of(method: MethodDescriptor) -> Any:
    """As generated code makes it: reads what comes, answers each message with an empty one."""
    response: Callable[[], Any] = GetMessageClass(method.output_type)

    async def stream_stream(requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield response()

    async def unary_stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        yield response()

    async def unary_unary(_request: Any, _context: Any) -> Any:
        return response()

    read: Any = GetMessageClass(method.input_type).FromString
    write: Any = GetMessageClass(method.output_type).SerializeToString
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(stream_stream, read, write)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(unary_stream, read, write)
    return grpc.unary_unary_rpc_method_handler(unary_unary, read, write)


@asynccontextmanager
async def all_services(defects: list[BaseException]) -> AsyncIterator[Any]:
    interceptor = StatusInterceptor(lambda _method, error: defects.append(error))
    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[interceptor])
    for service in SERVICES:
        handlers = {method.name: handler_of(method) for method in service.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        yield channel
    await server.stop(None)


async def send(channel: Any, method: MethodDescriptor, data: bytes) -> bytes:
    """One message to a method of whichever kind; the first answer."""
    path = path_of(method)
    if method.client_streaming:
        call = channel.stream_stream(path)(timeout=20)
        await call.write(data)
        await call.done_writing()
        return bytes(await call.read())
    if method.server_streaming:
        return bytes(await channel.unary_stream(path)(data, timeout=20).read())
    return bytes(await channel.unary_unary(path)(data, timeout=20))


async def test_bytes_that_are_no_message_are_the_callers_mistake(caplog: pytest.LogCaptureFixture) -> None:
    defects: list[BaseException] = []
    async with all_services(defects) as channel:
        for method in METHODS:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await send(channel, method, NO_MESSAGE)

            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, path_of(method)
            details = caught.value.details() or ""
            assert path_of(method) in details
            assert method.input_type.full_name in details
            assert "\n" not in details

    assert len(METHODS) > 20
    assert defects == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_every_method_still_takes_its_own_message() -> None:
    async with all_services([]) as channel:
        for method in METHODS:
            assert await send(channel, method, b"") == b""


async def test_a_stream_is_refused_at_the_message_that_is_none() -> None:
    method = next(method for method in METHODS if method.client_streaming)
    async with all_services([]) as channel:
        call = channel.stream_stream(path_of(method))(timeout=20)
        await call.write(b"")
        assert await call.read() == b""
        await call.write(NO_MESSAGE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_text_that_is_not_utf_8_is_the_callers_mistake() -> None:
    method = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name["Cancel"]
    async with all_services([]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await send(channel, method, b"\x0a\x02\xff\xfe")  # request_id
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_nothing_compressed_is_taken() -> None:
    """A kilobyte could become a megabyte before its size is looked at."""
    async with all_services([]) as channel:
        for way in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path_of(METHODS[2]))(b"", timeout=20, compression=way)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "disabled" in (caught.value.details() or "")


async def test_a_defect_is_told_and_its_text_is_not() -> None:
    defects: list[tuple[str, BaseException]] = []
    failure = KeyError("a secret")

    async def fail(_request: Any, _context: Any) -> None:
        raise failure

    async def refuse(_request: Any, _context: Any) -> None:
        raise StatusError(grpc.StatusCode.NOT_FOUND, "there is none")

    server = grpc.aio.server(interceptors=[StatusInterceptor(lambda *told: defects.append(told))])
    handlers: dict[str, Any] = {
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel: Any
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.Service/Fail")(b"x", timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/a.Service/Refuse")(b"x", timeout=20)
    await server.stop(None)

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "KeyError" in str(caught.value.details())
    assert "secret" not in str(caught.value.details())
    assert defects == [("/a.Service/Fail", failure)]
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, "there is none")
