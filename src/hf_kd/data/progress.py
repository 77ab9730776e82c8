"""What is shown on a terminal while something takes time: a bar with a name and the time left, or the seconds so far.

Goes to standard error, and to terminals and notebooks only: logs and pipes stay clean, unless a program asks for plain lines
there (`plain_lines`), one for a stage that takes time, and now and then one on how far it is.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar, cast

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

BETWEEN, AGAIN = 5.0, 30.0
"""Seconds between two plain lines, at least, and between two of one stage, which say how far it is."""

_plain = False
_line, _line_at = "", float("-inf")
"""The last plain line, and when it was written."""


def plain_lines() -> None:
    """From now on say stages in lines where bars are not shown: for a program, whose standard error is its own."""
    global _plain
    _plain = True


def _say_plainly(what: str, far: str = "") -> None:
    """Write what is at work as a line, not soon after another; again only with how `far` it is, and less often."""
    global _line, _line_at
    wait = BETWEEN if what != _line else AGAIN if far else float("inf")
    if time.monotonic() - _line_at >= wait:
        _line, _line_at = what, time.monotonic()
        print(f"{what}{far} ...", file=sys.stderr, flush=True)


def bars_shown() -> bool:
    """Whether there is somebody to look at a bar."""
    return "ipykernel" in sys.modules or (hasattr(sys.stderr, "isatty") and sys.stderr.isatty())


class Bar:
    """A bar that counts, and whose clock runs on while one item takes long; plain lines where those are asked for.

    Args:
        total: How many items there will be; None where nobody knows.
        what: What is being done.
        unit: What an item is.
        visible: False shows none.
        leave: Whether it stays on the screen in the end.
        done: How many of them were done before.

    To be closed, whatever happens: its clock runs until then.
    """

    def __init__(
        self, total: int | None, what: str, unit: str, visible: bool = True, leave: bool = True, done: int = 0
    ) -> None:
        hidden = not (visible and bars_shown())
        self._counts = not hidden or (visible and _plain)
        if self._counts:
            _begin_work()
        self._what, self._done, self._total, self._began = what, done, total, time.monotonic()
        self._bar: Any = tqdm(total=total, desc=what, unit=unit, delay=DELAY, disable=hidden, leave=leave, initial=done)
        self._clock = _Clock(self._show, DELAY) if self._counts else None

    def update(self) -> None:
        """One item is done."""
        self._done += 1
        self._bar.update()

    def show(self, text: str) -> None:
        """Say something beside the bar, in place of what was said before."""
        self._bar.set_postfix_str(text)

    def over(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """The items, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.update()

    def close(self) -> None:
        """End the clock and the bar; a second time does nothing."""
        global _silent_since
        if self._counts and time.monotonic() - self._began > DELAY:
            _silent_since = time.monotonic()
        if self._clock is not None:
            self._clock.stop()
        self._bar.close()
        if self._counts:
            self._counts = False
            _end_work()

    def _show(self) -> None:
        if self._bar.disable:
            _say_plainly(self._what, _far(self._done, self._total))
        else:
            self._bar.delay = 0  # from now on it is shown, whether an item was done or not
            self._bar.refresh()


def _far(done: int, total: int | None) -> str:
    return "" if total is None else f", {done} of {total}"


@contextlib.contextmanager
def counted(items: Iterable[_Item], what: str, unit: str, visible: bool = True) -> Iterator[Iterable[_Item]]:
    """Give the items, with a bar that counts them, and whose clock runs on while one of them takes long.

    Args:
        items: What is walked through.
        what: What is being done.
        unit: What an item is.
        visible: False shows none.
    """
    total = None
    with contextlib.suppress(TypeError):  # as loaders of streams raise
        total = len(cast(Sized, items))
    bar = Bar(total, what, unit, visible)
    try:
        yield bar.over(items)
    finally:
        bar.close()


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


class _Stage:
    """The seconds of something, shown while no bar inside it is at work, and in place of none."""

    def __init__(self, what: str) -> None:
        self._what, self._began, self._bar, self._lock = what, time.time(), None, threading.Lock()
        _stages.append(self)
        self._clock = _Clock(self._show, DELAY)

    def hide(self) -> None:
        """Off the screen, until nothing else is at work."""
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def close(self) -> None:
        self._clock.stop()
        self.hide()
        _stages.remove(self)

    def _show(self) -> None:
        with self._lock:
            if _bars_open or _stages[-1] is not self or time.monotonic() - _ended < DELAY / 2:
                return
            if not bars_shown():
                _say_plainly(self._what)
                return
            if self._bar is None:
                self._bar = tqdm(desc=self._what, leave=False, bar_format=ALONE)
                self._bar.start_t = self._began
            self._bar.refresh()


_stages: list[_Stage] = []
"""The innermost last."""

_bars_open = 0
"""How many bars and steps there are that say something, or will."""


def _begin_work() -> None:
    global _bars_open
    _bars_open += 1
    for outer in _stages:
        outer.hide()  # now that its own clock does not show it again


def _end_work() -> None:
    global _bars_open, _ended
    _bars_open -= 1
    _ended = time.monotonic()


@contextlib.contextmanager
def at_work(what: str, visible: bool = True) -> Iterator[None]:
    """Say what is at work, and for how many seconds, whenever nothing inside has shown a bar for a second."""
    if not visible or not (bars_shown() or _plain):
        yield
        return
    shown = _Stage(what)
    try:
        yield
    finally:
        shown.close()


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
        self._plain = hidden and visible and _plain
        if self._plain or not hidden:
            _begin_work()
        self._bar: Any = tqdm(total=total, desc=what, delay=1e9, leave=False, bar_format=form, disable=hidden)
        self._clock: _Clock | None = None
        self._total, self._count, self._shown = total, 0, False
        self._name = what
        if at_once and (self._plain or not hidden):
            self._show()

    def begin(self, name: str) -> None:
        """The next step, by its name."""
        if self._count:
            self._bar.update()
        self._count, self._name = self._count + 1, name
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
            _end_work()
        self._bar.close()

    def _show(self) -> None:
        global _silent_since
        _silent_since = time.monotonic()
        if self._plain:
            _say_plainly(self._name, _far(self._count, self._total))
            return
        self._shown, self._bar.delay = True, 0  # what was shown is cleared in the end
        self._bar.refresh()


@contextlib.contextmanager
def working(what: str, visible: bool = True, at_once: bool = False) -> Iterator[None]:
    """Say what is being done, and for how many seconds, where that takes more than one, or else at once."""
    with Steps(None, what, visible, at_once):
        yield
