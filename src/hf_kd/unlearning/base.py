"""The contract of methods that change weights, and where they are found by name.

Beside `hf_kd.erasers`: an eraser stands behind frozen weights, these methods train them. Each says what data it needs,
where its defaults come from, and in which mode BatchNorm is meanwhile; each is deterministic for a seed and stops at the
last good weights when a loss is no longer finite.
"""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from .task import BN_MODES, Diverged, Task, check_range

logger = logging.getLogger(__name__)

NEEDS = ("D_f", "D_r", "D_f and D_r")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlearningMethod(ABC):
    """How weights are changed: a frozen dataclass of hyper-parameters.

    seed: of everything random. bn_mode: "eval", "freeze" or "train", see `Task.mode`; forget-only training in "train" mode
    overwrites BatchNorm's statistics with those of the forget set, which alone makes a network fail on everything.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    """One of `NEEDS`."""
    source: ClassVar[str]
    """Where the method and its defaults come from."""
    needs_head: ClassVar[bool] = False
    """Works on the last Linear layer, which has to exist."""

    seed: int = 0
    bn_mode: str = "eval"

    def __post_init__(self):
        if self.bn_mode not in BN_MODES:
            raise ValueError(f"{self.name}: bn_mode={self.bn_mode!r} is unknown; choose {', '.join(BN_MODES)}.")
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in ("epochs", "batch_size", "k", "samples"):
            value = values.get(field)
            if value is not None:
                check_range(
                    self.name, [(field, value, isinstance(value, int) and value >= 1, "a whole number above 0")]
                )
        lr = values.get("lr")
        if lr is not None:
            check_range(self.name, [("lr", lr, lr > 0, "positive")])

    @property
    def needs_retain(self) -> bool:
        return "D_r" in self.needs

    @abstractmethod
    def change(self, task: Task) -> dict[str, Any]:
        """Change `task.model` in place; returns what was measured, as plain values."""

    def run(self, task: Task) -> dict[str, Any]:
        """Change `task.model` in place, whatever state torch's random generator and the parameters' flags are in.

        Returns what was measured; `stopped` in it says that a loss stopped being finite, and where. Raises ValueError when
        the method needs retained samples or a Linear head and there are none.
        """
        if self.needs_retain:
            task.needed_retain(self.name)
        if self.needs_head:
            task.linear_heads()
        parameters = list(task.model.parameters())
        flags = [parameter.requires_grad for parameter in parameters]
        devices = [task.device] if task.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            for parameter in parameters:
                parameter.requires_grad_(parameter.is_floating_point())
            try:
                with torch.enable_grad(), task.channels_last():
                    measured = self.change(task)
            except Diverged as stop:
                logger.warning(f"{self.name} stopped: {stop}. A smaller lr may help.")
                measured = {"stopped": str(stop)}
            finally:
                for parameter, flag in zip(parameters, flags, strict=True):
                    parameter.requires_grad_(flag)
                    parameter.grad = None
        _check_finite(self.name, task)
        return measured

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as plain values."""
        return dataclasses.asdict(self)


def _check_finite(name: str, task: Task) -> None:
    for path, tensor in task.model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArithmeticError(
                f"{name} left values in {path} that are not finite, so the result was thrown away. Use a smaller lr or "
                "strength."
            )


_METHODS: dict[str, type[UnlearningMethod]] = {}


def register(cls: type[UnlearningMethod]) -> type[UnlearningMethod]:
    """Class decorator: make a method available under its `name`."""
    if cls.needs not in NEEDS:
        raise ValueError(f"{cls.name}: needs={cls.needs!r}; it has to be one of {', '.join(NEEDS)}.")
    known = _METHODS.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{cls.name!r} is already registered by {known.__module__}.{known.__qualname__}.")
    _METHODS[cls.name] = cls
    return cls


def unlearning_methods() -> dict[str, type[UnlearningMethod]]:
    """All methods that change weights, by name."""
    return dict(sorted(_METHODS.items()))


def make_unlearning_method(method: str | UnlearningMethod, **options: Any) -> UnlearningMethod:
    """A method from its name and hyper-parameters; an instance passes through and takes no further options.

    Raises ValueError for an unknown name and TypeError for an unknown option.
    """
    if isinstance(method, UnlearningMethod):
        if options:
            raise TypeError(f"{method!r} already has its settings; got options {sorted(options)} too.")
        return method
    if method not in _METHODS:
        raise ValueError(f"Unknown unlearning method {method!r}; available: {', '.join(sorted(_METHODS))}.")
    cls = _METHODS[method]
    fields = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise TypeError(f"Method {method!r} has no option {', '.join(unknown)}; it takes {', '.join(fields)}.")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
