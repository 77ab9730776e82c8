"""Peak memory of a cell, and in it of the method alone, above what was held before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """A context that watches the process. `mib()` afterwards: `process_before` and `process_peak` of the whole, `method`
    (what `of_method` stretches took at most above what was held when each began), and on a GPU `gpu_peak` and `gpu_method`.

    The kernel keeps the peak of a process (VmHWM), and Linux lets it be cleared; elsewhere only the GPU's is known. What was
    freed before a stretch is given back first, or a method would take it unseen. The GPU's are of tensors.

    Args:
        device: What is computed on: a GPU that is there and not used would say 0.
    """

    def __init__(self, device: torch.device) -> None:
        self._known, self._gpu = CLEAR.exists(), device if device.type == "cuda" else None
        self._bytes: dict[str, float] = {}

    def __enter__(self) -> PeakMemory:
        if self._known:
            self._bytes["process_before"] = _read("VmRSS")
        self._clear()
        return self

    def __exit__(self, *exception: object) -> None:
        self._note()

    @contextlib.contextmanager
    def of_method(self) -> Iterator[None]:
        """A stretch in which a method works, and nothing measures it."""
        _give_back()
        self._note()
        self._clear()
        held = _read("VmRSS") if self._known else 0.0
        held_gpu = 0 if self._gpu is None else torch.cuda.memory_allocated(self._gpu)
        yield
        if self._known:
            self._keep("method", _read("VmHWM") - held)
        if self._gpu is not None:
            self._keep("gpu_method", torch.cuda.max_memory_allocated(self._gpu) - held_gpu)

    def mib(self) -> dict[str, int]:
        """What was found, in MiB."""
        return {name: round(value / 2**20) for name, value in self._bytes.items()}

    def _note(self) -> None:
        if self._known:
            self._keep("process_peak", _read("VmHWM"))
        if self._gpu is not None:
            self._keep("gpu_peak", torch.cuda.max_memory_allocated(self._gpu))

    def _clear(self) -> None:
        if self._known:
            CLEAR.write_text("5")  # the peak is what is held now
        if self._gpu is not None:
            torch.cuda.reset_peak_memory_stats(self._gpu)

    def _keep(self, name: str, value: float) -> None:
        self._bytes[name] = max(self._bytes.get(name, 0.0), value)


def _read(field: str) -> float:
    """A field of /proc/self/status, in bytes."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return float(line.split()[1]) * 1024


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Let Ctrl-C act when the collection is over: what it raises in a finalizer goes no further, and the run goes on."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[Any] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])


def _give_back() -> None:
    """Let go of what nothing holds any more, and with the C library of GNU return it to the system."""
    with _interrupts_later():
        gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
