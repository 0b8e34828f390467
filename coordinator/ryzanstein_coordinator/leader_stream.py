"""Whether the Execute stream to a group's leader lives: what requests go down and tokens come up. Pure.

The leader answers at once when it takes the stream, also while there is nothing to compute; only that answer counts.
That no error came proves nothing: a call on a connection that nobody serves any more may hang for long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .standstills import Hearing

#: The router opens a broken stream again a few times a second: so many breaks in a row are a fault.
BREAKS_LIMIT = 5
#: A break is the first one again if the stream had lived for so many seconds.
HEALED_AFTER_S = 2.0
#: Whoever is dead or cut off altogether is found by its lease; so many seconds later it is the stream.
MARGIN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderStream:
    """Of one epoch, from the moment that its group serves."""

    #: Since when no stream lives, or the group serves. Means nothing while one does.
    silent_since_s: float = 0.0
    #: Since when the leader has taken the one that is open; None: it has not.
    alive_since_s: float | None = None
    #: In a row.
    breaks: int = 0
    #: Tokens came on the one that is open. Looked at after several breaks only, and not kept before.
    flows: bool = False

    def alive(self, now_s: float, *, flows: bool = False) -> LeaderStream:
        """The leader has taken it. `flows`: and has sent tokens on it."""
        stream = self if self.alive_since_s is not None else replace(self, alive_since_s=now_s)
        return replace(stream, flows=True) if flows and self.breaks > 1 and not self.flows else stream

    def broken(self, now_s: float) -> LeaderStream:
        """It has ended, or could not be opened."""
        if self.alive_since_s is None:
            return replace(self, breaks=self.breaks + 1)
        breaks = 1 if now_s - self.alive_since_s >= HEALED_AFTER_S else self.breaks + 1
        return LeaderStream(silent_since_s=now_s, breaks=breaks)

    def silent_s(self, now_s: float, hearing: Hearing) -> float:
        """For how long no stream has lived, as far as the coordinator could have heard of one."""
        return 0.0 if self.alive_since_s is not None else hearing.silence_s(now_s, self.silent_since_s)

    def takes_requests(self, now_s: float, hearing: Hearing, tolerance_s: float) -> bool:
        """Whether what is sent now reaches the leader. A stream that has just begun has `tolerance_s` to be taken;
        one that broke more than once has to show that it lasts, or that it brings tokens.
        """
        if self.breaks > 1:
            if self.alive_since_s is None:
                return False
            return self.flows or now_s - self.alive_since_s >= HEALED_AFTER_S
        return self.silent_s(now_s, hearing) <= tolerance_s

    def fault(self, now_s: float, hearing: Hearing, patience_s: float) -> str:
        """Why it is not waited for any longer; empty: it is. A lease or less of silence may be the leader's death,
        which explains more: `patience_s` is longer.
        """
        if self.breaks >= BREAKS_LIMIT:
            return f"its stream broke {self.breaks} times in a row"
        silent_s = self.silent_s(now_s, hearing)
        return f"it has not taken a stream for {silent_s:.1f} s" if silent_s > patience_s else ""
