"""Exchange the erasers of a model while it answers in other threads: no answer is of two states."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from hf_kd.errors import HfKdError

_CHANGING = threading.Lock()
"""Held while erasers, masks and records are exchanged, a moment each time."""

_Answer = TypeVar("_Answer")


class Swap:
    """Counts the changes of one model; an odd number while one is going on."""

    def __init__(self) -> None:
        self.changes = 0
        """How many were begun and ended so far."""

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """Change erasers, masks and records in one go; who answers meanwhile answers again."""
        with _CHANGING:
            self.changes += 1
            try:
                yield
            finally:
                self.changes += 1

    def unchanged_while(self, answer: Callable[[], _Answer]) -> _Answer:
        """An answer of one state of the model, whatever other threads do to it meanwhile."""
        if torch.compiler.is_compiling():
            return answer()
        while True:
            before = self.changes
            try:
                found = answer()
            except HfKdError:
                if before == self.changes:
                    raise
                continue
            if before == self.changes and before % 2 == 0:
                return found
            with _CHANGING:  # wait for the end of the change
                pass
