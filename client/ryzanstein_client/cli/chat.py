"""`ryzanstein chat`: a conversation in the terminal, or one message per line of standard input."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from ryzanstein.program import ConfigFile

from . import options

if TYPE_CHECKING:
    from ryzanstein_client.sync import Client
    from ryzanstein_client.types import Message, SamplingParams


def commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("chat")(chat)


def chat(
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="What the model is told before the conversation."),
    ] = None,
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
    ignore_eos: options.IgnoreEos = False,
    coordinator: options.Coordinator = "127.0.0.1:50051",
    api_key_file: options.ApiKeyFile = None,
    tls: options.Tls = False,
    tls_ca_file: options.TlsCaFile = None,
    tls_cert_file: options.TlsCertFile = None,
    tls_key_file: options.TlsKeyFile = None,
    config: ConfigFile = None,
) -> None:
    """Talk to the model. Ctrl-C stops an answer; Ctrl-D, or Ctrl-C twice, leaves."""
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
    )
    history: list[Message] = [{"role": "system", "content": system}] if system else []
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with options.open_client(
        coordinator,
        api_key_file=api_key_file,
        tls=tls,
        tls_ca_file=tls_ca_file,
        tls_cert_file=tls_cert_file,
        tls_key_file=tls_key_file,
    ) as client:
        if interactive:
            with suppress(ImportError):
                import readline  # noqa: F401 - gives input() line editing and the arrow keys
            sys.stderr.write(f"{client.models()[0].name} (Ctrl-D leaves)\n")
        _converse(client, sampling, history, interactive=interactive)


def _converse(client: Client, sampling: SamplingParams, history: list[Message], *, interactive: bool) -> None:
    from ryzanstein_client.errors import Disconnected, RyzansteinError

    interrupted = False  # the last thing was Ctrl-C: another one leaves
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            if interactive:
                sys.stdout.write("\n")
            return
        except UnicodeDecodeError as error:
            raise options.not_text(error) from error
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            if interrupted or not interactive:
                return
            interrupted = True
            sys.stderr.write("(Ctrl-C again, or Ctrl-D, leaves)\n")
            continue
        interrupted = False
        if not line.strip():
            continue
        history.append({"role": "user", "content": line})
        try:
            answer, interrupted = _answer(client, sampling, history)
        except RyzansteinError as error:
            if not interactive or isinstance(error, Disconnected):
                raise
            sys.stderr.write(f"error: {error}\n")  # a message that can't be answered ends no conversation
            answer = ""
        if answer:
            history.append({"role": "assistant", "content": answer})
        else:
            history.pop()  # never answered: the next message must not stand behind another of the user's


def _answer(client: Client, sampling: SamplingParams, history: list[Message]) -> tuple[str, bool]:
    """Streams the answer; returns what came of it, and whether the user stopped it."""
    parts: list[str] = []
    interrupted = False
    try:
        # Leaving the block early cancels the request on the server.
        with client.chat(history, stream=True, sampling=sampling) as stream:
            for chunk in stream:
                parts.append(chunk.text)
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
        sys.stderr.write(" (stopped)")
    finally:  # what follows, an error too, begins a line of its own
        if parts or interrupted:
            sys.stdout.write("\n")
            sys.stdout.flush()
    return "".join(parts), interrupted
