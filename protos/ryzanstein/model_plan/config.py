"""What a Hugging Face config.json says about a decoder-only model, as one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .fields import Fields, ModelError, read_json_object
from .rope import RopeScaling, read_rope
from .safetensors_header import first_float_dtype

#: Architectures that are served, and the family whose rules apply.
FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

#: Bytes of one element, by the names that config.json, the command line and `ModelConfig.dtype` use.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Larger than any model and small enough that a plan of it is made in an instant.
_MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that the plan, the layers and the front door need to know about a model.

    Sizes are those of the whole model, before it is split.
    """

    architecture: str  #: a key of `FAMILIES`
    family: str  #: llama, mistral, qwen2 or qwen3
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  #: need not be hidden_size / num_heads
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    tie_word_embeddings: bool  #: the head is the embedding
    attention_bias: bool  #: q, k and v projections have a bias
    output_bias: bool  #: the output projection of the attention has a bias
    mlp_bias: bool  #: gate, up and down projections have a bias
    qk_norm: bool  #: q and k are normalised per head, before the rotation
    sliding_window: int | None  #: a query sees itself and the sliding_window - 1 positions before it
    sliding_layers: tuple[bool, ...]  #: per layer, whether the window applies
    hidden_act: str  #: "silu", the only one served
    dtype: str  #: of the checkpoint: a key of `DTYPE_BYTES`
    eos_token_ids: tuple[int, ...]  #: any of them ends a sequence; empty: none is known
    bos_token_id: int | None

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer, None where it attends to everything before it."""
        return self.sliding_window if self.sliding_layers[layer] else None

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens, that the position embeddings are made for."""
        scaling = self.rope_scaling
        if (
            scaling is not None and scaling.kind == "yarn"
        ):  # configs leave max_position_embeddings at the original
            extended = int(scaling.original_max_position_embeddings * scaling.factor)
            return max(self.max_position_embeddings, extended)
        return self.max_position_embeddings


def read_model_config(directory: Path) -> ModelConfig:
    """Reads config.json, and generation_config.json where there is one, as transformers 4 and 5 write them.

    Defaults are those of transformers' configuration classes; a size that has no default there, or one that
    fits only one model of the family, must be in the file. Raises ModelError, which names file and key.
    """
    path = directory / "config.json"
    config = Fields(path, read_json_object(path))
    architecture = _architecture(config)
    family = FAMILIES[architecture]
    if config.has("quantization_config") or config.has("compression_config"):
        config.fail("quantization_config", "quantized checkpoints are not supported; use the unquantized one")
    num_layers = config.integer("num_hidden_layers", maximum=_MAX_LAYERS)
    hidden_size = config.integer("hidden_size", maximum=2**31)
    vocab_size = config.integer("vocab_size", maximum=2**31)
    num_heads, num_kv_heads, head_dim = _heads(config, family, hidden_size)
    max_positions = config.integer("max_position_embeddings")
    rope_theta, rope_scaling = read_rope(config, max_positions)
    window, sliding_layers = _sliding(config, family, num_layers)
    bias = config.boolean("attention_bias", False) if family in ("llama", "qwen3") else False
    bos = config.token_ids("bos_token_id")
    return ModelConfig(
        architecture=architecture,
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size", maximum=2**31),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
        attention_bias=bias or family == "qwen2",  # Qwen2 has it always, without a key for it
        output_bias=bias,
        mlp_bias=config.boolean("mlp_bias", False) if family == "llama" else False,
        qk_norm=family == "qwen3",
        sliding_window=window,
        sliding_layers=sliding_layers,
        hidden_act=_activation(config),
        dtype=_dtype(config, directory),
        eos_token_ids=_eos_token_ids(config, directory),
        bos_token_id=bos[0] if bos else None,
    )


