"""The join token: what a coordinator and its shard workers know, and nobody else.

It never crosses the wire. Every call between them carries a proof in its metadata that the caller knows it: an HMAC
(RFC 2104, SHA-256) over who calls, which method, when, a number used once, and the message. So a stranger who listens
where a coordinator should (its port was free for a moment) gets nothing that opens anything: a proof is for one message
to one method, in one direction, once, and for a few minutes.

    v1.<seconds since 1970>.<16 random bytes, hex>.<SHA-256 of the message, hex; "-" for a stream>.<HMAC, hex>

A token file has one token per line. The first one is what this program proves with, all are accepted: a token is
replaced without a break by adding the new one behind the old on all sides, then moving it to the front, then removing
the old one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from .secret_files import SecretFileError, Watched, read_secret, secret_lines

#: Metadata of every call between coordinator and workers.
PROOF_KEY = "ryzanstein-join-proof"

FLAG = "--join-token-file"

#: `openssl rand -hex 32` makes 64.
SHORTEST_TOKEN = 16

#: How far the clocks of two hosts may be apart, and how long a proof is good.
WINDOW_S = 300.0

#: In the place of a message's hash, for the calls that send a stream of them.
STREAM = "-"

_PROOF = re.compile(r"v1\.(\d{1,12})\.([0-9a-f]{32})\.(-|[0-9a-f]{64})\.([0-9a-f]{64})")


class Role(Enum):
    """Who calls: a proof of one is none of the other, so that it can't be sent back to where it came from."""

    COORDINATOR = "coordinator"
    WORKER = "worker"


class JoinTokens:
    """The tokens of a file, as of now."""

    def __init__(
        self, read: Callable[[], tuple[bytes, ...]], *, clock: Callable[[], float] = time.time
    ) -> None:
        """`read` returns at least one. `clock`: seconds since 1970."""
        self._read = read
        self._clock = clock

    @classmethod
    def from_file(cls, path: Path) -> JoinTokens:
        """Reads again when the file changes. Raises SecretFileError."""
        return cls(Watched(lambda: read_tokens(path), (path,)).get)

    def prove(self, role: Role, method: str, message: bytes | None = None) -> str:
        """That this program knows the token, for one call of `method` ("/package.Service/Method").

        `message`: the bytes that are sent; None: a stream.
        """
        digest = STREAM if message is None else digest_of(message)
        covered = (str(int(self._clock())), secrets.token_hex(16), digest)
        return ".".join(("v1", *covered, _mac(self._read()[0], role, method, covered)))

    def know(self, role: Role, method: str, covered: tuple[str, ...], mac: str) -> bool:
        """Whether the MAC was made with one of the tokens. Takes the same time whichever it is."""
        known = False
        for token in self._read():
            known |= hmac.compare_digest(_mac(token, role, method, covered), mac)
        return known


class ProofVerifier:
    """Checks the proofs of those in `role`, each of which counts once. Safe from any thread."""

    def __init__(
        self,
        tokens: JoinTokens,
        role: Role,
        *,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: seconds since 1970, because two hosts must agree on it."""
        self._tokens = tokens
        self._role = role
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        #: Numbers that were used; in the order in which they came, each with the time when it is forgotten.
        self._used: set[str] = set()
        self._forget_at: deque[tuple[float, str]] = deque()

    def refusal(self, method: str, proof: str | None) -> str:
        """Why this call is none of the cluster's; empty: it is, if its message has the hash of `message_digest`."""
        if proof is None:
            return f"only members of this cluster may call {method}: give the cluster's token with {FLAG}"
        parts = _PROOF.fullmatch(proof)
        if parts is None or not self._tokens.know(self._role, method, parts.groups()[:3], parts[4]):
            return f"the join token is not this cluster's: give the same one with {FLAG} on both sides"
        # From here on the caller is known to have the token, and may be told more.
        now_s = self._clock()
        age_s = now_s - int(parts[1])
        if not abs(age_s) <= self._window_s:
            return (
                f"the proof of the join token is {age_s:.0f} s old: the clocks of the two hosts are more than "
                f"{self._window_s:.0f} s apart (set them by NTP), or somebody sent an old message again"
            )
        with self._lock:
            while self._forget_at and self._forget_at[0][0] < now_s:
                self._used.discard(self._forget_at.popleft()[1])
            if parts[2] in self._used:
                return "this proof of the join token was used before: somebody sent a message again"
            self._used.add(parts[2])
            self._forget_at.append((now_s + 2 * self._window_s, parts[2]))
        return ""

    @property
    def remembered(self) -> int:
        """How many proofs can't be used again: only members' count, so strangers don't make them more."""
        return len(self._used)


def message_digest(proof: str | None) -> str:
    """The hash that the call's message must have, or STREAM; empty if it is no proof."""
    parts = _PROOF.fullmatch(proof or "")
    return parts[3] if parts else ""


def digest_of(message: bytes) -> str:
    """As proofs have it."""
    return hashlib.sha256(message).hexdigest()


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """The tokens of a file. Raises SecretFileError."""
    lines = secret_lines(read_secret(path, FLAG), path, FLAG)
    if not lines:
        raise SecretFileError(f"{FLAG}: {path} holds no token; make one: openssl rand -hex 32 > {path}")
    for number, token in lines:
        if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
            raise SecretFileError(
                f"{FLAG}: {path}, line {number}: a token has {SHORTEST_TOKEN} or more ASCII characters without blanks; "
                f"make one: openssl rand -hex 32"
            )
    return tuple(token.encode() for _, token in lines)


def new_token() -> bytes:
    """The text of a token file with one random token of 256 bits."""
    return f"{secrets.token_hex(32)}\n".encode()


def _mac(token: bytes, role: Role, method: str, covered: tuple[str, ...]) -> str:
    # No part may hold a line's end: a method's name comes from HTTP/2, which forbids it; the others are checked.
    text = "\n".join(("ryzanstein join v1", role.value, method, *covered))
    return hmac.new(token, text.encode(), hashlib.sha256).hexdigest()
