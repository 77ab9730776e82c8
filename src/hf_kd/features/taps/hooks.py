"""Hooks of the sites on modules, and what one thread knows of the forward it is in.

Models answer in several threads at once, so nothing of a forward is kept in a site.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

Kind = Literal["input", "output", "logits"]
"""Which side of a module a hook is on; behind the logits of a head stands the mask."""


@dataclass
class Reader:
    """Features that one thread reads at a site."""

    stage: Literal["before", "after"]
    rows: list[Tensor] = field(default_factory=list)
    detach: bool = True

    def read(self, rows: Tensor) -> None:
        """Keep the rows of one pass, by default without their graph."""
        self.rows.append(rows.detach() if self.detach else rows)


class ThreadState(threading.local):
    """What has passed in the forwards of one thread, and what it reads."""

    def __init__(self) -> None:
        self.passed: set[tuple[int, int]] = set()
        """(id of the site, number of its place)."""
        self.readers: dict[int, Reader] = {}
        """By id of the site."""


THREAD = ThreadState()


def register(module: nn.Module, hook: functools.partial, kind: Kind) -> Any:
    """Hook into a module. Where features pass, first in line: no other hook sees them before the eraser."""
    if kind == "input":
        return module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
    return module.register_forward_hook(hook, prepend=kind == "output")


def hooks_of(module: nn.Module, kind: Kind) -> dict[int, Any]:
    """The module's hooks of this kind, by the number torch gave them."""
    return module._forward_pre_hooks if kind == "input" else module._forward_hooks


def is_registered(module: nn.Module, hook: functools.partial, kind: Kind) -> bool:
    """Whether this very hook is on the module, as it was registered."""
    return any(
        isinstance(found, functools.partial)
        and found.func == hook.func
        and found.args == hook.args
        and (kind != "input" or key in module._forward_pre_hooks_with_kwargs)
        for key, found in hooks_of(module, kind).items()
    )


def remove_alike(module: nn.Module, hook: functools.partial, kind: Kind) -> None:
    """Remove hooks from a module and all in it that do the same at an equal tap: of this site, or of a copy of it."""
    tap = hook.func.__self__.tap
    for inside in module.modules():
        hooks = hooks_of(inside, kind)
        for key, found in list(hooks.items()):
            owner = getattr(getattr(found, "func", None), "__self__", None)
            if getattr(owner, "tap", None) != tap:
                continue
            if found.func.__name__ == hook.func.__name__ and found.args == hook.args:
                del hooks[key]
                inside._forward_pre_hooks_with_kwargs.pop(key, None)
