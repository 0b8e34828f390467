# Generated from aio.py by client/generate_sync.py: edit that file, not this one.
"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload
from weakref import WeakSet

from ryzanstein.v1 import inference_pb2, operations_pb2
from ryzanstein.wire import to_plain

from .messages import chat_prompt, chat_request, model_from, text_request
from .retry import ResumePolicy, UnaryRetry
from .status import CallFailed
from .sync_connection import Connection
from .sync_stream import CompletionStream
from .target import DEFAULT_ADDRESS, Target
from .types import Completion, Messages, Model, Prompt, RequestOptions


class Client:
    """Speaks to one coordinator.

        with Client("127.0.0.1:50051") as client:
            for chunk in client.stream("The sky is", max_tokens=64, seed=7):
                print(chunk.text, end="")

    Args:
        address: HOST:PORT of the coordinator's gRPC server.
        api_key: sent with every call, if the server wants one. Default: the first one in `api_key_file`, else the
            environment variable RYZANSTEIN_API_KEY.
        tls: encrypts and checks the server's certificate against the system's authorities; `tls_ca_file` (PEM)
            against others.
        tls_cert_file, tls_key_file: what this client shows to a server that asks for a certificate (PEM).
        connect_timeout_s: how long a coordinator that never answered is called again, or one that takes no request
            because it stops or no group serves.
        resume_timeout_s: how long a stream waits for a lost coordinator before it gives up.
        call_timeout_s: for each call that is not a stream.

    Every method raises a `RyzansteinError`: `InvalidRequest` for what the server refuses, `Disconnected` when
    the coordinator can't be reached, and so on (see `ryzanstein_client.errors`).
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        api_key_file: str | Path | None = None,
        tls: bool = False,
        tls_ca_file: str | Path | None = None,
        tls_cert_file: str | Path | None = None,
        tls_key_file: str | Path | None = None,
        connect_timeout_s: float = 5.0,
        resume_timeout_s: float = 60.0,
        call_timeout_s: float = 30.0,
    ) -> None:
        self._policy = ResumePolicy(connect_timeout_s=connect_timeout_s, resume_timeout_s=resume_timeout_s)
        self._call_timeout_s = call_timeout_s
        self._connection = Connection(
            Target(
                address=address,
                api_key=api_key,
                api_key_file=api_key_file,
                tls=tls,
                tls_ca_file=tls_ca_file,
                tls_cert_file=tls_cert_file,
                tls_key_file=tls_key_file,
            )
        )
        self._streams: WeakSet[CompletionStream] = WeakSet()

    def stream(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> CompletionStream:
        """Goes on with a prompt (text or token ids), chunk by chunk. Leaving the loop early cancels it."""
        return self._stream(text_request(prompt, options))

    def generate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> Completion:
        """Goes on with a prompt (text or token ids) and returns the whole answer."""
        return self.stream(prompt, **options).collect()

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        stream: Literal[False] = False,
        **options: Unpack[RequestOptions],
    ) -> Completion: ...
    @overload
    def chat(
        self, messages: Messages, *, stream: Literal[True], **options: Unpack[RequestOptions]
    ) -> CompletionStream: ...
    def chat(
        self, messages: Messages, *, stream: bool = False, **options: Unpack[RequestOptions]
    ) -> Completion | CompletionStream:
        """Answers a conversation: a list of {"role": …, "content": …}. With `stream`, chunk by chunk."""
        answer = self._stream(chat_request(messages, options))
        return answer if stream else answer.collect()

    def cancel(self, request_id: str) -> bool:
        """Ends a request. False if it had ended already; NotFound if there is none with this id."""
        request = inference_pb2.CancelRequest(request_id=request_id)
        response = self._call(lambda: self._connection.inference().Cancel, request)
        return bool(response.cancelled)

    def models(self) -> list[Model]:
        """What the server offers."""
        request = inference_pb2.ListModelsRequest()
        response = self._call(lambda: self._connection.inference().ListModels, request)
        return [model_from(model) for model in response.models]

    def tokenize(
        self,
        prompt: str | Messages,
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
    ) -> list[int]:
        """Token ids of a text, or of a conversation as the model's template writes it."""
        request = inference_pb2.TokenizeRequest(model=model or "", add_special_tokens=add_special_tokens)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.chat.CopyFrom(chat_prompt(prompt))
        response = self._call(lambda: self._connection.inference().Tokenize, request)
        return list(response.token_ids)

    def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        """The text of token ids."""
        request = inference_pb2.DetokenizeRequest(model=model or "", token_ids=token_ids)
        response = self._call(lambda: self._connection.inference().Detokenize, request)
        return str(response.text)

    def cluster(self) -> dict[str, Any]:
        """The cluster as it is now: the same keys and values as the JSON of `/cluster`."""
        request = operations_pb2.GetClusterRequest()
        response = self._call(lambda: self._connection.operations().GetCluster, request)
        return to_plain(response.cluster)

    def watch(self) -> Iterator[dict[str, Any]]:
        """The cluster now and after every change, without end; goes on after a lost connection."""
        retry = UnaryRetry(self._policy, self._connection.target.address)
        while True:
            try:
                for snapshot in self._connection.snapshots():
                    retry.on_success()
                    yield to_plain(snapshot)
                raise CallFailed.unusable("it ended")
            except CallFailed as failure:
                self._connection.wait(retry.on_failure(failure, time.monotonic()))

    def drain(self, worker_id: str) -> int:
        """Takes a worker out of service without losing a stream. Returns the group's epoch."""
        request = operations_pb2.DrainWorkerRequest(worker_id=worker_id)
        response = self._call(lambda: self._connection.operations().DrainWorker, request)
        return int(response.epoch)

    def close(self) -> None:
        """Closes the connection. Streams that are still open are cancelled."""
        with suppress(KeyError):  # the set is empty
            while True:
                self._streams.pop().abandon()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, request: inference_pb2.GenerateRequest) -> CompletionStream:
        stream = CompletionStream(self._connection, request, self._policy)
        self._streams.add(stream)
        return stream

    def _call(self, method: Callable[[], Callable[..., Any]], request: object) -> Any:
        """One call, repeated while the coordinator can't be reached: all of these calls may be."""
        retry = UnaryRetry(self._policy, self._connection.target.address)
        while True:
            try:
                return self._connection.unary(method(), request, self._call_timeout_s)
            except CallFailed as failure:
                self._connection.wait(retry.on_failure(failure, time.monotonic()))
