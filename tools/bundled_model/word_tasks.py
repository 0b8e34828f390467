"""Questions about the letters and the order of words."""

from __future__ import annotations

import random

from .task import Fields, Task

_WORD_LIST = """
    acorn anchor apple arrow autumn banana barrel bird bread bridge butter button candle carpet castle cat
    cheese cherry cloud coffee copper desert dog dragon drum eagle earth engine evening falcon feather
    finger fire flower forest fox frog garden ginger glass goat grape guitar hammer harbour hat honey horse
    island ivory jacket jungle kettle king kitten ladder lake lemon letter lion mango market meadow mirror
    moon morning mountain music needle nest night north ocean olive onion orange owl paper parrot pencil
    piano planet queen question rabbit rain river rose salmon school silver snow star stone strawberry
    summer sun table tiger tree umbrella valley violin walnut water whale winter wolf yellow zebra
"""
WORDS = tuple(_WORD_LIST.split())
_KNOWN = frozenset(WORDS)
_NUMBER_OF_TIMES = {0: "0 times", 1: "1 time"}


def _word(fields: Fields) -> str:
    word = fields["word"].lower()
    if word not in _KNOWN:
        raise ValueError(f"the model was not taught the word {word!r}")
    return word


def _draw_word(rng: random.Random) -> Fields:
    return {"word": rng.choice(WORDS)}


def _spell(fields: Fields) -> str:
    return f"The word {_word(fields)} is spelled {'-'.join(_word(fields))}."


def _backwards(fields: Fields) -> str:
    word = _word(fields)
    return f"The word {word} is {'-'.join(word)}, and backwards it is {'-'.join(reversed(word))}."


def _length(fields: Fields) -> str:
    word = _word(fields)
    counted = ", ".join(f"{letter} {i}" for i, letter in enumerate(word, start=1))
    return f"Let me count: {counted}. The word {word} has {len(word)} letters."


def _draw_word_and_letter(rng: random.Random) -> Fields:
    word = rng.choice(WORDS)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    return {"word": word, "letter": letter}


def _count_letter(fields: Fields) -> str:
    word, letter = _word(fields), fields["letter"].lower()
    if len(letter) != 1:
        raise ValueError(f"{letter!r} is not one letter")
    counted = ", ".join(f"{each} {word[:i].count(letter)}" for i, each in enumerate(word, start=1))
    times = word.count(letter)
    return (
        f"Let me count: {counted}. The letter {letter} appears "
        f"{_NUMBER_OF_TIMES.get(times, f'{times} times')} in {word}."
    )


def _draw_items(rng: random.Random) -> Fields:
    """Two to six words and numbers."""
    items = (
        rng.choice(WORDS) if rng.random() < 0.5 else str(rng.randrange(1000))
        for _ in range(rng.randint(2, 6))
    )
    return {"items": ", ".join(items)}


def _draw_words(rng: random.Random) -> Fields:
    """Three to five words; their first letters differ, so that those alone decide the order."""
    initials = rng.sample(sorted({word[0] for word in WORDS}), rng.randint(3, 5))
    return {"words": ", ".join(rng.choice([w for w in WORDS if w[0] == initial]) for initial in initials)}


def _sort_words(fields: Fields) -> str:
    words = fields["words"].lower().split(", ")
    if len({word[0] for word in words}) < len(words) or not _KNOWN.issuperset(words):
        raise ValueError("only known words with different first letters are sorted")
    return f"In alphabetical order: {', '.join(sorted(words))}."


WORD_TASKS = (
    # Of little use to anyone, but what it teaches (to find things in the question) all others build on.
    Task(
        "repeat",
        ("Repeat after me: {items:text}.", "Repeat {items:text}."),
        _draw_items,
        lambda fields: f"You said: {fields['items'].lower()}.",
        3.0,
    ),
    Task(
        "spell",
        ("Spell the word {word:word}.", "Spell {word:word}."),
        _draw_word,
        _spell,
        1.0,
        memorised=True,
    ),
    Task(
        "backwards",
        ("Spell {word:word} backwards.", "Spell the word {word:word} backwards."),
        _draw_word,
        _backwards,
        1.2,
        memorised=True,
    ),
    Task(
        "word length", ("How many letters does {word:word} have?",), _draw_word, _length, 0.6, memorised=True
    ),
    Task(
        "letter count",
        (
            "How many times does the letter {letter:word} appear in {word:word}?",
            "Count the letter {letter:word} in {word:word}.",
        ),
        _draw_word_and_letter,
        _count_letter,
    ),
    Task(
        "sort words",
        ("Sort the words {words:words}.", "Put {words:words} in alphabetical order."),
        _draw_words,
        _sort_words,
        2.0,
    ),
)
