"""A Llama checkpoint as GGUF, for llama.cpp: what its converter does for this architecture, without a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Path, target: Path, weights: str) -> None:
    """`weights`: bf16, or int8 for Q8_0 (blocks of 32 with one scale). Vectors stay in float32, as llama.cpp wants."""
    import gguf

    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    # Else it takes the hidden size over the heads, which not every model keeps to.
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")
    kind = gguf.GGMLQuantizationType.Q8_0 if weights == "int8" else gguf.GGMLQuantizationType.BF16
    for name, tensor in _tensors(model / "model.safetensors"):
        if tensor.ndim == 1:
            writer.add_tensor(_renamed(name), tensor)
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            matrix = _pairs_together(tensor, heads if "q_proj" in name else kv_heads)
        else:
            matrix = tensor
        writer.add_tensor(_renamed(name), gguf.quants.quantize(matrix, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(file: Path) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """Every tensor of a bfloat16 safetensors file, as float32."""
    data = np.memmap(file, dtype=np.uint8, mode="r")
    header_bytes = int(data[:8].view(np.uint64)[0])
    header = json.loads(bytes(data[8 : 8 + header_bytes]))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{file}: {name} is {entry['dtype']}, only BF16 is converted")
        begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        halves = np.frombuffer(bytes(data[begin:end]), dtype=np.uint16)
        yield name, (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def _renamed(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _pairs_together(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of one head from halves [2, dim/2] to pairs [dim/2, 2]: llama.cpp rotates neighbours."""
    rows, columns = weight.shape
    return np.ascontiguousarray(
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )
