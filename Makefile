# Two commands on a fresh machine: `make demo` and `make test`. PYTHON=… chooses the interpreter (3.11 or later).

PYTHON ?= python3
# Installed first and by itself, so that pip doesn't choose another build for it. TORCH=torch takes the newest.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
BUF := npx --yes @bufbuild/buf@1.75.0
PROTO_FILES := $(wildcard protos/ryzanstein/v1/*.proto)
PYTEST_FLAGS ?=
# Of gpu-check: the folder with the report, the wheels to install from where there is no registry (made by gpu-wheels for
# the GPU machine's Python), what to run (cpu: a rehearsal without a GPU), and flags such as --only tests.
REPORT ?= gpu-report
WHEELS ?= .wheels
GPU_PYTHON_VERSION ?= 3.12
GPU_DEVICE ?= cuda
GPU_CHECK_FLAGS ?=
GPU_VENV := .venv-gpu


.PHONY: demo test test-unit test-distributed test-cluster check lint types proto proto-check coverage chaos simulate bench gpu-check gpu-wheels clean

demo: $(VENV)/.run
	$(BIN)/ryzanstein demo

# Two at a time: what computes more than it waits, and whole clusters that are asked and started more than broken.
# Those in which failures are timed run alone.
TWO_AT_A_TIME := --numprocesses 2 --dist loadfile
COMPUTING := tests/packaging tests/parity tests/simulation tests/programs tests/deploy tests/cluster tests/docs

test: test-unit test-distributed test-cluster

test-distributed: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS) tests/distributed

test-cluster: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS) $(COMPUTING) $(TWO_AT_A_TIME)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) --ignore tests/unit --ignore tests/distributed $(COMPUTING:%=--ignore %)

test-unit: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS) tests/unit $(TWO_AT_A_TIME)

# Lint, types, protos, generated code, then all tests.
check: lint types proto-check coverage test-cluster

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Generated with the oldest grpcio-tools that is supported: generated code demands a runtime at least as new.
proto: $(VENV)/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=protos \
	    --grpc_python_out=protos --mypy_out=quiet:protos --mypy_grpc_out=quiet:protos $(PROTO_FILES)
	$(BIN)/python client/generate_sync.py
	$(BIN)/python -m tools.api_reference

proto-check: proto
	$(BUF) lint
	git diff --exit-code -- protos client docs || { echo "generated code differs: commit what 'make proto' wrote" >&2; exit 1; }

# What splits, joins, watches and mends: all that runs between processes.
DISTRIBUTED := shard_worker/*,coordinator/*/control_*.py,coordinator/*/orchestrator.py,coordinator/*/health_monitor.py,coordinator/*/placement.py,coordinator/*/resource_allocator.py,coordinator/*/failure_recovery.py,coordinator/*/group_*.py,coordinator/*/epoch_*.py,coordinator/*/worker*.py,coordinator/*/registration.py,coordinator/*/router.py,coordinator/*/serving_group.py,coordinator/*/recording.py,coordinator/*/dispatch.py

# By the tests of the parts and of ranks in their processes: a cluster that is measured is slower than its timeouts
# expect, and what it runs is counted low (a killed process loses its count).
coverage: $(VENV)/.dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest $(PYTEST_FLAGS) tests/unit $(TWO_AT_A_TIME)
	$(BIN)/python -m coverage run -m pytest $(PYTEST_FLAGS) tests/distributed
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report --skip-covered
	$(BIN)/python -m coverage report --fail-under=90 --format=total --include='$(DISTRIBUTED)'

# A hundred kills in a row under load, and a million schedules of faults in the simulator.
chaos: $(VENV)/.dev
	$(BIN)/python -m tests.reliability.chaos --kills 100

simulate: $(VENV)/.dev
	$(BIN)/python -m tests.simulation --schedules 1000000

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

# PYTHON names an interpreter whose own torch uses the GPU; nothing that it has is fetched or replaced.
gpu-check:
	$(PYTHON) -m tools.gpu_check.prepare --venv $(GPU_VENV) --wheels $(WHEELS) --device $(GPU_DEVICE)
	$(GPU_VENV)/bin/python -m tools.gpu_check --report $(REPORT) --device $(GPU_DEVICE) $(GPU_CHECK_FLAGS)

gpu-wheels:
	$(PYTHON) -m tools.gpu_check.wheels --to $(WHEELS) --python-version $(GPU_PYTHON_VERSION)

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 or later is needed, this is {sys.version.split()[0]}: use make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml shard_worker/build_native.py $(wildcard shard_worker/ryzanstein_shard_worker/native/*.[ch])
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[coordinator,worker]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist shard_worker/ryzanstein_shard_worker/native/*.so
