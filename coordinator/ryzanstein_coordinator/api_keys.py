"""API keys: who may ask for what. Read from a file, kept as hashes, compared in constant time.

    # key                                               name       roles
    b6d4c1c5f0a94b6f8a1f20f1d1b8f7c2                    alice
    0c9f7b1e6c7d4d0fa3f9b3f5f1c2a7e1                    dashboard  operations
    9a4b0d5b3d6748d2b7a5cf7e2f6d9c10                    admin      inference,operations

One key per line, then its owner's name and the roles, both optional. Without a name it is called after the first
digits of its hash; without roles it may do inference, and nothing else. Two keys of one name belong to one owner: a
key is replaced by adding the new one before the old is removed. The owner's name is what logs, admission and the ids of
requests know; the key itself is nowhere but in the file.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ryzanstein.secret_files import SecretFileError, Watched, read_secret, secret_lines

FLAG = "--api-key-file"

INFERENCE = "inference"
OPERATIONS = "operations"
ROLES = (INFERENCE, OPERATIONS)

#: Shorter ones can be guessed. `openssl rand -hex 16` makes 32.
SHORTEST_KEY = 16

_KEY = re.compile(r"[!-~]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One line of the file."""

    #: SHA-256 of the key: a key of 16 random characters can't be found from it.
    digest: bytes = field(repr=False)
    name: str
    roles: frozenset[str]


class KeyRing:
    """All keys, as of now."""

    def __init__(self, read: Callable[[], tuple[ApiKey, ...]]) -> None:
        self._read = read

    @classmethod
    def from_file(cls, path: Path) -> KeyRing:
        """Reads again when the file changes. Raises SecretFileError."""
        return cls(Watched(lambda: read_keys(path), (path,)).get)

    def find(self, presented: str) -> ApiKey | None:
        """The key with this text; takes the same time wherever, and whether, it is in the file."""
        digest = _digest(presented)
        found = None
        for key in self._read():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises SecretFileError, which names the line and never what is in it."""
    keys: dict[bytes, ApiKey] = {}
    for number, line in secret_lines(read_secret(path, FLAG), path, FLAG):
        try:
            key = _parse(line)
        except ValueError as error:
            raise SecretFileError(f"{FLAG}: {path}, line {number}: {error}") from None
        if key.digest in keys:
            raise SecretFileError(f"{FLAG}: {path}, line {number}: this key stands in the file twice")
        keys[key.digest] = key
    if not keys:
        raise SecretFileError(f"{FLAG}: {path} holds no key; make one: openssl rand -hex 16 > {path}")
    return tuple(keys.values())


def _parse(line: str) -> ApiKey:
    """Raises ValueError saying what is wrong."""
    key, *rest = line.split()
    if len(rest) > 2:
        raise ValueError("a line has a key, a name and roles (separated by commas), and nothing else")
    if len(key) < SHORTEST_KEY or not _KEY.fullmatch(key):
        raise ValueError(
            f"a key has {SHORTEST_KEY} or more printable ASCII characters; make one: openssl rand -hex 16"
        )
    digest = _digest(key)
    name = rest[0] if rest else f"key-{digest.hex()[:8]}"
    if not _NAME.fullmatch(name):
        raise ValueError("a name has 1 to 64 letters, digits or . _ @ - and begins with a letter or digit")
    roles = frozenset(rest[1].split(",")) if len(rest) == 2 else frozenset({INFERENCE})
    if not roles <= set(ROLES):
        raise ValueError(f"roles are {' and '.join(ROLES)}, separated by a comma")
    return ApiKey(digest, name, roles)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
