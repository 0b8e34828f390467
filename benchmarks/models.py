"""Models to measure with, made by transformers with random weights; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import save_tokenizer

#: Llama architecture, 495 M parameters, 0.99 GB in bfloat16.
MEDIUM = {
    "vocab_size": 32000,
    "hidden_size": 1280,
    "intermediate_size": 3456,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def make_medium(directory: Path) -> Path:
    """Writes the model once; later calls find it."""
    if (directory / "model.safetensors").is_file():
        return directory
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("cpu"):
        model = LlamaForCausalLM(LlamaConfig(**MEDIUM)).to(torch.bfloat16)
    model.save_pretrained(directory)
    save_tokenizer(directory, vocab_size=MEDIUM["vocab_size"])
    return directory
