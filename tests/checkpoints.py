"""Tiny random checkpoints of every family, written by transformers itself, for tests all over the project.

    directory = make_checkpoint(tmp_path / "model", family="qwen3", num_hidden_layers=1, tokenizer=True)

`overrides` are keywords of the family's configuration class (`rope_parameters`, `tie_word_embeddings`, ...).
The sizes split unevenly on purpose: 331 tokens and 100 inner features over 1, 2, 4 or 8 ranks.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

_SIZES: dict[str, Any] = {
    "vocab_size": 331,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,  # 8 x 16 is not hidden_size: nothing may take one for the other
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

#: What the tokenizer learns from: enough repetition for merges, and text of several scripts.
_TEXTS = [
    "The sky is blue and the sea is green. The quick brown fox jumps over the lazy dog.",
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "1 2 3 4 5 6 7 8 9 10 11 12; 2+2=4, 3+4=7",
    "Grüße aus Köln, naïve café, 東京は夜の七時, привет мир 🙂🙃",
]


def make_checkpoint(
    directory: Path,
    *,
    family: str = "llama",
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: bool = False,
    max_shard_size: str | int = "5GB",
    **overrides: Any,
) -> Path:
    """Writes a checkpoint with random weights (biases and norms too) and returns its directory.

    Args:
        directory: made if it is not there.
        family: llama, mistral, qwen2 or qwen3.
        dtype: of the stored tensors: float32, bfloat16 or float16.
        seed: the same seed and sizes give the same bytes.
        tokenizer: adds a byte-level BPE tokenizer trained on a few lines, with a chat template.
        max_shard_size: as of `save_pretrained`; a small one ("40KB") gives several files and an index.
        overrides: keywords of the family's configuration class.
    """
    model = make_model(family, dtype=dtype, seed=seed, **overrides)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer:
        save_tokenizer(directory, vocab_size=model.config.vocab_size)
    return directory


def make_model(family: str, *, dtype: str = "float32", seed: int = 0, **overrides: Any) -> Any:
    """The transformers model that `make_checkpoint` saves: the reference of parity tests."""
    import torch

    transformers = _transformers()
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }[family]
    sizes = dict(_SIZES)
    if family == "qwen2":
        sizes.pop("head_dim")  # Qwen2 has no such key
    model = model_class(config_class(**{**sizes, **overrides}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.0 + 0.2 * noise if name.endswith("norm.weight") else 0.15 * noise)
    return model.to(getattr(torch, dtype)).eval()


def save_tokenizer(directory: Path, *, vocab_size: int = 331) -> None:
    """Writes a trained byte-level BPE tokenizer of at most `vocab_size` ids: any text round-trips.

    <unk>, <s> and </s> are 0, 1 and 2, as the checkpoints' bos_token_id and eos_token_id say.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS * 4, trainer)
    _transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=_CHAT_TEMPLATE,
    ).save_pretrained(directory)


def _transformers() -> Any:
    """The library, quiet; imported late because it takes seconds."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging = importlib.import_module("transformers.utils.logging")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return importlib.import_module("transformers")


class Checkpoints:
    """Checkpoints of one test session: equal arguments give the same directory. Don't write into it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[str, Path] = {}

    def __call__(self, family: str = "llama", **arguments: Any) -> Path:
        """As `make_checkpoint`, but made once."""
        key = repr((family, sorted(arguments.items())))
        if key not in self._made:
            directory = self._root / f"{family}-{len(self._made)}"
            self._made[key] = make_checkpoint(directory, family=family, **arguments)
        return self._made[key]


@cache
def _checkpoints(root: Path) -> Checkpoints:
    return Checkpoints(root)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Use it by importing it into a conftest.py: `from tests.checkpoints import checkpoints  # noqa: F401`.

    Every conftest.py that imports it shares the checkpoints of the session.
    """
    return _checkpoints(tmp_path_factory.getbasetemp() / "checkpoints")
