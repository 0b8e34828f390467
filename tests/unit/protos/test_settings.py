"""Configuration files as plain values."""

from __future__ import annotations

from pathlib import Path

import pytest

from ryzanstein.settings import SettingsError, environment_variable, read_settings

KNOWN = {
    "--grpc-port": "grpc_port",
    "model_dir": "model_dir",
    "--reproducible": "reproducible",
    "--stop": "stop",
}


def read(directory: Path, content: str) -> dict[str, object]:
    file = directory / "serve.toml"
    file.write_text(content, encoding="utf-8")
    return dict(read_settings(file, KNOWN, command="ryzanstein serve"))


def test_keys_are_flags_with_either_kind_of_dash_and_values_are_text_again(tmp_path: Path) -> None:
    content = 'grpc-port = 5\nmodel_dir = "/m"\nreproducible = false\nstop = ["a", 1]\n'
    assert read(tmp_path, content) == {
        "grpc_port": "5",
        "model_dir": "/m",
        "reproducible": False,
        "stop": ["a", "1"],
    }


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("grcp-port = 1", r"unknown key 'grcp-port': did you mean 'grpc-port'\?"),
        (
            "colour = 1",
            "unknown key 'colour': ryzanstein serve knows grpc-port, model-dir, reproducible, stop",
        ),
        ("[serve]\ngrpc-port = 1", "unknown key 'serve': tables are not used"),
        ("grpc-port = 1\ngrpc_port = 2", "'grpc_port' is set twice"),
        ("grpc-port = {a = 1}", "'grpc-port' is a dict, but a flag takes"),
        ("stop = [[1]]", "'stop' is a list, but a flag takes"),
        ("stop = 2020-01-01", "'stop' is a date, but a flag takes"),
        ("grpc-port = ", r"serve\.toml is not valid TOML: Invalid value \(at end of document\)"),
    ],
)
def test_mistakes_are_named_with_file_and_key(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "serve.toml") in str(caught.value)


def test_a_file_that_is_not_there_or_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"can't read the configuration file .*none\.toml: No such file"):
        read_settings(tmp_path / "none.toml", KNOWN, command="x")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"binary\.toml is not valid TOML"):
        read_settings(tmp_path / "binary.toml", KNOWN, command="x")


def test_the_variable_of_a_flag_is_its_name_in_capitals() -> None:
    assert environment_variable("--grpc-port") == "RYZANSTEIN_GRPC_PORT"
