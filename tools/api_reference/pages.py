"""The pages that hold what is generated: the whole API reference, and the marked part of the guide."""

from __future__ import annotations

from pathlib import Path

from . import flags, library, protocol

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = DOCS / "API_REFERENCE.md"
GUIDE = DOCS / "DISTRIBUTED_INFERENCE_GUIDE.md"

_BEGIN = "<!-- flags: written by tools/api_reference -->"
_END = "<!-- end of flags -->"

_HEAD = """\
# API reference

Written by `python -m tools.api_reference` from the comments of the .proto files and the docstrings of the client:
change those, not this page. How to use it all is in [the guide](DISTRIBUTED_INFERENCE_GUIDE.md), with
[the flags of the commands](DISTRIBUTED_INFERENCE_GUIDE.md#every-flag) and
[the paths of HTTP](DISTRIBUTED_INFERENCE_GUIDE.md#http-paths), which a coordinator that runs describes under
`/openapi.json`. The JSON of `/cluster` is the message [ClusterSnapshot](#message-clustersnapshot), field for field
([JSON schema](cluster.schema.json)).

- [Python](#python): [clients](#clients), [records](#records), [exceptions](#exceptions)
- [gRPC](#grpc): [what clients call](#inferenceproto), [sampling](#samplingproto), [operations](#operationsproto),
  [what workers call](#clusterproto), [what the coordinator calls on a worker](#shard_workerproto)
"""

_GRPC = """\
Package `ryzanstein.v1`, files in `protos/ryzanstein/v1/`. Besides these the coordinator's port offers
`grpc.health.v1.Health` and reflection (v1alpha), so that tools need no .proto files. An unset field means what its
comment says; a field of type `optional` tells unset from zero. A status is gRPC's: RESOURCE_EXHAUSTED and UNAVAILABLE
may carry `retry-after-ms` in their trailing metadata. What each status means, also over HTTP, is in
[the guide](DISTRIBUTED_INFERENCE_GUIDE.md#http-paths).
"""


def reference_page() -> str:
    """All of docs/API_REFERENCE.md."""
    lines = [_HEAD, "## Python", "", "    from ryzanstein_client import Client", ""]
    lines += library.reference()
    lines += ["## gRPC", "", _GRPC, *protocol.reference()]
    return _tidy("\n".join(lines))


def guide_page() -> str:
    """docs/DISTRIBUTED_INFERENCE_GUIDE.md with the table of flags as it should be.

    Raises:
        ValueError: the guide has no place for it.
    """
    text = GUIDE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{GUIDE}: the lines {_BEGIN!r} and {_END!r} are missing")
    body = "\n".join(flags.reference()).strip("\n")
    return f"{before}{begin}\n\n{body}\n\n{end}{after}"


def pages() -> dict[Path, str]:
    """Every page that holds something generated, as it should be."""
    return {REFERENCE: reference_page(), GUIDE: guide_page()}


def stale() -> list[Path]:
    """Pages that are not as they should be."""
    return [
        path
        for path, text in pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def write() -> list[Path]:
    """Writes what is stale."""
    behind = stale()
    wanted = pages()
    for path in behind:
        path.write_text(wanted[path], encoding="utf-8")
    return behind


def _tidy(text: str) -> str:
    """No blank lines in a row, none at the end of a line's text, one newline at the end."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines).strip("\n") + "\n"
