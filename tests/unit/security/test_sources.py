"""What none of our sources may do: make code of what comes in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = sorted(
    path
    for folder in ("protos", "coordinator", "shard_worker", "client")
    for path in (ROOT / folder).rglob("*.py")
    if "_pb2" not in path.name
)

FORBIDDEN = {
    # Reading them can run anything that their writer likes.
    *(
        f"module {name}"
        for name in ("pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")
    ),
    *("eval()", "exec()", "compile()", "__import__()"),
    # torch's own that pickle.
    *("torch.load", "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list"),
    *("send_object_list", "recv_object_list", "rpc_sync", "rpc_async"),
}


def offences(source: str) -> list[str]:
    """What is used that must not be."""
    return [name for node in ast.walk(ast.parse(source)) for name in _names(node) if name in FORBIDDEN]


def _names(node: ast.AST) -> list[str]:
    """What a node uses, as `FORBIDDEN` has it."""
    match node:
        case ast.Import():
            return [f"module {alias.name.split('.')[0]}" for alias in node.names]
        case ast.ImportFrom(module=str(module), level=0):
            return [f"module {module.split('.')[0]}"]
        case ast.Call(func=ast.Name(id=name)):
            return [f"{name}()"]
        case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
            return ["torch.load"]
        case ast.Attribute(attr=attribute):
            return [attribute]
    return []


def test_the_search_finds_what_it_looks_for() -> None:
    source = "import pickle\nfrom dill import loads\ntorch.load(name)\neval(text)\nd.all_gather_object(a, b)"
    assert sorted(offences(source)) == [
        "all_gather_object", "eval()", "module dill", "module pickle", "torch.load"
    ]  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_comes_in_becomes_code(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []
