"""What is shown on a terminal while something takes time: a bar with a name and the time left, or the seconds so far.

Goes to standard error, and to terminals and notebooks only: logs and pipes stay clean, unless a program asks for plain lines
there (`plain_lines`), one for a stage that takes time.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
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

BETWEEN = 5.0
"""Seconds between two plain lines, at least."""

_plain = False
_line, _line_at = "", float("-inf")
"""The last plain line, and when it was written."""


def plain_lines() -> None:
    """From now on say stages in lines where bars are not shown: for a program, whose standard error is its own."""
    global _plain
    _plain = True


def say_plainly(what: str, visible: bool = True) -> None:
    """Write what has begun as a line where bars are not shown, once, and not soon after another line."""
    global _line, _line_at
    if visible and _plain and not bars_shown() and what != _line and time.monotonic() - _line_at >= BETWEEN:
        _line, _line_at = what, time.monotonic()
        print(f"{what} ...", file=sys.stderr, flush=True)


def bars_shown() -> bool:
    """Whether there is somebody to look at a bar."""
    return "ipykernel" in sys.modules or (hasattr(sys.stderr, "isatty") and sys.stderr.isatty())


@contextlib.contextmanager
def counted(items: Iterable[_Item], what: str, unit: str, visible: bool = True) -> Iterator[Iterable[_Item]]:
    """Give the items, with a bar that counts them, and whose clock runs on while one of them takes long.

    Args:
        items: What is walked through.
        what: What is being done.
        unit: What an item is.
        visible: False shows none.
    """
    with tqdm(items, desc=what, unit=unit, delay=DELAY, disable=not (visible and bars_shown())) as bar:

        def show() -> None:
            if bar.disable:
                say_plainly(what)
            else:
                bar.delay = 0  # from now on it is shown, whether an item was done or not
                bar.refresh()

        if bar.disable and not (visible and _plain):
            yield bar
            return
        clock = _Clock(show, DELAY)
        try:
            yield bar
        finally:
            clock.stop()


class _Clock:
    """Calls `show` from a thread after `first` seconds, and then every `DELAY`."""

    def __init__(self, show: Callable[[], None], first: float) -> None:
        self._show, self._stopped = show, threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first,), daemon=True)
        self._thread.start()

    def _run(self, wait: float) -> None:
        while not self._stopped.wait(wait):
            self._show()
            wait = DELAY

    def stop(self) -> None:
        """Stop, and wait for a call that is on its way."""
        self._stopped.set()
        self._thread.join()


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
        self._clock: _Clock | None = None
        self._begun = self._shown = False
        self._name, self._plain = what, hidden and visible and _plain
        if at_once and (self._plain or not hidden):
            self._show()

    def begin(self, name: str) -> None:
        """The next step, by its name."""
        if self._begun:
            self._bar.update()
        self._begun, self._name = True, name
        if self._bar.disable:
            return
        self._bar.set_description_str(name, refresh=False)
        if self._shown:
            self._bar.refresh()

    def __enter__(self) -> Steps:
        global _silent_since
        if self._plain or not self._bar.disable:
            if not self._shown and time.monotonic() - _ended > DELAY:
                _silent_since = time.monotonic()
            self._clock = _Clock(self._show, max(min(SHORTEST, DELAY), DELAY - (time.monotonic() - _silent_since)))
        return self

    def __exit__(self, *error: object) -> None:
        if self._clock is not None:
            self._clock.stop()
        self._bar.close()
        global _ended
        _ended = time.monotonic()

    def _show(self) -> None:
        global _silent_since
        _silent_since = time.monotonic()
        if self._plain:
            say_plainly(self._name)
            return
        self._shown, self._bar.delay = True, 0  # what was shown is cleared in the end
        self._bar.refresh()


@contextlib.contextmanager
def working(what: str, visible: bool = True, at_once: bool = False) -> Iterator[None]:
    """Say what is being done, and for how many seconds, where that takes more than one, or else at once."""
    with Steps(None, what, visible, at_once):
        yield
