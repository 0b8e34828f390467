"""One HTTP request's sequences: all of them admitted, or none; read together; left together."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ryzanstein.wire import StatusError

from ..errors import failed_precondition
from ..front_door import FrontDoor
from ..intake import GenerateCall, Intake
from ..output import TokenSpan
from ..prompts import TokenPrompt
from ..requests import Ending, Subscription
from .choices import Choice
from .resume import Resume, subscribe
from .sampling import choice_sampling

#: Makes the choice of a sequence: its number and its subscription.
MakeChoice = Callable[[int, Subscription], Choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is being generated for one POST."""

    front_door: FrontDoor
    subscriptions: Sequence[Subscription]
    make_choice: MakeChoice
    #: Sequences per prompt.
    n: int
    #: "chat.completion" or "text_completion".
    kind: str
    answer_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def seed(self) -> int:
        """With which the request can be repeated."""
        return self.subscriptions[0].record.spec.sampling.seed

    def choices(self) -> list[Choice]:
        """One for each sequence. To be asked before anything is read."""
        return [self.make_choice(index, one) for index, one in enumerate(self.subscriptions)]

    def head(self, kind: str) -> dict[str, Any]:
        """What every object of the reply begins with."""
        model = self.subscriptions[0].record.spec.model
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": model}

    def usage(self) -> dict[str, Any]:
        """A prompt counts once, however many sequences it has."""
        records = [subscription.record for subscription in self.subscriptions]
        prompt = sum(len(record.spec.prompt) for record in records[:: self.n])
        generated = sum(len(record.output) for record in records)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": sum(r.cached_tokens for r in records[:: self.n])},
        }

    def leave(self) -> None:
        """Nobody listens any more; what has not ended gives its place back."""
        for subscription in self.subscriptions:
            self.front_door.leave(subscription)


async def admit(
    front_door: FrontDoor, intake: Intake, calls: Sequence[GenerateCall], *, n: int, resume: Resume
) -> list[Subscription]:
    """`n` sequences for each call. Raises StatusError or BadRequestError, and then none is generated."""
    subscriptions: list[Subscription] = []
    seed: int | None = None
    try:
        for call in calls:
            prompt = call.prompt
            for choice in range(n):
                own = replace(call, prompt=prompt, sampling=choice_sampling(call.sampling, choice))
                sequence = len(subscriptions)
                subscription = await subscribe(front_door, intake, own, resume, sequence, drawn_seed=seed)
                subscriptions.append(subscription)
                known = subscription.record.spec
                prompt = TokenPrompt(known.prompt)  # read once for all of its sequences
                seed = (
                    known.sampling.seed if seed is None else seed
                )  # and drawn once, or n would mean nothing
    except BaseException:
        for subscription in subscriptions:
            front_door.leave(subscription)
        raise
    return subscriptions


def new_id(prefix: str, resume: Resume) -> str:
    """Of the reply: the same whenever it is taken up again."""
    return f"{prefix}-{resume.key or secrets.token_hex(12)}"


async def read(
    subscriptions: Sequence[Subscription], idle_s: float
) -> AsyncGenerator[tuple[int, TokenSpan | Ending] | None]:
    """What comes, with the number of its sequence, until all have ended; None when nothing came for
    `idle_s`."""
    if len(subscriptions) == 1:  # the usual case, without a task per token
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    item = await subscriptions[0].next()
            except TimeoutError:
                yield None
                continue
            yield 0, item
            if isinstance(item, Ending):
                return
    waiting = {asyncio.ensure_future(one.next()): index for index, one in enumerate(subscriptions)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                yield None
            for index, task in sorted((waiting.pop(task), task) for task in done):
                item = task.result()
                if not isinstance(item, Ending):
                    waiting[asyncio.ensure_future(subscriptions[index].next())] = index
                yield index, item
    finally:
        for task in waiting:
            task.cancel()


def failure_of(subscription: Subscription, ending: Ending) -> StatusError | None:
    """Why the end is none that a client can use."""
    if ending.error is not None:
        return ending.error
    known = len(subscription.record.output)
    if subscription.index > known:
        return failed_precondition(
            f"{subscription.index} tokens can't have been received: the request ended with {known}"
        )
    return None
