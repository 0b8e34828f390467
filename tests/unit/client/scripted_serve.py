"""Stands where `ryzanstein serve` stands, for the demonstration: prints the ready line, ends on SIGTERM.

python -m tests.unit.client.scripted_serve GRPC_PORT [never-ready | deaf | fails]
"""

from __future__ import annotations

import asyncio
import signal
import sys

from .scripted_coordinator import ScriptedCoordinator


async def main(port: int, mode: str) -> int:
    stopped = asyncio.Event()
    on_signal = (lambda: None) if mode == "deaf" else stopped.set
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    if mode == "fails":
        print("the model is broken", file=sys.stderr)
        return 1
    coordinator = ScriptedCoordinator()
    coordinator.port = port
    coordinator.snapshot.model.name = "letters"
    coordinator.snapshot.state = "loading"
    for rank in range(2):
        coordinator.snapshot.workers.add(
            id=f"w{rank}", state="loading", phase="loading", load_progress=0.5, rank=rank
        )
    await coordinator.start()
    if mode != "never-ready":
        # Ready as soon as its loading was seen, so that what is shown does not depend on the machine's speed.
        await coordinator.wait_until(lambda: "GetCluster" in coordinator.calls)
        coordinator.snapshot.state = "serving"
        print(
            f"ready grpc={coordinator.address} http=http://127.0.0.1:1 model=letters tensor_parallel=2 epoch=1",
            flush=True,
        )
    await stopped.wait()
    await coordinator.close()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")))
