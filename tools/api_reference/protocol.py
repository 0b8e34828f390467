"""The protocol's reference: services, messages and enums with their comments, from protoc's descriptors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

from .markdown import code, prose, table

ROOT = Path(__file__).parents[2] / "protos"
PACKAGE = "ryzanstein.v1"
#: What people call comes first, what the programs call among themselves after it.
ORDER = ("inference", "sampling", "operations", "cluster", "shard_worker")

# Numbers of the fields of descriptor.proto: a location's path is made of them.
_PACKAGE, _MESSAGES, _ENUMS, _SERVICES = 2, 4, 5, 6
_MEMBERS = 2

_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}


def descriptors() -> list[FileDescriptorProto]:
    """The protocol's files, with comments, in the order of the reference.

    Raises:
        RuntimeError: protoc refused them.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]  # comes with the extra `dev`

    sources = sorted(str(path) for path in (ROOT / "ryzanstein" / "v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "descriptors"
        arguments = ["protoc", "-I", str(ROOT), "-I", str(files("grpc_tools") / "_proto")]
        arguments += ["--include_source_info", f"--descriptor_set_out={out}", *sources]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc could not read {', '.join(sources)}")
        found = FileDescriptorSet.FromString(out.read_bytes()).file
    by_name = {Path(file.name).stem: file for file in found}
    rest = sorted(set(by_name) - set(ORDER))
    return [by_name[name] for name in (*ORDER, *rest) if name in by_name]


def comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """By the path of what they belong to (see SourceCodeInfo.Location in descriptor.proto)."""
    return {
        tuple(location.path): _plain(location.leading_comments or location.trailing_comments)
        for location in file.source_code_info.location
    }


def reference() -> list[str]:
    """Lines of Markdown, headings from the third level on."""
    lines: list[str] = []
    for file in descriptors():
        lines += _File(file).lines()
    return lines


class _File:
    """One .proto file with the comments of its parts."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = comments(file)

    def lines(self) -> list[str]:
        name = Path(self._file.name).name
        lines = [f"### {name}", "", self._comment((_PACKAGE,)), ""]
        for index, service in enumerate(self._file.service):
            lines += self._service(service, (_SERVICES, index))
        for index, message in enumerate(self._file.message_type):
            lines += self._message(message, (_MESSAGES, index))
        for index, enum in enumerate(self._file.enum_type):
            lines += self._enum(enum, (_ENUMS, index))
        return lines

    def _service(self, service: ServiceDescriptorProto, path: tuple[int, ...]) -> list[str]:
        rows = [
            (code(method.name), _call(method), self._comment((*path, _MEMBERS, index)))
            for index, method in enumerate(service.method)
        ]
        lines = [f"#### service {service.name}", ""]
        return lines + self._about(path) + table(("call", "takes → gives", "meaning"), rows) + [""]

    def _message(self, message: DescriptorProto, path: tuple[int, ...]) -> list[str]:
        lines = [f"#### message {message.name}", "", *self._about(path)]
        if not message.field:
            return [*lines, "No fields.", ""]
        rows = [
            (
                str(field.number),
                code(field.name),
                self._type(message, field),
                self._comment((*path, _MEMBERS, index)),
            )
            for index, field in enumerate(message.field)
        ]
        return lines + table(("", "field", "type", "meaning"), rows) + [""]

    def _enum(self, enum: EnumDescriptorProto, path: tuple[int, ...]) -> list[str]:
        rows = [
            (str(value.number), code(value.name), self._comment((*path, _MEMBERS, index)))
            for index, value in enumerate(enum.value)
        ]
        lines = [f"#### enum {enum.name}", "", *self._about(path)]
        return lines + table(("", "value", "meaning"), rows) + [""]

    def _about(self, path: tuple[int, ...]) -> list[str]:
        comment = self._comment(path)
        return [comment, ""] if comment else []

    def _comment(self, path: Sequence[int]) -> str:
        return self._comments.get(tuple(path), "")

    def _type(self, message: DescriptorProto, field: FieldDescriptorProto) -> str:
        kind = _SCALARS[field.type]
        if field.type in (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM):
            entry = next(
                (n for n in message.nested_type if n.options.map_entry and field.type_name.endswith(n.name)),
                None,
            )
            if entry is not None:
                key, value = (self._type(entry, part) for part in entry.field)
                return f"map of {key} to {value}"
            kind = _linked(field.type_name)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"repeated {kind}"
        if field.proto3_optional:
            return f"optional {kind}"
        if field.HasField("oneof_index"):
            return f"{kind}, one of `{message.oneof_decl[field.oneof_index].name}`"
        return kind


def _call(method: MethodDescriptorProto) -> str:
    taken = ("stream of " if method.client_streaming else "") + _linked(method.input_type)
    given = ("stream of " if method.server_streaming else "") + _linked(method.output_type)
    return f"{taken} → {given}"


def _linked(type_name: str) -> str:
    """A link to the type's own heading, or the name of one that is not ours."""
    package, _, name = type_name.removeprefix(".").rpartition(".")
    if package != PACKAGE:
        return code(f"{package}.{name}")
    kind = "enum" if name in _enum_names() else "message"
    return f"[{name}](#{kind}-{name.lower()})"


def _enum_names() -> frozenset[str]:
    from ryzanstein.v1 import cluster_pb2, inference_pb2, operations_pb2, sampling_pb2, shard_worker_pb2

    modules = (cluster_pb2, inference_pb2, operations_pb2, sampling_pb2, shard_worker_pb2)
    return frozenset(name for module in modules for name in module.DESCRIPTOR.enum_types_by_name)


def _plain(comment: str) -> str:
    return prose("\n".join(_unindented(comment)))


def _unindented(comment: str) -> Iterator[str]:
    for line in comment.splitlines():
        yield line.removeprefix(" ")
