"""What the tests of loading compare with: whole tensors, and the parameters that torch cuts from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ryzanstein.model_plan import Box, ModelConfig, parameters, placements, source_tensors
from ryzanstein_shard_worker.checkpoint.safetensors_writer import StoredTensor, write_safetensors

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def slices(box: Box) -> tuple[slice, ...]:
    """The box as an index."""
    return tuple(slice(start, stop) for start, stop in box)


def read_whole(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a Hugging Face checkpoint, by the reference library."""
    tensors: dict[str, Tensor] = {}
    for path in directory.glob("*.safetensors"):
        tensors.update(load_file(path))
    return tensors


def cut(
    whole: Mapping[str, Tensor], config: ModelConfig, rank: int, world: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The rank's parameters: zeros, and the slices that the plan names."""
    cut_out = {plan.name: torch.zeros(plan.shape, dtype=dtype) for plan in parameters(config, rank, world)}
    for placement in placements(config, rank, world):
        part = whole[placement.tensor][slices(placement.source)]
        cut_out[placement.parameter][slices(placement.target)] = part.to(dtype)
    return cut_out


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal names, shapes, dtypes and bytes."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
        one, other = (t.detach().contiguous().view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(one, other), name


def random_tensors(
    config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Random values for every tensor of a model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in source_tensors(config).items()
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file with the tensors in the given order."""
    stored = [StoredTensor(name, _CODES[t.dtype], tuple(t.shape)) for name, t in tensors.items()]
    write_safetensors(path, stored, (t.contiguous() for t in tensors.values()))


def module_of_parameters(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module whose state dict has these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root
