"""The model's own chat template: Jinja as Hugging Face templates expect it, in a sandbox.

What templates may rely on is documented at https://huggingface.co/docs/transformers/chat_templating: blocks
are trimmed, `break` and `continue` exist, and so do raise_exception, strftime_now, tojson and the special
tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from ryzanstein.model_plan import ModelError
from ryzanstein.model_plan.fields import read_json_object
from ryzanstein.wire import invalid_argument

from .errors import shown

#: Keys of tokenizer_config.json whose tokens a template can name.
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the model's own words for training; here it is just its
    body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that jinja2 looks for

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Turns messages into the text that the model was trained on.

    `now` is what strftime_now tells. Raises ModelError if `source` is no template.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, Any],
        *,
        origin: str = "chat template",
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"{origin}: line {error.lineno}: {error.message}") from None
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. `extra` are further variables (tools, switches of the model).

        Raises INVALID_ARGUMENT if the template refuses the messages.
        """
        variables: dict[str, Any] = {
            "tools": None,
            "documents": None,
            **self._special_tokens,
            **(extra or {}),
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise invalid_argument(
                f"the model's chat template does not take these messages: {shown(reason)}"
            ) from error


def read_chat_template(
    directory: Path, *, now: Callable[[], datetime] = lambda: datetime.now().astimezone()
) -> ChatTemplate | None:
    """The template of a model directory: chat_template.jinja, else chat_template of tokenizer_config.json
    (of a list the one named "default"). None if there is none. Raises ModelError naming file and key."""
    config_path = directory / "tokenizer_config.json"
    config = read_json_object(config_path) if config_path.is_file() else {}
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            source, origin = file.read_text(encoding="utf-8"), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{file}: can't be read as text: {error}") from None
    else:
        named = _template_of(config.get("chat_template"), config_path)
        if named is None:
            return None
        source, origin = named, f"{config_path}: chat_template"
    return ChatTemplate(source, _special_tokens(directory, config), origin=origin, now=now)


def _template_of(value: object, path: Path) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        default = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
        if isinstance(default, str):
            return default
    raise ModelError(
        f'{path}: chat_template must be a text, or a list of named ones with one named "default"'
    )


def _special_tokens(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens by name; files write one as a text or as an object with its text as `content`."""
    map_path = directory / "special_tokens_map.json"
    sources = [config, read_json_object(map_path)] if map_path.is_file() else [config]
    tokens: dict[str, Any] = {}
    for source in sources:
        for name in _SPECIAL_TOKENS:
            text = _token_text(source.get(name))
            if text is not None:
                tokens.setdefault(name, text)
        additional = source.get("additional_special_tokens")
        if isinstance(additional, list):
            texts = [_token_text(token) for token in additional]
            tokens.setdefault("additional_special_tokens", [text for text in texts if text is not None])
    return tokens


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it leaves <, >, & and ' alone: the text is for a model, not for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
