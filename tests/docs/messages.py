"""Every message with which a program of ours tells its user that something is wrong, found in the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .pages import ROOT

#: What stands for a value.
GAP = "…"

#: Functions and exceptions that take the message, and which of their arguments it is. Those with an exit code of their
#: own are found in the sources.
_TAKES_MESSAGE = {
    # Programs end with it.
    "BadParameter": 0,
    "give_up": 0,
    # A call ends with it.
    "StatusError": 1,
    "invalid_argument": 0,
    "unauthenticated": 0,
    "not_found": 0,
    "unavailable": 0,
    "resource_exhausted": 0,
    "failed_precondition": 0,
    "deadline_exceeded": 0,
    "cancelled": 0,
    "internal": 0,
    "Refusal": 0,
    "_refused": 0,
    "BadRequestError": 0,
    # The client library raises it.
    "InvalidRequest": 0,
    "Cancelled": 0,
    "InternalError": 0,
    "DeadlineExceeded": 0,
}
_FOLDERS = ("protos/ryzanstein", "coordinator/ryzanstein_coordinator", "shard_worker/ryzanstein_shard_worker")
#: Pieces of a message that are no message of their own: they only pass on another one.
_LEAST_LETTERS = 8


@dataclass(frozen=True, slots=True)
class Message:
    """One message as its source has it; `…` stands for a value."""

    text: str
    place: str


@cache
def messages() -> list[Message]:
    """All of them, in the order of the sources."""
    takes = _TAKES_MESSAGE | dict.fromkeys(_ending_programs(_trees().values()), 0)
    found = []
    for path, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                text = _message_of(node, takes)
                if text is not None and len(re.sub(rf"[{GAP}\W]", "", text)) >= _LEAST_LETTERS:
                    found.append(Message(" ".join(text.split()), f"{path.relative_to(ROOT)}:{node.lineno}"))
    return found


@cache
def literals() -> set[str]:
    """All texts of the sources: what a program may write at all."""
    nodes = (node for tree in _trees().values() for node in ast.walk(tree))
    texts = (_text(node) or "" for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant))
    return {" ".join(text.split()) for text in texts if len(text) >= _LEAST_LETTERS}


@dataclass(frozen=True, slots=True)
class Quote:
    """A message as a document quotes it: its words, with anything in the place of `…`."""

    text: str

    def fits(self, message: str) -> bool:
        parts = [part.strip() for part in self.text.split(GAP)]
        if max(parts, key=len) not in message:  # quickly
            return False
        return re.search(".*".join(map(re.escape, parts)), message) is not None


@cache
def _trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in _sources()}


def _sources() -> Iterator[Path]:
    for folder in (*_FOLDERS, "client/ryzanstein_client"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name and not path.name.startswith("sync"):
                yield path


def _ending_programs(trees: Iterable[ast.Module]) -> set[str]:
    """Names of exceptions with an exit code, of their own or inherited: their message is one line for the user."""
    nodes = (node for tree in trees for node in ast.walk(tree))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name.endswith("Error")]
    found = {node.name for node in classes if "exit_code" in ast.unparse(node)} - {"RyzansteinError"}
    while more := {c.name for c in classes if any(ast.unparse(b) in found for b in c.bases)} - found:
        found |= more
    return found


def _message_of(call: ast.Call, takes: Mapping[str, int]) -> str | None:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name == "fail" and len(call.args) == 2 and isinstance(function, ast.Attribute):
        return _text(call.args[1])  # of a field of config.json: behind file and key
    place = takes.get(name)
    if place is None or len(call.args) <= place:
        return None
    return _text(call.args[place])


def _text(node: ast.expr) -> str | None:
    """The words of an expression; None if it has none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [_text(part) if isinstance(part, ast.Constant) else GAP for part in node.values]
        return "".join(part or "" for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None and right is None else f"{left or GAP}{right or GAP}"
    return None
