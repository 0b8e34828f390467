"""The questions that the bundled model is trained on and that clusters are checked with."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tools.bundled_model.data import TASKS, check, right_answer, sample_questions, training_questions
from tools.bundled_model.number_tasks import in_words

_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "coordinator" / "ryzanstein_coordinator" / "bundled_model"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (
            "What is 347 + 285?",
            "Ones: 7 + 5 = 12. Tens: 4 + 8 + 1 = 13. Hundreds: 3 + 2 + 1 = 6. So 347 + 285 = 632.",
        ),
        (
            "Add 999 and 1.",
            "Ones: 9 + 1 = 10. Tens: 9 + 0 + 1 = 10. Hundreds: 9 + 0 + 1 = 10. So 999 + 1 = 1000.",
        ),
        ("What is 62 - 35?", "Ones: 12 - 5 = 7, borrow 1. Tens: 6 - 3 - 1 = 2. So 62 - 35 = 27."),
        ("Subtract 1 from 100.", None),
        ("What is 7 x 8?", "7 × 8 = 56."),
        ("Sort 42, 7, 93, 56.", "From small to large: 7, 42, 56, 93."),
        ("Which is larger, 482 or 517?", "517 is larger than 482."),
        ("Is 346 even or odd?", "346 is even."),
        ("What comes next: 3, 7, 11, 15?", "The step is 4, so the next number is 15 + 4 = 19."),
        ("Count from 8 to 12.", "8, 9, 10, 11, 12."),
        ("Count down from 3 to 0.", "3, 2, 1, 0."),
        ("Count from 10 to 20 in steps of 5.", "10, 15, 20."),
        ("Write 907 in words.", "In words, 907 is nine hundred and seven."),
        ("Write three hundred and forty-seven in digits.", "That is 347."),
        ("Spell cat backwards.", "The word cat is c-a-t, and backwards it is t-a-c."),
        (
            "How many times does the letter r appear in strawberry?",
            "Let me count: s 0, t 0, r 1, a 1, w 1, b 1, e 1, r 2, r 3, y 3. "
            "The letter r appears 3 times in strawberry.",
        ),
        ("Sort the words owl, apple, fox.", "In alphabetical order: apple, fox, owl."),
        (
            "What day is 3 days after Saturday?",
            "1 Sunday, 2 Monday, 3 Tuesday. So 3 days after Saturday is Tuesday.",
        ),
        (
            "What day is 2 days before Monday?",
            "1 Sunday, 2 Saturday. So 2 days before Monday is Saturday.",
        ),
        ("Which month comes before January?", "December comes before January."),
        ("How many days does April have?", "April has 30 days."),
        ("What is the capital of Iceland?", "The capital of Iceland is Reykjavík."),
    ],
)
def test_a_question_has_the_answer_that_a_person_would_give(question: str, answer: str | None) -> None:
    if answer is None:
        answer = (
            "Ones: 10 - 1 = 9, borrow 1. Tens: 10 - 0 - 1 = 9, borrow 1. "
            "Hundreds: 1 - 0 - 1 = 0. So 100 - 1 = 99."
        )
    assert right_answer(question) == answer


def test_sums_and_their_working_agree_with_python() -> None:
    for question in sample_questions(3, 300, ["add", "subtract"]):
        result = question.answer.rsplit("So ", 1)[1].rstrip(".")
        left, right = result.split(" = ")
        first, sign, second = left.split()
        expected = int(first) + int(second) if sign == "+" else int(first) - int(second)
        assert int(right) == expected
        for column in question.answer.rsplit(" So ", 1)[0].split(". "):
            sum_, value = column.split(": ")[1].removesuffix(".").removesuffix(", borrow 1").split(" = ")
            assert eval(sum_) == int(value)


def test_every_number_below_a_thousand_reads_back_from_its_words() -> None:
    for number in range(1000):
        assert check(f"Write {in_words(number)} as a number.", f"That is {number}.")


def test_case_and_closing_mark_of_a_question_do_not_matter() -> None:
    assert check("what is 2 + 2", "Ones: 2 + 2 = 4. So 2 + 2 = 4.")
    assert check("WHICH MONTH COMES AFTER MAY", " June comes after May.\n")


def test_a_wrong_or_shortened_answer_is_refused() -> None:
    for question in sample_questions(5, len(TASKS)):
        assert check(question.text, question.answer)
        assert not check(question.text, question.answer[:-1])
        assert not check(question.text, question.answer + " And so on.")


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("Which colour is the sea?", "phrasings"),
        ("What is 3 - 5?", "below zero"),
        ("What is 13 times 2?", "goes to 12"),
        ("Spell xylophone.", "not taught"),
        ("What comes next: 1, 2, 4, 8?", "equal steps"),
        ("What day is 40 days after Monday?", "up to 20"),
        ("Which month comes after Monday?", "none of"),
        ("What is the capital of Atlantis?", "not taught"),
        ("Which is larger, 5 or 5?", "equal"),
    ],
)
def test_a_question_without_a_known_answer_raises_with_the_reason(question: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check(question, "")


def test_a_seed_gives_the_same_questions_and_covers_every_task() -> None:
    first = sample_questions(7, 2 * len(TASKS))
    assert first == sample_questions(7, 2 * len(TASKS))
    assert first != sample_questions(8, 2 * len(TASKS))
    assert {question.task for question in first} == {task.name for task in TASKS}


def test_sampling_keeps_to_the_named_tasks_and_the_longest_answer() -> None:
    questions = sample_questions(1, 40, ["count", "spell"], max_answer_chars=60)
    assert {question.task for question in questions} == {"count", "spell"}
    assert max(len(question.answer) for question in questions) <= 60
    with pytest.raises(ValueError, match="there is no task 'poetry'"):
        sample_questions(1, 1, ["poetry"])
    with pytest.raises(ValueError, match="no answers of at most 5"):
        sample_questions(1, 1, ["story"], max_answer_chars=5)


def test_training_never_sees_a_held_out_question() -> None:
    derived = {task.name for task in TASKS if not task.memorised}
    by_name = {task.name: task for task in TASKS}
    for question in itertools.islice(training_questions(random.Random(0)), 5000):
        assert check(question.text, question.answer)
        if question.task in derived:
            fields = by_name[question.task].read(question.text)
            assert fields is not None
            assert not by_name[question.task].held_out(fields)
    for question in sample_questions(0, 500, sorted(derived)):
        fields = by_name[question.task].read(question.text)
        assert fields is not None
        assert by_name[question.task].held_out(fields)


def test_there_is_an_answer_of_several_hundred_tokens() -> None:
    assert right_answer("Count from 1 to 200.").count(",") == 199


def test_the_shipped_showcase_has_the_right_answers() -> None:
    showcase = json.loads((_FOLDER / "questions.json").read_text(encoding="utf-8"))
    assert len(showcase) >= 12
    for entry in showcase:
        assert check(entry["question"], entry["answer"])


def test_the_shipped_checkpoint_is_whole_and_small() -> None:
    names = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    }
    files = {path.name: path.stat().st_size for path in _FOLDER.iterdir()}
    assert names <= files.keys()
    assert sum(files.values()) <= 5_000_000
    config = json.loads((_FOLDER / "config.json").read_text())
    tokenizer = json.loads((_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == 1003 == len(tokenizer["model"]["vocab"])
    assert config["num_attention_heads"] % 4 == config["num_key_value_heads"] % 4 == 0


def test_the_questions_need_nothing_beyond_the_standard_library() -> None:
    script = (
        "import sys, tools.bundled_model.data as d; d.sample_questions(0, 9); print('torch' in sys.modules)"
    )
    heavy = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert heavy.stdout.strip() == "False"
