"""The paths of the OpenAI API, and vLLM's /tokenize and /detokenize."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import StatusError

from ..access import http_caller
from ..front_door import FrontDoor
from ..intake import GenerateCall, Intake
from ..prompts import ModelFacts, Prompt, TextPrompt
from ..requests import RequestSpec, Subscription
from ..tokenization import ModelTokenizer
from .answer import Answer, MakeChoice, admit, new_id
from .choices import ChatChoice, CompletionChoice, Echo
from .errors import BadRequestError, UnknownModelError
from .prompts import chat_prompt, completion_prompts
from .replies import (
    FAILURES,
    ChatReply,
    CompletionReply,
    ModelReply,
    ModelsReply,
    TextReply,
    TokensReply,
    streamed,
)
from .resume import read_resume
from .sampling import chat_sampling, completion_sampling, count_of
from .schemas import (
    MAX_PROMPTS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
)
from .stream import EventStream
from .whole import whole_reply


def openai_routes(front_door: FrontDoor, intake: Intake) -> APIRouter:
    """Routes to include into the coordinator's application."""
    routes = APIRouter(tags=["openai"], responses=FAILURES)
    started_at = int(time.time())
    piece_of = intake.tokenizer.piece

    async def answer(
        body: GenerationRequest,
        http: Request,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        make_choice: MakeChoice,
        *,
        kind: str,
        prefix: str,
    ) -> Response:
        _model(intake, body.model)
        n = count_of(body)
        if n * len(prompts) > MAX_PROMPTS:
            raise BadRequestError(
                f"{len(prompts)} prompts with {n} sequences each are {n * len(prompts)}; "
                f"ask for at most {MAX_PROMPTS} at once",
                param="n",
            )
        resume = read_resume(http.headers, sequences=n * len(prompts), stream=bool(body.stream))
        owner = http_caller(http.scope).name
        calls = [
            GenerateCall(prompt=prompt, sampling=sampling, model=body.model or "", owner=owner)
            for prompt in prompts
        ]
        subscriptions = await admit(front_door, intake, calls, n=n, resume=resume)
        answer = Answer(
            front_door=front_door,
            subscriptions=subscriptions,
            make_choice=make_choice,
            n=n,
            kind=kind,
            answer_id=new_id(prefix, resume),
        )
        headers = {"x-ryzanstein-seed": str(answer.seed)}
        if body.stream:
            return EventStream(answer, include_usage=body.include_usage, headers=headers)
        return await whole_reply(answer, http, headers)

    @routes.post("/v1/chat/completions", summary="An answer to messages", responses=streamed(ChatReply))
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        prompt = chat_prompt(body, body.messages)

        def choice(index: int, one: Subscription) -> ChatChoice:
            return ChatChoice(index, one.record.output, piece_of, start=one.index)

        return await answer(
            body, http, [prompt], chat_sampling(body), choice, kind="chat.completion", prefix="chatcmpl"
        )

    @routes.post("/v1/completions", summary="What follows a text", responses=streamed(CompletionReply))
    async def completions(body: CompletionRequest, http: Request) -> Response:
        special = True if body.add_special_tokens is None else body.add_special_tokens
        prompts = completion_prompts(body.prompt, add_special_tokens=special)
        n = count_of(body)

        def choice(index: int, one: Subscription) -> CompletionChoice:
            echo = _echo(intake.tokenizer, prompts[index // n], one.record.spec) if body.echo else None
            return CompletionChoice(index, one.record.output, piece_of, start=one.index, echo=echo)

        return await answer(
            body, http, prompts, completion_sampling(body), choice, kind="text_completion", prefix="cmpl"
        )

    @routes.get("/v1/models", summary="The model that is served", response_model=ModelsReply)
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_model_card(intake.model(), started_at)]})

    @routes.get("/v1/models/{name:path}", summary="One model", response_model=ModelReply)
    async def model(name: str) -> JSONResponse:
        return JSONResponse(_model_card(_model(intake, name), started_at))

    @routes.post("/tokenize", summary="Token ids of a text or of messages", response_model=TokensReply)
    async def tokenize(body: TokenizeRequest) -> JSONResponse:
        facts = _model(intake, body.model)
        if (body.prompt is None) == (body.messages is None):
            raise BadRequestError("set either prompt or messages", param="prompt")
        prompt: Prompt
        if body.messages is not None:
            prompt = chat_prompt(body, body.messages)
        else:
            special = True if body.add_special_tokens is None else body.add_special_tokens
            prompt = TextPrompt(body.prompt or "", special)
        ids = list(await intake.prompts.tokenize(prompt, facts))
        texts = [intake.tokenizer.token(token_id) for token_id in ids] if body.return_token_strs else None
        return JSONResponse(
            {"count": len(ids), "max_model_len": facts.max_model_len, "tokens": ids, "token_strs": texts}
        )

    @routes.post("/detokenize", summary="The text of token ids", response_model=TextReply)
    async def detokenize(body: DetokenizeRequest) -> JSONResponse:
        facts = _model(intake, body.model)
        return JSONResponse({"prompt": await intake.prompts.detokenize(body.tokens, facts)})

    return routes


def _model(intake: Intake, name: str | None) -> ModelFacts:
    """The model of that name, or the one that is served. Raises UnknownModelError."""
    try:
        return intake.model_named(name or "")
    except StatusError as error:
        raise UnknownModelError(error.message) from None


def _model_card(facts: ModelFacts, created: int) -> dict[str, Any]:
    return {
        "id": facts.name,
        "object": "model",
        "created": created,
        "owned_by": "ryzanstein",
        "root": facts.name,
        "parent": None,
        "max_model_len": facts.max_model_len,
    }


def _echo(tokenizer: ModelTokenizer, prompt: Prompt, spec: RequestSpec) -> Echo:
    """The prompt as it was sent, or the text of its ids; token by token only if their logprobs are wanted."""
    ids = spec.prompt
    text = (
        prompt.text
        if isinstance(prompt, TextPrompt)
        else tokenizer.decode(list(ids), skip_special_tokens=True)
    )
    if not spec.sampling.HasField("prompt_logprobs"):
        return Echo(text)
    detokenizer = tokenizer.detokenizer()
    return Echo(text, ids, [detokenizer.push(token_id) for token_id in ids])
