"""Reading a JSON file of a model directory, where every mistake names the file, the key and what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

_Number = TypeVar("_Number", int, float)

#: A config.json is a few kilobytes; an index of the largest checkpoints is a few megabytes.
MAX_JSON_BYTES = 64 * 1024 * 1024


class ModelError(Exception):
    """A model directory can't be used: the message says which file, which key or tensor, and what to do."""

    exit_code = 2


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that the file holds. ModelError if it can't be read, is no JSON, or is not an object."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_JSON_BYTES:
            raise ModelError(
                f"{path}: {size_bytes} bytes are too many for a JSON file of a model "
                f"(at most {MAX_JSON_BYTES}); is it the right file?"
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; give the directory of a Hugging Face checkpoint") from None
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{path}: not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or an integer of thousands of digits
        raise ModelError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object, holds {describe(value)}")
    return value


def describe(value: object) -> str:
    """The value as an error shows it: its JSON type, and itself where that is short."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    name = names.get(type(value), "a number")
    text = repr(value)
    return f"{name} ({text})" if value is not None and len(text) <= 40 else name


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed access to the keys of one JSON object.

    An absent key and null mean the same: the default if one is given, else an error.
    """

    file: Path
    values: Mapping[str, Any]
    prefix: str = ""  #: where the object stands in the file, for messages: "rope_scaling."

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raises the ModelError that names the file and the key."""
        raise ModelError(f"{self.file}: {self.prefix}{key}: {problem}")

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self.values.get(key) is not None

    def optional_integer(self, key: str, *, minimum: int = 1, maximum: int = 2**40) -> int | None:
        """The whole number of the key, None where it is absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # some writers put 32768.0
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, f"must be a whole number, is {describe(value)}")
        if not minimum <= value <= maximum:
            self.fail(key, f"must be between {minimum} and {maximum}, is {describe(value)}")
        return value

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = 2**40) -> int:
        """The whole number of the key, within its bounds."""
        value = self.optional_integer(key, minimum=minimum, maximum=maximum)
        return value if value is not None else self._default(key, default, "a whole number")

    def optional_number(self, key: str, *, above: float = 0.0) -> float | None:
        """The finite number of the key, greater than `above`; None where it is absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(key, f"must be a number, is {describe(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and number > above):
            self.fail(key, f"must be a finite number above {above:g}, is {describe(value)}")
        return number

    def number(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        """The finite number of the key, greater than `above`."""
        value = self.optional_number(key, above=above)
        return value if value is not None else self._default(key, default, "a number")

    def boolean(self, key: str, default: bool) -> bool:
        """The boolean of the key."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(key, f"must be true or false, is {describe(value)}")
        return value

    def optional_string(self, key: str) -> str | None:
        """The string of the key, None where it is absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(key, f"must be a string, is {describe(value)}")
        return value

    def optional_strings(self, key: str) -> tuple[str, ...] | None:
        """The list of strings of the key, None where it is absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(key, f"must be a list of strings, is {describe(value)}")
        return tuple(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """The token ids of a key that holds one id, a list of ids, or nothing."""
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for item in ids:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 2**31:
                self.fail(key, f"must be a token id or a list of token ids, is {describe(value)}")
        return tuple(ids)

    def optional_object(self, key: str) -> Fields | None:
        """The object of the key, None where it is absent or empty."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(key, f"must be an object, is {describe(value)}")
        return Fields(self.file, value, f"{self.prefix}{key}.") if value else None

    def _default(self, key: str, default: _Number | None, what: str) -> _Number:
        if default is None:
            self.fail(key, f"is missing; add {what}, as in the model's original config.json")
        return default
