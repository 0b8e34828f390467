"""`ryzanstein generate`: goes on with a prompt, to the terminal or as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer

from ryzanstein.program import ConfigFile

from . import options


def commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("generate")(generate)


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to go on with; '-' reads it from stdin.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object with everything that is known about the answer.")
    ] = False,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    stop_token_id: options.StopTokenIds = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    repetition_penalty: options.RepetitionPenalty = None,
    logit_bias: options.LogitBias = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            metavar="N",
            help="With --json: of each token and its N best rivals.",
            rich_help_panel="Sampling",
        ),
    ] = None,
    ignore_eos: options.IgnoreEos = False,
    priority: options.Priority = None,
    timeout: options.Timeout = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", metavar="ID", help="A name of your own for the request.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="If the server has several.")
    ] = None,
    coordinator: options.Coordinator = "127.0.0.1:50051",
    api_key_file: options.ApiKeyFile = None,
    tls: options.Tls = False,
    tls_ca_file: options.TlsCaFile = None,
    tls_cert_file: options.TlsCertFile = None,
    tls_key_file: options.TlsKeyFile = None,
    config: ConfigFile = None,
) -> None:
    """Go on with a text and stream the answer."""
    sampling = options.sampling_params(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=stop,
        stop_token_ids=stop_token_id,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        logit_bias=logit_bias,
        ignore_eos=ignore_eos,
        logprobs=logprobs,
    )
    text = _read_stdin() if prompt == "-" else prompt
    with options.open_client(
        coordinator,
        api_key_file=api_key_file,
        tls=tls,
        tls_ca_file=tls_ca_file,
        tls_cert_file=tls_cert_file,
        tls_key_file=tls_key_file,
    ) as client:
        stream = client.stream(
            text, sampling=sampling, priority=priority, timeout=timeout, request_id=request_id, model=model
        )
        if as_json:
            completion = stream.collect()
            sys.stdout.write(json.dumps(dataclasses.asdict(completion), ensure_ascii=False) + "\n")
            return
        last = "\n"
        try:
            with stream:
                for chunk in stream:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
                    last = chunk.text[-1:] or last
        finally:  # what follows, an error too, begins a line of its own
            if last != "\n":
                sys.stdout.write("\n")
                sys.stdout.flush()


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise options.not_text(error) from error
