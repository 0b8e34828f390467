"""Calls between coordinator and workers: made with a proof of the join token and over TLS, and refused without."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc

from .join_proof import PROOF_KEY, JoinTokens, ProofVerifier, Role, digest_of, message_digest
from .secret_files import WatchedFiles
from .tls import TlsFiles
from .wire import CHANNEL_OPTIONS, StatusError, abort_with, refused_handler


class Dialer:
    """How a member of the cluster reaches others: `aio` or `sync` opens a channel, `proving` is what a stub takes."""

    def __init__(self, role: Role, *, tls: TlsFiles | None = None, tokens: JoinTokens | None = None) -> None:
        """
        Args:
            tls: with a `server_ca_file`, calls are encrypted and the server is checked; its own certificate is shown.
            tokens: None: nothing is proven.
        """
        self._role = role
        self._tls = tls or TlsFiles()
        self._tokens = tokens
        self._files = WatchedFiles(self._tls.paths)
        self._generation = 0

    def generation(self) -> int:
        """Grows when the files have changed: a channel of an older one shows an old certificate when it reconnects."""
        if self._files.changed():
            self._generation += 1
        return self._generation

    @property
    def encrypts(self) -> bool:
        """It can check the certificate of a server."""
        return self._tls.server_ca_file is not None

    def aio(self, address: str, *, tls: bool) -> grpc.aio.Channel:
        """A channel of the running event loop. Raises TlsError, SecretFileError if the files can't be used now."""
        if tls:
            return grpc.aio.secure_channel(address, self._tls.channel_credentials(), options=CHANNEL_OPTIONS)
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)

    def sync(self, address: str, *, tls: bool) -> grpc.Channel:
        """The same for threads."""
        if tls:
            return grpc.secure_channel(address, self._tls.channel_credentials(), options=CHANNEL_OPTIONS)
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)

    def proving(self, channel: Any) -> Any:
        """For the constructor of a stub: every call of the stub carries a proof of its own."""
        if self._tokens is None:
            return channel
        return _ProvingChannel(channel, self._role, self._tokens)


class _ProvingChannel:
    """What stubs need of a channel. Not an interceptor: grpc.aio wraps the calls of those, streams of steps too."""

    def __init__(self, channel: Any, role: Role, tokens: JoinTokens) -> None:
        self._channel = channel
        self._role = role
        self._tokens = tokens

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **options: Any
    ) -> Any:
        # The bytes that are proven are those that are sent.
        call = self._channel.unary_unary(method, None, response_deserializer, **options)
        return _ProvedUnary(call, request_serializer or bytes, lambda sent: self._proof(method, sent))

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        call = self._channel.stream_stream(method, *arguments, **options)

        def proved(*requests: Any, **call_options: Any) -> Any:
            return call(*requests, metadata=self._proof(method, None), **call_options)

        return proved

    def _proof(self, method: str, sent: bytes | None) -> tuple[tuple[str, str], ...]:
        return ((PROOF_KEY, self._tokens.prove(self._role, method, sent)),)


class _ProvedUnary:
    """One method of a stub."""

    def __init__(
        self,
        call: Any,
        serialize: Callable[[Any], bytes],
        proof: Callable[[bytes], tuple[tuple[str, str], ...]],
    ) -> None:
        self._call = call
        self._serialize = serialize
        self._proof = proof

    def __call__(self, request: Any, **options: Any) -> Any:
        data = self._serialize(request)
        return self._call(data, metadata=self._proof(data), **options)

    def future(self, request: Any, **options: Any) -> Any:
        data = self._serialize(request)
        return self._call.future(data, metadata=self._proof(data), **options)


class JoinGuard(grpc.aio.ServerInterceptor):
    """Lets only members of the cluster call a server, whatever the method."""

    def __init__(self, verifier: ProofVerifier) -> None:
        self._verifier = verifier

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        refusal = join_refusal(self._verifier, handler_call_details)
        if refusal is not None:
            return refused_handler(refusal)
        return bound_to_message(await continuation(handler_call_details), handler_call_details)


def join_refusal(verifier: ProofVerifier, call: grpc.HandlerCallDetails) -> StatusError | None:
    """UNAUTHENTICATED for a call without a good proof."""
    reason = verifier.refusal(call.method, metadata_value(call, PROOF_KEY))
    return StatusError(grpc.StatusCode.UNAUTHENTICATED, reason) if reason else None


def bound_to_message(handler: Any, call: grpc.HandlerCallDetails) -> Any:
    """The handler of a call with a good proof, which refuses another message than the one that was proven.

    The messages of a stream are not covered: only whether it may be opened is.
    """
    if handler is None or handler.unary_unary is None:
        return handler
    expected = message_digest(metadata_value(call, PROOF_KEY))
    deserialize = handler.request_deserializer or bytes

    async def answer(request: Any, context: Any) -> Any:
        if isinstance(request, _ChangedMessage):
            reason = f"the message to {call.method} is not the one that its proof of the join token is for"
            await abort_with(context, StatusError(grpc.StatusCode.UNAUTHENTICATED, reason))
        return await handler.unary_unary(request, context)

    def check(data: bytes) -> Any:
        return deserialize(data) if digest_of(data) == expected else _ChangedMessage()

    return grpc.unary_unary_rpc_method_handler(answer, check, handler.response_serializer)


class _ChangedMessage:
    """In the place of a request that somebody changed on its way."""


def metadata_value(call: grpc.HandlerCallDetails, key: str) -> str | None:
    """The value of a key of the call's metadata; None if it is absent, given twice, or no text."""
    values = [value for name, value in cast("Any", call.invocation_metadata or ()) if name == key]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None
