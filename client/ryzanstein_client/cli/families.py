"""Families of options: declared once as the fields of a dataclass, taken by commands as one parameter.

typer reads a command's options from its signature and knows no families; `with_families` gives it a signature in which
every parameter that is a dataclass is replaced by the fields.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any


def with_families(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer should see it. Families are keyword-only parameters without a default.

    Raises:
        ValueError: two of its options have one name.
    """
    own = inspect.signature(command, eval_str=True)
    families: dict[str, type] = {
        name: parameter.annotation
        for name, parameter in own.parameters.items()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }
    members = {name: inspect.signature(family, eval_str=True).parameters for name, family in families.items()}
    seen: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        seen += [each.replace(kind=parameter.kind) for each in members.get(name, {name: parameter}).values()]

    @functools.wraps(command)
    def seen_by_typer(**values: Any) -> None:
        for name, family in families.items():
            values[name] = family(**{member: values.pop(member) for member in members[name]})
        command(**values)

    seen_by_typer.__signature__ = own.replace(parameters=seen)  # type: ignore[attr-defined]
    return seen_by_typer
