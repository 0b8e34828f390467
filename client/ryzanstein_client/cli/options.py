"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ryzanstein.program import EXIT_USAGE, ProgramError

if TYPE_CHECKING:  # the library brings gRPC, which `--help` must not wait for
    from ryzanstein_client.aio import AsyncClient
    from ryzanstein_client.sync import Client
    from ryzanstein_client.types import SamplingParams

#: A person waits: a coordinator that is not there should be said soon.
CONNECT_TIMEOUT_S = 1.0

_SAMPLING = "Sampling"
_CONNECTION = "Connection"


@dataclass(frozen=True, slots=True)
class Connection:
    """How the coordinator is reached."""

    coordinator: Annotated[
        str,
        typer.Option(
            "--coordinator", metavar="HOST:PORT", help="The coordinator.", rich_help_panel=_CONNECTION
        ),
    ] = "127.0.0.1:50051"
    # There is no flag for the key itself: others can read a command line.
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="The API key is the first word in it. Or set RYZANSTEIN_API_KEY to the key.",
            rich_help_panel=_CONNECTION,
        ),
    ] = None
    tls: Annotated[
        bool,
        typer.Option(
            "--tls", help="Encrypt, and check the server as the system does.", rich_help_panel=_CONNECTION
        ),
    ] = False
    tls_ca_file: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca-file",
            metavar="FILE",
            help="Encrypt, and check the server against these authorities (PEM).",
            rich_help_panel=_CONNECTION,
        ),
    ] = None
    tls_cert_file: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert-file",
            metavar="FILE",
            help="Encrypt, and show this certificate (PEM) to the server.",
            rich_help_panel=_CONNECTION,
        ),
    ] = None
    tls_key_file: Annotated[
        Path | None,
        typer.Option(
            "--tls-key-file", metavar="FILE", help="Its private key (PEM).", rich_help_panel=_CONNECTION
        ),
    ] = None

    def client(self) -> Client:
        from ryzanstein_client.sync import Client

        return Client(self.coordinator, **self._settings())

    def async_client(self) -> AsyncClient:
        from ryzanstein_client.aio import AsyncClient

        return AsyncClient(self.coordinator, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "api_key_file": self.api_key_file,
            "tls": self.tls,
            "tls_ca_file": self.tls_ca_file,
            "tls_cert_file": self.tls_cert_file,
            "tls_key_file": self.tls_key_file,
            "connect_timeout_s": CONNECT_TIMEOUT_S,
        }


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen."""

    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", help="Most tokens to generate.", rich_help_panel=_SAMPLING),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="T", help="0 is greedy; default 1.", rich_help_panel=_SAMPLING),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            metavar="P",
            help="Only the most probable tokens that reach P.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", metavar="K", help="Only the K most probable tokens.", rich_help_panel=_SAMPLING
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p",
            metavar="P",
            help="No token less probable than P times the most probable.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", help="The same seed gives the same answer.", rich_help_panel=_SAMPLING
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", metavar="TEXT", help="Ends the answer; may be repeated.", rich_help_panel=_SAMPLING
        ),
    ] = None
    stop_token_id: Annotated[
        list[int] | None,
        typer.Option(
            "--stop-token-id",
            metavar="ID",
            help="Ends the answer; may be repeated.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    presence_penalty: Annotated[
        float | None,
        typer.Option(
            "--presence-penalty", metavar="X", help="-2 to 2; default 0.", rich_help_panel=_SAMPLING
        ),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        typer.Option(
            "--frequency-penalty", metavar="X", help="-2 to 2; default 0.", rich_help_panel=_SAMPLING
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option("--repetition-penalty", metavar="X", help="Default 1.", rich_help_panel=_SAMPLING),
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            "--logit-bias",
            metavar="ID=X",
            help="Added to the logit of a token, -100 to 100; may be repeated.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Go on past the end of the answer.", rich_help_panel=_SAMPLING),
    ] = False

    def params(self, *, logprobs: int | None = None) -> SamplingParams:
        """As the library takes them."""
        from ryzanstein_client.types import SamplingParams

        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=self.stop or None,
            stop_token_ids=self.stop_token_id or None,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=dict(map(_bias, self.logit_bias)) if self.logit_bias else None,
            ignore_eos=self.ignore_eos or None,
            logprobs=logprobs,
        )


def not_text(error: UnicodeDecodeError) -> ProgramError:
    """For standard input that is not what the terminal's encoding says."""
    return ProgramError(f"standard input is not UTF-8 text: {error}", exit_code=EXIT_USAGE)


def _bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not ID=X, such as 42=-100", param_hint="--logit-bias"
        ) from None
