"""Headers of safetensors files: the reference library and this reader accept the same files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from ryzanstein.model_plan import ModelError
from ryzanstein.model_plan.safetensors_header import MAX_HEADER_BYTES, SafetensorsHeader, read_header

_VALID: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
    "d": {"dtype": "F16", "shape": [0, 5], "data_offsets": [40, 40]},
}
_DATA = bytes(40)


def _write(directory: Path, header: object, data: bytes = _DATA, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = directory / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def _changed(name: str, **fields: object) -> dict[str, Any]:
    return {**_VALID, name: {**_VALID[name], **fields}}


def test_reads_where_every_tensor_lies(tmp_path: Path) -> None:
    path = _write(tmp_path, _VALID)
    header = read_header(path)
    assert list(header.tensors) == ["a", "b", "c", "d"]
    entry = header.tensors["b"]
    assert (entry.dtype, entry.shape, entry.begin - header.data_begin, entry.end - header.data_begin) == (
        "BF16", (4,), 24, 32,
    )  # fmt: skip
    assert header.size_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (_changed("a", dtype="F31"), "tensor a: has the unknown dtype 'F31'"),
        (_changed("a", dtype=None), "tensor a: has the unknown dtype None"),
        (_changed("a", dtype=["F32"]), "tensor a: has the unknown dtype ['F32']"),
        (_changed("a", shape=[2, -3]), "tensor a: has the shape a list ([2, -3])"),
        (_changed("a", shape=[2, 3.0]), "tensor a: has the shape"),
        (_changed("a", shape=[True, 6]), "tensor a: has the shape"),
        (_changed("a", shape=6), "tensor a: has the shape a number (6)"),
        (_changed("a", shape=[1] * 99), "tensor a: has the shape a list"),
        (_changed("a", shape=[2**62, 2**62]), "tensor a: occupies 24 bytes, but F32"),
        (_changed("a", shape=[2, 4]), "tensor a: occupies 24 bytes, but F32 [2, 4] needs 32"),
        (_changed("a", data_offsets=[0, 23]), "tensor a: occupies 23 bytes"),
        (_changed("a", data_offsets=[0]), "tensor a: has the data_offsets"),
        (_changed("a", data_offsets=[-24, 0]), "tensor a: has the data_offsets"),
        (_changed("a", data_offsets=[24, 0]), "tensor a: occupies -24 bytes"),
        (_changed("a", data_offsets="0, 24"), "tensor a: has the data_offsets"),
        (_changed("b", data_offsets=[20, 28]), "tensor b overlaps tensor a"),
        (_changed("b", data_offsets=[0, 8]), "overlaps tensor b"),
        ({**_VALID, "a": 3}, "tensor a: must be an object"),
        (
            {name: entry for name, entry in _VALID.items() if name != "a"},
            "tensor b leaves a gap after the header",
        ),
        (
            {name: entry for name, entry in _VALID.items() if name != "b"},
            "tensor c leaves a gap after tensor a",
        ),
        ({name: entry for name, entry in _VALID.items() if name not in "cd"}, "8 bytes follow tensor b"),
        ({}, "40 bytes follow the header"),
        ([], "its header must be a JSON object, is a list ([])"),
        (b"{", "its header is not valid JSON"),
        (b"\xff\xff", "its header is not valid JSON"),
        (b'{"a":1,"a":2}', "'a' occurs twice"),
        (b'{"a":' * 100_000, "its header is not valid JSON"),
    ],
)
def test_names_the_file_the_tensor_and_the_problem(tmp_path: Path, header: object, says: str) -> None:
    path = _write(tmp_path, header)
    with pytest.raises(ModelError) as error:
        read_header(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has 0 bytes, too few"),
        (b"1234567", "has 7 bytes, too few"),
        (struct.pack("<Q", 100) + b"{}", "is truncated: its header ends at byte 108, the file at byte 10"),
        (struct.pack("<Q", 2**63), f"declares a header of {2**63} bytes (at most {MAX_HEADER_BYTES})"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "not a safetensors file"),
    ],
)
def test_refuses_a_file_that_is_cut_off_or_something_else(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_header(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)


def test_names_the_first_tensor_that_a_broken_download_lacks(tmp_path: Path) -> None:
    path = _write(tmp_path, _VALID, bytes(30))
    with pytest.raises(
        ModelError, match=r"is truncated: tensor b ends at byte \d+, the file at byte \d+; fetch"
    ):
        read_header(path)


def test_a_file_that_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"x\.safetensors: no such file"):
        read_header(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="can't be read: Is a directory"):
        read_header(tmp_path)


@given(cut=st.integers(0, 500))
def test_a_file_that_is_cut_off_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = _write(tmp_path_factory.getbasetemp(), _VALID)
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - 1 - cut)])
    with pytest.raises(ModelError):
        read_header(path)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_all_of_it_lies_within_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(_write(tmp_path_factory.getbasetemp(), _VALID).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _check_like_the_reference(tmp_path_factory.getbasetemp() / "x.safetensors", bytes(content))


_NUMBER = st.integers(-2, 48) | st.just(2**63) | st.just(1.0) | st.just(None)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL", "F4", "F6_E2M3", "F8_E4M3", "X"]),
        "shape": st.lists(st.integers(0, 4) | _NUMBER, max_size=3),
        "data_offsets": st.lists(st.integers(0, 40) | _NUMBER, min_size=1, max_size=3),
    }
)


@settings(max_examples=300)
@given(
    header=st.dictionaries(st.sampled_from("abc"), _ENTRY, max_size=3), size=st.sampled_from([0, 8, 16, 40])
)
def test_a_header_of_anything_is_judged_as_the_reference_does(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], size: int
) -> None:
    path = _write(tmp_path_factory.getbasetemp(), header, bytes(size))
    _check_like_the_reference(path, path.read_bytes())


def _check_like_the_reference(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        header: SafetensorsHeader | None = read_header(path)
    except ModelError:
        header = None
    try:
        with safe_open(path, "np") as file:
            reference = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        reference = None
    if header is not None:
        for entry in header.tensors.values():
            assert header.data_begin <= entry.begin <= entry.end <= len(content)
    if reference is not None:  # what the reference reads is read alike
        assert header is not None
        assert {name: list(entry.shape) for name, entry in header.tensors.items()} == reference
