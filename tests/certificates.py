"""Authorities and certificates for tests, made by openssl as `docs/security.md` says."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Why there can be none here; empty if there can.
MISSING = "" if shutil.which("openssl") else "openssl makes the certificates"

_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates for 127.0.0.1 and localhost."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
        _openssl(f"req -x509 {_KEY} -days 1 -subj /CN={name} -keyout {self.pair.key} -out {self.pair.cert}")

    @property
    def cert(self) -> Path:
        """What others check certificates with."""
        return self.pair.cert

    def sign(self, name: str, *, days: int = 1, names: str = "IP:127.0.0.1,DNS:localhost") -> Pair:
        """`days=0`: it is over when it is made."""
        pair = Pair(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl(f"req {_KEY} -subj /CN={name} -keyout {pair.key} -out {request}")
        _openssl(
            f"x509 -req -in {request} -CA {self.pair.cert} -CAkey {self.pair.key} -CAcreateserial -days {days} "
            f"-extfile {extensions} -out {pair.cert}"
        )
        pair.key.chmod(0o600)
        return pair


def _openssl(words: str) -> None:
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
