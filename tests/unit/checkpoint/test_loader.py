"""Loading one rank: the right bits from every layout, layer by layer, and errors for broken files."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ryzanstein.model_plan import (
    CheckpointIndex,
    ModelError,
    open_checkpoint,
    parameters,
    read_model_config,
    tensor_parallel_sizes,
)
from ryzanstein_shard_worker.checkpoint import CheckpointSaver, DistributedCheckpointLoader
from ryzanstein_shard_worker.communication import RebindableHandler
from ryzanstein_shard_worker.models import build_model
from tests.checkpoints import FAMILIES, Checkpoints

from .weights import assert_same_bits, cut, module_of_parameters, read_whole, write_tensors

_CPU = torch.device("cpu")


def loader_of(
    directory: Path,
    rank: int = 0,
    world: int = 1,
    dtype: torch.dtype = torch.float32,
    chunk_bytes: int = 4096,
) -> DistributedCheckpointLoader:
    """A loader whose chunks are so small that most tensors need several."""
    return DistributedCheckpointLoader(
        open_checkpoint(directory),
        read_model_config(directory),
        rank,
        world,
        dtype,
        _CPU,
        chunk_bytes=chunk_bytes,
    )


def loaded(loader: DistributedCheckpointLoader) -> dict[str, Tensor]:
    """What it loads over memory full of NaN."""
    tensors = {name: tensor.fill_(torch.nan) for name, tensor in loader.allocate().items()}
    loader.fill(tensors)
    return tensors


@pytest.fixture
def model(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A checkpoint in one file that the test may break."""
    return Path(shutil.copytree(checkpoints("llama"), tmp_path / "model"))


