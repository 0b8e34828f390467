"""Asks the bundled model questions that training never saw and reports how many it answers right.

    python -m tools.bundled_model.evaluate

Uses transformers' greedy generation, so it says what a correct engine must reproduce.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from .data import TASKS, Question, check, sample_questions
from .train import FOLDER

_BATCH_SIZE = 64
# The ways to put a question; the answer must not depend on it.
_PROMPTS = {
    "chat": "<|begin|><|user|>{}<|end|><|assistant|>",
    "plain": "<|begin|>{}",
    "qa": "<|begin|>Q: {}\nA:",
    "second-turn": (
        "<|begin|><|user|>What is 12 + 30?<|end|><|assistant|>Ones: 2 + 0 = 2. Tens: 1 + 3 = 4. "
        "So 12 + 30 = 42.<|end|><|user|>{}<|end|><|assistant|>"
    ),
    "system": "<|begin|><|system|>You are a helpful assistant.<|end|><|user|>{}<|end|><|assistant|>",
}


def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """The greedy continuation of each prompt, without special tokens."""
    batch = tokenizer(
        list(prompts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    width = batch["input_ids"].shape[1]
    with torch.inference_mode():
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
    return [str(text) for text in tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)]


def wrong_per_task(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], prompt: str
) -> dict[str, list[tuple[Question, str]]]:
    """For each task, the questions that were answered wrong with what was said instead."""
    wrong: dict[str, list[tuple[Question, str]]] = {}
    # Questions with answers of like length together, so that few wait for the longest of a batch.
    ordered = sorted(questions, key=lambda question: len(question.answer))
    for start in range(0, len(ordered), _BATCH_SIZE):
        batch = ordered[start : start + _BATCH_SIZE]
        longest = max(len(tokenizer(question.answer)["input_ids"]) for question in batch)
        said = answers(model, tokenizer, [prompt.format(q.text) for q in batch], longest + 8)
        for question, text in zip(batch, said, strict=True):
            failures = wrong.setdefault(question.task, [])
            if not check(question.text, text):
                failures.append((question, text))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-task", type=int, default=50)
    parser.add_argument("--tasks", nargs="*", default=[], help="names of tasks (all by default)")
    parser.add_argument("--form", choices=sorted(_PROMPTS), default="chat")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--show-wrong", type=int, default=0, help="how many wrong answers to show per task")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    tokenizer = AutoTokenizer.from_pretrained(chosen.folder)
    model = LlamaForCausalLM.from_pretrained(chosen.folder, dtype=getattr(torch, chosen.dtype)).eval()
    names = chosen.tasks or [task.name for task in TASKS]
    questions = sample_questions(chosen.seed, chosen.per_task * len(names), names)
    wrong = wrong_per_task(model, tokenizer, questions, _PROMPTS[chosen.form])
    for name in names:
        right = chosen.per_task - len(wrong[name])
        print(f"{name:22} {right:4} of {chosen.per_task}  {right / chosen.per_task:7.1%}")
        for question, text in wrong[name][: chosen.show_wrong]:
            print(f"    {question.text}\n      right: {question.answer}\n      said:  {text.strip()}")
    total = sum(len(failures) for failures in wrong.values())
    print(f"{'all':22} {len(questions) - total:4} of {len(questions)}  {1 - total / len(questions):7.1%}")


if __name__ == "__main__":
    main()
