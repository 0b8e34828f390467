"""Who may call what. Pure: a method or a path and the key that came with it, to a caller or a refusal.

| may call | with |
|---|---|
| `/livez` `/readyz` `/health`, `grpc.health.v1` Check | nothing: they tell probes whether it serves |
| `/` `/dashboard/…` | nothing: files that are the same everywhere; what they show comes from `/cluster` |
| `/v1/…` `/tokenize` `/detokenize`, InferenceService | a key with the role inference |
| reflection, `/openapi.json` | any key |
| ClusterService, RendezvousService | the join token or a certificate, never a key: see `ryzanstein.join_calls` |
| everything else: OperationsService, health's Watch, `/cluster`, `/metrics`, what is not known | a key with the role \
operations |

Without `--api-key-file` everybody who reaches the ports may call everything but what members call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import grpc

from ryzanstein.wire import StatusError

from .api_keys import INFERENCE, OPERATIONS, KeyRing


class Access(Enum):
    """What a call needs."""

    OPEN = "open"
    ANY_KEY = "any key"
    INFERENCE = INFERENCE
    OPERATIONS = OPERATIONS
    MEMBER = "member"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a call carries; empty: keys are not asked for."""

    name: str = ""


NOBODY = Caller()

#: Where an HTTP request's scope has its `Caller`.
CALLER = "ryzanstein.caller"

_OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/health"})
_INFERENCE_PATHS = frozenset({"/tokenize", "/detokenize"})
_SERVICES = {
    "ryzanstein.v1.InferenceService": Access.INFERENCE,
    "ryzanstein.v1.ClusterService": Access.MEMBER,
    "ryzanstein.v1.RendezvousService": Access.MEMBER,
    "grpc.reflection.v1alpha.ServerReflection": Access.ANY_KEY,
    "grpc.reflection.v1.ServerReflection": Access.ANY_KEY,
}


def access_to_method(method: str) -> Access:
    """`method`: "/package.Service/Method"."""
    if method == "/grpc.health.v1.Health/Check":
        return Access.OPEN
    service = method.removeprefix("/").partition("/")[0]
    return _SERVICES.get(service, Access.OPERATIONS)


def access_to_path(path: str) -> Access:
    """`path`: as the router of HTTP sees it, decoded."""
    if path in _OPEN_PATHS or path.startswith("/dashboard/"):
        return Access.OPEN
    if path in _INFERENCE_PATHS or path.startswith("/v1/"):
        return Access.INFERENCE
    return Access.ANY_KEY if path == "/openapi.json" else Access.OPERATIONS


def identify(keys: KeyRing | None, access: Access, authorization: str | None, what: str) -> Caller:
    """Who calls.

    Args:
        keys: None: everybody may.
        authorization: the header or metadata of that name; None: there is none.
        what: the method or path, for the message.

    Raises:
        StatusError: UNAUTHENTICATED without a key that is known; PERMISSION_DENIED for one without the role.
    """
    if keys is None or access is Access.OPEN:
        return NOBODY
    if authorization is None:
        raise unauthenticated("this server wants an API key; send it as 'authorization: Bearer KEY'")
    key = keys.find(_key_of(authorization))
    if key is None:
        raise unauthenticated("the API key is not one of this server's")
    if access is not Access.ANY_KEY and access.value not in key.roles:
        raise StatusError(
            grpc.StatusCode.PERMISSION_DENIED,
            f"the API key of {key.name} may do {' and '.join(sorted(key.roles))}; {what} needs one with the role "
            f"{access.value}",
        )
    return Caller(key.name)


def http_caller(scope: Mapping[str, Any]) -> Caller:
    """Who sent the HTTP request with this ASGI scope."""
    return cast("Caller", scope.get(CALLER, NOBODY))


def unauthenticated(message: str) -> StatusError:
    """No key, or none of ours."""
    return StatusError(grpc.StatusCode.UNAUTHENTICATED, message)


def _key_of(authorization: str) -> str:
    """The key in `Bearer KEY`; empty, which no key is, for anything else."""
    scheme, _, value = authorization.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