@pytest.fixture
def split(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A checkpoint split for four ranks."""
    directory = checkpoints("qwen3", dtype="bfloat16")
    saver = CheckpointSaver(open_checkpoint(directory), read_model_config(directory), 4)
    saver.save(tmp_path / "split")
    return tmp_path / "split"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_size", ["5GB", "60KB"])
def test_every_rank_gets_its_slices_and_zeros(
    checkpoints: Checkpoints, family: str, tied: bool, max_shard_size: str
) -> None:
    directory = checkpoints(family, dtype="bfloat16", tie_word_embeddings=tied, max_shard_size=max_shard_size)
    config, whole = read_model_config(directory), read_whole(directory)
    for world in tensor_parallel_sizes(config):
        for rank in range(world):
            found = loaded(loader_of(directory, rank, world, torch.bfloat16))
            assert_same_bits(found, cut(whole, config, rank, world, torch.bfloat16))


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_rank_files_load_for_any_number_of_ranks(checkpoints: Checkpoints, split: Path, world: int) -> None:
    whole, config = read_whole(checkpoints("qwen3", dtype="bfloat16")), read_model_config(split)
    for rank in range(world):
        found = loaded(loader_of(split, rank, world, torch.bfloat16))
        assert_same_bits(found, cut(whole, config, rank, world, torch.bfloat16))


def test_a_rank_reads_its_own_file_and_no_other(checkpoints: Checkpoints, split: Path) -> None:
    loader = loader_of(split, 2, 4, torch.bfloat16)
    for path in split.glob("rank-*"):
        if "rank-00002" not in path.name:
            path.unlink()
    whole, config = read_whole(checkpoints("qwen3", dtype="bfloat16")), read_model_config(split)
    assert_same_bits(loaded(loader), cut(whole, config, 2, 4, torch.bfloat16))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_converts_as_torch_does(checkpoints: Checkpoints, stored: str, dtype: torch.dtype) -> None:
    directory = checkpoints("llama", dtype=stored)
    expected = cut(read_whole(directory), read_model_config(directory), 1, 2, dtype)
    assert_same_bits(loaded(loader_of(directory, 1, 2, dtype)), expected)


def test_values_that_float16_can_not_hold_are_an_error(model: Path) -> None:
    tensors = read_whole(model)
    tensors["model.layers.1.mlp.up_proj.weight"][50, 3] = -70000.0
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight: has "
                                         r"values too large for float16; use bfloat16"):  # fmt: skip
        loaded(loader_of(model, dtype=torch.float16))
    assert loaded(loader_of(model, dtype=torch.bfloat16))


def test_unaligned_data_is_loaded_alike(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("llama", dtype="float16")
    shutil.copy(source / "config.json", tmp_path)
    content = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    moved = (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :]
    (tmp_path / "model.safetensors").write_bytes(moved)
    expected = cut(read_whole(source), read_model_config(source), 3, 4, torch.float16)
    assert_same_bits(loaded(loader_of(tmp_path, 3, 4, torch.float16)), expected)


def test_fills_a_model_in_place(checkpoints: Checkpoints) -> None:
    directory = checkpoints("qwen2", tie_word_embeddings=True)
    loader = loader_of(directory, 1, 2)
    model = module_of_parameters(loader.allocate())
    model.register_module("head", nn.Module())
    model.get_submodule("head").register_parameter("weight", model.get_parameter("embedding.weight"))
    loader.load(model)
    found = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
    assert_same_bits(found, cut(read_whole(directory), read_model_config(directory), 1, 2, torch.float32))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_fills_the_models_that_are_served(checkpoints: Checkpoints, family: str, tied: bool) -> None:
    directory = checkpoints(family, dtype="bfloat16", tie_word_embeddings=tied)
    config, whole = read_model_config(directory), read_whole(directory)
    for world in tensor_parallel_sizes(config):
        model = build_model(config, RebindableHandler(world - 1, world), torch.bfloat16, _CPU)
        loader_of(directory, world - 1, world, torch.bfloat16).load(model)
        assert_same_bits(model.state_dict(), cut(whole, config, world - 1, world, torch.bfloat16))


def test_a_model_with_other_parameters_is_refused(checkpoints: Checkpoints) -> None:
    loader = loader_of(checkpoints("llama"))
    tensors = loader.allocate()
    with pytest.raises(
        ModelError, match=r"a parameter extra\.weight that its configuration does not ask for"
    ):
        loader.load(module_of_parameters({**tensors, "extra.weight": torch.empty(3)}))
    with pytest.raises(
        ModelError, match=r"parameter norm\.weight: the model has \[3\], rank 0 of 1 needs \[64\]"
    ):
        loader.fill({**tensors, "norm.weight": torch.empty(3)})
    del tensors["norm.weight"]
    with pytest.raises(ModelError, match=r"no parameter norm\.weight, which its configuration asks for"):
        loader.load(module_of_parameters(tensors))


def test_progress_grows_to_one(checkpoints: Checkpoints) -> None:
    loader = loader_of(checkpoints("llama"), 1, 2)
    fractions: list[float] = []
    loader.fill(loader.allocate(), fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) > len(parameters(read_model_config(checkpoints("llama")), 1, 2))
    assert fractions[0] < 0.1


def test_an_error_of_the_caller_ends_the_loading(checkpoints: Checkpoints) -> None:
    def fail(_fraction: float) -> None:
        raise InterruptedError("enough")

    loader = loader_of(checkpoints("llama"))
    with pytest.raises(InterruptedError, match="enough"):
        loader.fill(loader.allocate(), fail)


@pytest.mark.parametrize("max_shard_size", ["5GB", "60KB"])
def test_a_layer_is_complete_and_let_go_of_when_it_is_announced(
    checkpoints: Checkpoints, max_shard_size: str
) -> None:
    directory = checkpoints("qwen3", max_shard_size=max_shard_size)
    expected = cut(read_whole(directory), read_model_config(directory), 0, 2, torch.float32)
    loader = loader_of(directory, 0, 2)
    model = module_of_parameters(loader.allocate())
    announced: list[str] = []

    def pack(name: str) -> None:
        announced.append(name)
        module = model.get_submodule(name)
        prefix = f"{name}."
        of_module = {key: value for key, value in expected.items() if key.startswith(prefix)}
        assert_same_bits({prefix + key: value for key, value in module.state_dict().items()}, of_module)
        memory = [weakref.ref(parameter) for parameter in module.parameters()]
        for inner in module.modules():
            inner._parameters.clear()
        assert [reference() for reference in memory] == [None] * len(memory)

    loader.load(model, on_layer_complete=pack)
    assert sorted(announced) == ["embedding", "head", "layers.0", "layers.1", "norm"]
    assert not list(model.parameters())


def test_a_module_that_is_padding_only_is_announced_too(tmp_path: Path, checkpoints: Checkpoints) -> None:
    directory = checkpoints("llama", vocab_size=5)
    loader = loader_of(directory, 7, 8)  # 5 rows in parts of 1: rank 7 has none
    announced: list[str] = []
    tensors = {name: tensor.fill_(torch.nan) for name, tensor in loader.allocate().items()}
    loader.fill(tensors, on_layer_complete=announced.append)
    assert sorted(announced) == ["embedding", "head", "layers.0", "layers.1", "norm"]
    assert tensors["embedding.weight"].tolist() == [[0.0] * 64]


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("damage", [_truncate, _append, _touch])
def test_a_file_that_changed_after_its_header_was_read_is_named(
    model: Path, damage: Callable[[Path], None]
) -> None:
    loader = loader_of(model)
    damage(model / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: changed after its header was read \(it had"):
        loader.fill(loader.allocate())


def test_a_file_that_is_truncated_while_it_is_mapped_is_an_error_not_a_signal(model: Path) -> None:
    loader = loader_of(model)
    with pytest.raises(ModelError, match=r"model\.safetensors: changed after its header was read"):
        loader.fill(loader.allocate(), lambda _: os.truncate(model / "model.safetensors", 4096))


def test_a_file_that_went_away_is_named(model: Path) -> None:
    loader = loader_of(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: can't be mapped: .*No such file"):
        loader.fill(loader.allocate())


def test_a_checkpoint_of_another_model_is_refused(model: Path, checkpoints: Checkpoints) -> None:
    config = read_model_config(checkpoints("llama", num_hidden_layers=3))
    with pytest.raises(ModelError, match=r"tensor model\.layers\.2\.input_layernorm\.weight is missing"):
        DistributedCheckpointLoader(open_checkpoint(model), config, 0, 1, torch.float32, _CPU)


def test_a_rank_that_does_not_exist_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match="rank 2 is not one of the 2 ranks"):
        loader_of(model, 2, 2)
    with pytest.raises(ModelError, match="sizes that work: 1, 2, 4, 8"):
        loader_of(model, 0, 3)


def test_layers_complete_early_when_files_are_in_the_order_of_the_model(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    source = checkpoints("llama", num_hidden_layers=12)
    shutil.copy(source / "config.json", tmp_path)
    whole = read_whole(source)
    order = CheckpointSaver(open_checkpoint(source), read_model_config(source), 1)
    order.save(tmp_path / "split")
    write_tensors(tmp_path / "model.safetensors", dict(sorted(whole.items())))
    for directory in (tmp_path / "split", tmp_path):
        announced: list[str] = []
        loader = loader_of(directory)
        loader.fill(loader.allocate(), on_layer_complete=announced.append)
        layers = [name for name in announced if name.startswith("layers.")]
        assert len(layers) == 12
        if directory.name == "split":
            assert announced == ["embedding", *(f"layers.{i}" for i in range(12)), "norm", "head"]


def test_the_index_is_what_decides_not_the_directory(checkpoints: Checkpoints) -> None:
    directory = checkpoints("llama")
    index = open_checkpoint(directory)
    empty = CheckpointIndex(directory, index.files, {})
    with pytest.raises(ModelError, match=r"tensor model\.embed_tokens\.weight is missing"):
        DistributedCheckpointLoader(empty, read_model_config(directory), 0, 1, torch.float32, _CPU)
