"""What `ryzanstein demo` shows: pleasant on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ryzanstein.terminal import OutputConsole

from .cluster_view import render_cluster

if TYPE_CHECKING:
    from .demo_cluster import Ready

_RIGHT, _WRONG = "✓", "✗"


@dataclass(frozen=True, slots=True)
class Asked:
    """How a question went. `seconds` from sending it to the last token."""

    right: bool
    tokens: int
    first_token_s: float
    seconds: float
    #: Between two chunks of the answer.
    longest_pause_s: float = 0.0


class DemoView:
    """Writes to standard output."""

    def __init__(self) -> None:
        self._console = OutputConsole()
        self._rich = self._console.is_terminal

    def title(self, text: str) -> None:
        """Begins a part."""
        self._console.print(Text(text, style="bold"))

    @contextmanager
    def starting(self) -> Iterator[Callable[[Mapping[str, Any] | None], None]]:
        """Yields what shows a snapshot of a cluster that starts: in place, or a line per change."""
        if self._rich:
            with self._console.status("  starting the processes") as status:
                yield lambda cluster: status.update(f"  {phase_text(cluster)}")
            return
        shown = [""]

        def show(cluster: Mapping[str, Any] | None) -> None:
            text = phase_text(cluster, steps=4)
            if text != shown[0]:
                shown[0] = text
                self._line(f"  {text}")

        yield show

    def ready(self, ready: Ready, seconds: float) -> None:
        """The cluster can serve."""
        self._line(f"  {ready.model} is ready, after {seconds:.1f} s")
        self._line(f"  gRPC {ready.grpc}, {ready.http}")
        self._line("")

    def question(self, text: str) -> None:
        """Before an answer."""
        self._console.print(Text(f"  {text}", style="cyan"))
        self._write("  ")

    def answer_part(self, text: str) -> None:
        """As it comes."""
        self._write(text.replace("\n", "\n  "))

    def answer_end(self, asked: Asked, right_answer: str) -> None:
        """Its check and its speed."""
        self._write("\n")
        mark = Text("  ")
        mark.append(_RIGHT if asked.right else _WRONG, style="green" if asked.right else "red")
        mark.append(
            f" {asked.tokens} tokens, first after {asked.first_token_s * 1000:.0f} ms, {speed_text([asked])}",
            style="dim",
        )
        if not asked.right:
            mark.append(f"\n  right is: {right_answer}", style="red")
        self._console.print(mark)
        self._line("")

    def cluster(self, cluster: Mapping[str, Any]) -> None:
        """The table of `ryzanstein status`."""
        self._console.print(render_cluster(cluster))
        self._line("")

    def recovery(
        self, victim: Mapping[str, Any], recovery: Mapping[str, Any] | None, asked: Asked, after_tokens: int
    ) -> None:
        """Who was killed, what the cluster did about it, and what it was to the reader."""
        self._line(
            f"  kill -9 of {victim['id']} (rank {victim['rank']}, process {victim['pid']}) after {after_tokens} tokens"
        )
        if recovery is None or recovery["reformed_s"] is None:
            self._line("  the cluster did not notice")
        else:
            whole = "whole, token for token" if asked.right else "NOT what it should be"
            self._line(
                f"  epoch {recovery['epoch']} was formed {recovery['reformed_s'] * 1000:.0f} ms after the first sign: "
                f"{recovery['reason']}"
            )
            self._line(f"  the answer paused for {asked.longest_pause_s * 1000:.0f} ms and is {whole}")
        self._line("")

    def summary(self, asked: Sequence[Asked], *, stop_s: float) -> None:
        """What was done."""
        right = sum(each.right for each in asked)
        tokens = sum(each.tokens for each in asked)
        self._line(f"  every process ended, in {stop_s:.1f} s")
        self._line("")
        self._console.print(
            Text(f"{right} of {len(asked)} answers right, {tokens} tokens, {speed_text(asked)}", style="bold")
        )

    def _line(self, text: str) -> None:
        self._console.print(Text(text))
        self._console.file.flush()

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


def phase_text(cluster: Mapping[str, Any] | None, *, steps: int = 100) -> str:
    """Where a start has come to; progress in so many steps."""
    if cluster is None:
        return "starting the processes"
    workers = cluster["workers"]
    if cluster["state"] == "waiting" or not workers:
        return f"waiting for shard workers, {len(workers)} registered"
    if cluster["state"] == "loading":
        progress = sum(worker["load_progress"] for worker in workers) / len(workers)
        return f"loading the weights, {int(progress * steps) / steps:.0%}"
    return f"{cluster['state']}, epoch {cluster['epoch']}"


def speed_text(asked: Sequence[Asked]) -> str:
    """Tokens per second after the first ones, which wait for their prompts."""
    seconds = sum(each.seconds - each.first_token_s for each in asked)
    tokens = sum(each.tokens - 1 for each in asked)
    return f"{tokens / seconds:.0f} tokens/s" if seconds > 0 and tokens > 0 else "too short to time"
