"""From the prompts and messages of a request to `Prompt`s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import shown
from ..prompts import ChatPrompt, TextPrompt, TokenPrompt
from .errors import BadRequestError
from .schemas import MAX_PROMPTS, ChatRequest, TokenizeRequest

#: Of what else messages and template variables hold: templates walk through it.
_DEEPEST = 32


def completion_prompts(prompt: object, *, add_special_tokens: bool) -> list[TextPrompt | TokenPrompt]:
    """One prompt or a batch: a text, token ids, texts, or lists of token ids. Raises BadRequestError."""
    if isinstance(prompt, str):
        return [TextPrompt(prompt, add_special_tokens)]
    if not isinstance(prompt, list) or not prompt:
        raise BadRequestError(
            "prompt must be a text, token ids, or a list of texts or of token ids, and not empty",
            param="prompt",
        )
    if type(prompt[0]) is int:
        return [_token_prompt("prompt", prompt)]
    if len(prompt) > MAX_PROMPTS:
        raise BadRequestError(
            f"prompt holds {len(prompt)} prompts; send at most {MAX_PROMPTS} at once", param="prompt"
        )
    return [
        TextPrompt(one, add_special_tokens)
        if isinstance(one, str)
        else _token_prompt(f"prompt[{index}]", one)
        for index, one in enumerate(prompt)
    ]


def _token_prompt(where: str, ids: object) -> TokenPrompt:
    if not isinstance(ids, list):
        raise BadRequestError(f"{where} must be a text or a list of token ids", param="prompt")
    # A bool is an int to isinstance, and a token to nobody.
    wrong = next((index for index, token_id in enumerate(ids) if type(token_id) is not int), None)
    if wrong is not None:
        raise BadRequestError(
            f"{where}[{wrong}] is {shown(ids[wrong])}, which is no token id", param="prompt"
        )
    return TokenPrompt(ids)


def chat_prompt(request: ChatRequest | TokenizeRequest, messages: Sequence[Mapping[str, Any]]) -> ChatPrompt:
    """Messages for the model's template, their contents as texts. Raises BadRequestError naming the message."""
    extra = request.chat_template_kwargs or {}
    if _too_deep(extra, _DEEPEST):
        raise BadRequestError("chat_template_kwargs is nested too deeply", param="chat_template_kwargs")
    generation = True if request.add_generation_prompt is None else request.add_generation_prompt
    return ChatPrompt(
        messages=[_message(f"messages[{index}]", message) for index, message in enumerate(messages)],
        add_generation_prompt=generation,
        extra=extra,
        add_special_tokens=bool(request.add_special_tokens),
    )


def _message(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise BadRequestError(f"{where}.role must be a text", param="messages")
    if _too_deep(message, _DEEPEST):
        raise BadRequestError(f"{where} is nested too deeply", param="messages")
    return {**message, "content": _content(f"{where}.content", message.get("content"))}


def _content(where: str, content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequestError(f"{where} must be a text or a list of text parts", param="messages")
    return "\n".join(_part(f"{where}[{index}]", part) for index, part in enumerate(content))


def _part(where: str, part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
        raise BadRequestError(
            f"{where} is of type {shown(kind)}; this model reads parts of type 'text'", param="messages"
        )
    return text


def _too_deep(value: object, left: int) -> bool:
    if isinstance(value, Mapping):
        return not left or any(_too_deep(item, left - 1) for item in value.values())
    if isinstance(value, list):
        return not left or any(_too_deep(item, left - 1) for item in value)
    return False
