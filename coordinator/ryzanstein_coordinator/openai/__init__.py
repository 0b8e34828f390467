"""The OpenAI API over HTTP: a thin front of the same request path that gRPC uses.

A POST in order: `edge` (its id, its size), `early` (is there room for any?), `routes`, `schemas` (its fields),
`prompts` and `sampling` (to what the request path takes), `resume` (is it one that we have?), `answer` (its
sequences, admitted and read), `choices` and `logprobs` (tokens to the parts of a reply), `stream` or `whole` (the
reply). `errors` is how each may end; `replies` describes for /openapi.json what is sent.
"""

from .early import EarlyRefusal
from .edge import Edge
from .errors import install_errors
from .routes import openai_routes

__all__ = ["EarlyRefusal", "Edge", "install_errors", "openai_routes"]
