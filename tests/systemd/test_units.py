"""The files of deploy/systemd as they stand: what systemd's own tools and a shell's checker say of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .machine import REPOSITORY

SYSTEMD = REPOSITORY / "deploy" / "systemd"
UNITS = sorted((SYSTEMD / "units").iterdir())
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there"
)


def analyze(*arguments: str) -> str:
    """→ what it said; fails unless it is content."""
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def settings(unit: str) -> dict[str, list[str]]:
    """Every value of each setting of a unit's file, in order."""
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / "units" / unit).read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@needs_systemd
def test_systemd_understands_every_unit_with_every_drop_in(tmp_path: Path) -> None:
    """Where all programs that the units start exist."""
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace(
            "/opt/ryzanstein/current/bin/ryzanstein", "/usr/bin/true"
        )
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    for drop_in in (SYSTEMD / "drop-ins").iterdir():
        for unit_name in ("ryzanstein-coordinator.service", "ryzanstein-shard-worker@.service"):
            (tmp_path / f"{unit_name}.d").mkdir(exist_ok=True)
            shutil.copy(drop_in, tmp_path / f"{unit_name}.d" / drop_in.name)
    instances = [str(tmp_path / unit.name.replace("@.", "@0.")) for unit in UNITS]
    assert analyze("verify", "--man=no", "--recursive-errors=yes", *instances) == ""


@needs_systemd
@pytest.mark.parametrize(
    ("unit", "tenths"), [("ryzanstein-coordinator.service", 20), ("ryzanstein-shard-worker@.service", 20)]
)
def test_a_service_that_is_broken_into_reaches_little(unit: str, tenths: int) -> None:
    analyze("security", "--offline=true", f"--threshold={tenths}", str(SYSTEMD / "units" / unit))


@needs_systemd
@pytest.mark.parametrize("unit", ["ryzanstein-coordinator.service", "ryzanstein-shard-worker@.service"])
def test_every_open_point_is_explained(unit: str) -> None:
    """What this release of systemd finds open stands in the table; others may ask about more."""
    if not analyze("--version").startswith("systemd 252 "):
        pytest.skip("the table is of systemd 252")
    table = (SYSTEMD / "README.md").read_text(encoding="utf-8").partition("## What a service")[2]
    report = analyze("security", "--offline=true", str(SYSTEMD / "units" / unit))
    found = re.findall(r"^✗ (\w+=)(\S*)", report, re.MULTILINE)
    assert found
    for setting, value in found:
        named = f"{setting}{value}" if value.startswith(("~AF_UNIX", "~AF_NET")) else setting
        assert f"`{named}" in table, named
    overall = re.search(r"exposure level for \S+: ([\d.]+)", report)
    assert overall is not None
    assert overall[1] in table.partition("|")[0], "the figure is in the text above the table"


def test_a_service_has_the_time_to_drain_and_its_watchdog_the_time_that_a_rank_is_waited_for() -> None:
    coordinator = settings("ryzanstein-coordinator.service")
    worker = settings("ryzanstein-shard-worker@.service")
    for unit, config in ((coordinator, "coordinator.toml"), (worker, "shard-worker.toml")):
        drain = re.search(r"^drain-timeout = (\d+)$", (SYSTEMD / "config" / config).read_text(), re.MULTILINE)
        assert drain is not None
        assert int(unit["TimeoutStopSec"][0]) > int(drain[1])
        assert unit["RestartPreventExitStatus"] == ["2"]
    assert int(worker["WatchdogSec"][0]) > 30, "the default of --collective-timeout"


