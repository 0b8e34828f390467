"""All groups as one: what they can take together, and since when none of them serves."""

from __future__ import annotations

from collections.abc import Iterator

from .patience import RouterConfig
from .service_rates import ServiceRates
from .serving_group import ServingGroup


class ServingGroups:
    """Every group that was ever announced, by id. Changed by the router only."""

    def __init__(self, config: RouterConfig, *, now: float) -> None:
        self._config = config
        self._groups: dict[str, ServingGroup] = {}
        self.rates = ServiceRates()
        #: Since when no group serves; None while one should.
        self.none_since: float | None = now

    def __iter__(self) -> Iterator[ServingGroup]:
        return iter(self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def find(self, group_id: str | None) -> ServingGroup | None:
        """None if it was never announced."""
        return None if group_id is None else self._groups.get(group_id)

    def of(self, group_id: str) -> ServingGroup:
        """A new one if it was never announced."""
        return self._groups.setdefault(group_id, ServingGroup(group_id))

    def least_loaded_first(self) -> list[ServingGroup]:
        """Those to which sequences can be submitted."""
        ready = [group for group in self if group.ready]
        return sorted(ready, key=lambda group: len(group.running)) if len(ready) > 1 else ready

    def lost(self, group: ServingGroup, now: float) -> None:
        """It does not serve any more."""
        group.lost_at = now
        if all(other.lost_at is not None for other in self):
            self.none_since = now

    def serves(self, group: ServingGroup) -> None:
        """It does, or is about to."""
        group.lost_at, self.none_since = None, None

    def refusal(self, now: float) -> str | None:
        """Why nothing can be generated now nor soon; None while a request may hope."""
        if self.none_since is None or now - self.none_since < self._config.no_group_grace_s:
            return None
        return f"no group has served for {now - self.none_since:.0f} s"

    @property
    def capacity(self) -> int:
        """Sequences that all run at once."""
        return sum(group.limits.max_num_seqs for group in self) or self._config.default_max_num_seqs

    @property
    def capacity_tokens(self) -> int | None:
        """Tokens that all KV caches hold; None: no group has said."""
        # One block of each is never handed out.
        return sum((group.limits.num_blocks - 1) * group.limits.block_size for group in self) or None

    @property
    def epoch(self) -> int:
        """Of the (first) group; 0 before the first is formed."""
        return next((group.epoch for group in self), 0)

    @property
    def running(self) -> int:
        """Requests that are submitted."""
        return sum(len(group.running) for group in self)

    @property
    def stalled(self) -> int:
        """Requests that wait for their group to come back."""
        return sum(len(group.stalled) for group in self)
