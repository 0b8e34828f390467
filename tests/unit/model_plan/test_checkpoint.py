"""The index of a checkpoint: every layout, every way in which one can be broken, and the fingerprint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ryzanstein.model_plan import (
    CheckpointIndex,
    ModelError,
    open_checkpoint,
    read_model_config,
    source_tensors,
)
from tests.checkpoints import FAMILIES, Checkpoints

_INDEX = "model.safetensors.index.json"
_RANKS = "ryzanstein_shards.json"


@pytest.fixture
def whole(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A copy in one file that the test may break."""
    return Path(shutil.copytree(checkpoints("llama"), tmp_path / "whole"))


@pytest.fixture
def sharded(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A copy in several files that the test may break."""
    return Path(shutil.copytree(checkpoints("llama", max_shard_size="60KB"), tmp_path / "sharded"))


@pytest.fixture
def ranks(whole: Path, tmp_path: Path) -> Path:
    """Two rank files of one tensor, split by rows, made by hand."""
    directory = tmp_path / "ranks"
    directory.mkdir()
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    save_file({"t": values[:3]}, directory / "r0.safetensors")
    save_file({"t": values[3:]}, directory / "r1.safetensors")
    boxes = [[[0, 3], [0, 2]], [[3, 5], [0, 2]]]
    tensors = {"t": {"dtype": "F32", "shape": [5, 2], "boxes": boxes}}
    files = ["r0.safetensors", "r1.safetensors"]
    description = {"version": 1, "tensor_parallel_size": 2, "files": files, "tensors": tensors}
    (directory / _RANKS).write_text(json.dumps(description))
    return directory


def _change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def _change_weights(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def _bytes(index: CheckpointIndex, tensor: str) -> bytes:
    (piece,) = index.tensors[tensor].pieces
    return index.files[piece.file].path.read_bytes()[piece.begin : piece.end]


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_bytes_of_every_tensor_in_one_file_and_in_several(
    checkpoints: Checkpoints, family: str
) -> None:
    whole_index = open_checkpoint(checkpoints(family))
    sharded_index = open_checkpoint(checkpoints(family, max_shard_size="60KB"))
    assert (len(whole_index.files), whole_index.tensor_parallel_size) == (1, None)
    assert len(sharded_index.files) > 1
    stored = load_file(checkpoints(family) / "model.safetensors")
    for index in (whole_index, sharded_index):
        assert index.tensors.keys() == stored.keys()
        for name, values in stored.items():
            entry = index.tensors[name]
            assert (entry.dtype, entry.shape) == ("F32", values.shape)
            assert _bytes(index, name) == values.tobytes()
        index.check_against(read_model_config(index.directory))


def test_finds_the_parts_of_a_tensor_in_rank_files(ranks: Path) -> None:
    index = open_checkpoint(ranks)
    assert index.tensor_parallel_size == 2
    assert [(piece.file, piece.box) for piece in index.tensors["t"].pieces] == [
        (0, ((0, 3), (0, 2))),
        (1, ((3, 5), (0, 2))),
    ]


def test_one_file_counts_more_than_an_index_as_for_transformers(whole: Path) -> None:
    (whole / _INDEX).write_text("{}")
    assert len(open_checkpoint(whole).files) == 1


def test_follows_links_as_the_cache_of_the_hub_is_made_of_them(whole: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in whole.iterdir():
        (linked / path.name).symlink_to(path)
    assert open_checkpoint(linked).fingerprint == open_checkpoint(whole).fingerprint


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: is not a directory"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has neither model\.safetensors nor .*index\.json nor ryz"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pickle files only.*convert them"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b", "a\\b", "..", "", "a\0b", 3, None]
)
def test_an_index_can_not_lead_out_of_the_directory(sharded: Path, name: object) -> None:
    _change_json(sharded / _INDEX, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    with pytest.raises(
        ModelError, match=r"index\.json: weight_map\.lm_head\.weight: must be the name of a file"
    ):
        open_checkpoint(sharded)


@pytest.mark.parametrize("value", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(sharded: Path, value: object) -> None:
    _change_json(sharded / _INDEX, lambda index: index.update(weight_map=value))
    with pytest.raises(ModelError, match=r"index\.json: weight_map: must be an object of tensor names"):
        open_checkpoint(sharded)


def test_a_missing_or_truncated_file_is_named(sharded: Path) -> None:
    path = sorted(sharded.glob("*.safetensors"))[1]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=rf"{path.name}: is truncated: tensor model\.\S+ ends at byte"):
        open_checkpoint(sharded)
    path.unlink()
    with pytest.raises(ModelError, match=rf"{path.name}: no such file, though the checkpoint needs it"):
        open_checkpoint(sharded)


def test_a_tensor_that_is_not_in_the_file_of_the_index_is_named(sharded: Path) -> None:
    first = sorted(sharded.glob("*.safetensors"))[0].name
    _change_json(sharded / _INDEX, lambda index: index["weight_map"].update({"extra": first}))
    with pytest.raises(
        ModelError, match=rf"{first}: tensor extra is missing, though model\.safetensors\.index"
    ):
        open_checkpoint(sharded)


def _check(directory: Path) -> None:
    open_checkpoint(directory).check_against(read_model_config(directory))


def test_a_missing_tensor_is_named(whole: Path) -> None:
    _change_weights(whole, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(
        ModelError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing; LlamaFor"
    ):
        _check(whole)


def test_a_misshapen_tensor_is_named_with_its_file(whole: Path) -> None:
    _change_json(whole / "config.json", lambda config: config.update(intermediate_size=96))
    with pytest.raises(ModelError, match=r"model\.safetensors: tensor model\.layers\.0\.mlp\.gate_proj\.weight: has "
                                         r"shape \[100, 64\], config\.json means \[96, 64\]"):  # fmt: skip
        _check(whole)


def test_a_tensor_of_integers_is_named(whole: Path) -> None:
    _change_weights(whole, lambda tensors: tensors.update({"model.norm.weight": np.zeros(64, np.int8)}))
    with pytest.raises(ModelError, match=r"norm\.weight: has dtype I8; supported are F32, BF16"):
        _check(whole)


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight", "lm_head.bias"]
)
def test_weights_that_the_model_would_leave_out_are_an_error(whole: Path, name: str) -> None:
    _change_weights(whole, lambda tensors: tensors.update({name: np.zeros(128, np.float32)}))
    with pytest.raises(ModelError, match=f"{name} has no place in a LlamaForCausalLM with this config"):
        _check(whole)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.7.input_layernorm.weight"]
)
def test_tensors_that_the_result_does_not_depend_on_do_no_harm(whole: Path, name: str) -> None:
    before = open_checkpoint(whole).fingerprint
    _change_weights(whole, lambda tensors: tensors.update({name: np.zeros(8, np.float32)}))
    _check(whole)
    assert open_checkpoint(whole).fingerprint == before


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(whole: Path) -> None:
    _change_json(whole / "config.json", lambda config: config.update(tie_word_embeddings=True))
    with pytest.raises(
        ModelError, match=r"config\.json: tie_word_embeddings is true, but lm_head\.weight is stored"
    ):
        _check(whole)
    _change_weights(whole, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    _check(whole)


def test_a_fingerprint_tells_a_fine_tune_and_a_changed_configuration(whole: Path) -> None:
    before = open_checkpoint(whole).fingerprint
    assert open_checkpoint(whole).fingerprint == before
    _change_weights(whole, lambda t: t.update({"model.norm.weight": t["model.norm.weight"] * 1.01}))
    tuned = open_checkpoint(whole).fingerprint
    _change_json(whole / "config.json", lambda config: config.update(rms_norm_eps=1e-5))
    changed = open_checkpoint(whole).fingerprint
    assert len({before, tuned, changed}) == 3


def test_a_fingerprint_does_not_depend_on_the_number_of_files(checkpoints: Checkpoints) -> None:
    one, many = checkpoints("qwen2"), checkpoints("qwen2", max_shard_size="60KB")
    assert open_checkpoint(one).fingerprint == open_checkpoint(many).fingerprint


def test_a_file_that_shrinks_under_the_fingerprint_is_named(whole: Path) -> None:
    index = open_checkpoint(whole)
    path = whole / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"model\.safetensors: became shorter since its header was read"):
        _ = index.fingerprint
    path.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: can't be read: No such file"):
        _ = index.fingerprint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(version=2), "version: is 2, this release reads 1"),
        (lambda d: d.pop("version"), "version: is missing"),
        (lambda d: d.update(tensor_parallel_size=3), "files: must name one file per rank, 3, names 2"),
        (
            lambda d: d.update(files=["r0.safetensors", "../r1.safetensors"]),
            "files: must be the name of a file",
        ),
        (lambda d: d.update(files=["r0.safetensors", "r2.safetensors"]), "r2.safetensors: no such file"),
        (lambda d: d.update(tensors={}), "tensors: is missing"),
        (lambda d: d["tensors"].update(t=3), "tensors.t: must be an object"),
        (lambda d: d["tensors"].update(t={}), "tensors.t: must be an object"),
        (lambda d: d["tensors"]["t"].update(dtype="F9"), "tensors.t.dtype: 'F9' is unknown"),
        (lambda d: d["tensors"]["t"].update(shape=[5, "2"]), "tensors.t.shape: must be a list of sizes"),
        (
            lambda d: d["tensors"]["t"].update(boxes=[None]),
            "tensors.t.boxes: must be a list of one box per rank",
        ),
        (
            lambda d: d["tensors"]["t"]["boxes"].__setitem__(0, 3),
            "tensors.t.boxes: a number (3) is not a part",
        ),
        (lambda d: d["tensors"]["t"]["boxes"].__setitem__(0, [[0, 3]]), "is not a part of the shape [5, 2]"),
        (lambda d: d["tensors"]["t"]["boxes"].__setitem__(0, [[0, 6], [0, 2]]), "is not a part of the shape"),
        (lambda d: d["tensors"]["t"]["boxes"].__setitem__(0, [[0], [0, 2]]), "is not a part of the shape"),
        (lambda d: d["tensors"]["t"]["boxes"].__setitem__(0, [[0, -3], [0, 2]]), "must be a list of sizes"),
        (lambda d: d["tensors"]["t"]["boxes"].__setitem__(0, [[0, 2], [0, 2]]), "says F32 [2, 2]"),
        (
            lambda d: d["tensors"]["t"]["boxes"].__setitem__(0, [[1, 4], [0, 2]]),
            "no file has its part [[0, 1], [0",
        ),
        (lambda d: d["tensors"]["t"]["boxes"].__setitem__(0, None), "no file has its part [[0, 3], [0, 2]]"),
        (
            lambda d: d["tensors"]["t"].update(dtype="BF16"),
            "tensor t: is F32 [3, 2], ryzanstein_shards.json says",
        ),
        (
            lambda d: d["tensors"].update(u=d["tensors"]["t"]),
            "tensor u is missing, though ryzanstein_shards.json",
        ),
    ],
)
def test_a_broken_description_of_rank_files_is_refused(
    ranks: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    _change_json(ranks / _RANKS, change)
    with pytest.raises(ModelError) as error:
        open_checkpoint(ranks)
    assert str(ranks) in str(error.value)
    assert says in str(error.value)


def test_the_tensors_that_are_needed_are_those_that_are_stored(checkpoints: Checkpoints) -> None:
    directory = checkpoints("mistral")
    assert source_tensors(read_model_config(directory)).keys() == open_checkpoint(directory).tensors.keys()
