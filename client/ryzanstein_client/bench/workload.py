"""What is asked for."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ryzanstein.program import EXIT_USAGE, ProgramError

from .lengths import Length


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a prompt (text or token ids) or a conversation, and the most tokens that it may bring."""

    max_tokens: int
    prompt: str | tuple[int, ...] = ""
    messages: tuple[dict[str, str], ...] = ()


def synthetic(vocabulary: Sequence[int], prompt: Length, output: Length, seed: int) -> Iterator[Ask]:
    """Prompts of random token ids, without end; equal seeds give equal prompts. No two begin alike."""
    draw = random.Random(f"prompts {seed}")  # noqa: S311 - no secret
    while True:
        ids = tuple(draw.choices(vocabulary, k=prompt.draw(draw)))
        yield Ask(max_tokens=output.draw(draw), prompt=ids)


def from_file(path: Path, output: Length, seed: int) -> Iterator[Ask]:
    """The prompts of a file in their order, again and again, without end.

    One JSON object per line: `{"prompt": "text or token ids"}` or `{"messages": [{"role": …, "content": …}]}`, with
    `max_tokens` if that one is to have a length of its own.

    Raises:
        ProgramError: the file can't be read, or a line of it can't be used; names it.
    """
    lines = _read(path)
    draw = random.Random(f"outputs {seed}")  # noqa: S311 - no secret
    return (_ask(fields, output.draw(draw)) for fields in itertools.cycle(lines))


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProgramError(f"--prompts: {path}: can't be read: {error}", exit_code=EXIT_USAGE) from None
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            found.append(_checked(line, f"--prompts: {path}, line {number}"))
    if not found:
        raise ProgramError(f"--prompts: {path} holds no prompt", exit_code=EXIT_USAGE)
    return found


def _checked(line: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ProgramError(f"{where}: not JSON: {error}", exit_code=EXIT_USAGE) from None
    if not isinstance(fields, dict) or ("prompt" in fields) == ("messages" in fields):
        raise ProgramError(
            f'{where}: must be an object with either "prompt" or "messages"', exit_code=EXIT_USAGE
        )
    prompt, messages = fields.get("prompt", ""), fields.get("messages", [])
    if not (isinstance(prompt, str) or _all_are(prompt, int)) or not _all_are(messages, dict):
        raise ProgramError(
            f'{where}: "prompt" must be a text or token ids, "messages" a list of objects',
            exit_code=EXIT_USAGE,
        )
    most = fields.get("max_tokens", 1)
    if not isinstance(most, int) or most < 1:
        raise ProgramError(f'{where}: "max_tokens" must be a number from 1 on', exit_code=EXIT_USAGE)
    return fields


def _all_are(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _ask(fields: dict[str, Any], drawn: int) -> Ask:
    prompt = fields.get("prompt", "")
    return Ask(
        max_tokens=fields.get("max_tokens", drawn),
        prompt=prompt if isinstance(prompt, str) else tuple(prompt),
        messages=tuple(fields.get("messages", ())),
    )
