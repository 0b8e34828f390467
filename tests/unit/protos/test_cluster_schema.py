"""The published schema of /cluster is what the code renders."""

from __future__ import annotations

from tools.cluster_schema import PATH, schema, text

from ryzanstein.v1 import operations_pb2
from ryzanstein.wire import to_plain


def test_the_published_schema_follows_the_message() -> None:
    assert PATH.read_text() == text(), "run python -m tools.cluster_schema and commit what it wrote"


def test_the_schema_names_exactly_the_keys_that_are_rendered() -> None:
    snapshot = operations_pb2.ClusterSnapshot()
    snapshot.workers.add()
    rendered = to_plain(snapshot)
    definitions = schema()["$defs"]
    assert list(rendered) == definitions["ClusterSnapshot"]["required"]
    assert list(rendered["workers"][0]) == definitions["WorkerStatus"]["required"]
    assert rendered["workers"][0]["rank"] is None
