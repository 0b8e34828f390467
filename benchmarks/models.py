"""Models to measure with, made by transformers with random weights; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import save_tokenizer

from .shapes import SHAPES


def make_medium(directory: Path) -> Path:
    """Llama architecture, 495 M parameters, 0.99 GB in bfloat16. Writes it once; later calls find it."""
    if (directory / "model.safetensors").is_file():
        return directory
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    medium = SHAPES["medium"]
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = LlamaForCausalLM(LlamaConfig(**medium, tie_word_embeddings=False)).to(torch.bfloat16)
    model.save_pretrained(directory)
    save_tokenizer(directory, vocab_size=medium["vocab_size"])
    return directory
