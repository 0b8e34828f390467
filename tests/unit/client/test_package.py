"""The package as such: what it imports, what it exports, and that the generated half is up to date."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ryzanstein_client
from ryzanstein_client import AsyncClient, Client, RyzansteinError

CLIENT = Path(ryzanstein_client.__file__).parent.parent


def test_the_synchronous_client_is_what_the_generator_writes() -> None:
    script = str(CLIENT / "generate_sync.py")
    checked = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (checked.stderr, checked.returncode) == ("", 0)


def test_both_clients_have_the_same_methods_and_keywords() -> None:
    def surface(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    of_async = surface(AsyncClient)
    of_async["close"] = of_async.pop("aclose")
    assert surface(Client) == of_async
    assert {"stream", "generate", "chat", "models", "cluster", "cancel", "tokenize", "detokenize"} <= set(
        of_async
    )


def test_importing_the_library_is_light() -> None:
    program = """
import json, sys, time
started = time.process_time()
from ryzanstein_client import AsyncClient, Client
print(json.dumps([time.process_time() - started, sorted(sys.modules)]))
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    cpu_s, modules = json.loads(output)
    heavy = {"rich", "typer", "structlog", "torch", "numpy", "click", "pydantic"}
    assert heavy.isdisjoint(modules)
    assert cpu_s < 0.5  # 0.1 s on a quiet machine; the bound leaves room for a busy one


def test_the_command_line_begins_without_grpc() -> None:
    """`serve` starts its children before anything else: what it imports first they all wait for."""
    program = """
import json, sys
from ryzanstein_client.cli.main import build_app
build_app()
print(json.dumps(sorted(sys.modules)))
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"grpc", "google.protobuf", "torch", "numpy"}.isdisjoint(json.loads(output.stdout))


def test_a_name_that_is_not_exported_is_said_to_be_missing() -> None:
    with pytest.raises(ImportError, match="Nobody"):
        exec("from ryzanstein_client import Nobody")


@pytest.mark.parametrize("name", ryzanstein_client.__all__)
def test_everything_exported_exists_and_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(ryzanstein_client, name))


def test_every_exception_is_in_the_drawn_tree_and_has_its_parts() -> None:
    from ryzanstein_client import errors

    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]
    assert RyzansteinError in kinds
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")
        assert issubclass(kind, RyzansteinError)
        assert kind.__name__ in ryzanstein_client.__all__
    error = errors.QueueFull("the queue is full", retry_after_s=2.5)
    assert (error.message, error.hint, error.code) == (
        "the queue is full",
        "try again in 2.5 s",
        "RESOURCE_EXHAUSTED",
    )
    assert str(error) == "the queue is full; try again in 2.5 s"


def test_names_are_there_before_they_are_used_and_so_are_the_modules_that_readers_are_sent_to() -> None:
    script = (
        "import sys, ryzanstein_client as r; assert not {'grpc', 'ryzanstein_client.sync'} & set(sys.modules); "
        "assert {'Client', 'errors', '__all__'} <= set(dir(r)); print(r.errors.RyzansteinError is r.RyzansteinError)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (shown.stdout, shown.stderr) == ("True\n", "")
