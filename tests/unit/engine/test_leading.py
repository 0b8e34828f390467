"""What the leader tells of its steps."""

from __future__ import annotations

import torch

from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.batch import Batch
from ryzanstein_shard_worker.communication import CommunicationProfiler, SingleHandler
from ryzanstein_shard_worker.communication.single import SingleStepChannel
from ryzanstein_shard_worker.inbox import Inbox
from ryzanstein_shard_worker.step_loop import Progress, StepLoop, lead

from .driven_scheduler import scheduler
from .sequences import submission


class Same:
    """A model that always says the same."""

    def run(self, batch: Batch) -> torch.Tensor:
        return torch.zeros(len(batch.sampling), 50).index_fill_(1, torch.tensor([7]), 1.0)


def test_the_last_message_of_a_busy_time_says_that_no_page_is_used_any_more() -> None:
    told: list[shard_worker_pb2.ExecuteResponse] = []
    inbox = Inbox()

    def publish(response: shard_worker_pb2.ExecuteResponse) -> None:
        told.append(response)
        if response.stats.blocks_used == 0:
            inbox.stop()

    inbox.submit(submission(1, [5, 6, 7], max_tokens=4))
    inbox.submit(submission(2, [8, 9], max_tokens=2))
    loop = StepLoop(
        1, CommunicationProfiler(SingleHandler()), SingleStepChannel(), scheduler(), Same(), Progress()
    )
    lead(loop, inbox, publish, keep_alive_s=0.001)
    *steps, last = told
    assert [[list(output.token_ids) for output in step.outputs] for step in steps] == [
        [[7], [7]],
        [[7], [7]],
        [[7]],
        [[7]],
    ]
    assert all(step.stats.blocks_used > 0 and step.step_duration_s > 0 for step in steps)
    assert not last.outputs
    assert (last.stats.running, last.stats.waiting, last.step_duration_s) == (0, 0, 0.0)
