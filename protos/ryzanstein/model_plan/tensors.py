"""Which tensors a model has, and which slice of each of them every rank of a tensor-parallel group holds.

The split is Megatron's (https://arxiv.org/abs/1909.08053): q, k, v, gate and up by output features, output
and down by input features, embedding and head by vocabulary; attention by whole heads. Sizes that the group
does not divide are padded: every rank has ceil(size / world) rows, and those that no placement covers are 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .config import ModelConfig
from .fields import ModelError

#: (start, stop) in one dimension of a tensor.
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ParameterPlan:
    """One parameter of a rank's model."""

    name: str  #: in the model's state dict
    shape: tuple[int, ...]  #: local, fused and padded
    dtype: str

    @property
    def module(self) -> str:
        """What is complete when all its parameters are: "embedding", "layers.3", "norm" or "head"."""
        return module_of(self.name)


@dataclass(frozen=True, slots=True)
class Placement:
    """`parameter[target] = tensor[source]`: one box of a checkpoint's tensor and where a rank puts it."""

    tensor: str  #: the Hugging Face name
    source: tuple[Range, ...]  #: one range per dimension
    parameter: str
    target: tuple[Range, ...]  #: the same sizes as `source`


def module_of(parameter: str) -> str:
    """The module of a parameter name: "layers.3.mlp.down.weight" belongs to "layers.3"."""
    parts = parameter.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]


def tensor_parallel_sizes(config: ModelConfig) -> tuple[int, ...]:
    """The numbers of ranks that the model can be split over, ascending."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    return tuple(
        n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)
    )


def check_tensor_parallel_size(config: ModelConfig, world: int) -> None:
    """Raises ModelError, with the sizes that work, if the model can't be split over `world` ranks."""
    if world not in (sizes := tensor_parallel_sizes(config)):
        raise ModelError(
            f"a tensor-parallel size of {world} does not split {config.num_heads} attention heads and "
            f"{config.num_kv_heads} key-value heads evenly; sizes that work: {', '.join(map(str, sizes))}"
        )


