"""A Hub on loopback, and clients in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import processes
from tests.helpers.hub_server import Hub
from tests.helpers.processes import Done

WRITER, READER, OTHER = "hf_writer_token", "hf_reader_token", "hf_other_token"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub():
    with Hub().serve() as server:
        yield server
    processes.empty_hub_home()  # the next test finds no cache


@pytest.fixture
def run_client(hub, tmp_path):
    """Runs Python source, or `hf-kd` with arguments, in a process whose Hub is the one on loopback.

    It has to exit with `code`.
    """

    def run(
        source: str | list[str],
        *,
        code: int | None = 0,
        token: str | None = WRITER,
        **environment: str,
    ) -> Done:
        given = processes.surroundings(**({} if token is None else {"HF_TOKEN": token}), **environment)
        command = ["-c", source] if isinstance(source, str) else ["-m", "hf_kd", *source]
        (done,) = processes.run(command, environments=[given], folder=tmp_path)
        assert code is None or done.code == code, done.out[-3000:] + done.err[-6000:]
        return done

    return run
