"""What 8-bit weights and activations do to a model's answers, against the same weights unrounded.

    python -m benchmarks.quantization [--questions 600] [--model DIR] [--ranks 2]

The reference is float32 arithmetic on the checkpoint's own weights. Against it stand bfloat16 and `--quantization int8`
as workers compute them, int8 with the head left in bfloat16, and int8 split over ranks, where a scale covers a rank's
part of a weight and of an activation. `--quantization fp8` is computed as it is defined, with sums in float32; GPUs sum
in another order.

- The bundled model on questions that training never saw, with their right answers: perplexity of the answers' tokens,
  how many answers greedy decoding gets right as a whole, the mean Kullback-Leibler divergence of the next token's
  distribution from the reference's, and how often the most probable token is the same.
- With --model another model, such as the random `medium` that `benchmarks.models` makes, on random tokens: divergence,
  agreement, and the cosine of the logits.

No time is measured, so the machine need not be quiet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tests.ranks import run_ranks
from tokenizers import Tokenizer
from tools.bundled_model.data import sample_questions
from tools.bundled_model.train import FOLDER
from torch import Tensor
from torch.nn import functional

from ryzanstein.model_plan import FP8, INT8, UNQUANTIZED, open_checkpoint, read_model_config
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader
from ryzanstein_shard_worker.communication import CommunicationHandler, SingleHandler
from ryzanstein_shard_worker.models import Decoder, build_model
from ryzanstein_shard_worker.parallel import dense_causal_attend

from .engine_model import random_prompt

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens, and from which position on they are the model's to say."""

    tokens: list[int]
    spoken_from: int


@dataclass(frozen=True, slots=True)
class Variant:
    """How a model is computed. `of_module`: the quantization of each module, by its name."""

    name: str
    dtype: torch.dtype
    of_module: Callable[[str], str]
    ranks: int = 1


def _all(quantization: str) -> Callable[[str], str]:
    return lambda module: quantization


def _but_the_head(module: str) -> str:
    # A tied head is packed with the embedding.
    return UNQUANTIZED if module in ("embedding", "head") else INT8


REFERENCE = Variant("float32", torch.float32, _all(UNQUANTIZED))
BFLOAT16 = Variant("bfloat16", torch.bfloat16, _all(UNQUANTIZED))
EIGHT_BITS = Variant("int8", torch.bfloat16, _all(INT8))
EIGHT_BIT_FLOATS = Variant("fp8", torch.bfloat16, _all(FP8))
HEAD_IN_BFLOAT16 = Variant("int8, head in bfloat16", torch.bfloat16, _but_the_head)


@dataclass(slots=True)
class Scores:
    """Sums over the spoken tokens of all texts."""

    tokens: int = 0
    loss: float = 0.0
    divergence: float = 0.0
    agreeing: int = 0
    cosine: float = 0.0
    answers: list[bool] = field(default_factory=list)

    def add(self, text: Text, logits: Tensor, reference: Tensor) -> None:
        """logits and reference [T, V] float32, of all positions of the text."""
        rows = slice(text.spoken_from - 1, len(text.tokens) - 1)  # a row tells the token behind it
        ours, theirs = logits[rows], reference[rows]
        targets = torch.tensor(text.tokens[text.spoken_from :])
        said = ours.argmax(1)
        self.tokens += len(targets)
        self.loss += float(functional.cross_entropy(ours, targets, reduction="sum"))
        self.divergence += float(
            functional.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction="sum", log_target=True)
        )
        self.agreeing += int((said == theirs.argmax(1)).sum())
        self.cosine += float(functional.cosine_similarity(ours, theirs).sum())
        self.answers.append(bool((said == targets).all()))

    def row(self, name: str, *, answers: bool) -> str:
        """One line of the table."""
        cells = [name]
        if answers:
            perplexity = torch.tensor(self.loss / self.tokens).exp()
            cells += [f"{perplexity:.5f}", f"{sum(self.answers)} of {len(self.answers)}"]
        cells += [
            f"{self.divergence / self.tokens:.2e}",
            f"{self.agreeing / self.tokens:.3%}",
            f"{self.cosine / self.tokens:.6f}",
        ]
        return "| " + " | ".join(cells) + " |"


