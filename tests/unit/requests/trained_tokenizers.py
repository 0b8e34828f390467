"""Real tokenizers of the three kinds in use, trained in a moment."""

from __future__ import annotations

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

TEXTS = [
    "The sky is blue and the sea is blue; the quick brown fox jumps over the lazy dog.",
    "Grüße aus Köln, où l'été dure jusqu'à l'automne: naïve façade, smörgåsbord.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "敏捷的棕色狐狸跳过了懒狗。素早い茶色の狐がのろまな犬を飛び越える。",
    "def main(argv: list[str]) -> int:\n    return len(argv)  # 42 🙂🙃👩‍👩‍👧",
] * 8

#: Special tokens, and one that is added but not special and is shown.
SPECIAL = ["<s>", "</s>", "<|user|>"]
ADDED = "<think>"


def _with_extras(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(ADDED, normalized=False)])
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return tokenizer


@functools.cache
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: every byte has a token, characters outside of the training text are
    split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    return _with_extras(tokenizer)


@functools.cache
def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: ▁ for spaces, unknown characters as <0xE4> tokens, the first space stripped."""
    trainer = trainers.UnigramTrainer(
        vocab_size=400, unk_token="<unk>", special_tokens=["<unk>", *_byte_tokens()], show_progress=False
    )
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trained.train_from_iterator(TEXTS[:2] * 4, trainer)
    # The trainer makes a model without byte fallback: the same vocabulary with it is a new model.
    vocabulary = sorted(trained.get_vocab().items(), key=lambda entry: entry[1])
    tokenizer = Tokenizer(
        models.Unigram(
            [(token, -float(index + 1)) for token, index in vocabulary], unk_id=0, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_extras(tokenizer)


@functools.cache
def metaspace() -> Tokenizer:
    """As T5: ▁ for spaces, no bytes; characters outside of the training text are lost by the tokenizer
    itself."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _with_extras(tokenizer)


@functools.cache
def word_piece() -> Tokenizer:
    """A decoder that joins with spaces and cleans up: no rule of ours covers it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False)
    )
    return _with_extras(tokenizer)


def _byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]
