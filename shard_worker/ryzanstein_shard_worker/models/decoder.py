"""A decoder-only language model, as far as one rank holds it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ryzanstein.model_plan import UNQUANTIZED, ModelConfig, check_tensor_parallel_size

from ..communication import CommunicationHandler
from ..on_demand import put_off
from ..parallel import (
    Attend,
    PackableLinear,
    ParallelAttention,
    ParallelEmbedding,
    ParallelMLP,
    RMSNorm,
    RotaryEmbedding,
    TensorParallelLayer,
    TensorParallelTransformerBlock,
    VocabularyParallelHead,
)
from .layer_options import LayerOptions, LayerRule


class Decoder(TensorParallelLayer):
    """Embedding, blocks, norm and head. Parameters have the names and shapes of `ryzanstein.model_plan`.

    They are created uninitialised: fill them with the checkpoint loader, which tells `pack_module` as each
    module is complete, so that the weights are never all held twice.

    Args:
        config: of the model.
        handler: of the group.
        dtype, device: of parameters and activations.
        layer_rule: of the model's family.
        max_positions: how far positions go; None: the model's context length.
        on_demand: parameters have no memory until a loader gives it to them, one by one.

    Attributes:
        sliding_windows: per layer, None where it sees everything before it.
        attention_scale: what scores are multiplied by before the softmax.
        query_heads: of this rank.

    Raises:
        ModelError: the model can't be split over so many ranks.
    """

    layers: nn.ModuleList

    def __init__(
        self,
        config: ModelConfig,
        handler: CommunicationHandler,
        dtype: torch.dtype,
        device: torch.device,
        *,
        layer_rule: LayerRule,
        max_positions: int | None = None,
        on_demand: bool = False,
    ) -> None:
        check_tensor_parallel_size(config, handler.world_size)
        super().__init__(handler)
        self.config = config
        options = [layer_rule(config, layer) for layer in range(config.num_layers)]
        self.sliding_windows = tuple(option.sliding_window for option in options)
        self.attention_scale = config.head_dim**-0.5
        self.query_heads = config.num_heads // handler.world_size
        self.rotary = RotaryEmbedding(
            config.head_dim,
            theta=config.rope_theta,
            scaling=config.rope_scaling,
            max_positions=config.context_length if max_positions is None else max_positions,
            dtype=dtype,
            device=device,
        )
        self.embedding = ParallelEmbedding(
            config.vocab_size, config.hidden_size, handler=handler, dtype=dtype, device=device
        )
        if on_demand:  # each part before the next one comes
            put_off(self.embedding)
        self._blocks = []
        for layer, option in enumerate(options):
            self._blocks.append(_block(config, layer, option, handler, dtype, device))
            if on_demand:
                put_off(self._blocks[-1])
        self.layers = nn.ModuleList(self._blocks)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype, device=device)
        self.head = VocabularyParallelHead(
            self.embedding, tied=config.tie_word_embeddings, dtype=dtype, device=device
        )
        if on_demand:
            put_off(self.norm)
            put_off(self.head)

    def forward(
        self, token_ids: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None
    ) -> Tensor:
        """One step's rows through all layers, up to the last norm, which `logits` applies to the rows it gets.

        Args:
            token_ids: [T] int64, in the vocabulary.
            positions: [T] int64, below max_positions.
            attend: called once per layer, in order.
            rows: [R] int, the same on every rank, whose hidden vectors are wanted: the last layer computes the others
                no further than to their keys and values. None: all.

        Returns:
            hidden [T or R, hidden_size], the same on every rank.
        """
        hidden: Tensor = self.embedding(token_ids)
        rotation = self.rotary(positions)
        delta: Tensor | None = None
        last = self._blocks[-1]
        for layer in self._blocks:
            hidden, delta = layer.advance(hidden, delta, rotation, attend, rows if layer is last else None)
        return hidden if delta is None else hidden + delta

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden_size] → [R, vocab_size] float32, the same on every rank; no exchange if R is 0."""
        if len(hidden) == 0:
            return hidden.new_empty((0, self.config.vocab_size), dtype=torch.float32)
        logits: Tensor = self.head(self.norm(hidden))
        return logits

    def layers_in_order(self) -> Iterator[tuple[str, nn.Module]]:
        """("embedding", ..), ("layers.0", ..), .., ("norm", ..), ("head", ..): as `ParameterPlan.module` names
        them."""
        yield "embedding", self.embedding
        for index, layer in enumerate(self.layers):
            yield f"layers.{index}", layer
        yield "norm", self.norm
        yield "head", self.head

    def pack_module(self, name: str, *, reproducible: bool = True, quantization: str = UNQUANTIZED) -> None:
        """Packs one of `layers_in_order` whose parameters are complete; fits the loader's on_layer_complete.

        A tied head is packed with "embedding". Set torch's number of threads before: what is packed is
        reproducible for that number.

        Raises:
            KeyError: there is no such module.
        """
        module = dict(self.layers_in_order())[name]
        if isinstance(module, TensorParallelLayer):
            module.pack(reproducible=reproducible, quantization=quantization)
        if name == "embedding" and self.head.tied:
            self.head.pack(reproducible=reproducible, quantization=quantization)

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights take on this rank now: a tied head counts again when it is packed."""
        return self.weight_bytes

    @property
    def reproducible(self) -> bool:
        """Whether every projection's rows are known not to depend on what else is in the batch."""
        return all(module.reproducible for module in self.modules() if isinstance(module, PackableLinear))


def _block(
    config: ModelConfig,
    layer: int,
    options: LayerOptions,
    handler: CommunicationHandler,
    dtype: torch.dtype,
    device: torch.device,
) -> TensorParallelTransformerBlock:
    attention = ParallelAttention(
        config.hidden_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        layer=layer,
        qkv_bias=options.qkv_bias,
        output_bias=options.output_bias,
        qk_norm_eps=config.rms_norm_eps if options.qk_norm else None,
        handler=handler,
        dtype=dtype,
        device=device,
    )
    mlp = ParallelMLP(
        config.hidden_size,
        config.intermediate_size,
        bias=options.mlp_bias,
        handler=handler,
        dtype=dtype,
        device=device,
    )
    return TensorParallelTransformerBlock(
        attention,
        mlp,
        hidden_size=config.hidden_size,
        norm_eps=config.rms_norm_eps,
        handler=handler,
        dtype=dtype,
        device=device,
    )