def bundled_texts(count: int) -> list[Text]:
    """Held-out questions in the chat format; the answer and the end are the model's to say."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    texts = []
    for question in sample_questions(1, count):
        asked = tokenizer.encode(
            f"<|begin|><|user|>{question.text}<|end|><|assistant|>", add_special_tokens=False
        ).ids
        said = tokenizer.encode(f"{question.answer}<|end|>", add_special_tokens=False).ids
        texts.append(Text(asked + said, len(asked)))
    return texts


def random_texts(directory: Path, count: int, tokens: int) -> list[Text]:
    config = read_model_config(directory)
    return [Text(random_prompt(config, number, tokens), 1) for number in range(count)]


def logits_of(directory: Path, variant: Variant, texts: Sequence[Text]) -> Iterator[Tensor]:
    """[T, V] float32 for each text, as the variant computes it."""
    if variant.ranks == 1:
        model = _load(directory, variant, SingleHandler())
        yield from (_logits(model, text) for text in texts)
        return

    def on_rank(handler: CommunicationHandler) -> list[Tensor]:
        model = _load(directory, variant, handler)
        return [_logits(model, text) for text in texts]

    yield from run_ranks(variant.ranks, on_rank)[0]


def _load(directory: Path, variant: Variant, handler: CommunicationHandler) -> Decoder:
    config = read_model_config(directory)
    model = build_model(config, handler, variant.dtype, _CPU)
    loader = DistributedCheckpointLoader(
        open_checkpoint(directory), config, handler.rank, handler.world_size, variant.dtype, _CPU
    )
    loader.load(
        model,
        on_layer_complete=lambda module: model.pack_module(module, quantization=variant.of_module(module)),
    )
    return model


@torch.inference_mode()
def _logits(model: Decoder, text: Text) -> Tensor:
    count = len(text.tokens)
    attend = dense_causal_attend([count], model.sliding_windows)
    return model.logits(model(torch.tensor(text.tokens), torch.arange(count), attend))


def compare(
    directory: Path, texts: Sequence[Text], variants: Sequence[Variant], *, answers: bool
) -> Iterator[str]:
    """A table, line by line."""
    names = ["", *(["perplexity", "answers right"] if answers else [])]
    names += ["divergence (nats)", "same first choice", "cosine of the logits"]
    yield "| " + " | ".join(names) + " |"
    yield "|---" * len(names) + "|"
    reference = list(logits_of(directory, REFERENCE, texts))
    for variant in (REFERENCE, *variants):
        scores = Scores()
        computed = reference if variant is REFERENCE else logits_of(directory, variant, texts)
        for text, logits, theirs in zip(texts, computed, reference, strict=True):
            scores.add(text, logits, theirs)
        yield scores.row(variant.name, answers=answers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="another one than the bundled, on random tokens")
    parser.add_argument("--questions", type=int, default=600, help="for the bundled model")
    parser.add_argument("--texts", type=int, default=4, help="for another model")
    parser.add_argument("--tokens", type=int, default=128, help="of such a text")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2], help="int8 split over so many, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    variants = [BFLOAT16, EIGHT_BITS, HEAD_IN_BFLOAT16]
    variants += [Variant(f"int8, {n} ranks", torch.bfloat16, _all(INT8), n) for n in options.ranks]
    variants.append(EIGHT_BIT_FLOATS)
    directory = options.model or FOLDER
    texts = (
        bundled_texts(options.questions)
        if options.model is None
        else random_texts(directory, options.texts, options.tokens)
    )
    said = sum(len(text.tokens) - text.spoken_from for text in texts)
    print(f"{directory.name}: {len(texts)} texts, {said} tokens compared\n", flush=True)
    for line in compare(directory, texts, variants, answers=options.model is None):
        print(line, flush=True)


if __name__ == "__main__":
    main()
