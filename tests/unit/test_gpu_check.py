"""What `make gpu-check` makes of its parts: tests' cases, a failure, a part that hangs, the report; what travels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tools.gpu_check.parts import Case, Outcome, Part, parts, read_cases, run
from tools.gpu_check.prepare import PrepareError, check_interpreter
from tools.gpu_check.report import render, write_report
from tools.gpu_check.requirements import carried_requirements, name_of

_JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.gpu.test_memory" name="test_fits" time="1.5">
<properties><property name="peak_bytes" value="17"/></properties></testcase>
<testcase classname="tests.gpu.test_nccl" name="test_sum[bf16]" time="0.1">
<failure message="1 != 2 | no">...</failure></testcase>
<testcase classname="tests.gpu.test_nccl" name="test_two" time="0"><skipped message="one GPU only"/></testcase>
</testsuite></testsuites>"""


def outcome(*cases: Case, passed: bool = True) -> Outcome:
    return Outcome(
        name="tests",
        command="python -m pytest",
        passed=passed,
        seconds=2.0,
        reason="" if passed else "ended with exit code 1",
        data=None,
        cases=cases,
        output="the last ``` line",
    )


def test_cases_come_with_outcome_reason_and_what_they_measured(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(_JUNIT)
    assert read_cases(path) == (
        Case("test_memory::test_fits", "passed", 1.5, "", {"peak_bytes": "17"}),
        Case("test_nccl::test_sum[bf16]", "failed", 0.1, "1 != 2 | no"),
        Case("test_nccl::test_two", "skipped", 0.0, "one GPU only"),
    )


def test_the_report_names_what_failed_and_why_and_what_has_not_run(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(_JUNIT)
    text = render({"GPU": "H200"}, [outcome(*read_cases(path), passed=False)], ["engine"])
    assert "| GPU | H200 |" in text
    assert "**failed**: ended with exit code 1" in text
    assert "- `test_nccl::test_sum[bf16]`: 1 != 2 \\| no" in text
    assert "1 × one GPU only" in text
    assert "| test_memory::test_fits | peak_bytes | 17 |" in text
    assert "| engine | not run |" in text
    assert text.count("```") == 2  # what was printed can't end its own frame


def test_the_record_passes_only_when_every_part_has_run_and_passed(tmp_path: Path) -> None:
    for passed, missing, expected in ((True, [], True), (False, [], False), (True, ["engine"], False)):
        write_report(tmp_path, {}, [outcome(passed=passed)], missing)
        assert json.loads((tmp_path / "report.json").read_text())["passed"] is expected


def test_every_benchmark_of_the_check_has_its_tables() -> None:
    decoding = {"streams": 8, "context_tokens": 512, "step_s": 0.01, "step_p95_s": 0.011, "tokens_per_s": 800.0,
                "read_bytes": 1, "bandwidth_share": 0.5, "device_s": 0.008, "host_share": 0.2}  # fmt: skip
    engine = {"device": "H200", "shape": "8b", "dtype": "bfloat16", "parameters": 8e9, "weights_bytes": 16e9,
              "copy_bytes_per_s": 4e12, "attention": "triton", "graph_sizes": [1, 8], "capture_s": 1.25,
              "decoding": [decoding, {**decoding, "device_s": None, "host_share": None}],
              "prefill": [{"prompts": 4, "prompt_tokens": 2048, "step_s": 0.2, "tokens_per_s": 4e4,
                           "operations_per_s": 6e14}]}  # fmt: skip
    loading = {
        "layers": 8,
        "shape": "8b",
        "file_bytes": 5e9,
        "cold_s": 3.0,
        "warm_s": 0.5,
        "warm_bytes_per_s": 1e10,
    }
    cluster = [{"ranks": 1, "start_s": 9.0, "first_token_s": 0.02, "decode": {"1": 100.0}, "rpc_share": 0.05,
                "ledger_bytes": [2**30], "peak_bytes": [2**29]}]  # fmt: skip
    peer = {"device": "H200", "shape": "8b", "dtype": "bfloat16", "transformers": "5.17.0",
            "decoding": [{"streams": 8, "context_tokens": 512, "step_s": 0.02, "tokens_per_s": 400.0, "compiled": True,
                          "warm_up_s": 61.0}]}  # fmt: skip
    without = {**engine, "graph_sizes": [], "decoding": [{**decoding, "tokens_per_s": 600.0}]}
    rounded = {**engine, "quantization": "fp8", "decoding": [{**decoding, "tokens_per_s": 1400.0}]}
    data = {
        "engine": engine,
        "engine_without_graphs": without,
        "engine_in_8_bits": rounded,
        "peer": peer,
        "loading": loading,
        "cluster": cluster,
    }
    results = [Outcome(name, "", True, 1.0, "", given, (), "") for name, given in data.items()]
    text = render({}, results, [])
    assert "| 8 | 512 | 800.0 | 10.00 ms | 11.00 ms | 50.0% | 8.00 ms | 20% |" in text
    assert "| – | – |" in text
    assert "Attention by triton; steps of 1, 8 rows captured in 1.25 s." in text
    assert "| 8 | 512 | 400.0 | 20.00 ms | compiled | 61 s |" in text
    assert "| decoding 8 streams, share of the copy's bandwidth | 50.0% |" in text
    assert "| decoding 8 streams, graphs against none | 1.33 times |" in text
    assert "| decoding 8 streams, 8-bit floats against bfloat16 | 1.75 times |" in text
    assert "| decoding 8 streams, against transformers | 2.00 times |" in text
    assert "| 4 × 2048 | 200.0 ms | 40000 | 600.0 |" in text
    assert "| 8 layers of `8b` | 5.00 GB | 3.00 s | 0.50 s | 10.00 GB/s |" in text
    assert "| 1 | 9.0 s | 20 ms | b1 100.0 | 5.0% | 1024 / 512 MiB |" in text
    assert {part.name for part in parts("cuda")} == {"tests", *data}


def test_a_gpu_that_does_not_multiply_8_bit_floats_passes_without_their_figures() -> None:
    reason = "fp8 needs a GPU of compute capability 8.9 or more"
    result = Outcome("engine_in_8_bits", "", True, 1.0, "", {"not_measured": reason}, (), "")
    assert f"Not measured: {reason}." in render({}, [result], [])


def test_a_part_that_fails_or_hangs_says_so_and_leaves_its_output(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    failing = run(Part("x", ("json.tool", str(tmp_path / "nowhere")), 60.0, "json"), log)
    assert (failing.passed, failing.data) == (False, None)
    assert failing.reason.startswith("ended with exit code")
    assert "nowhere" in failing.output
    hanging = run(Part("x", ("http.server", "--bind", "127.0.0.1", "0"), 0.5, "json"), log)
    assert hanging.reason == "did not end within 0.5 s"
    silent = run(Part("x", ("this",), 60.0, "json"), log)
    assert silent.reason == "wrote no result"


def test_neither_torch_nor_what_comes_with_it_travels() -> None:
    names = {name_of(line) for line in carried_requirements()}
    assert {"hatchling", "structlog", "uvicorn", "grpcio-health-checking", "pytest-asyncio"} <= names
    assert not names & {
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "safetensors",
        "ryzanstein",
        "ruff",
        "mypy",
    }


@pytest.mark.parametrize(
    "line", ["nvidia_ml_py>=12.560", "nvidia-ml-py", "nvidia.ml.py ; python_version > '3'"]
)
def test_a_requirement_s_name_is_normalised(line: str) -> None:
    assert name_of(line) == "nvidia-ml-py"


def test_without_a_gpu_the_check_says_what_to_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(PrepareError, match=r"make gpu-check PYTHON=|GPU_DEVICE=cpu"):
        check_interpreter("cuda")
    assert "rehearsing on the CPU" in check_interpreter("cpu")
