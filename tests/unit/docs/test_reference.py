"""What is generated in the documents is what the code says."""

from __future__ import annotations

from tools.api_reference import flags, pages, protocol
from tools.api_reference.markdown import fenced, prose, table

import ryzanstein_client
from ryzanstein.v1 import cluster_pb2, inference_pb2, operations_pb2, sampling_pb2, shard_worker_pb2


def test_the_generated_pages_are_up_to_date() -> None:
    behind = [path.name for path in pages.stale()]
    assert not behind, f"{behind}: run python -m tools.api_reference and commit what it wrote"


def test_every_service_message_and_enum_has_its_place() -> None:
    text = "\n".join(protocol.reference())
    for module in (cluster_pb2, inference_pb2, operations_pb2, sampling_pb2, shard_worker_pb2):
        file = module.DESCRIPTOR
        for kind, names in (
            ("service", file.services_by_name),
            ("message", file.message_types_by_name),
            ("enum", file.enum_types_by_name),
        ):
            for name in names:
                assert f"#### {kind} {name}\n" in text


def test_every_method_says_what_it_does() -> None:
    for file in protocol.descriptors():
        named = protocol.comments(file)
        for service_index, service in enumerate(file.service):
            for index, method in enumerate(service.method):
                path = (6, service_index, 2, index)
                assert named.get(path), f"{service.name}.{method.name} has no comment in {file.name}"


def test_every_name_that_the_library_exports_has_its_place() -> None:
    text = pages.reference_page()
    for name in ryzanstein_client.__all__:
        assert f"#### class {name}\n" in text or f"| `{name}` |" in text, name


def test_the_flags_of_a_family_stand_once() -> None:
    rows = [line for line in flags.reference() if line.startswith("| `--tensor-parallel-size`")]
    assert len(rows) == len({"serve and coordinator", "plan", "bench loading", "demo"})
    assert any("`--reproducible/--no-reproducible`" in line for line in flags.reference())


def test_a_table_leaves_out_columns_without_text() -> None:
    assert table(("a", "b"), [("1", ""), ("2|3", "")]) == ["| a |", "|---|", "| 1 |", "| 2\\|3 |"]


def test_indented_parts_become_fenced_text() -> None:
    assert fenced(["so:", "", "    a", "      b", "", "end"]) == [
        "so:", "", "```text", "a", "  b", "```", "", "end", "",
    ]  # fmt: skip


def test_prose_joins_the_lines_of_a_paragraph() -> None:
    assert prose("one\ntwo\n\nthree") == "one two\n\nthree"