def split_range(size: int, rank: int, world: int) -> Range:
    """The rank's part of `size` rows, ceil(size / world) of them; the last ranks may have fewer, or none."""
    part = -(-size // world)
    return min(rank * part, size), min((rank + 1) * part, size)


def kv_head_range(config: ModelConfig, rank: int, world: int) -> Range:
    """The key-value heads of a rank. With fewer heads than ranks, neighbours hold the same one."""
    if config.num_kv_heads % world == 0:
        part = config.num_kv_heads // world
        return rank * part, (rank + 1) * part
    head = rank * config.num_kv_heads // world
    return head, head + 1


def source_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint of this model must have, by Hugging Face's names, with unsplit shapes."""
    return {name: shape for part in _parts(config, 0, 1) for name, shape in part.tensors()}


def parameters(config: ModelConfig, rank: int, world: int, dtype: str | None = None) -> list[ParameterPlan]:
    """The rank's parameters, in the order of the model, held in `dtype` (None: that of the checkpoint).

    Raises ModelError if the model can't be split over `world` ranks.
    """
    _check_rank(config, rank, world)
    dtype = dtype or config.dtype
    return [ParameterPlan(part.parameter, part.shape, dtype) for part in _parts(config, rank, world)]


def placements(config: ModelConfig, rank: int, world: int) -> list[Placement]:
    """Where every box of the checkpoint's tensors goes on this rank, in the order of `parameters`.

    Boxes of one parameter don't overlap; what they leave uncovered is padding: zeros. Raises as `parameters`.
    """
    _check_rank(config, rank, world)
    return [placement for part in _parts(config, rank, world) for placement in part.placements()]


def _check_rank(config: ModelConfig, rank: int, world: int) -> None:
    check_tensor_parallel_size(config, world)
    if not 0 <= rank < world:
        raise ModelError(f"rank {rank} is not one of the {world} ranks 0 to {world - 1}")


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor of the checkpoint that fills a parameter from row `offset` on."""

    tensor: str
    size: int  #: along the split dimension, of the whole tensor
    held: Range  #: the rank's part of it
    offset: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """One parameter and its sources, all cut along the same dimension."""

    parameter: str
    shape: tuple[int, ...]
    dimension: int
    sources: tuple[_Source, ...]

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for source in self.sources:
            sizes = list(self.shape)
            sizes[self.dimension] = source.size
            yield source.tensor, tuple(sizes)

    def placements(self) -> Iterator[Placement]:
        for source in self.sources:
            start, stop = source.held
            if start < stop:
                target = (source.offset, source.offset + stop - start)
                yield Placement(source.tensor, self._box(source.held), self.parameter, self._box(target))

    def _box(self, along: Range) -> tuple[Range, ...]:
        return tuple(along if i == self.dimension else (0, size) for i, size in enumerate(self.shape))


def _parts(config: ModelConfig, rank: int, world: int) -> Iterator[_Part]:
    hidden = config.hidden_size
    vocab = _Axis.split(config.vocab_size, rank, world)
    yield _rows("embedding.weight", vocab, (hidden,), "model.embed_tokens.weight")
    for layer in range(config.num_layers):
        yield from _layer_parts(config, rank, world, f"layers.{layer}", f"model.layers.{layer}")
    yield _whole("norm.weight", hidden, "model.norm.weight")
    if not config.tie_word_embeddings:
        yield _rows("head.weight", vocab, (hidden,), "lm_head.weight")


def _layer_parts(config: ModelConfig, rank: int, world: int, ours: str, theirs: str) -> Iterator[_Part]:
    hidden, dim = config.hidden_size, config.head_dim
    heads = config.num_heads // world
    queries = _Axis(config.num_heads * dim, (rank * heads * dim, (rank + 1) * heads * dim), heads * dim)
    first, last = kv_head_range(config, rank, world)
    keys = _Axis(config.num_kv_heads * dim, (first * dim, last * dim), (last - first) * dim)
    inner = _Axis.split(config.intermediate_size, rank, world)
    attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"

    yield _whole(f"{ours}.input_norm.weight", hidden, f"{theirs}.input_layernorm.weight")
    qkv = [(f"{attention}.q_proj", queries), (f"{attention}.k_proj", keys), (f"{attention}.v_proj", keys)]
    yield from _fused(f"{ours}.attention.qkv", qkv, hidden, config.attention_bias)
    if config.qk_norm:
        yield _whole(f"{ours}.attention.q_norm.weight", dim, f"{attention}.q_norm.weight")
        yield _whole(f"{ours}.attention.k_norm.weight", dim, f"{attention}.k_norm.weight")
    yield from _columns(
        f"{ours}.attention.output", hidden, queries, f"{attention}.o_proj", config.output_bias
    )
    yield _whole(f"{ours}.post_attention_norm.weight", hidden, f"{theirs}.post_attention_layernorm.weight")
    gate_up = [(f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)]
    yield from _fused(f"{ours}.mlp.gate_up", gate_up, hidden, config.mlp_bias)
    yield from _columns(f"{ours}.mlp.down", hidden, inner, f"{mlp}.down_proj", config.mlp_bias)


@dataclass(frozen=True, slots=True)
class _Axis:
    """A dimension that is split: its size, the rank's part of it, and the rows that the rank keeps for it."""

    size: int
    held: Range
    local: int

    @classmethod
    def split(cls, size: int, rank: int, world: int) -> _Axis:
        return cls(size, split_range(size, rank, world), -(-size // world))


def _whole(parameter: str, size: int, tensor: str) -> _Part:
    return _Part(parameter, (size,), 0, (_Source(tensor, size, (0, size)),))


def _rows(parameter: str, axis: _Axis, rest: tuple[int, ...], tensor: str) -> _Part:
    return _Part(parameter, (axis.local, *rest), 0, (_Source(tensor, axis.size, axis.held),))


def _fused(parameter: str, projections: list[tuple[str, _Axis]], columns: int, bias: bool) -> Iterator[_Part]:
    """Projections that read the same input, one under the other in one matrix: weight, then bias."""
    for kind, rest in (("weight", (columns,)), ("bias", ())):
        if kind == "bias" and not bias:
            return
        offset, sources = 0, []
        for tensor, axis in projections:
            sources.append(_Source(f"{tensor}.{kind}", axis.size, axis.held, offset))
            offset += axis.local
        yield _Part(f"{parameter}.{kind}", (offset, *rest), 0, tuple(sources))


def _columns(parameter: str, rows: int, axis: _Axis, tensor: str, bias: bool) -> Iterator[_Part]:
    """A projection whose input is split; its bias is whole on every rank, added once after the reduction."""
    source = _Source(f"{tensor}.weight", axis.size, axis.held)
    yield _Part(f"{parameter}.weight", (rows, axis.local), 1, (source,))
    if bias:
        yield _whole(f"{parameter}.bias", rows, f"{tensor}.bias")
