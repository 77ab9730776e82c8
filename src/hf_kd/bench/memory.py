"""Peak memory of a cell, and in it of the method alone, above what was held before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading
from collections.abc import Iterator

import psutil
import torch

EVERY = 0.02
"""Seconds between two looks at the process."""


class PeakMemory:
    """A context in which the process is watched. `mib()` afterwards: `process_before` and `process_peak` of the whole,
    `method` (what `of_method` stretches took at most above what was held when each began), and on a GPU `gpu_peak` of the
    whole and `gpu_method`.

    The process is looked at from a thread, now and then, so on a CPU the numbers are lower bounds; what was freed before a
    stretch is given back first, or a method would take it unseen. The GPU's are exact, of tensors.
    """

    def __init__(self) -> None:
        self._process, self._cuda = psutil.Process(), torch.cuda.is_available()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._top = self._top_in_method = self._before = 0.0
        self._gpu_top = 0.0
        self._found: dict[str, float] = {}

    def __enter__(self) -> PeakMemory:
        self._before = float(self._process.memory_info().rss)
        self._look()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._watcher.join()
        self._look()
        if self._cuda:
            self._gpu_top = max(self._gpu_top, float(torch.cuda.max_memory_allocated()))

    @contextlib.contextmanager
    def of_method(self) -> Iterator[None]:
        """A stretch in which a method works, and nothing measures it."""
        _give_back()
        base = float(self._process.memory_info().rss)
        self._top_in_method = base
        if self._cuda:
            self._gpu_top = max(self._gpu_top, float(torch.cuda.max_memory_allocated()))
            torch.cuda.reset_peak_memory_stats()
            gpu_base = float(torch.cuda.memory_allocated())
        yield
        self._look()
        self._keep("method", self._top_in_method - base)
        if self._cuda:
            self._keep("gpu_method", torch.cuda.max_memory_allocated() - gpu_base)

    def mib(self) -> dict[str, int]:
        found = {"process_before": self._before, "process_peak": self._top} | self._found
        if self._cuda:
            found["gpu_peak"] = self._gpu_top
        return {name: round(value / 2**20) for name, value in found.items()}

    def _keep(self, name: str, value: float) -> None:
        self._found[name] = max(self._found.get(name, 0.0), value)

    def _look(self) -> None:
        held = float(self._process.memory_info().rss)
        self._top, self._top_in_method = max(self._top, held), max(self._top_in_method, held)

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._look()


def _give_back() -> None:
    """Let go of what nothing holds any more, and with the C library of GNU return it to the system."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
