"""Fresh processes for tests: each is forked from one that has imported the libraries and done nothing else.

Importing torch and transformers takes seconds of CPU, and tests that start a process a case would spend most of their time
on it. What libraries read from the environment when they are imported, they read once, from `surroundings`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import re
import runpy
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from tests.helpers import hub_server, own_stream

PRELOADED = ["torch", "transformers", "datasets", "sklearn.linear_model", "matplotlib.pyplot", "hf_kd.cli", "hf_kd.bench",
             "hf_kd.audit", "hf_kd.hub.publish", "hf_kd.model.erased_model", "hf_kd.model.unlearn", "hf_kd.model.verify",
             "transformers.models.vit", "transformers.models.resnet", "typer._adapters", "tests.helpers.processes",
             "tests.helpers.warm"]  # fmt: skip
KEPT = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "SYSTEMROOT", "TMPDIR")
"""What a process has of the environment of the tests."""
LONG = 1200
"""Seconds after which a process hangs: ten times what any takes, also where other processes have most of the cores."""
APART, EPHEMERAL = 32, 32768
"""How many processes of tests choose different ports; the lowest that Linux gives to whoever asks for any."""
SRC = str(Path(__file__).resolve().parents[2] / "src")
"""Of the checkout that the tests stand in, which they test whatever is installed."""


@dataclass
class Done:
    """What a process left."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@functools.cache
def hub_home() -> Path:
    """The cache of the Hub that processes have; empty it where a test may not see what another one loaded."""
    home = Path(tempfile.mkdtemp(prefix="hf-kd-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


def empty_hub_home() -> None:
    for left in hub_home().iterdir():
        shutil.rmtree(left, ignore_errors=True)


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a process: the checkout's code, the Hub on loopback, and matrices are computed by one thread."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    return kept | {
        "HF_ENDPOINT": hub_server.address(),
        "HF_HOME": str(hub_home()),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        **more,
        "PYTHONPATH": os.pathsep.join(filter(None, [SRC, more.get("PYTHONPATH")])),
    }


@contextlib.contextmanager
def _environment(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    """The server is started once for all tests of this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _environment(surroundings()):
        multiprocessing.forkserver.ensure_running()
    return context


def _run(command: Sequence[str], environment: Mapping[str, str], folder: str, said: tuple[str, str]) -> None:
    """In the process: what `python COMMAND` does, with both streams in files."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    from hf_kd.data import progress

    for descriptor, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # a fork is given the path of the process of tests, to which libraries add folders of code that they fetched
    sys.path[:] = [folder for folder in sys.path if not Path(folder, "evaluate_modules").is_dir()]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path_importer_cache.clear()  # folders were listed when the server started, and modules have come since
    gc.freeze()  # what the server imported need not be gone through, and copied by that, whenever garbage is collected
    constants.ENDPOINT = environment["HF_ENDPOINT"]
    constants.HF_HUB_OFFLINE = environment.get("HF_HUB_OFFLINE") == "1"
    _http.time = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})  # between two tries of a request
    progress.DELAY = LONG  # what takes long is not said: it depends on how busy the machine is
    first, *arguments = command
    if first == "-c":
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<source>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


def run(
    *commands: Sequence[object],
    environments: Sequence[Mapping[str, str]],
    folder: Path | str = ".",
    timeout: float = LONG,
) -> list[Done]:
    """Run `python COMMAND` for each at the same time, with an environment each, in one folder, and wait for all of them."""
    context = _context()
    with tempfile.TemporaryDirectory(prefix="hf-kd-said-") as name:
        said = [(f"{name}/{number}.out", f"{name}/{number}.err") for number in range(len(commands))]
        running = [
            context.Process(target=_run, args=([*map(str, command)], dict(environment), str(folder), files))
            for command, environment, files in zip(commands, environments, said, strict=True)
        ]
        for process in running:
            process.start()
        for process in running:
            process.join(timeout)
        late = [process for process in running if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        texts = [[Path(file).read_text() for file in files] for files in said]
    assert not late, f"no end after {timeout} s: {texts}"
    return [Done(process.exitcode, *text) for process, text in zip(running, texts, strict=True)]


def in_two_processes(*command) -> dict:
    """Run `python COMMAND` in two processes that know of each other, as `accelerate launch` starts them."""
    done = run(command, command, environments=[surroundings(**told) for told in launched()])
    assert [process.code for process in done] == [0, 0], "".join(process.text[-3000:] for process in done)
    return json.loads(done[0].out.strip().splitlines()[-1])


def launched() -> list[dict[str, str]]:
    """What `accelerate launch` tells each of two processes by their environment."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}
    return [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


def launch(script: Path) -> list[str]:
    """What each process prints of a script under `accelerate launch` on the CPU with two of them, fresh interpreters both.
    (Its own --cpu starts a single one unless there is MPI.)"""
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={free_port()}"]
    with tempfile.TemporaryDirectory(prefix="hf-kd-launched-") as folder:
        told = surroundings(ACCELERATE_USE_CPU="true", SAID=folder)
        (done,) = run([*command, own_stream.__file__, script], environments=[told])
        assert done.code == 0, done.text[-3000:]
        return [Path(folder, rank).read_text() for rank in ("0", "1")]


def free_port() -> int:
    """A port that nothing takes before the process it is for listens there, seconds later.

    The system gives those from `EPHEMERAL` on to whatever connects or asks for any; below, the processes of tests that run
    at the same time choose among different ones.
    """
    own = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % APART
    for port in random.SystemRandom().sample(range(EPHEMERAL // 2 // APART * APART + own, EPHEMERAL, APART), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"100 ports below {EPHEMERAL} are in use")
