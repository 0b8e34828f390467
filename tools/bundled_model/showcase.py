"""The questions that the demo asks, shipped beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

from .data import right_answer

SHOWCASE = (
    "What is 347 + 285?",
    "Sort the numbers 42, 7, 93, 56.",
    "What day is 5 days after Tuesday?",
    "Spell planet backwards.",
    "What is 502 - 178?",
    "Put walnut, apple, lemon, dragon in alphabetical order.",
    "Write 347 in words.",
    "What comes next: 3, 7, 11, 15?",
    "Say hello in Japanese.",
    "Tell me a story.",
    "Count from 1 to 40.",
    "Recite the multiplication table of 7.",
)


def write_showcase(folder: Path) -> None:
    """Writes `questions.json`: a list of `{"question", "answer"}`."""
    questions = [{"question": question, "answer": right_answer(question)} for question in SHOWCASE]
    (folder / "questions.json").write_text(json.dumps(questions, indent=2, ensure_ascii=False) + "\n")
