"""Exit codes, one-line errors, and where a flag's value comes from."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
import typer

from ryzanstein.program import EXTRA_OF_MODULE, ConfigFile, ProgramError, run

ROOT = Path(__file__).parents[3]


def app() -> typer.Typer:
    programs = typer.Typer(add_completion=False, no_args_is_help=True)

    @programs.command("show")
    def show(
        name: str = "default",
        count: Annotated[int, typer.Option("--count", min=1)] = 1,
        fast: Annotated[bool, typer.Option("--fast/--slow")] = False,
        many: Annotated[list[str] | None, typer.Option("--many")] = None,
        as_json: Annotated[bool, typer.Option("--json")] = False,
        config: ConfigFile = None,
    ) -> None:
        print(name, count, fast, many, as_json)

    @programs.command("fail")
    def fail(kind: str) -> None:
        raise {
            "expected": ProgramError("no such thing in here; look elsewhere", exit_code=69),
            "defect": KeyError("x"),
            "group": ExceptionGroup("tasks", [ProgramError("first", exit_code=3), KeyError("y")]),
            "module": ModuleNotFoundError("no", name="fastapi.staticfiles"),
            "unknown module": ModuleNotFoundError("No module named 'zzz'", name="zzz"),
            "interrupt": KeyboardInterrupt(),
            "abort": typer.Abort(),
            "exit": typer.Exit(7),
            "usage": typer.BadParameter("not like this"),
        }[kind]

    return programs


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NAME", "COUNT", "FAST", "MANY", "JSON", "CONFIG", "DEBUG"):
        monkeypatch.delenv(f"RYZANSTEIN_{name}", raising=False)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(app(), ["show", *words]) == 0
    return capsys.readouterr().out.strip()


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "f.toml"
    file.write_text('name = "file"\ncount = 2\nfast = true\nmany = ["a", "b"]\njson = true\n')
    assert shown(capsys) == "default 1 False None False"
    assert shown(capsys, "--config", str(file)) == "file 2 True ['a', 'b'] True"
    monkeypatch.setenv("RYZANSTEIN_COUNT", "3")
    monkeypatch.setenv("RYZANSTEIN_JSON", "0")
    monkeypatch.setenv("RYZANSTEIN_MANY", "c d")
    assert shown(capsys, "--config", str(file)) == "file 3 True ['c', 'd'] False"
    assert shown(capsys, "--config", str(file), "--count", "4", "--slow") == "file 4 False ['c', 'd'] False"
    monkeypatch.setenv("RYZANSTEIN_CONFIG", str(file))
    assert shown(capsys, "--name", "flag") == "flag 3 True ['c', 'd'] False"


def test_values_of_the_file_are_checked_like_flags(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "f.toml"
    file.write_text("count = 0\n")
    assert run(app(), ["show", "--config", str(file)]) == 2
    assert "--count" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        ("expected", 69, "error: no such thing in here; look elsewhere\n"),
        ("defect", 1, "internal error: KeyError: 'x'; run it again with --debug for the traceback\n"),
        ("group", 3, "error: first\n"),
        ("unknown module", 1, "internal error: ModuleNotFoundError: No module named 'zzz'; run it again"),
        ("module", 2, "error: the Python package 'fastapi' is not installed; it comes with the extra 'coor"),
        ("interrupt", 130, ""),
        ("abort", 130, ""),
        ("exit", 7, ""),
        ("usage", 2, "error: Invalid value: not like this"),
    ],
)
def test_every_end_has_its_exit_code_and_one_line(
    capsys: pytest.CaptureFixture[str], kind: str, code: int, said: str
) -> None:
    assert run(app(), ["fail", kind]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(said)
    assert captured.err.count("\n") == bool(said)


@pytest.mark.parametrize("words", [["--debug", "fail", "defect"], ["fail", "defect", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(app(), words) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_can_come_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RYZANSTEIN_DEBUG", "1")
    run(app(), ["fail", "expected"])
    assert "Traceback" in capsys.readouterr().err


def test_behind_two_dashes_debug_is_a_word_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app(), ["fail", "--", "--debug"]) == 1
    assert "KeyError: '--debug'" in capsys.readouterr().err


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app(), []) in {0, 2}  # old and new releases of typer differ
    captured = capsys.readouterr()
    assert "show" in captured.out + captured.err


def test_a_reader_that_went_away_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class ClosedPipe:
        def __init__(self) -> None:
            self.file = (tmp_path / "out").open("w")

        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

        def fileno(self) -> int:
            return self.file.fileno()

    pipe = ClosedPipe()
    monkeypatch.setattr(sys, "stdout", pipe)
    assert run(app(), ["show"]) == 0
    pipe.file.close()


def test_every_module_of_an_extra_is_known_by_its_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    module_of = {"grpcio-health-checking": "grpc_health", "grpcio-reflection": "grpc_reflection"}
    module_of |= {"nvidia-ml-py": "pynvml"}
    for extra in ("coordinator", "worker", "bench"):
        for requirement in extras[extra]:
            package = requirement.partition(">")[0].partition("=")[0].partition("[")[0].strip()
            assert EXTRA_OF_MODULE[module_of.get(package, package.replace("-", "_"))] == extra
