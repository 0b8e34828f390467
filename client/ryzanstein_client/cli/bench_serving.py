"""`ryzanstein bench serving`: load on a cluster that runs, and how long its users would have waited."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ryzanstein.measuring.group import bench_commands
from ryzanstein.measuring.outputs import Bench, JsonFile, PlotFile, View
from ryzanstein.program import EXIT_USAGE, ConfigFile, ProgramError

from .families import with_families
from .options import Connection

if TYPE_CHECKING:
    from ryzanstein_client.bench.fronts import Front

DEFAULT_DURATION_S = 30.0
_LOAD, _WORK, _OBJECTIVES = "Load", "Requests", "Objectives"


def commands(app: typer.Typer) -> None:
    """Adds the command."""
    bench_commands(app).command("serving")(with_families(serving))


def serving(
    rate: Annotated[
        str,
        typer.Option(
            "--rate",
            metavar="R,…",
            help="Requests per second at random moments (Poisson); each rate is a run.",
            rich_help_panel=_LOAD,
        ),
    ] = "",
    concurrency: Annotated[
        str,
        typer.Option(
            "--concurrency",
            metavar="N,…",
            help="Requests at any time; each number is a run. Without any load: 1,8.",
            rich_help_panel=_LOAD,
        ),
    ] = "",
    requests: Annotated[
        int | None,
        typer.Option("--requests", metavar="N", min=1, help="Of each run, at most.", rich_help_panel=_LOAD),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration",
            metavar="SECONDS",
            min=0.1,
            help="That each run sends, at most; 30 without --requests.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    warm_up: Annotated[
        int,
        typer.Option(
            "--warm-up",
            metavar="N",
            min=0,
            help="Requests before each run that don't count.",
            rich_help_panel=_LOAD,
        ),
    ] = 2,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", help="Of moments, prompts and lengths.", rich_help_panel=_LOAD),
    ] = 0,
    prompt_tokens: Annotated[
        str,
        typer.Option(
            "--prompt-tokens",
            metavar="LENGTH",
            help="128, 64-512, normal:MEAN:DEVIATION or exponential:MEAN; random tokens.",
            rich_help_panel=_WORK,
        ),
    ] = "128",
    output_tokens: Annotated[
        str,
        typer.Option(
            "--output-tokens", metavar="LENGTH", help="Most tokens of each answer.", rich_help_panel=_WORK
        ),
    ] = "128",
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help='JSON lines instead of random prompts: {"prompt": …} or {"messages": …}, "max_tokens" if wanted.',
            rich_help_panel=_WORK,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="0 is greedy.", rich_help_panel=_WORK)
    ] = 0.0,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos/--no-ignore-eos",
            help="Every answer as long as asked for; else it may end sooner.",
            rich_help_panel=_WORK,
        ),
    ] = True,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Of each request.", rich_help_panel=_WORK),
    ] = 300.0,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="If the server has several.", rich_help_panel=_WORK),
    ] = None,
    slo_first_token: Annotated[
        float | None,
        typer.Option(
            "--slo-first-token",
            metavar="SECONDS",
            min=0,
            help="Of a good request.",
            rich_help_panel=_OBJECTIVES,
        ),
    ] = None,
    slo_per_token: Annotated[
        float | None,
        typer.Option(
            "--slo-per-token",
            metavar="SECONDS",
            min=0,
            help="Mean after the first token, of a good request.",
            rich_help_panel=_OBJECTIVES,
        ),
    ] = None,
    slo_end_to_end: Annotated[
        float | None,
        typer.Option(
            "--slo-end-to-end",
            metavar="SECONDS",
            min=0,
            help="Of a good request.",
            rich_help_panel=_OBJECTIVES,
        ),
    ] = None,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    http: Annotated[
        str | None,
        typer.Option(
            "--http",
            metavar="URL",
            help="Through the OpenAI API at this address, instead of gRPC. Needs httpx.",
            rich_help_panel="Connection",
        ),
    ] = None,
    *,
    connection: Connection,
    config: ConfigFile = None,
) -> None:
    """Put load on a cluster that runs, and tell how long its users would have waited.

    Times are those of whoever waits: to the first token, between tokens, of the whole request.
    """
    from ryzanstein.measuring.flags import number_list, parsed
    from ryzanstein_client.bench import serving_view
    from ryzanstein_client.bench.arrivals import Concurrency, Limits, Rate
    from ryzanstein_client.bench.lengths import parse_length
    from ryzanstein_client.bench.session import Plan, measure
    from ryzanstein_client.bench.summary import Objectives

    rates = [Rate(number) for number in number_list("--rate", rate, float)]
    levels = [Concurrency(number) for number in number_list("--concurrency", concurrency, int)]
    plan = Plan(
        loads=(*levels, *rates) or (Concurrency(1), Concurrency(8)),
        limits=Limits(requests, duration or (DEFAULT_DURATION_S if requests is None else None)),
        prompt=parsed("--prompt-tokens", parse_length, prompt_tokens),
        output=parsed("--output-tokens", parse_length, output_tokens),
        prompts=prompts,
        warm_up=warm_up,
        seed=seed,
        objectives=Objectives(slo_first_token, slo_per_token, slo_end_to_end),
    )
    sampling: dict[str, Any] = {"temperature": temperature, "ignore_eos": ignore_eos}
    if http is not None and not http.startswith(("http://", "https://")):
        raise ProgramError(
            f"--http: {http!r} is no address: give a URL such as http://127.0.0.1:8000", exit_code=EXIT_USAGE
        )

    if http is not None:
        import httpx  # noqa: F401 - if it is not installed, that should be said now

    async def front() -> Front:
        from ryzanstein_client.bench.fronts import GrpcFront, HttpFront
        from ryzanstein_client.target import Target

        if http is not None:
            headers = dict(Target(api_key_file=connection.api_key_file).metadata())
            return HttpFront(
                http,
                headers=headers,
                ca_file=connection.tls_ca_file,
                model=model,
                timeout_s=timeout,
                **sampling,
            )
        from ryzanstein_client.types import SamplingParams

        return GrpcFront(
            connection.async_client(), model=model, sampling=SamplingParams(**sampling), timeout_s=timeout
        )

    settings = {"through": http or f"gRPC {connection.coordinator}", **plan.settings(), **sampling}
    view = View(serving_view.tables, serving_view.draw)
    with Bench("serving", settings, view, json_file=json_file, plot_file=plot_file) as bench:
        asyncio.run(measure(front, plan, bench.add))
    if not any(result.done for result in bench.results):
        raise ProgramError("no request came to its end: the table says why")
