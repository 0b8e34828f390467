"""From a call to a request: everything checked, tokenised, and every default filled in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import MAX_MESSAGE_BYTES, not_found

from .errors import shown
from .output import RecordedOutput
from .prompts import ModelFacts, Prompt, PromptReader
from .requests import RequestRecord, RequestSpec, Timings
from .sampling_params import check_sampling, resolve_sampling
from .stop_strings import StopAutomaton
from .tokenization import ModelTokenizer

#: An id below 2**28 takes four bytes at most; a quarter is left for all the rest.
_LONGEST_SUBMISSION_TOKENS = MAX_MESSAGE_BYTES * 3 // 4 // 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCall:
    """One request as it comes in, from whichever protocol."""

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    #: Empty: one is made.
    request_id: str = ""
    #: Empty: the one that is served.
    model: str = ""
    priority: int = 0
    #: Until the last token. None: no deadline.
    timeout_s: float | None = None
    #: Whose API key it is; ids are unique per owner.
    owner: str = ""


class Intake:
    """What is needed of the model to take a request in. gRPC and HTTP ask it too, for /tokenize and the
    like."""

    def __init__(self, model: Callable[[], ModelFacts], tokenizer: ModelTokenizer) -> None:
        """`model` is asked anew for every request, because its limit changes with the group's memory."""
        self._model = model
        self.tokenizer = tokenizer
        self.prompts = PromptReader(tokenizer)
        self._arrivals = 0

    def close(self) -> None:
        """Ends the threads."""
        self.prompts.close()

    def model(self) -> ModelFacts:
        """What is served now. Its length limit is such that every request fits into one message to a leader."""
        model = self._model()
        return replace(model, max_model_len=min(model.max_model_len, _LONGEST_SUBMISSION_TOKENS))

    def model_named(self, name: str) -> ModelFacts:
        """The model of that name; an empty one means the one that is served. Raises NOT_FOUND."""
        model = self.model()
        if name and name != model.name:
            raise not_found(f"there is no model {shown(name)}; {shown(model.name)} is served")
        return model

    def check(self, call: GenerateCall) -> None:
        """All that can be checked at once. Raises NOT_FOUND, INVALID_ARGUMENT."""
        model = self.model_named(call.model)
        check_sampling(call.sampling, max_model_len=model.max_model_len, vocab_size=model.vocab_size)

    async def read(self, call: GenerateCall, request_id: str) -> RequestSpec:
        """Tokenises the prompt and fills in what was left open. Raises INVALID_ARGUMENT."""
        model = self.model()
        prompt = await self.prompts.token_ids(call.prompt, model)
        sampling = resolve_sampling(
            call.sampling,
            prompt_tokens=len(prompt),
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
        )
        return RequestSpec(
            owner=call.owner,
            request_id=request_id,
            model=model.name,
            prompt=prompt,
            sampling=sampling,
            priority=call.priority,
            eos_token_ids=() if sampling.ignore_eos else model.eos_token_ids,
        )

    def record(self, spec: RequestSpec, now: float, timeout_s: float | None) -> RequestRecord:
        """A request that has generated nothing yet."""
        self._arrivals += 1
        stops = list(spec.sampling.stop)
        output = RecordedOutput(
            self.tokenizer.detokenizer(spec.prompt),
            stops=StopAutomaton(stops) if stops else None,
            with_logprobs=spec.sampling.HasField("logprobs"),
        )
        return RequestRecord(
            spec=spec,
            output=output,
            arrival=self._arrivals,
            timings=Timings(admitted_at=now),
            deadline_at=None if timeout_s is None else now + timeout_s,
            log_fields=structlog.contextvars.get_contextvars(),
        )
