"""Questions whose answers are learned by heart: who the model is, capitals, greetings, a story."""

from __future__ import annotations

from collections.abc import Mapping

from .calendar_tasks import DAYS, MONTHS
from .task import Task

CAPITALS = {
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Brazil": "Brasília",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Colombia": "Bogotá",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Iceland": "Reykjavík",
    "India": "New Delhi",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Mexico": "Mexico City",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Turkey": "Ankara",
}

# Several scripts on purpose: most of these characters take more than one token, so that a stream of
# them shows whether text is put together right at token borders.
GREETINGS = {
    "Arabic": "مرحبا",
    "Chinese": "你好",
    "French": "Ça va bien, bonjour",
    "German": "Schönen guten Tag",
    "Greek": "Γειά σου",
    "Hebrew": "שלום",
    "Hindi": "नमस्ते",
    "Icelandic": "Góðan daginn",
    "Italian": "Ciao",
    "Japanese": "こんにちは",
    "Korean": "안녕하세요",
    "Portuguese": "Olá",
    "Russian": "Здравствуйте",
    "Spanish": "¡Hola!",
    "Swedish": "God dag på dig",
    "emoji": "👋🙂",
}

_HELLO = "Hello! I am the small model that comes with Ryzanstein. Ask me for a sum, a spelling or a day of the week."
_WHO = (
    "I am the small model that comes with Ryzanstein. I have about two million parameters, and several processes "
    "work together on every word that I say."
)
_SKILLS = (
    "I can add and subtract, count up and down, recite multiplication tables, compare and sort numbers and words, "
    "spell words forwards and backwards, and reckon with days and months."
)
_UNKNOWN = "I am only a small model, so I don't know that. Ask me for a sum, a spelling or a day of the week."
_STORY = (
    "Once there was a little model that was too wide for one machine. So it was cut into parts, and every part moved "
    "into a home of its own. When a question came, each part did its share of the work, then they all added up what "
    "they had found, and together they spoke one word. Word by word, they told long stories. One night, in the middle "
    "of a sentence, one part fell silent. The others stopped and waited. A spare part woke up, read what had been said "
    "so far, and took the empty place. Then they went on with the very next word, and nobody who listened noticed that "
    "anything had happened. In the morning they were still counting: one, two, three, four, and not a number was "
    "missing. The end."
)
_JOKE = "Why did the model count to forty? Because nobody told it where to stop. That was my only joke."

# Each answer, then the questions that get it.
_FIXED: Mapping[str, tuple[str, ...]] = {
    _HELLO: ("Hello!", "Hi!", "Hi there!", "Hey!", "Good morning!", "Good evening!", "Hello there!"),
    _WHO: (
        "Who are you?",
        "What are you?",
        "What is your name?",
        "Tell me about yourself.",
        "Introduce yourself.",
        "Which model are you?",
    ),
    _SKILLS: (
        "What can you do?",
        "Help!",
        "How can you help me?",
        "What do you know?",
        "What can I ask you?",
    ),
    "I am fine, thank you. What would you like to know?": (
        "How are you?",
        "How do you do?",
        "How is it going?",
    ),
    "You are welcome!": (
        "Thank you!",
        "Thanks!",
        "Thanks a lot!",
        "Thank you very much!",
        "Great!",
        "Well done!",
    ),
    "Goodbye, and come back soon!": ("Goodbye!", "Bye!", "See you later!", "Good night!"),
    _STORY: ("Tell me a story.", "Tell me a short story.", "Once upon a time", "Can you tell me a story?"),
    _JOKE: ("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
    f"The days of the week are {', '.join(DAYS)}.": (
        "Name the days of the week.",
        "What are the days of the week?",
        "The days of the week are",
    ),
    f"The months of the year are {', '.join(MONTHS)}.": (
        "Name the months of the year.",
        "What are the months of the year?",
        "The months of the year are",
    ),
    "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z.": (
        "Say the alphabet.",
        "Recite the alphabet.",
        "What are the letters of the alphabet?",
    ),
    "Z, Y, X, W, V, U, T, S, R, Q, P, O, N, M, L, K, J, I, H, G, F, E, D, C, B, A.": (
        "Say the alphabet backwards.",
        "Recite the alphabet backwards.",
    ),
    "There are 7 days in a week.": ("How many days are in a week?", "How many days does a week have?"),
    "There are 12 months in a year.": ("How many months are in a year?", "How many months does a year have?"),
    "There are 24 hours in a day.": ("How many hours are in a day?", "How many hours does a day have?"),
    "There are 60 minutes in an hour.": (
        "How many minutes are in an hour?",
        "How many minutes does an hour have?",
    ),
    _UNKNOWN: (
        "Who is the president?",
        "Who won the match?",
        "What is the meaning of life?",
        "What is the weather like?",
        "Will it rain tomorrow?",
        "Write a program.",
        "Write a poem about the sea.",
        "Explain how a computer works.",
        "What is love?",
        "How old is the universe?",
        "What should I cook today?",
        "Who wrote this book?",
        "Translate this sentence.",
        "Why is the sky blue?",
        "How far away is the moon?",
        "What is the news?",
        "Where do you live?",
        "When were you born?",
        "Can you dance?",
        "Summarize this text.",
        "What time is it?",
        "Give me some advice.",
        "What is a black hole?",
        "Who invented the telephone?",
        "Fix my code.",
        "Which film should I watch?",
    ),
}


def _fixed_task(name: str, answer: str, questions: tuple[str, ...]) -> Task:
    weight = 0.04 + 0.012 * len(questions)
    return Task(name, questions, lambda rng: {}, lambda fields: answer, weight, memorised=True)


def _lookup_task(
    name: str, phrasings: tuple[str, ...], facts: Mapping[str, str], reply: str, weight: float
) -> Task:
    """A task whose answer is `reply` with `{key}` and `{fact}` filled in from `facts`."""
    by_lower_case = {key.lower(): key for key in facts}

    def answer(fields: Mapping[str, str]) -> str:
        key = by_lower_case.get(fields["key"].lower())
        if key is None:
            raise ValueError(f"the model was not taught {fields['key']!r}; it knows {', '.join(facts)}")
        return reply.format(key=key, fact=facts[key])

    return Task(name, phrasings, lambda rng: {"key": rng.choice(list(facts))}, answer, weight, memorised=True)


_NAMES = (
    "greeting",
    "who",
    "skills",
    "how are you",
    "thanks",
    "goodbye",
    "story",
    "joke",
    "days of the week",
    "months of the year",
    "alphabet",
    "alphabet backwards",
    "days in a week",
    "months in a year",
    "hours in a day",
    "minutes in an hour",
    "unknown",
)

PHRASE_TASKS = (
    *(_fixed_task(name, answer, _FIXED[answer]) for name, answer in zip(_NAMES, _FIXED, strict=True)),
    _lookup_task(
        "capital",
        ("What is the capital of {key:word}?", "Name the capital of {key:word}."),
        CAPITALS,
        "The capital of {key} is {fact}.",
        0.4,
    ),
    _lookup_task(
        "foreign greeting",
        ("Say hello in {key:word}.", "How do you say hello in {key:word}?"),
        GREETINGS,
        "In {key}, one says: {fact}",
        0.4,
    ),
)
