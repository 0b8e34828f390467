"""The questions that the bundled model answers, each with its one right answer.

Imports nothing beyond the standard library, so that tests of a running cluster can ask
`sample_questions` and judge what was streamed with `check`: an answer computed by split weights is
right only if the split computation is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .calendar_tasks import CALENDAR_TASKS
from .number_tasks import NUMBER_TASKS
from .phrase_tasks import PHRASE_TASKS
from .task import Task
from .word_tasks import WORD_TASKS

TASKS: tuple[Task, ...] = (*NUMBER_TASKS, *WORD_TASKS, *CALENDAR_TASKS, *PHRASE_TASKS)
_TASK_OF_NAME = {task.name: task for task in TASKS}


@dataclass(frozen=True)
class Question:
    """A question, its right answer, and the name of the task that it belongs to."""

    task: str
    text: str
    answer: str


def sample_questions(
    seed: int, count: int, tasks: Sequence[str] = (), *, max_answer_chars: int | None = None
) -> list[Question]:
    """`count` held-out questions, evenly from `tasks` (all of them by default), the same for one seed.

    Training saw none of them, except those of memorised tasks. `max_answer_chars` skips questions
    with longer answers. Raises ValueError for a task that doesn't exist.
    """
    chosen = [_task(name) for name in tasks] or list(TASKS)
    rng = random.Random(f"held-out {seed}")
    return [_sample(chosen[i % len(chosen)], rng, max_answer_chars) for i in range(count)]


def right_answer(question: str) -> str:
    """The right answer to a question in one of the tasks' phrasings.

    Raises ValueError if the question belongs to no task, or has parts that its task doesn't know.
    """
    problem = "it has none of the phrasings in tools/bundled_model"
    for task in TASKS:
        fields = task.read(question)
        if fields is None:
            continue
        try:
            return task.answer(fields)
        except ValueError as error:
            problem = str(error)
    raise ValueError(f"no right answer is known for {question!r}: {problem}")


def check(question: str, answer: str) -> bool:
    """Whether `answer` is the right answer, character by character but for white space around it.

    Raises ValueError as `right_answer` does.
    """
    return answer.strip() == right_answer(question)


def training_questions(rng: random.Random) -> Iterator[Question]:
    """Questions without end for training, by the tasks' weights and none of them held out.

    Some are typed carelessly (small first letter, no mark at the end), as people do.
    """
    weights = [task.weight for task in TASKS]
    while True:
        task = rng.choices(TASKS, weights)[0]
        fields = task.draw_from(rng, held_out=False)
        text = task.phrase(fields, rng)
        if rng.random() < 0.1:
            text = text[0].lower() + text[1:]
        if rng.random() < 0.1:
            text = text.rstrip(".?!")
        yield Question(task.name, text, task.answer(fields))


def _task(name: str) -> Task:
    if name not in _TASK_OF_NAME:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(_TASK_OF_NAME)}")
    return _TASK_OF_NAME[name]


def _sample(task: Task, rng: random.Random, max_answer_chars: int | None) -> Question:
    for _ in range(1000):
        fields = task.draw_from(rng, held_out=True)
        answer = task.answer(fields)
        if max_answer_chars is None or len(answer) <= max_answer_chars:
            return Question(task.name, task.phrase(fields, rng), answer)
    raise ValueError(f"task {task.name!r} has no answers of at most {max_answer_chars} characters")
