"""The two ways into a cluster, as one who measures sees them."""

from __future__ import annotations

import calendar
import contextlib
import json
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ryzanstein.program import EXIT_FAILED
from ryzanstein_client.aio import AsyncClient
from ryzanstein_client.errors import Disconnected, NotFound, QueueFull, RyzansteinError
from ryzanstein_client.types import SamplingParams

from .workload import Ask

if TYPE_CHECKING:
    import httpx

#: Told how many tokens have just arrived.
Arrived = Callable[[int], None]

#: Its ids are what random prompts are made of: ordinary tokens of any vocabulary.
SAMPLE = (
    "The quick brown fox jumps over the lazy dog. In 1984, 37 engineers (most of them young) wrote: "
    "'What we measure is what we get!' Zebras, quartz, and 260 boxes; how vexing? Yes & no: 5 + 8 = 13."
)

#: Of a refusal that does not say when to come back.
_RETRY_AFTER_S = 0.1


class RefusedError(Exception):
    """The server has no place for the request now."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("refused: the queue is full")
        self.retry_after_s = retry_after_s


class AnswerError(Exception):
    """The request failed; the message begins with the kind of failure."""

    exit_code = EXIT_FAILED


class Front(Protocol):
    """One way in."""

    async def check(self) -> None:
        """Raises RyzansteinError where nobody answers, or somebody else."""
        ...

    async def vocabulary(self) -> list[int]:
        """Token ids that random prompts may be made of. Raises RyzansteinError."""
        ...

    async def run(self, ask: Ask, arrived: Arrived) -> int:
        """Sends a request and waits for its end; → tokens of the prompt.

        Raises:
            RefusedError, AnswerError
        """
        ...

    async def aclose(self) -> None:
        """Ends the connections."""
        ...


class GrpcFront:
    """As the client library does it."""

    def __init__(
        self, client: AsyncClient, *, model: str | None, sampling: SamplingParams, timeout_s: float
    ) -> None:
        self._client = client
        self._model = model
        self._sampling = sampling
        self._timeout_s = timeout_s

    async def check(self) -> None:
        self._model = _chosen(self._model, [model.name for model in await self._client.models()])

    async def vocabulary(self) -> list[int]:
        return sorted(set(await self._client.tokenize(SAMPLE, model=self._model, add_special_tokens=False)))

    async def run(self, ask: Ask, arrived: Arrived) -> int:
        options: Any = {
            "sampling": self._sampling,
            "max_tokens": ask.max_tokens,
            "timeout": self._timeout_s,
            "model": self._model,
        }
        try:
            if ask.messages:
                stream = await self._client.chat(ask.messages, stream=True, **options)
            else:
                stream = self._client.stream(ask.prompt, **options)
            async for chunk in stream:
                if chunk.token_ids:
                    arrived(len(chunk.token_ids))
        except QueueFull as error:
            raise RefusedError(error.retry_after_s) from None
        except RyzansteinError as error:
            raise AnswerError(f"{error.code}: {error.message}") from None
        return 0 if stream.usage is None else stream.usage.prompt_tokens

    async def aclose(self) -> None:
        await self._client.aclose()


class HttpFront:
    """As OpenAI's clients do it; any server with that interface will do, if it offers `/tokenize` or has prompts of its
    own. Without ids of events (ours count the tokens) every event with text counts as one token."""

    def __init__(
        self,
        url: str,
        *,
        headers: dict[str, str],
        ca_file: Path | None,
        model: str | None,
        temperature: float,
        ignore_eos: bool,
        timeout_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`transport`: in place of the network."""
        import httpx

        context: ssl.SSLContext | bool = True
        if ca_file is not None:
            context = ssl.create_default_context(cafile=str(ca_file))
        self._url = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.AsyncClient(
            base_url=self._url,
            headers=headers,
            verify=context,
            timeout=httpx.Timeout(timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            transport=transport,
            trust_env=False,  # a proxy between would be measured too
        )
        self._model = model
        self._settings = {"temperature": temperature, "ignore_eos": ignore_eos}

    async def check(self) -> None:
        names = [str(model["id"]) for model in (await self._call("GET", "/v1/models"))["data"]]
        self._model = _chosen(self._model, names)

    async def vocabulary(self) -> list[int]:
        reply = await self._call(
            "POST", "/tokenize", {"model": self._model, "prompt": SAMPLE, "add_special_tokens": False}
        )
        return sorted(set(reply["tokens"]))

    async def run(self, ask: Ask, arrived: Arrived) -> int:
        import httpx

        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": ask.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._settings,
        }
        if ask.messages:
            path, body["messages"] = "/v1/chat/completions", ask.messages
        else:
            path, body["prompt"] = "/v1/completions", ask.prompt
        try:
            async with self._client.stream("POST", path, json=body) as reply:
                if reply.status_code == 429:
                    raise RefusedError(_retry_after_s(reply.headers.get("retry-after", ""), time.time()))
                if reply.status_code != 200:
                    await reply.aread()
                    raise AnswerError(f"HTTP {reply.status_code}: {reply.text[:200]}")
                return await _read_events(reply, arrived)
        except httpx.HTTPError as error:
            raise AnswerError(f"{type(error).__name__}: {error}") from None

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        import httpx

        try:
            reply = await self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise Disconnected(f"can't reach {self._url}: {error}", attempts=1) from None
        if reply.status_code != 200:
            raise RyzansteinError(
                f"{self._url}{path} answers {reply.status_code}: {reply.text[:200]}",
                hint="give prompts with --prompts"
                if path == "/tokenize"
                else "is it a server of OpenAI's API?",
            )
        return reply.json()


def _chosen(name: str | None, offered: list[str]) -> str:
    """The only one if none was named. Raises NotFound."""
    if name is None and offered:
        return offered[0]
    if name is None or name not in offered:
        raise NotFound(f"there is no model {name!r}", hint=f"the server has {', '.join(offered) or 'none'}")
    return name


def _retry_after_s(header: str, now_s: float) -> float:
    """Seconds, or a date (RFC 9110, 10.2.3). `now_s`: Unix time."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, calendar.timegm(parsedate_to_datetime(header).utctimetuple()) - now_s)
    return _RETRY_AFTER_S


async def _read_events(reply: httpx.Response, arrived: Arrived) -> int:
    prompt_tokens, known, position = 0, 0, None
    async for line in reply.aiter_lines():
        if line.startswith("id: "):
            first = line[4:].partition(",")[0]
            position = int(first) if first.isdigit() else None
        elif line.startswith("data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise AnswerError(f"in the stream: {event['error'].get('message')}")
            if event.get("usage"):
                prompt_tokens = int(event["usage"]["prompt_tokens"])
            count = _text_came(event) if position is None else position - known
            if count > 0:
                known += count
                arrived(count)
    return prompt_tokens


def _text_came(event: dict[str, Any]) -> int:
    """1 if the event holds some of the answer."""
    choice = (event.get("choices") or [{}])[0]
    return int(bool(choice.get("text") or choice.get("delta", {}).get("content")))
