"""Every message that a user may meet has its place in the guide's troubleshooting, and what is quoted there is said."""

from __future__ import annotations

import re
from functools import cache

from tests.docs.messages import GAP, Quote, literals, messages
from tests.docs.pages import GUIDE, section

_LEAST_LETTERS = 6
#: What a reader is told to type stands in backticks too.
_COMMANDS = ("--", "ryzanstein ", "python ", "ss ", "nvidia-smi", "systemctl", "openssl ", "generate -")


@cache
def quotes() -> tuple[Quote, ...]:
    """What stands in backticks in the troubleshooting and has words enough to be a message."""
    found = (
        child.content
        for token in section(GUIDE, "Troubleshooting")
        for child in token.children or ()
        if child.type == "code_inline" and (" " in child.content or GAP in child.content)
    )
    return tuple(Quote(text) for text in dict.fromkeys(found))


def test_the_sources_are_searched() -> None:
    texts = [message.text for message in messages()]
    assert len(texts) > 150
    assert any("can't listen on" in text for text in texts)
    assert any("the prompt is empty" in text for text in texts)


def test_every_message_has_its_place_in_the_troubleshooting() -> None:
    missing = [
        f"{message.place}: {message.text}"
        for message in messages()
        if not any(quote.fits(message.text) for quote in quotes())
    ]
    what = "say in docs/DISTRIBUTED_INFERENCE_GUIDE.md what these mean and what to do:\n"
    assert not missing, what + "\n".join(missing)


def test_every_quote_is_something_that_a_program_says() -> None:
    said = literals()
    invented = [
        quote.text
        for quote in quotes()
        if len(re.sub(rf"[{GAP}\W]", "", quote.text)) >= _LEAST_LETTERS
        and not quote.text.startswith(_COMMANDS)
        and not any(quote.fits(text) for text in said)
    ]
    assert not invented
