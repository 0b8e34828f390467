"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ryzanstein.program import EXIT_USAGE, ProgramError

if TYPE_CHECKING:  # the library brings gRPC, which `--help` must not wait for
    from ryzanstein_client.sync import Client
    from ryzanstein_client.types import SamplingParams

#: A person waits: a coordinator that is not there should be said soon.
CONNECT_TIMEOUT_S = 1.0

_SAMPLING = "Sampling"
_CONNECTION = "Connection"

Coordinator = Annotated[
    str,
    typer.Option("--coordinator", metavar="HOST:PORT", help="The coordinator.", rich_help_panel=_CONNECTION),
]
# There is no flag for the key itself: others can read a command line.
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        help="The API key is the first word in it. Or set RYZANSTEIN_API_KEY to the key.",
        rich_help_panel=_CONNECTION,
    ),
]
TlsCaFile = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca-file",
        metavar="FILE",
        help="Encrypt, and check the server against these authorities (PEM).",
        rich_help_panel=_CONNECTION,
    ),
]
TlsCertFile = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert-file",
        metavar="FILE",
        help="Encrypt, and show this certificate (PEM) to the server.",
        rich_help_panel=_CONNECTION,
    ),
]
TlsKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--tls-key-file", metavar="FILE", help="Its private key (PEM).", rich_help_panel=_CONNECTION
    ),
]
Tls = Annotated[
    bool,
    typer.Option(
        "--tls", help="Encrypt, and check the server as the system does.", rich_help_panel=_CONNECTION
    ),
]

MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", help="Most tokens to generate.", rich_help_panel=_SAMPLING),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", metavar="T", help="0 is greedy; default 1.", rich_help_panel=_SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", metavar="P", help="Only the most probable tokens that reach P.", rich_help_panel=_SAMPLING
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", metavar="K", help="Only the K most probable tokens.", rich_help_panel=_SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        metavar="P",
        help="No token less probable than P times the most probable.",
        rich_help_panel=_SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", help="The same seed gives the same answer.", rich_help_panel=_SAMPLING
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="Ends the answer; may be repeated.", rich_help_panel=_SAMPLING
    ),
]
StopTokenIds = Annotated[
    list[int] | None,
    typer.Option(
        "--stop-token-id", metavar="ID", help="Ends the answer; may be repeated.", rich_help_panel=_SAMPLING
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option("--presence-penalty", metavar="X", help="-2 to 2; default 0.", rich_help_panel=_SAMPLING),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option("--frequency-penalty", metavar="X", help="-2 to 2; default 0.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", metavar="X", help="Default 1.", rich_help_panel=_SAMPLING),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias",
        metavar="ID=X",
        help="Added to the logit of a token, -100 to 100; may be repeated.",
        rich_help_panel=_SAMPLING,
    ),
]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos", help="Go on past the end of the answer.", rich_help_panel=_SAMPLING),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="Until the last token.", rich_help_panel=_SAMPLING),
]
Priority = Annotated[
    int | None, typer.Option("--priority", metavar="N", help="Higher goes first.", rich_help_panel=_SAMPLING)
]


def not_text(error: UnicodeDecodeError) -> ProgramError:
    """For standard input that is not what the terminal's encoding says."""
    return ProgramError(f"standard input is not UTF-8 text: {error}", exit_code=EXIT_USAGE)


def open_client(
    address: str,
    *,
    api_key_file: Path | None,
    tls: bool,
    tls_ca_file: Path | None,
    tls_cert_file: Path | None,
    tls_key_file: Path | None,
) -> Client:
    """A client as the connection options want it."""
    from ryzanstein_client.sync import Client

    return Client(
        address,
        api_key_file=api_key_file,
        tls=tls,
        tls_ca_file=tls_ca_file,
        tls_cert_file=tls_cert_file,
        tls_key_file=tls_key_file,
        connect_timeout_s=CONNECT_TIMEOUT_S,
    )


def sampling_params(
    *,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    seed: int | None,
    stop: list[str] | None,
    stop_token_ids: list[int] | None,
    presence_penalty: float | None,
    frequency_penalty: float | None,
    repetition_penalty: float | None,
    logit_bias: list[str] | None,
    ignore_eos: bool,
    logprobs: int | None = None,
) -> SamplingParams:
    """The sampling options as the library takes them."""
    from ryzanstein_client.types import SamplingParams

    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=stop or None,
        stop_token_ids=stop_token_ids or None,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        logit_bias=dict(map(_bias, logit_bias)) if logit_bias else None,
        ignore_eos=ignore_eos or None,
        logprobs=logprobs,
    )


def _bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not ID=X, such as 42=-100", param_hint="--logit-bias"
        ) from None
