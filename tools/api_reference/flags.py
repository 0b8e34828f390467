"""The table of all flags of all commands, as the programs themselves declare them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from ryzanstein_client.cli.main import build_app

from .markdown import code, table

#: Commands that belong together, in the order of the tables: within a family a flag stands once.
FAMILIES = (
    ("serve", "coordinator"),
    ("shard-worker",),
    ("plan",),
    ("shard",),
    ("generate", "chat"),
    ("status", "top", "drain"),
    ("bench serving", "bench scaling", "bench communication", "bench loading"),
)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag, or one argument, of one or several commands that mean the same by it."""

    spelling: str
    value: str
    default: str
    meaning: str


def commands() -> dict[str, list[Any]]:
    """Command, with its group's name before its own → its parameters."""
    return {name: [p for p in command.params if _is_shown(p)] for name, command in _leaves(_program())}


def spellings() -> set[str]:
    """Every flag that any command knows, `--no-…` and short ones included."""
    known = {"--help"}
    for command in (_program(), *(command for _, command in _leaves(_program()))):
        for parameter in command.params:
            known.update(word for word in (*parameter.opts, *parameter.secondary_opts) if word[:1] == "-")
    return known


@cache
def _program() -> Any:
    return typer.main.get_command(build_app())


def _leaves(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{before}{name} ")
        else:
            yield before + name, command


def declared() -> set[str]:
    """Every flag that a person may give, by its main spelling."""
    return {
        max(parameter.opts, key=len)
        for parameters in commands().values()
        for parameter in parameters
        if parameter.param_type_name == "option"
    }


def reference() -> list[str]:
    """Lines of Markdown: tables by family, in each one for every set of commands that share flags."""
    known = commands()
    named = {name for family in FAMILIES for name in family}
    lines: list[str] = []
    others: list[tuple[str, ...]] = [(name,) for name in sorted(set(known) - named)]
    for family in [*FAMILIES, *others]:
        lines += _family({name: known[name] for name in family if name in known})
    return lines


def _family(known: dict[str, list[Any]]) -> list[str]:
    users: dict[Flag, list[str]] = {}
    for command, parameters in known.items():
        for parameter in parameters:
            users.setdefault(_flag(parameter), []).append(command)
    shared: dict[tuple[str, ...], list[Flag]] = {}
    for flag, together in users.items():
        shared.setdefault(tuple(together), []).append(flag)
    lines: list[str] = []
    for names, flags in shared.items():
        rows = [(code(f.spelling), code(f.value), code(f.default), f.meaning) for f in flags]
        title = ", ".join(code(name) for name in names)
        lines += [f"{title}:", "", *table(("flag", "value", "default", "meaning"), rows), ""]
    return lines


def _is_shown(parameter: Any) -> bool:
    return parameter.name != "help" and not parameter.hidden


def _flag(parameter: Any) -> Flag:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
        return Flag(name, "", _text(parameter.default), _help(parameter))
    spelling = ", ".join(sorted(parameter.opts, key=len, reverse=True))
    if parameter.secondary_opts:
        spelling += "/" + parameter.secondary_opts[0]
    value = _value(parameter)
    return Flag(spelling, value, _text(parameter.default, value), _help(parameter))


def _value(parameter: Any) -> str:
    """What stands behind the flag. typer keeps the type in one place or another, depending on its version."""
    if parameter.is_flag:
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    kind = getattr(parameter, "type", None)
    if kind is not None:
        return str(kind.name).upper()
    names = {int: "INTEGER", float: "FLOAT", str: "TEXT", Path: "PATH"}
    annotation = parameter.type_descriptor.annotation
    return next((name for known, name in names.items() if annotation in (known, known | None)), "VALUE")


def _text(default: Any, value: str = "") -> str:
    """What stands if the flag is not given; empty where that is nothing that could be written down."""
    if default is None or default is False or default == "" or callable(default):
        return ""
    if type(default).__name__ in ("Sentinel", "_UnsetType"):  # click's word for "none was declared"
        return ""
    if value == "BYTES" and default % 2**30 == 0:
        return f"{default // 2**30}GiB"
    if isinstance(default, float):
        return f"{default:g}"
    return "on" if default is True else str(default)


def _help(parameter: Any) -> str:
    return str(parameter.help or "")
