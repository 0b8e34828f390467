"""Whose turn it is: equal shares of tokens for all who wait. Pure.

A counter per owner grows with every token that is served for it, prompt and output alike, and the turn is that of the
waiting owner with the smallest. So two owners who both always have something waiting are served equally many tokens,
but for what runs already when a turn is given: at most what fits into the running requests at once, and one request
more. An owner who comes (back) begins at the smallest counter of those who wait: nobody saves up turns, and nobody
pays for tokens that no one else wanted. The virtual token counter of Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024, algorithm 2, with equal weights; but where nobody waits all begin anew.
"""

from __future__ import annotations

from collections import Counter


class FairShares:
    """Told of everybody who begins and ceases to wait, and of all tokens. Tokens count while anybody waits."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        #: Owners, by how many of their requests wait.
        self._waiting: Counter[str] = Counter()

    def waits(self, owner: str) -> None:
        """One more request of this owner waits."""
        if not self._waiting[owner]:
            least = min((self._tokens[other] for other in self._waiting if self._waiting[other]), default=0)
            self._tokens[owner] = max(self._tokens.get(owner, 0), least)
        self._waiting[owner] += 1

    def ceases(self, owner: str) -> None:
        """One of its requests waits no longer."""
        self._waiting[owner] -= 1
        if not self._waiting[owner]:
            del self._waiting[owner]
        if not self._waiting:  # no one is short of anything: what was served does not matter any more
            self._tokens.clear()

    def served(self, owner: str, tokens: int) -> None:
        """So many of its tokens, of prompts or outputs, were computed or are about to be."""
        if self._waiting:
            self._tokens[owner] = self._tokens.get(owner, 0) + tokens

    def tokens(self, owner: str) -> int:
        """Served so far, as it counts: the owner with the smallest number is next."""
        return self._tokens.get(owner, 0)
