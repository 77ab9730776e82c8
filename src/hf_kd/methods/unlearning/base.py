"""The contract of methods that change weights.

An eraser stands behind frozen weights; these methods train them. Each says what data it needs, where its defaults come
from, and in which mode BatchNorm is meanwhile; each is deterministic for a seed and stops at the last good weights when a
loss is no longer finite.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from hf_kd.data.devices import own_generators
from hf_kd.data.progress import at_work
from hf_kd.data.samples import Samples
from hf_kd.errors import DivergedError, InvalidValueError
from hf_kd.methods.choices import annotated, check_fields
from hf_kd.methods.measured import UnlearningMeasured
from hf_kd.methods.registry import missing_retain

from .fresh import seed_apart
from .task import Task, check_range

logger = logging.getLogger(__name__)

COUNTS = (
    "epochs", "batch_size", "forget_batch_size", "k", "samples", "forget_samples", "retain_samples", "columns",
    "noise_images", "noise_repeats", "noise_steps", "repair_epochs", "per_class", "steps", "scan_epochs", "collapse_epochs",
    "layers", "cycles",
)  # fmt: skip
"""Settings that are whole numbers above 0 wherever a method has them as numbers; None stands for no limit."""
POSITIVE = (
    "lr", "repair_lr", "noise_lr", "head_lr", "release_lr", "clip_norm", "cap", "temperature", "alpha_forget",
    "alpha_retain", "selection", "strength",
)  # fmt: skip
"""Settings that are above 0 wherever a method has them as numbers."""


MOST_SEED = 2**32 - 1
"""Further ones are beyond what torch takes once an epoch is counted in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlearningMethod(ABC):
    """How weights are changed: a frozen dataclass of hyper-parameters.

    Subclasses set the class attributes and implement `change`; `run` is what is called.

    Attributes:
        seed: Of everything random.
        bn_mode: "eval", "freeze" or "train", see `Task.mode`. Training on D_f alone in "train" mode overwrites BatchNorm's
            statistics with those of D_f, which alone makes a network fail on everything.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    """One of `hf_kd.methods.registry.NEEDS`."""
    source: ClassVar[str] = ""
    """Where the method and its defaults come from."""
    when: ClassVar[str] = ""
    """When to choose it, in a sentence."""
    measures: ClassVar[type] = UnlearningMeasured
    """The TypedDict of what it measures."""
    needs_head: ClassVar[bool] = False
    """Works on the last Linear layer, which has to exist."""

    resumes: ClassVar[bool] = False
    """Goes on from `Task.checkpoint`."""

    seed: int = 0
    bn_mode: Literal["eval", "freeze", "train"] = "eval"

    def __post_init__(self) -> None:
        check_fields(self)
        numbers = {field.name for field in dataclasses.fields(self) if annotated(field.type) in ("int", "float")}
        given = {name: value for name in numbers if (value := getattr(self, name)) is not None}
        for name in set(COUNTS) & set(given):
            holds = isinstance(given[name], int) and given[name] >= 1
            check_range(self.name, [(name, given[name], holds, "a whole number above 0")])
        check_range(
            self.name, [("seed", self.seed, abs(self.seed) <= MOST_SEED, f"between -{MOST_SEED} and {MOST_SEED}")]
        )
        for name in set(POSITIVE) & set(given):
            check_range(self.name, [(name, given[name], given[name] > 0, "positive")])

    @property
    def needs_retain(self) -> bool:
        """Whether it reads retained images."""
        return "D_r" in self.needs

    def missing_retain(self) -> InvalidValueError:
        """The error where it reads retained images and was given none."""
        return missing_retain(self.name, "weights")

    unlabelled: ClassVar[str] = ""
    """What else there is for retained images without labels that the model knows: the end of what is said of them."""

    @property
    def reads_retained_labels(self) -> bool:
        """Whether retained images need labels."""
        return True

    def check_model(self, model: nn.Module, blocks: Callable[[], Sequence[str]]) -> None:  # noqa: B027 - most take any
        """Look at the model before any image is read.

        Args:
            model: The one to be changed.
            blocks: Finds the names of its blocks, by a forward pass.

        Raises:
            InvalidValueError: Where it cannot be changed with these settings.
        """

    def check_forget(self, forget: Samples) -> None:  # noqa: B027 - most take any
        """Look at D_f before retained images are read.

        Args:
            forget: D_f.

        Raises:
            InvalidValueError: Where it will not do for this method.
        """

    @abstractmethod
    def change(self, task: Task) -> UnlearningMeasured:
        """Change `task.model` in place: what a subclass implements.

        Args:
            task: Model, data and how to read them; parameters have gradients, torch's generator is seeded.

        Returns:
            What was measured, as plain values.

        Raises:
            DivergedError: When a loss is no longer finite, with the last good weights in place.
        """

    def run(self, task: Task) -> UnlearningMeasured:
        """Change `task.model` in place, whatever state torch's random generator and the parameters' flags are in.

        Frozen parameters are changed too: a method says itself what it leaves alone. A model in half precision is changed in
        float32 and rounded at the end.

        Args:
            task: Model, data and how to read them.

        Returns:
            What was measured; `stopped` in it says that a loss stopped being finite, and where.

        Raises:
            InvalidValueError: When the method needs retained samples or a Linear head and there are none, and where batches
                are smaller than the number of processes or too small for BatchNorm.
            DivergedError: When weights are not finite in the end.
        """
        self._check_shares(task, task.needed_retain(self.name) if self.needs_retain else None)
        if self.needs_head:
            task.linear_heads()
        parameters = list(task.model.parameters())
        flags = [parameter.requires_grad for parameter in parameters]
        with own_generators(task.device, self.seed):
            for parameter in parameters:
                parameter.requires_grad_(parameter.is_floating_point())
            try:
                visible = task.progress and task.state.is_main_process
                with (
                    torch.enable_grad(),
                    in_float32(task.model),
                    task.channels_last(),
                    at_work(self.name, visible),
                ):
                    measured = self.change(task)
            except DivergedError as stop:
                logger.warning(f"{self.name} stopped: {stop}. A smaller lr may help.")
                measured = UnlearningMeasured(stopped=str(stop))
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise InvalidValueError(
                    f"{self.name}: BatchNorm cannot take statistics of a batch that gives a single value ({error}). Give "
                    "more images or a larger batch_size, or keep its statistics with bn_mode='freeze'."
                ) from error
            finally:
                task.close_bars()
                for parameter, flag in zip(parameters, flags, strict=True):
                    parameter.requires_grad_(flag)
                    parameter.grad = None
        _check_finite(self.name, task)
        return measured

    def fresh_model(self, task: Task, init: str | None = None, beside_kept: bool = False) -> nn.Module:
        """A model like the task's whose weights have seen nothing.

        Args:
            task: Says how to make one.
            init: A checkpoint whose weights to take instead.
            beside_kept: For weights that go beside some of the model's own, which must not meet again those that they
                were trained with from the start: others are drawn than a training or an earlier change with the same seed.

        Returns:
            The model, in eval mode, on the device of the task's.

        Raises:
            InvalidValueError: Where the task does not say how to make one.
        """
        if task.fresh is None:
            raise InvalidValueError(
                f"{self.name} needs a model with fresh weights: give the task `fresh`, a way to make one."
            )
        seed = seed_apart(self.seed, task.changed_before) if beside_kept else self.seed
        return task.fresh(seed, init).to(task.device).eval()

    def _check_shares(self, task: Task, retain: Samples | None) -> None:
        """A batch with fewer samples than processes is left out by all of them: none would be left."""
        processes = task.state.num_processes
        sizes = {"forget samples": len(task.forget)} | ({} if retain is None else {"retained samples": len(retain)})
        sizes |= {name: getattr(self, name) for name in ("batch_size", "forget_batch_size") if hasattr(self, name)}
        for name, size in sizes.items():
            rule = f"at least {processes}, one for each process"
            check_range(self.name, [(name, size, size >= processes, rule)])

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as plain values."""
        return dataclasses.asdict(self)


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers in half precision are float32 inside, and rounded back afterwards.

    A step of lr 1e-4 is far below what bfloat16 can tell apart: most weights would not move at all.
    """
    halves = [
        (t, t.dtype) for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.bfloat16, torch.float16)
    ]
    for tensor, _ in halves:
        tensor.grad, tensor.data = None, tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in halves:
            tensor.grad, tensor.data = None, tensor.data.to(dtype)


def _check_finite(name: str, task: Task) -> None:
    for path, tensor in task.model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DivergedError(
                f"{name} left values in {path} that are not finite, so the result was thrown away. Use a smaller lr or "
                "strength."
            )
