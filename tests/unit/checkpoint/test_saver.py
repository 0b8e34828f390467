"""Splitting checkpoints: from any number of ranks to any other, and back, byte by byte."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ryzanstein.model_plan import (
    ModelConfig,
    ModelError,
    open_checkpoint,
    read_model_config,
    source_tensors,
    tensor_parallel_sizes,
)
from ryzanstein.model_plan.layouts import rank_file_name
from ryzanstein_shard_worker.checkpoint import CheckpointSaver
from ryzanstein_shard_worker.checkpoint import saver as saver_module
from ryzanstein_shard_worker.checkpoint.output_directory import OutputError
from ryzanstein_shard_worker.checkpoint.safetensors_writer import StoredTensor, write_safetensors
from tests.checkpoints import FAMILIES, Checkpoints
from tests.unit.model_plan.configs import LLAMA, records

from .weights import assert_same_bits, random_tensors, read_whole, write_tensors


def split(source: Path, target: Path, world: int) -> Path:
    """`ryzanstein shard`."""
    CheckpointSaver(open_checkpoint(source), read_model_config(source), world).save(target)
    return target


def write_checkpoint(directory: Path, config: ModelConfig, dtype: torch.dtype) -> Path:
    """A checkpoint of a record that no config class would make: sizes of one, odd sizes."""
    values: dict[str, Any] = {
        **LLAMA,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(values))
    write_tensors(directory / "model.safetensors", random_tensors(read_model_config(directory), dtype))
    return directory


@st.composite
def journeys(draw: st.DrawFn) -> tuple[ModelConfig, list[int], torch.dtype]:
    config = draw(records())
    steps = draw(st.lists(st.sampled_from(tensor_parallel_sizes(config)), min_size=1, max_size=3))
    return config, [*steps, 1], draw(st.sampled_from([torch.float32, torch.bfloat16]))


@settings(max_examples=25)
@given(journeys())
def test_split_and_split_again_and_joined_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, journey: tuple[ModelConfig, list[int], torch.dtype]
) -> None:
    config, steps, dtype = journey
    root = tmp_path_factory.mktemp("journey")
    whole = here = write_checkpoint(root / "whole", config, dtype)
    for number, world in enumerate(steps):
        here = split(here, root / str(number), world)
        assert open_checkpoint(here).tensor_parallel_size == world
    assert_same_bits(load_file(here / rank_file_name(0, 1)), read_whole(whole))
    assert open_checkpoint(here).fingerprint == open_checkpoint(whole).fingerprint
    shutil.rmtree(root)


@pytest.mark.parametrize(
    ("family", "chunk_bytes"),
    # Byte by byte takes seconds, and how tensors are cut into pieces depends on no family.
    [("llama", 1), *((family, size) for family in FAMILIES for size in (1000, 1 << 26))],
)
def test_every_family_comes_back_whole(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(saver_module, "_CHUNK_BYTES", chunk_bytes)
    whole = checkpoints(family, dtype="bfloat16", max_shard_size="60KB")
    four = split(whole, tmp_path / "4", 4)
    two = split(four, tmp_path / "2", 2)
    one = split(split(two, tmp_path / "8", 8), tmp_path / "1", 1)
    assert_same_bits(load_file(one / rank_file_name(0, 1)), read_whole(whole))
    again = split(one, tmp_path / "4 again", 4)
    for rank in range(4):
        name = rank_file_name(rank, 4)
        assert (four / name).read_bytes() == (again / name).read_bytes()


def test_keeps_configuration_and_tokenizer_and_leaves_weights_out(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source = Path(
        shutil.copytree(checkpoints("llama", tokenizer=True, max_shard_size="60KB"), tmp_path / "source")
    )
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ x }}")
    (source / "LICENSE").write_text("free")
    (source / "training_args.bin").write_bytes(b"pickle")
    (source / ".cache.json").write_text("{}")
    out = split(source, tmp_path / "out", 2)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "LICENSE",
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "rank-00000-of-00002.safetensors",
        "rank-00001-of-00002.safetensors",
        "ryzanstein_shards.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in ("config.json", "tokenizer.json", "additional_chat_templates/tools.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_knows_how_many_bytes_it_writes(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("llama", tokenizer=True)
    saver = CheckpointSaver(open_checkpoint(source), read_model_config(source), 4)
    saver.save(tmp_path / "out")
    assert saver.needed_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


def test_progress_grows_to_one(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("llama")
    fractions: list[float] = []
    CheckpointSaver(open_checkpoint(source), read_model_config(source), 2).save(
        tmp_path / "out", fractions.append
    )
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert fractions[0] < 0.5


def test_an_interrupt_leaves_nothing(checkpoints: Checkpoints, tmp_path: Path) -> None:
    def interrupt(_fraction: float) -> None:
        raise KeyboardInterrupt

    source = checkpoints("llama")
    saver = CheckpointSaver(open_checkpoint(source), read_model_config(source), 2)
    with pytest.raises(KeyboardInterrupt):
        saver.save(tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_changes_is_named_and_nothing_is_left(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoints("llama"), tmp_path / "source"))
    saver = CheckpointSaver(open_checkpoint(source), read_model_config(source), 2)
    with pytest.raises(ModelError, match=r"model\.safetensors: changed after its header was read"):
        saver.save(tmp_path / "out", lambda _: os.truncate(source / "model.safetensors", 4096))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_it_does_not_write_over_its_own_source(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoints("llama"), tmp_path / "source"))
    with pytest.raises(OutputError, match="source: exists already"):
        split(source, source, 2)
    assert_same_bits(read_whole(source), read_whole(checkpoints("llama")))


def test_what_the_model_does_not_use_is_left_out(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoints("llama"), tmp_path / "source"))
    tensors = {**read_whole(source), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    (source / "model.safetensors").unlink()
    write_tensors(source / "model.safetensors", tensors)
    out = split(source, tmp_path / "out", 1)
    assert open_checkpoint(out).tensors.keys() == source_tensors(read_model_config(source)).keys()


def test_the_reference_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "ä": torch.zeros(0, 4),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    assert_same_bits(load_file(tmp_path / "x.safetensors"), tensors)


def test_data_of_another_length_than_the_header_says_is_a_defect(tmp_path: Path) -> None:
    stored = [StoredTensor("a", "F32", (3,))]
    with pytest.raises(ValueError, match="4 bytes of data are missing"):
        write_safetensors(tmp_path / "x.safetensors", stored, [torch.zeros(2)])
