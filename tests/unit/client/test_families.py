"""Options that commands take by the family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from ryzanstein_client.cli.families import with_families


@dataclass(frozen=True, slots=True)
class Place:
    street: Annotated[str, typer.Option("--street", help="Where.")] = "High Street"
    number: Annotated[list[int] | None, typer.Option("--number")] = None


def call(app: typer.Typer, *words: str) -> str:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_options_of_a_family_come_as_one_value_beside_those_of_the_command() -> None:
    taken: list[tuple[str, Place, int]] = []
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @with_families
    def visit(name: str, *, place: Place, hour: int = 9) -> None:
        taken.append((name, place, hour))

    call(app, "Ann")
    call(app, "Ben", "--street", "Low Lane", "--number", "3", "--hour", "5", "--number", "4")
    assert taken == [("Ann", Place(), 9), ("Ben", Place("Low Lane", [3, 4]), 5)]
    helped = call(app, "--help")
    assert helped.index("--street") < helped.index("--number") < helped.index("--hour")
    assert "--place" not in helped


def test_a_name_that_a_family_has_already_is_refused() -> None:
    def visit(street: str, *, place: Place) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'street'"):
        with_families(visit)
