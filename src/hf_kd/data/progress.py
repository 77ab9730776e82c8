"""What is shown on a terminal while something takes time: a bar with a name and the time left, or the seconds so far.

Goes to standard error, and to terminals and notebooks only: logs and pipes stay clean.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm.auto import tqdm

DELAY = 1.0
"""Seconds after which something counts as taking time; also how often a display is brought up to date."""

ALONE = "{desc} ... {elapsed}"
COUNTED = "{desc:<28.28}|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"

_Item = TypeVar("_Item")

SHORTEST = 0.2
"""Seconds for which nothing is shown in any case, so that nothing flickers."""

_silent_since = _ended = 0.0
"""Since when a chain of short things has shown nothing, and when the last of them ended."""


def bars_shown() -> bool:
    """Whether there is somebody to look at a bar."""
    return "ipykernel" in sys.modules or (hasattr(sys.stderr, "isatty") and sys.stderr.isatty())


def counted(items: Iterable[_Item], what: str, unit: str, visible: bool = True) -> Iterable[_Item]:
    """The items, with a bar that counts them.

    Args:
        items: What is walked through.
        what: What is being done.
        unit: What an item is.
        visible: False shows none.
    """
    return tqdm(items, desc=what, unit=unit, delay=DELAY, disable=not (visible and bars_shown()))


class Steps:
    """A bar over steps that have names: it shows which one is at work, and its clock runs on while a step takes long.

    Args:
        total: Number of steps; None for one thing whose length nobody knows, which shows its seconds alone.
        what: What is being done until the first step has a name.
        visible: False shows nothing.
        at_once: Show it at once, where it is sure to take long.

    Use it as a context; `begin` says that the next step starts, and counts the one before.
    """

    def __init__(self, total: int | None, what: str, visible: bool = True, at_once: bool = False) -> None:
        form = ALONE if total is None else COUNTED
        hidden = not (visible and bars_shown())
        self._bar: Any = tqdm(total=total, desc=what, delay=1e9, leave=False, bar_format=form, disable=hidden)
        self._stop, self._clock = threading.Event(), None
        self._begun = self._shown = False
        if at_once and not hidden:
            self._show()

    def begin(self, name: str) -> None:
        """The next step, by its name."""
        if self._begun:
            self._bar.update()
        self._begun = True
        if self._bar.disable:
            return
        self._bar.set_description_str(name, refresh=False)
        if self._shown:
            self._bar.refresh()

    def __enter__(self) -> Steps:
        global _silent_since
        if not self._bar.disable:
            if not self._shown and time.monotonic() - _ended > DELAY:
                _silent_since = time.monotonic()
            self._clock = threading.Thread(target=self._tick, daemon=True)
            self._clock.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._clock is not None:
            self._clock.join()
        self._bar.close()
        global _ended
        _ended = time.monotonic()

    def _tick(self) -> None:
        wait = max(min(SHORTEST, DELAY), DELAY - (time.monotonic() - _silent_since))
        while not self._stop.wait(wait):
            self._show()
            wait = DELAY

    def _show(self) -> None:
        global _silent_since
        _silent_since = time.monotonic()
        self._shown, self._bar.delay = True, 0  # what was shown is cleared in the end
        self._bar.refresh()


@contextlib.contextmanager
def working(what: str, visible: bool = True, at_once: bool = False) -> Iterator[None]:
    """Say what is being done, and for how many seconds, where that takes more than one, or else at once."""
    with Steps(None, what, visible, at_once):
        yield
