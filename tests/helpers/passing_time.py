"""Time that passes when a test says so: displays of progress act on it, and nothing depends on how busy the machine is."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import tqdm.std

from hf_kd.data import progress
from tests.helpers.processes import LONG


class PassingTime:
    """Stands still, for `hf_kd.data.progress` and for bars, until a test lets it pass.

    Threads of theirs that wait go on when it has passed for as long as they wait for, in that order, and each has done what
    it does then before time goes on.
    """

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        self._turn = threading.Condition()
        self._until: dict[_Event, float | None] = {}
        """Of every event that a thread has or will have to wait for; None while it does something else."""
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        threads = SimpleNamespace(Event=lambda: _Event(self), Thread=threading.Thread, Lock=threading.Lock)
        for place, name, value in (
            (progress, "time", clock),
            (progress, "threading", threads),
            (tqdm.std, "time", clock.time),
            (progress, "_ended", 0.0),
            (progress, "_silent_since", 0.0),
            (progress, "_line_at", float("-inf")),
            (progress, "_line", ""),
        ):
            monkeypatch.setattr(place, name, value)

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        with self._turn:
            while True:
                assert self._turn.wait_for(lambda: None not in self._until.values(), LONG), (
                    "a thread does not wait again"
                )
                next_one = min(self._until, key=self._until.__getitem__, default=None)
                if next_one is None or self._until[next_one] > end:
                    break
                self.now, self._until[next_one] = self._until[next_one], None
                self._turn.notify_all()
            self.now = end


class _Event:
    """What a `threading.Event` is to the one thread that waits for it."""

    def __init__(self, time: PassingTime) -> None:
        self._time, self._set = time, False
        time._until[self] = None

    def set(self) -> None:
        with self._time._turn:
            self._set = True
            self._time._until.pop(self, None)
            self._time._turn.notify_all()

    def wait(self, seconds: float) -> bool:
        with self._time._turn:
            if not self._set:
                self._time._until[self] = self._time.now + seconds
                self._time._turn.notify_all()
                self._time._turn.wait_for(lambda: self._set or self._time._until[self] is None)
            return self._set