def _architecture(config: Fields) -> str:
    named = config.optional_strings("architectures")
    if not named:
        # model_type alone is what some converters leave; it is unambiguous for these families.
        model_type = config.optional_string("model_type")
        named = tuple(name for name, family in FAMILIES.items() if family == model_type)
    known = next((name for name in named if name in FAMILIES), None)
    if known is None:
        what = ", ".join(named) or config.optional_string("model_type") or "nothing"
        config.fail(
            "architectures", f"names {what}, which is not supported; supported are {', '.join(FAMILIES)}"
        )
    return known


def _heads(config: Fields, family: str, hidden_size: int) -> tuple[int, int, int]:
    num_heads = config.integer("num_attention_heads", maximum=2**20)
    if "num_key_value_heads" not in config.values and family != "llama":
        # transformers would take the number of one model of the family; only Llama's default fits them all.
        config.fail("num_key_value_heads", "is missing; add it, as in the model's original config.json")
    num_kv_heads = config.integer("num_key_value_heads", num_heads, maximum=2**20)
    if num_heads % num_kv_heads:
        config.fail(
            "num_key_value_heads", f"{num_kv_heads} does not divide num_attention_heads ({num_heads})"
        )
    head_dim = config.optional_integer("head_dim", maximum=2**16)
    if head_dim is None and family == "qwen3" and "head_dim" not in config.values:
        head_dim = 128
    if head_dim is None:
        if hidden_size % num_heads:
            config.fail(
                "hidden_size",
                f"{hidden_size} is not a multiple of num_attention_heads ({num_heads}); add head_dim",
            )
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        config.fail("head_dim", f"must be even, because rotary embeddings turn pairs; is {head_dim}")
    return num_heads, num_kv_heads, head_dim


def _sliding(config: Fields, family: str, num_layers: int) -> tuple[int | None, tuple[bool, ...]]:
    none = (False,) * num_layers
    if family == "llama":  # transformers' Llama ignores the key
        return None, none
    absent = "sliding_window" not in config.values
    window = 4096 if absent else config.optional_integer("sliding_window")
    if family == "mistral":
        return window, (window is not None,) * num_layers
    if not config.boolean("use_sliding_window", False):
        window = None
    types = config.optional_strings("layer_types")
    if types is None:
        first = config.integer("max_window_layers", 28, minimum=0)
        layers = tuple(window is not None and layer >= first for layer in range(num_layers))
    else:
        if len(types) != num_layers:
            config.fail("layer_types", f"has {len(types)} entries for num_hidden_layers = {num_layers}")
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown:
            config.fail(
                "layer_types", f"{min(unknown)!r} is not supported: full_attention or sliding_attention"
            )
        layers = tuple(kind == "sliding_attention" for kind in types)
        if any(layers) and window is None:
            config.fail(
                "layer_types", "has sliding_attention, but use_sliding_window or sliding_window is not set"
            )
    return (window, layers) if any(layers) else (None, none)


def _activation(config: Fields) -> str:
    name = config.optional_string("hidden_act") or "silu"
    if name not in ("silu", "swish"):  # two names of one function
        config.fail("hidden_act", f"{name!r} is not supported; supported is 'silu'")
    return "silu"


def _dtype(config: Fields, directory: Path) -> str:
    key = "dtype" if config.has("dtype") else "torch_dtype"
    name = config.optional_string(key)
    if name is None:  # as transformers does: the first tensor with a fraction tells
        return first_float_dtype(directory) or "float32"
    name = name.removeprefix("torch.")
    if name not in DTYPE_BYTES:
        config.fail(key, f"{name!r} is not supported; supported are {', '.join(DTYPE_BYTES)}")
    return name


def _eos_token_ids(config: Fields, directory: Path) -> tuple[int, ...]:
    """Of both files: chat models add their end of turn in generation_config.json only."""
    path = directory / "generation_config.json"
    generation = Fields(path, read_json_object(path)) if path.exists() else Fields(path, {})
    ids = (*generation.token_ids("eos_token_id"), *config.token_ids("eos_token_id"))
    return tuple(dict.fromkeys(ids))


__all__ = ["DTYPE_BYTES", "FAMILIES", "ModelConfig", "ModelError", "read_model_config"]
