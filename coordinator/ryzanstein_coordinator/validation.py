"""Checks of what every call carries besides prompt and sampling parameters."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from ryzanstein.wire import invalid_argument

from .errors import failed_precondition, out_of_range, shown
from .requests import RequestRecord

_LONGEST_REQUEST_ID = 128
#: About thirty years: longer timeouts are none.
_LONGEST_TIMEOUT_S = 1e9


def checked_request_id(request_id: str) -> str:
    """The id, or a new one if it is empty. Raises INVALID_ARGUMENT."""
    if not request_id:
        return f"req-{secrets.token_hex(12)}"
    if len(request_id) > _LONGEST_REQUEST_ID:
        raise invalid_argument(
            f"request_id has {len(request_id)} characters; it may have at most {_LONGEST_REQUEST_ID}"
        )
    if not all(" " <= character <= "~" for character in request_id):
        raise out_of_range("request_id", request_id, "printable ASCII")
    return request_id


def checked_timeout(timeout_s: float | None) -> float | None:
    """Seconds, or None for no deadline. Raises INVALID_ARGUMENT."""
    if timeout_s is None:
        return None
    if not timeout_s > 0.0:  # refuses NaN too
        raise out_of_range("timeout", timeout_s, "longer than 0 seconds")
    return timeout_s if timeout_s < _LONGEST_TIMEOUT_S else None


def check_priority(priority: int) -> None:
    """Raises INVALID_ARGUMENT for a number that the wire can't carry."""
    if not -(2**31) <= priority < 2**31:
        raise out_of_range("priority", priority, f"between {-(2**31)} and {2**31 - 1}")


def check_received(record: RequestRecord, received: Sequence[int], *, vocab_size: int) -> None:
    """Whether the caller's tokens can be those of the request, as far as they are known.

    Raises FAILED_PRECONDITION at the first that is another, INVALID_ARGUMENT for an id that the model lacks.
    """
    known = record.output.token_ids
    common = min(len(known), len(received))
    if list(known[:common]) != list(received[:common]):
        index = next(index for index in range(common) if known[index] != received[index])
        raise failed_precondition(
            f"received_token_ids[{index}] is {received[index]}, but the token of request "
            f"{shown(record.spec.request_id)} there is {known[index]}"
        )
    for index, token_id in enumerate(received[common:], common):
        if not 0 <= token_id < vocab_size:
            raise out_of_range(f"received_token_ids[{index}]", token_id, f"between 0 and {vocab_size - 1}")
