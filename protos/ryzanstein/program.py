"""How every program of the project starts and ends: settings, exit codes, one-line errors.

A package declares its commands on a `typer.Typer` and runs it with `run(app)`; a command that can be
configured by a file declares `config: ConfigFile = None`. `run` then gives every flag its environment
variable, and turns whatever a command raises into one line on standard error and an exit code:

    0    done; also when the reader of standard output went away
    1    failed
    2    bad usage or configuration, or an extra that is not installed
    69   the coordinator can't be reached
    130  interrupted

An exception that a user can act on has an `exit_code` attribute and a message that says what, where and what
to do. Any other one is a defect: it is named, and its traceback is shown with `--debug`, which may stand
anywhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .settings import ENVIRONMENT_PREFIX, environment_variable, read_settings

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 69
EXIT_INTERRUPTED = 130

#: Environment variable with the number of the file descriptor on which a program tells its parent what it has reached.
ANNOUNCE_FD = "RYZANSTEIN_ANNOUNCE_FD"


def announce(line: str) -> bool:
    """Tells the parent; False if there is none that listens."""
    number = os.environ.get(ANNOUNCE_FD)
    if not number:
        return False
    os.write(int(number), f"{line}\n".encode())  # so short a line is written in one piece
    return True


_EPILOG = (
    f"Every flag can also be set by the environment ({ENVIRONMENT_PREFIX}<FLAG>, such as "
    f"{environment_variable('--grpc-port')}) or by a key of the file given with --config. "
    "Flag over environment over file over default."
)

#: Which extra brings a module: what a ModuleNotFoundError tells the user to install.
EXTRA_OF_MODULE = {
    "tokenizers": "coordinator",
    "jinja2": "coordinator",
    "fastapi": "coordinator",
    "pydantic": "coordinator",
    "uvicorn": "coordinator",
    "prometheus_client": "coordinator",
    "grpc_health": "coordinator",
    "grpc_reflection": "coordinator",
    "torch": "worker",
    "safetensors": "worker",
    "numpy": "worker",
    "pynvml": "worker",
    "httpx": "bench",
    "matplotlib": "bench",
}


class ProgramError(Exception):
    """A failure that the user can act on. The message says what, where and what to do."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def missing_extra(error: ModuleNotFoundError) -> ProgramError | None:
    """The error that names the extra to install; None if the module belongs to none of them."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF_MODULE.get(module)
    if extra is None:
        return None
    return ProgramError(
        f"the Python package {module!r} is not installed; it comes with the extra {extra!r}: "
        f"pip install 'ryzanstein[{extra}]'",
        exit_code=EXIT_USAGE,
    )


def _apply_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        parameters = {}
        for parameter in context.command.params:
            if parameter.name and not parameter.is_eager:
                parameters[parameter.name] = parameter.name
                parameters.update({flag: parameter.name for flag in parameter.opts if flag.startswith("--")})
        values = read_settings(path, parameters, command=context.command_path)
        context.default_map = {**(context.default_map or {}), **values}
    return path


#: `config: ConfigFile = None` lets a command be configured by a TOML file.
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=_apply_file,
        help="A TOML file whose keys are flags.",
    ),
]


#: `log_format: LogFormat = "auto"` and `log_level: LogLevel = "info"` are what services pass to `configure_logging`.
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        metavar="FORMAT",
        help="json, console, or auto: console if standard error is a terminal, else json",
    ),
]
LogLevel = Annotated[
    str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning, error or critical")
]


def run(app: typer.Typer, args: Sequence[str] | None = None, *, name: str = "ryzanstein") -> int:
    """Runs the command that `args` (the process's arguments by default) name and returns the exit code."""
    words = list(sys.argv[1:] if args is None else args)
    debug = _take_debug(words)
    # gRPC writes lines of its own to standard error, one for each stranger whose TLS handshake fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows no UTF-8 shows '?' and nothing breaks
            stream.reconfigure(errors="replace")
    try:
        command = typer.main.get_command(app)
        for leaf in _leaves(command):
            _connect_environment(leaf)
        with command.make_context(name, words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        _forget_output()
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one place where a program's failure becomes an exit code
        return _report(error, debug=debug)
    return 0


def _take_debug(words: list[str]) -> bool:
    """Removes `--debug` from the words before `--`; true if it was there or in the environment."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    given = len(kept) < end
    words[:end] = kept
    value = os.environ.get(environment_variable("--debug"), "")
    return given or value.lower() not in ("", "0", "false", "no")


def _leaves(command: Any) -> Iterator[Any]:
    children = getattr(command, "commands", None)
    if children is None:
        yield command
        return
    for child in children.values():
        yield from _leaves(child)


def _connect_environment(command: Any) -> None:
    command.epilog = command.epilog or _EPILOG
    for parameter in command.params:
        flags = [flag for flag in parameter.opts if flag.startswith("--")]
        if parameter.param_type_name == "option" and flags and not parameter.envvar:
            parameter.envvar = environment_variable(flags[0])
            parameter.show_envvar = False  # the epilog says it once for all


def _report(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    while isinstance(error, ExceptionGroup):  # a task group ends with its first failure
        error = error.exceptions[0]
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help page
        error.show()  # type: ignore[attr-defined]
        return EXIT_USAGE
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra(error) or error
    code = getattr(error, "exit_code", None)
    if not isinstance(code, int):
        hint = "" if debug else "; run it again with --debug for the traceback"
        _say(f"internal error: {type(error).__name__}: {error}{hint}")
        return EXIT_FAILED
    if hasattr(error, "format_message"):  # a usage error of the command line's own
        context = getattr(error, "ctx", None)
        _say(
            f"error: {error.format_message()}" + (f" (see {context.command_path} --help)" if context else "")
        )
    else:
        _say(f"error: {error}")
    return code


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)  # noqa: T201 - errors go to standard error


def _forget_output() -> None:
    """Lets the interpreter's last flush go nowhere: the reader (`| head`) has what it wanted."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