@pytest.mark.parametrize("script", ["deploy/systemd/install.sh", "tests/systemd/boot.sh"])
def test_scripts_are_clean(script: str) -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not there")
    done = subprocess.run([checker, str(REPOSITORY / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


class Root:
    """An image that the script installs into."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        environment = directory / "opt/prepared/bin"
        environment.mkdir(parents=True)
        (environment / "ryzanstein").write_text("#!/bin/sh\n", encoding="utf-8")
        (environment / "ryzanstein").chmod(0o755)

    def run(self, *arguments: str, action: str = "install") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", SYSTEMD / "install.sh", action, "--root", self.directory, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, *arguments: str) -> str:
        """→ what it said."""
        done = self.run("--venv", "/opt/prepared", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Contents and mode of all that is below etc and opt."""
        return {
            str(path.relative_to(self.directory)): (path.read_bytes(), path.stat().st_mode & 0o777)
            for folder in ("etc/ryzanstein", "etc/systemd", "opt/ryzanstein")
            for path in (self.directory / folder).rglob("*")
            if path.is_file()
        }


@pytest.fixture
def root(tmp_path: Path) -> Root:
    if os.geteuid() != 0:
        pytest.skip("users of an image are made by root")
    for program in ("systemd-sysusers", "systemctl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not there")
    return Root(tmp_path)


def test_what_is_installed_twice_is_there_once_and_settings_and_secrets_stay(root: Root) -> None:
    root.install("--model-dir", "/srv/model", "--workers", "2", "--device", "cpu")
    config = root.directory / "etc/ryzanstein/coordinator.toml"
    assert 'model-dir = "/srv/model"' in config.read_text()
    assert "tensor-parallel-size = 2" in config.read_text()
    config.write_text("# mine\n", encoding="utf-8")
    before = root.files()
    assert "stays as it is" in root.install("--workers", "2", "--device", "cpu")
    assert root.files() == before
    assert {mode for path, (_, mode) in before.items() if "/credentials/" in path} == {0o600}
    users = [line.split(":")[0] for line in (root.directory / "etc/passwd").read_text().splitlines()]
    assert sorted(users) == ["ryzanstein", "ryzanstein-worker"]
    wanted = root.directory / "etc/systemd/system/ryzanstein.target.wants"
    assert {link.name for link in wanted.iterdir()} == {
        "ryzanstein-coordinator.service",
        "ryzanstein-shard-worker@0.service",
        "ryzanstein-shard-worker@1.service",
    }


def test_what_is_taken_away_leaves_settings_unless_it_is_purged(root: Root) -> None:
    root.install("--model-dir", "/srv/model", "--prefix", "/opt/elsewhere/ryzanstein")
    unit = root.directory / "etc/systemd/system/ryzanstein-coordinator.service"
    assert "ExecStart=/opt/elsewhere/ryzanstein/current/bin/ryzanstein coordinator" in unit.read_text()
    done = root.run("--prefix", "/opt/elsewhere/ryzanstein", action="uninstall")
    assert done.returncode == 0, done.stderr
    assert {path.split("/")[1] for path in root.files()} == {"ryzanstein"}
    assert root.run("--purge", action="uninstall").returncode == 0
    assert root.files() == {}


def test_tls_and_the_lack_of_keys_are_drop_ins(root: Root, tmp_path: Path) -> None:
    for name in ("cert", "key", "ca"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    files = {"--tls-cert": "cert", "--tls-key": "key", "--tls-ca": "ca", "--tls-client-ca": "ca"}
    certificate = [word for flag, name in files.items() for word in (flag, tmp_path / name)]
    root.install("--model-dir", "/m", "--no-keys", *map(str, certificate))
    for unit in ("ryzanstein-coordinator.service", "ryzanstein-shard-worker@.service"):
        folder = root.directory / "etc/systemd/system" / f"{unit}.d"
        assert {path.name for path in folder.iterdir()} == {"20-tls.conf", "21-tls-client-ca.conf"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "two"], "--workers: 'two' is not a number"),
        (["--device", "tpu"], "--device: 'tpu' is neither cuda nor cpu"),
        (["--role", "client"], "--role: 'client' is none of all, coordinator, worker"),
        (["--tls-cert", "x"], "--tls-cert, --tls-key and --tls-ca come together"),
        (["--prefix", "opt"], "--prefix: 'opt' is not an absolute path"),
        (["--model"], "--model needs a value"),
        (["--modle-dir", "x"], "unknown option --modle-dir"),
        (["--venv", "/nowhere", "--model-dir", "/m"], "--venv: /nowhere/bin/ryzanstein is not there"),
        (["--venv", "/opt/prepared"], "--model-dir is needed for a new coordinator"),
        (["--venv", "/opt/prepared", "--role", "worker"], "join-token is not there"),
    ],
)
def test_what_can_t_work_is_said(root: Root, arguments: list[str], said: str) -> None:
    done = root.run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
