"""Configuration files of the programs: one flat TOML table whose keys are the flags of the command that runs.

The order is the same for every program and every flag: flag over environment (`RYZANSTEIN_<FLAG>`) over
`--config FILE.toml` over default. This module holds the parts that need nothing but the standard library;
`ryzanstein.program` connects them to the command line.

    # serve.toml, for `ryzanstein serve --config serve.toml`
    model-dir = "/srv/models/example"
    tensor-parallel-size = 2
    reproducible = true
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT_PREFIX = "RYZANSTEIN_"


class SettingsError(ValueError):
    """The configuration can't be used. The message says what is wrong, where, and what to do."""

    exit_code = 2


def environment_variable(flag: str) -> str:
    """`--grpc-port` → `RYZANSTEIN_GRPC_PORT`."""
    return ENVIRONMENT_PREFIX + _normal(flag).upper()


#: What a flag can take. Numbers become text again, so that a file is parsed as the command line would be.
Setting = str | bool | list[str]


def read_settings(path: Path, parameters: Mapping[str, str], *, command: str) -> dict[str, Setting]:
    """The values of a configuration file by parameter name.

    `parameters` maps each name that a file may use (a flag or the name of an argument; `-` and `_` mean the
    same) to the parameter that it sets. Raises SettingsError for a file that can't be read or is no TOML, for
    an unknown key, for a key given twice under both spellings, and for a value that no flag can take (a table
    or a date).
    """
    known = {_normal(name): parameter for name, parameter in parameters.items()}
    values: dict[str, Setting] = {}
    for key, value in _read_toml(path).items():
        parameter = known.get(_normal(key))
        if parameter is None:
            raise SettingsError(f"{path}: unknown key {key!r}: {_advice(key, value, known, command)}")
        if parameter in values:
            raise SettingsError(f"{path}: {key!r} is set twice, remove one of them")
        values[parameter] = _setting(path, key, value)
    return values


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"can't read the configuration file {path}: {error.strerror or error}") from error
    except ValueError as error:  # not UTF-8, or not TOML: both say where
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def _advice(key: str, value: object, known: Mapping[str, str], command: str) -> str:
    if isinstance(value, dict):
        return "tables are not used, put the flags at the top level of the file"
    flags = sorted(name.replace("_", "-") for name in known)
    close = difflib.get_close_matches(_normal(key).replace("_", "-"), flags, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{command} knows {', '.join(flags)}"


def _setting(path: Path, key: str, value: object) -> Setting:
    if isinstance(value, bool):
        return value
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return [str(item) for item in value]
    raise SettingsError(
        f"{path}: {key!r} is a {type(value).__name__}, but a flag takes text, a number, true or false, or a "
        "list of texts and numbers"
    )


def _normal(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
