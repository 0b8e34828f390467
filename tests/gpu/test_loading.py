"""Weights that went through threads, page-locked buffers and a stream of their own have the bits of the file."""

from __future__ import annotations

import pytest
import torch

from tests.checkpoints import FAMILIES, Checkpoints

from .loading import CPU, load_on


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parameters_are_those_of_the_cpu(
    checkpoints: Checkpoints, cuda: torch.device, family: str, dtype: torch.dtype
) -> None:
    directory = checkpoints(family)
    there = load_on(cuda, directory, dtype).state_dict()
    here = load_on(CPU, directory, dtype, pack=False).state_dict()
    assert there.keys() == here.keys()
    for name, tensor in here.items():
        assert torch.equal(there[name].cpu(), tensor), name
