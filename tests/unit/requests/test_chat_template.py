"""Chat templates render as transformers renders them, and fail in words."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from ryzanstein.model_plan import ModelError
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.chat_template import ChatTemplate, read_chat_template

LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{ tools | tojson }}{{ '<|im_end|>\\n' }}
{%- endif %}
    {%- set ns = namespace(count=0) %}
{% for message in messages %}
    {% if message.content is none %}{% continue %}{% endif %}
    {% set ns.count = ns.count + 1 %}
    {% generation %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}
    {% endgeneration %}
{% endfor %}
{{ ns.count }} {{ {'ü<&>': [1]} | tojson }} {{ {'a': 1} | tojson(indent=2) }} {{ bos_token is defined }}
"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "user", "content": "  Hi <b>&amp; ünïcödé 🙂 "},
    {"role": "assistant", "content": "Hello\nthere"},
    {"role": "user", "content": "{{ 7 * 7 }}{% raw %}"},
]


@pytest.mark.parametrize("source", [LLAMA_3, MISTRAL, QWEN], ids=["llama", "mistral", "qwen"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", [MESSAGES[:1], MESSAGES], ids=["one", "three"])
def test_templates_render_as_transformers_renders_them(
    source: str, add_generation_prompt: bool, messages: list[dict[str, str]]
) -> None:
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    reference, _ = chat_template_utils.render_jinja_template(
        conversations=[messages],
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        tools=None,
        **TOKENS,
    )

    rendered = ChatTemplate(source, TOKENS).render(messages, add_generation_prompt=add_generation_prompt)

    assert rendered == reference[0]


def test_raise_exception_is_a_message_to_the_caller() -> None:
    with pytest.raises(StatusError, match="roles must alternate") as caught:
        ChatTemplate(MISTRAL, TOKENS).render([MESSAGES[1]])
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ missing.attribute.of.it }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_a_template_can_not_leave_its_sandbox_nor_fail_as_a_defect_of_ours(source: str) -> None:
    with pytest.raises(StatusError, match="does not take these messages"):
        ChatTemplate(source, TOKENS).render(MESSAGES)


def test_strftime_now_tells_the_time_that_it_is_given() -> None:
    template = ChatTemplate(
        "{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime(2026, 3, 9, tzinfo=UTC)
    )

    assert template.render(MESSAGES) == "09 Mar 2026"


def write(directory: Path, name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (directory / name).write_text(text, encoding="utf-8")


def test_the_template_is_found_in_tokenizer_config(tmp_path: Path) -> None:
    write(
        tmp_path,
        "tokenizer_config.json",
        {
            "chat_template": "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}",
            "bos_token": {"content": "<s>", "special": True},
        },
    )
    write(tmp_path, "special_tokens_map.json", {"eos_token": "</s>", "bos_token": "other"})

    template = read_chat_template(tmp_path)

    assert template is not None
    assert template.render([{"role": "user", "content": "x"}]) == "<s></s>x"


def test_of_a_list_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})

    template = read_chat_template(tmp_path)

    assert template is not None
    assert template.render(MESSAGES) == "default"


def test_a_file_of_its_own_wins(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": "config"})
    write(tmp_path, "chat_template.jinja", "file")

    template = read_chat_template(tmp_path)

    assert template is not None
    assert template.render(MESSAGES) == "file"


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None


@pytest.mark.parametrize("value", [7, [{"name": "a"}], [{"name": "a", "template": "x"}, {"name": "b"}]])
def test_what_is_no_template_is_named(tmp_path: Path, value: object) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": value})

    with pytest.raises(ModelError, match=r"tokenizer_config\.json: chat_template must be"):
        read_chat_template(tmp_path)


def test_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.jinja", "\n\n{% if %}")

    with pytest.raises(ModelError, match=r"chat_template\.jinja: line 3"):
        read_chat_template(tmp_path)
