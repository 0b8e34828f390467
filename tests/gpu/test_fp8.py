"""Weights in 8-bit floats: the GPU's product and rounding against their definitions, a model against the CPU's, and
what loading takes. Skipped on GPUs that don't multiply them, with the reason."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ryzanstein.model_plan import (
    FP8,
    open_checkpoint,
    read_model_config,
    source_tensors,
    weight_bytes_per_rank,
)
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader
from ryzanstein_shard_worker.communication import SingleHandler
from ryzanstein_shard_worker.gpu.fp8_rounding import device_rounding, worst_error
from ryzanstein_shard_worker.gpu.graph_driver import CudaGraphDriver
from ryzanstein_shard_worker.models import Decoder, build_model
from ryzanstein_shard_worker.parallel.fp8_rows import round_rows, round_rows_by_torch
from ryzanstein_shard_worker.parallel.fp8_weight import (
    Fp8Weight,
    defined_product,
    fp8_problem,
    scaled_product,
    tried_product,
)
from tests.checkpoints import FAMILIES, Checkpoints
from tests.unit.gpu.steps import BUNDLED

from .loading import CPU, logits_on
from .test_memory import CONFIG

HALVES = [torch.bfloat16, torch.float16]
#: (N, K) of a model of 8 billion parameters, its parts for 8 ranks, and sizes that are filled up.
SHAPES = [(6144, 4096), (28672, 4096), (4096, 14336), (3584, 4096), (512, 512), (70, 130), (331, 64)]
TOKEN_IDS = torch.randint(0, 331, (41,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def gpu_that_multiplies_them(cuda: torch.device) -> None:
    problem = fp8_problem(torch.bfloat16, cuda)
    if "compute capability" in problem:
        pytest.skip(problem)
    assert problem == ""


def random(device: torch.device, dtype: torch.dtype, *size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(size, generator=generator, device=device).to(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_definition(
    cuda: torch.device, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight, bias = random(cuda, dtype, *shape) * 0.02, random(cuda, dtype, shape[0], seed=1)
    linear = Fp8Weight(weight)
    rounded, scales = round_rows_by_torch(weight)
    for count in (1, 2, 7, 16, 63, 256, 1000):
        x = random(cuda, dtype, count, shape[1], seed=2)
        rows, row_scales = round_rows(x)
        for added in (None, bias):
            expected = defined_product(rows, rounded, row_scales, scales.view(1, -1), added, torch.float32)
            worst = (linear(x, added).float() - expected).abs().max() / expected.abs().max()
            assert worst < (1e-2 if dtype == torch.bfloat16 else 2e-3), (count, added is None)


def test_the_product_adds_a_bias(cuda: torch.device) -> None:
    """Else it is added behind it, rounded once more: right, but worth knowing."""
    assert [tried_product(dtype, cuda, biased=True) for dtype in HALVES] == ["", ""]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_triton_and_torch_round_to_the_nearest(cuda: torch.device, dtype: torch.dtype) -> None:
    kernel = device_rounding(dtype, cuda)
    assert kernel is not None
    assert worst_error(kernel, dtype, cuda) <= 1.001
    assert worst_error(round_rows_by_torch, dtype, cuda) <= 1.001
    for columns in (64, 130, 4096, 14336, 28672):
        x = random(cuda, dtype, 5, columns)
        floats, scales = kernel(x)
        expected, expected_scales = round_rows_by_torch(x)
        torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
        assert (floats.float() != expected.float()).float().mean() < 1e-3


def test_the_bits_of_a_weight_are_those_that_a_cpu_rounds(cuda: torch.device) -> None:
    """So workers agree on weights, whatever rounded them."""
    weight = random(CPU, torch.bfloat16, 300, 1000)
    here, there = round_rows_by_torch(weight), round_rows_by_torch(weight.to(cuda))
    assert torch.equal(here[0].view(torch.uint8), there[0].cpu().view(torch.uint8))
    assert torch.equal(here[1], there[1].cpu())


def test_a_row_that_is_not_finite_is_nan_and_no_other_is(cuda: torch.device) -> None:
    x = random(cuda, torch.bfloat16, 40, 256)
    x[3, 5], x[17, 9], x[20] = torch.inf, torch.nan, 0
    out = Fp8Weight(random(cuda, torch.bfloat16, 64, 256, seed=1))(x)
    assert out.isnan().all(dim=1).nonzero().flatten().tolist() == [3, 17]
    assert not out[[row for row in range(40) if row not in (3, 17)]].isnan().any()
    assert not out[20].any()


def test_products_are_captured(cuda: torch.device) -> None:
    linear, x = (
        Fp8Weight(random(cuda, torch.bfloat16, 512, 256)),
        random(cuda, torch.bfloat16, 8, 256, seed=1),
    )
    with torch.inference_mode():
        graph = CudaGraphDriver(cuda).capture(lambda: linear(x))
        x.copy_(random(cuda, torch.bfloat16, 8, 256, seed=2))
        graph.replay()
        assert torch.equal(graph.output, linear(x))
    graph.release()


def load(device: torch.device, directory: Path, dtype: torch.dtype) -> Decoder:
    """As a worker does it: parameters get their memory on the way, and are rounded module by module."""
    config = read_model_config(directory)
    model = build_model(config, SingleHandler(), dtype, device, on_demand=True)
    loader = DistributedCheckpointLoader(open_checkpoint(directory), config, 0, 1, dtype, device)
    loader.load(model, None, lambda name: model.pack_module(name, quantization=FP8))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_answers_as_it_does_on_the_cpu(
    checkpoints: Checkpoints, cuda: torch.device, family: str
) -> None:
    directory = checkpoints(family)
    here = logits_on(CPU, load(CPU, directory, torch.bfloat16), TOKEN_IDS)
    there = logits_on(cuda, load(cuda, directory, torch.bfloat16), TOKEN_IDS)
    assert (
        there - here
    ).norm() / here.norm() < 0.1  # what is rounded to 4 bits twice may fall to either side
    assert torch.nn.functional.cosine_similarity(there, here).min() > 0.99


def test_the_bundled_model_makes_the_cpus_first_choices(cuda: torch.device) -> None:
    tokens = torch.tensor([1, *range(40, 90)])
    here = logits_on(CPU, load(CPU, BUNDLED, torch.bfloat16), tokens)
    there = logits_on(cuda, load(cuda, BUNDLED, torch.bfloat16), tokens)
    assert (here.argmax(1) == there.argmax(1)).float().mean() > 0.8
    assert torch.nn.functional.cosine_similarity(there, here).mean() > 0.99


def test_loading_never_holds_the_model_in_16_bits(
    tmp_path: Path, cuda: torch.device, record_property: Callable[[str, object], None]
) -> None:
    """What is there at most is the rounded model, a layer that is not, and what is read ahead of it."""
    layers = 12
    (tmp_path / "config.json").write_text(
        json.dumps({**CONFIG, "num_hidden_layers": layers, "vocab_size": 4096})
    )
    config = read_model_config(tmp_path)
    generator = torch.Generator(cuda).manual_seed(0)
    save_file(
        {
            name: (0.02 * torch.randn(shape, generator=generator, device=cuda)).to(torch.bfloat16).cpu()
            for name, shape in source_tensors(config).items()
        },
        tmp_path / "model.safetensors",
    )
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(cuda)
    torch.cuda.reset_peak_memory_stats(cuda)
    model = load(cuda, tmp_path, torch.bfloat16)
    peak, held = torch.cuda.max_memory_allocated(cuda) - before, torch.cuda.memory_allocated(cuda) - before
    planned = weight_bytes_per_rank(config, 1, packed=True, quantization=FP8)
    unrounded = weight_bytes_per_rank(config, 1)
    record_property("planned_bytes", planned)
    record_property("peak_bytes", peak)
    assert model.weights_bytes == planned
    assert held <= 1.02 * planned
    assert peak <= planned + 3 * unrounded / layers + (512 << 20)
    logits = logits_on(cuda, model, torch.arange(64))
    assert bool(logits.isfinite().all())


def test_what_is_given_as_column_major_is_multiplied_as_such(cuda: torch.device) -> None:
    """A weight whose rows differ in size by powers of two: a swapped layout or scale would show at once."""
    weight = random(cuda, torch.bfloat16, 48, 64) * (2.0 ** torch.arange(48, device=cuda).sub(24))[:, None]
    rounded, scales = round_rows_by_torch(weight.to(torch.bfloat16))
    rows, row_scales = round_rows_by_torch(random(cuda, torch.bfloat16, 5, 64, seed=1))
    given = (rows, rounded, row_scales, scales.view(1, -1), None, torch.bfloat16)
    got, expected = scaled_product(*given).float(), defined_product(*given).float()
    assert ((got - expected).abs() <= 1e-2 * expected.abs().amax(dim=0)).all()
