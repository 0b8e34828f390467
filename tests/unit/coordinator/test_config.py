"""What the configuration accepts, and how it says no."""

from __future__ import annotations

from pathlib import Path

import pytest

from ryzanstein.tls import TlsFiles
from ryzanstein_coordinator.config import ConfigError, OrchestratorConfig, default_state_dir

from .cluster_builders import configuration

TLS = TlsFiles(cert_file=Path("server.pem"), key_file=Path("server.key"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tensor_parallel_size": 0}, "--tensor-parallel-size: 0"),
        ({"data_parallel_size": 0}, "--data-parallel-size"),
        ({"spares": -1}, "--spares: -1"),
        ({"device": "tpu"}, "--device: 'tpu'"),
        ({"dtype": "int3"}, "--dtype: 'int3'"),
        ({"quantization": "int3"}, "--quantization: 'int3' is not one of none, int8"),
        ({"quantization": "int8", "device": "cuda"}, "--quantization: .*or give --device cpu"),
        ({"quantization": "fp8", "device": "cpu"}, "--quantization: fp8 is for workers on GPUs; on CPUs"),
        ({"quantization": "fp8", "device": "cuda", "dtype": "float32"}, "--quantization: .*--dtype bfloat16"),
        ({"max_model_len": 4}, "--max-model-len: 4"),
        ({"max_decode_slowdown": 1.0}, "--max-decode-slowdown: 1.0 is not above 1"),
        ({"max_batched_tokens": 8}, "--max-batched-tokens: 8"),
        ({"cuda_graphs": "on"}, "--cuda-graphs: 'on'"),
        ({"gpu_attention": "fastest"}, "--gpu-attention: 'fastest' is not one of auto, flashinfer"),
        ({"cuda_graph_sizes": (1, 1000)}, "--cuda-graph-sizes: 1000 is not in 1..64"),
        ({"max_waiting_requests": -1}, "--max-waiting-requests: -1"),
        ({"max_waiting_tokens": -1}, "--max-waiting-tokens: -1"),
        ({"memory_utilization": 0.0}, "--memory-utilization: 0.0"),
        ({"memory_utilization": 1.1}, "--memory-utilization: 1.1"),
        ({"kv_cache_bytes": 0}, "--kv-cache-memory: 0"),
        ({"grpc_port": 65536}, "--grpc-port: 65536"),
        ({"http_port": -1}, "--http-port: -1"),
        ({"lease_ttl_s": 0.0}, "lease_ttl_s"),
        ({"lease_ttl_s": float("nan")}, "lease_ttl_s"),
        ({"progress_deadline_s": 0.5}, "progress_deadline_s"),
        ({"backoff_limit_s": 0.01}, "backoff_limit_s"),
        ({"host": "0.0.0.0"}, "--insecure"),
        ({"host": "127.example.org"}, "--insecure"),
        ({"host": "0.0.0.0", "tls": TLS}, "give --api-key-file, or"),
        ({"host": "0.0.0.0", "api_key_file": Path("keys")}, "give --tls-cert-file and --tls-key-file, or"),
        ({"member_port": 65536}, "--member-port: 65536"),
    ],
)
def test_a_setting_that_cannot_work_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        configuration(**changes)
    assert caught.value.exit_code == 2


def test_an_open_host_needs_to_be_asked_for_or_protected() -> None:
    assert configuration(host="0.0.0.0", insecure=True).host == "0.0.0.0"
    assert configuration(host="0.0.0.0", tls=TLS, api_key_file=Path("keys")).host == "0.0.0.0"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1", "0:0:0:0:0:0:0:1"])
def test_a_host_that_only_this_machine_reaches_needs_nothing(host: str) -> None:
    assert configuration(host=host).host == host


def test_five_heartbeats_fit_into_a_lease() -> None:
    assert configuration(lease_ttl_s=2.0).heartbeat_interval_s == pytest.approx(0.4)


def test_the_model_is_called_like_its_directory_unless_told_otherwise(tmp_path: Path) -> None:
    assert OrchestratorConfig(model_dir=tmp_path / "llama").model_name == "llama"
    assert configuration(served_model_name="mine").model_name == "mine"


def test_the_state_directory_is_systemds_or_the_users() -> None:
    assert default_state_dir({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert default_state_dir({"XDG_STATE_HOME": "/home/me/state"}) == Path("/home/me/state/ryzanstein")
    assert default_state_dir({}).parts[-3:] == (".local", "state", "ryzanstein")
