"""The examples for Docker, Kubernetes and systemd: files that are well formed, and flags that the programs have."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from ryzanstein_client.cli.main import build_app

yaml: Any = pytest.importorskip("yaml", reason="PyYAML is not installed")

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = ("compose.yaml", "compose.cuda.yaml")


def flags(command: str) -> set[str]:
    """Every long flag of a subcommand."""
    group: Any = typer.main.get_command(build_app())
    return {
        flag
        for parameter in group.commands[command].params
        for flag in parameter.opts
        if flag.startswith("--")
    }


def named(arguments: list[str]) -> set[str]:
    """The flags in a list of arguments."""
    return {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}


def compose(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "docker" / name).read_text(encoding="utf-8")))


def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes/ryzanstein.yaml").read_text(encoding="utf-8")))


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """Objects of Kubernetes by name."""
    return {found["metadata"]["name"]: found for found in objects() if found["kind"] == kind}


def pods() -> Iterator[Mapping[str, Any]]:
    for kind in ("Deployment", "StatefulSet"):
        for workload in of_kind(kind).values():
            yield workload["spec"]["template"]


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_gives_flags_that_the_programs_have(name: str) -> None:
    for service, settings in compose(name)["services"].items():
        command = "coordinator" if service == "coordinator" else "shard-worker"
        assert named(settings.get("command", [])) <= flags(command), service


def test_compose_runs_as_many_workers_as_ranks_and_spares() -> None:
    services = compose("compose.yaml")["services"]
    words = dict(word.split("=") for word in services["coordinator"]["command"] if "=" in word)
    workers = [name for name in services if name.startswith("worker-")]
    assert int(words["--tensor-parallel-size"]) + int(words["--spares"]) == len(workers)
    drain_s = int(words["--drain-timeout"])
    assert int(services["coordinator"]["stop_grace_period"].removesuffix("s")) > drain_s
    assert set(compose("compose.cuda.yaml")["services"]) == set(workers)


def test_compose_opens_nothing_to_other_machines() -> None:
    for name in COMPOSE:
        for settings in compose(name)["services"].values():
            assert all(port.startswith("127.0.0.1:") for port in settings.get("ports", []))


def test_the_dockerfile_makes_the_images_that_the_examples_name() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", (DEPLOY / "docker/Dockerfile").read_text(), re.MULTILINE))
    images = {settings["image"] for name in COMPOSE for settings in compose(name)["services"].values()}
    images |= {container["image"] for pod in pods() for container in pod["spec"]["containers"]}
    assert {image.partition(":")[2].removesuffix("-cpu") for image in images} <= stages


def test_kubernetes_gives_flags_that_the_programs_have() -> None:
    for pod in pods():
        (container,) = pod["spec"]["containers"]
        command = "coordinator" if container["name"] == "coordinator" else "shard-worker"
        assert named(container["args"]) <= flags(command)


def test_kubernetes_finds_what_is_named_elsewhere() -> None:
    ports = {port["name"] for pod in pods() for port in pod["spec"]["containers"][0]["ports"]}
    labels = [pod["metadata"]["labels"] for pod in pods()]
    for service in of_kind("Service").values():
        assert service["spec"]["selector"] in labels
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for pod in pods():
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for argument in container["args"]:
            _, _, path = argument.partition("=/")
            assert not path or any(f"/{path}".startswith(mount) for mount in mounts), argument
    workers = of_kind("StatefulSet")["ryzanstein-worker"]
    assert workers["spec"]["serviceName"] in of_kind("Service")


def test_kubernetes_waits_for_the_drain_and_asks_the_right_question() -> None:
    for pod in pods():
        (container,) = pod["spec"]["containers"]
        words = dict(word.split("=", 1) for word in container["args"] if "=" in word)
        pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pod["spec"]["terminationGracePeriodSeconds"] >= pause_s + int(words["--drain-timeout"]) + 10
    coordinator = of_kind("Deployment")["ryzanstein-coordinator"]["spec"]["template"]["spec"]["containers"][0]
    assert coordinator["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert coordinator["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_kubernetes_takes_every_object() -> None:
    """By the schemas of its API, without a cluster."""
    validate: Any = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for found in objects():
        validate.validate(found, "1.32", strict=True)


@pytest.mark.parametrize(
    ("file", "command"), [("coordinator.toml", "coordinator"), ("shard-worker.toml", "shard-worker")]
)
def test_settings_of_systemd_are_flags_that_the_programs_have(file: str, command: str) -> None:
    text = (DEPLOY / "systemd/config" / file).read_text(encoding="utf-8")
    keys = tomllib.loads(re.sub(r"= @\w+@", "= 1", text))
    assert {f"--{key}" for key in keys} - {"--model-dir"} <= flags(command)


def test_variables_of_systemd_are_flags_that_the_programs_have() -> None:
    known = flags("coordinator") | flags("shard-worker")
    for file in [*(DEPLOY / "systemd/units").iterdir(), *(DEPLOY / "systemd/drop-ins").iterdir()]:
        for variable in re.findall(r"RYZANSTEIN_([A-Z_]+)=", file.read_text(encoding="utf-8")):
            assert f"--{variable.lower().replace('_', '-')}" in known, file
