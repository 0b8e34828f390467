"""The client library's reference: what `ryzanstein_client` exports, from signatures, docstrings and `#:` comments."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType

import ryzanstein_client
from ryzanstein_client import errors, types
from ryzanstein_client.target import DEFAULT_ADDRESS

from .markdown import code, fenced, prose, table

#: A section of a docstring in Google's style: "Args:", "Raises:", "Returns:".
_SECTION = re.compile(r"^(Args|Raises|Returns):$")
_ENTRY = re.compile(r"^ {4}(?P<name>[\w*]+): (?P<text>.*)$")


def reference() -> list[str]:
    """Lines of Markdown, headings from the third level on."""
    exported = {name: getattr(ryzanstein_client, name) for name in ryzanstein_client.__all__}
    kinds: dict[str, list[type]] = {"clients": [], "records": [], "errors": []}
    for thing in exported.values():
        if issubclass(thing, errors.RyzansteinError):
            kinds["errors"].append(thing)
        else:
            kinds["records" if thing.__module__ == types.__name__ else "clients"].append(thing)
    lines = ["### Clients", ""]
    for thing in sorted(kinds["clients"], key=lambda kind: kind.__name__.startswith("Async")):
        lines += _asynchronous(thing) if thing.__name__.startswith("Async") else _client(thing)
    lines += ["### Records", ""]
    for thing in [*kinds["records"], types.RequestOptions]:
        lines += _record(thing)
    return lines + _errors(kinds["errors"])


def _client(kind: type) -> list[str]:
    node = _node(kind)
    lines = [f"#### class {kind.__name__}", ""]
    constructor = next((f for f in _functions(node) if f.name == "__init__"), None)
    if constructor is not None and kind.__name__ == "Client":
        lines += ["```text", _signature(constructor, kind.__name__).replace(", ", ",\n       "), "```", ""]
    lines += [*_docstring(ast.get_docstring(node)), ""]
    rows = []
    shown: dict[str, list[ast.FunctionDef | ast.AsyncFunctionDef]] = {}
    for function in _functions(node):
        if not function.name.startswith("_"):
            shown.setdefault(function.name, []).append(function)
    for name, variants in shown.items():
        overloads = [f for f in variants if _is("overload", f)] or variants
        text = ast.get_docstring(variants[-1]) or ""
        as_property = _is("property", variants[-1])
        signatures = (name if as_property else _signature(f, name) for f in overloads)
        rows.append(("<br>".join(code(" ".join(s.split())) for s in signatures), prose(text)))
    return [*lines, *table(("method", "meaning"), rows), ""]


def _asynchronous(kind: type) -> list[str]:
    twin = getattr(ryzanstein_client, kind.__name__.removeprefix("Async"))
    mine = {f.name for f in _functions(_node(kind)) if not f.name.startswith("_")}
    theirs = {f.name for f in _functions(_node(twin)) if not f.name.startswith("_")}
    awaitable = sorted(
        f.name
        for f in _functions(_node(kind))
        if isinstance(f, ast.AsyncFunctionDef) and not f.name.startswith("_") and not _yields(f)
    )
    differs = [f"`{name}` in place of `{name.removeprefix('a')}`" for name in sorted(mine - theirs)]
    text = (
        f"The same as [{twin.__name__}](#class-{twin.__name__.lower()}) for asyncio: `async with` and `async for`; "
        f"to be awaited: {', '.join(code(name) for name in dict.fromkeys(awaitable))}"
    )
    return [f"#### class {kind.__name__}", "", text + (f" ({'; '.join(differs)})." if differs else "."), ""]


def _record(kind: type) -> list[str]:
    node = _node(kind)
    rows = [
        (code(name), code(annotation), comment or _inherited(kind, name))
        for name, annotation, comment in _fields(node, inspect.getsource(kind))
    ]
    lines = [f"#### class {kind.__name__}", "", *_docstring(ast.get_docstring(node)), ""]
    return [*lines, *table(("field", "type", "meaning"), rows), ""]


def _inherited(kind: type, field: str) -> str:
    """Keywords that mean the same as a field of SamplingParams say so."""
    if kind is types.RequestOptions and field in types.SamplingParams.__dataclass_fields__:
        return "as in [SamplingParams](#class-samplingparams)"
    return ""


def _errors(kinds: list[type]) -> list[str]:
    rows = []
    for kind in kinds:
        assert issubclass(kind, errors.RyzansteinError)
        base = kind.__mro__[1].__name__
        rows.append(
            (
                code(kind.__name__),
                code(base),
                code(kind.code),
                str(kind.exit_code),
                prose(inspect.getdoc(kind) or ""),
            )
        )
    header = ("exception", "is a", "gRPC status", "exit code of a command", "meaning")
    return ["### Exceptions", "", *_docstring(_module_docstring(errors)), "", *table(header, rows), ""]


def _module_docstring(module: ModuleType) -> str:
    return inspect.getdoc(module) or ""


def _node(kind: type) -> ast.ClassDef:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    return node


def _functions(node: ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            yield part


def _yields(function: ast.AsyncFunctionDef) -> bool:
    return any(isinstance(node, ast.Yield) for node in ast.walk(function))


def _is(decorator: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(d) == decorator for d in function.decorator_list)


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
    """As it is called: without `self`, without the quotes and names that only a type checker needs."""
    arguments = ast.unparse(function.args).removeprefix("self").removeprefix(", ")
    arguments = re.sub(r"Unpack\[(\w+)\]", r"\1", arguments).replace("DEFAULT_ADDRESS", repr(DEFAULT_ADDRESS))
    arguments = re.sub(r"(: [^,=]+)=", r"\1 = ", arguments)
    gives = "" if function.name == "__init__" or function.returns is None else ast.unparse(function.returns)
    return f"{name}({arguments})" + (f" -> {gives}" if gives else "")


def _fields(node: ast.ClassDef, source: str) -> Iterator[tuple[str, str, str]]:
    """(name, type, comment) of each; the comment is in the `#:` lines above it."""
    lines = textwrap.dedent(source).splitlines()
    for part in node.body:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            continue
        first = part.lineno - 1
        while first > 0 and lines[first - 1].strip().startswith("#:"):
            first -= 1
        comment = " ".join(line.strip().removeprefix("#:").strip() for line in lines[first : part.lineno - 1])
        yield part.target.id, ast.unparse(part.annotation), comment


def _docstring(text: str | None) -> list[str]:
    """Prose as it is; sections of arguments as lists."""
    lines: list[str] = []
    inside = False
    for line in inspect.cleandoc(text or "").splitlines():
        if _SECTION.match(line):
            inside = True
            lines += [f"{line}", ""]
        elif inside and (entry := _ENTRY.match(line)):
            lines.append(f"- {code(entry['name'])}: {entry['text']}")
        elif inside and line.startswith("        ") and lines:
            lines[-1] += " " + line.strip()
        else:
            inside = inside and not line.strip()
            lines.append(line)
    return fenced(lines)
