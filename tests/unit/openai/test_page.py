"""/openapi.json: what it says of replies is what is sent."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from ryzanstein_coordinator.openai.replies import (
    ChatReply,
    CompletionReply,
    ModelReply,
    ModelsReply,
    TextReply,
    TokensReply,
)

from ..requests.leader import Leader, script
from .serving import CHAT, COMPLETIONS, Front, ids_of

ASK = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        (CHAT, {"messages": ASK, "logprobs": True, "top_logprobs": 2, "n": 2}, ChatReply),
        (CHAT, {"messages": ASK}, ChatReply),
        (COMPLETIONS, {"prompt": "hi", "logprobs": 2, "echo": True}, CompletionReply),
        (COMPLETIONS, {"prompt": ["hi", "you"]}, CompletionReply),
        ("/tokenize", {"prompt": "hi", "return_token_strs": True}, TokensReply),
        ("/tokenize", {"prompt": "hi"}, TokensReply),
        ("/detokenize", {"tokens": [5, 6]}, TextReply),
    ],
)
async def test_a_reply_has_the_fields_that_the_page_says(
    served: Front, leader: Leader, path: str, body: dict[str, Any], model: type[BaseModel]
) -> None:
    leader.next_token = script([*ids_of("an answer"), 699])
    reply = await served.ok(path, **body)
    assert model.model_validate(reply).model_dump() == reply


@pytest.mark.parametrize(("path", "model"), [("/v1/models", ModelsReply), ("/v1/models/tiny", ModelReply)])
async def test_so_has_the_model(served: Front, path: str, model: type[BaseModel]) -> None:
    reply = (await served.client.get(path)).json()
    assert model.model_validate(reply).model_dump() == reply


async def test_the_page_knows_streams_and_failures_and_no_422(served: Front) -> None:
    page = (await served.client.get("/openapi.json")).json()
    for path in (CHAT, COMPLETIONS):
        responses = page["paths"][path]["post"]["responses"]
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    for path, methods in page["paths"].items():
        for described in methods.values():
            assert set(described["responses"]) == {"200", "4XX", "5XX"}, path


async def test_the_bounds_on_the_page_are_those_that_are_kept(served: Front) -> None:
    fields = (await served.client.get("/openapi.json")).json()["components"]["schemas"]["CompletionRequest"]
    bounds = {name: field for name, field in fields["properties"].items() if "maximum" in field}
    assert {"n", "temperature", "top_p", "top_k", "min_p", "seed", "logprobs"} <= set(bounds)
    for name, field in bounds.items():
        for wrong in (field["maximum"] + 1, field.get("minimum", field.get("exclusiveMinimum")) - 1):
            reply = await served.post(COMPLETIONS, prompt="hi", **{name: wrong})
            assert (reply.status_code, reply.json()["error"]["param"]) in ((400, name), (400, None)), name
