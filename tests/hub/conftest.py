"""A Hub on loopback, and clients in processes of their own: what they read from the environment is read at import."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.hub_server import Hub

WRITER, READER, OTHER = "hf_writer_token", "hf_reader_token", "hf_other_token"
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture
def hub():
    with Hub().serve() as server:
        yield server


@pytest.fixture
def run_client(hub, tmp_path):
    """Runs Python source in a fresh process whose Hub is the one on loopback; asserts that it exits with `code`."""

    def run(
        source: str | list[str], *, code: int | None = 0, token: str | None = WRITER, **environment: str | None
    ) -> Done:
        kept = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "SYSTEMROOT", "TMPDIR")
        env = {name: value for name, value in os.environ.items() if name in kept}
        env |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf_home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
        }
        if token is not None:
            env["HF_TOKEN"] = token
        env |= {name: value for name, value in environment.items() if value is not None}
        command = (
            [sys.executable, "-c", source] if isinstance(source, str) else [sys.executable, "-m", "hf_kd", *source]
        )
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=240)
        assert code is None or done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
        return Done(done.returncode, done.stdout, done.stderr)

    return run
