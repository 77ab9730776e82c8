"""What an eraser is, and how one is fitted.

An *eraser* is a fitted map R^d -> R^d: an `nn.Module` whose state is buffers. A *method* is the recipe that fits one: a
frozen dataclass of hyper-parameters. Both are open: a package of its own adds a method through the entry-point group
`hf_kd.methods`, and the eraser classes it registers are found again when a saved model is loaded.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from hf_kd.errors import InvalidValueError
from hf_kd.methods.registry import eraser_class

from .moments import SecondMoment

ForgetData = SecondMoment | Mapping[int, SecondMoment] | Tensor
"""What a method is fitted on: the moments of D_f, the moments of each forget class, or the features [n, d] themselves."""

Head = Callable[[Tensor], Tensor]
"""The classification head: features [n, d] -> logits [n, C], differentiable."""


class Eraser(nn.Module, ABC):
    """A fitted map R^d -> R^d applied to pooled features.

    Buffers stay in the precision they were fitted in (float32 on disk) when the model around them is cast: a direction
    rounded to bfloat16 leaves 2^-9 of what it should remove. The arithmetic runs in at least that precision and the
    result returns in the dtype of its input.

    Args:
        dim: d.
    """

    kind: ClassVar[str]
    """Name under which the class is registered and written into a model's configuration."""
    is_linear: ClassVar[bool] = True
    """Whether the map is h M + c: it can be folded into a head."""
    is_projection: ClassVar[bool] = False
    """Whether applying the eraser twice equals applying it once."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.measured: dict[str, Any] = {}
        """What was measured while fitting; empty on an eraser that was loaded."""

    @abstractmethod
    def erase(self, features: Tensor) -> Tensor:
        """The map itself.

        Args:
            features: [..., d], already in the eraser's own precision.

        Returns:
            [..., d], in the same precision.
        """

    @property
    @abstractmethod
    def rank_removed(self) -> int:
        """d minus the rank of the map: how many dimensions no longer reach the head."""

    @property
    @abstractmethod
    def condition_number(self) -> float:
        """Largest over smallest singular value of the map; `inf` when it has a null space."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Plain values from which `from_spec` builds an eraser with buffers of the right shape."""

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Eraser:
        """An eraser whose buffers have their shapes and wait for the values of a checkpoint.

        Args:
            spec: What `spec` gave.
        """
        return cls(**spec)

    @abstractmethod
    def check(self) -> None:
        """See that the buffers can be those of a fitted eraser.

        Raises:
            InvalidValueError: Where they cannot, as after loading a damaged checkpoint.
        """

    def matrix(self) -> Tensor:
        """M [d, d] with erase(h) = h M + c, in float64 on the CPU (linear erasers only)."""
        return self._exact(torch.eye(self.dim, dtype=torch.float64)) - self.offset()

    def offset(self) -> Tensor:
        """c [d] with erase(h) = h M + c, in float64 on the CPU: what becomes of a zero feature."""
        return self._exact(torch.zeros(1, self.dim, dtype=torch.float64))[0]

    def _exact(self, features: Tensor) -> Tensor:
        """The map of features [n, d] in float64, which not every device has: on the CPU."""
        return copy.deepcopy(self).cpu().erase(features)

    def then(self, later: Eraser) -> Eraser:
        """One eraser that does this one first and another second.

        Args:
            later: The second, for features of the same d.
        """
        return Composition([self, later])

    def forward(self, features: Tensor) -> Tensor:
        """Erase features.

        Args:
            features: [..., d], of any floating dtype.

        Returns:
            [..., d], of the dtype and on the device of the input.

        Raises:
            InvalidValueError: For another d than the eraser was fitted on.
        """
        if features.shape[-1] != self.dim:
            raise InvalidValueError(
                f"This eraser was fitted on features of d = {self.dim}, got a tensor of shape {tuple(features.shape)}; "
                "its last dimension has to be d. Fit the eraser on features of the model it is used in."
            )
        with torch.autocast(features.device.type, enabled=False):
            wide = features.to(torch.promote_types(features.dtype, torch.float32))
            return self.erase(wide).to(features.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Eraser:
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse=recurse)


class Composition(Eraser):
    """Erasers applied one after another, where no single closed form exists.

    Args:
        stages: One or more of the same d, in order.
    """

    kind = "composition"

    def __init__(self, stages: Sequence[Eraser]) -> None:
        super().__init__(stages[0].dim)
        flat = [s for stage in stages for s in (stage.stages if isinstance(stage, Composition) else [stage])]
        self.stages = nn.ModuleList(flat)

    def _each(self) -> list[Eraser]:
        return cast("list[Eraser]", list(self.stages))

    @property
    def is_linear(self) -> bool:  # type: ignore[override]
        return all(stage.is_linear for stage in self._each())

    def erase(self, features: Tensor) -> Tensor:
        for stage in self._each():
            features = stage.erase(features)
        return features

    @property
    def rank_removed(self) -> int:
        if self.is_linear:
            return self.dim - int(torch.linalg.matrix_rank(self.matrix(), rtol=1e-6))
        return max(stage.rank_removed for stage in self._each())

    @property
    def condition_number(self) -> float:
        if not self.is_linear:
            return max(stage.condition_number for stage in self._each())
        return condition_number(self.matrix())

    def spec(self) -> dict[str, Any]:
        return {"stages": [describe(stage) for stage in self._each()]}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Eraser:
        return cls([build(stage) for stage in spec["stages"]])

    def check(self) -> None:
        for stage in self._each():
            stage.check()


@dataclasses.dataclass(frozen=True)
class Method(ABC):
    """How an eraser is fitted: a frozen dataclass of hyper-parameters.

    The class attributes say what a fit needs, so that nothing else is computed or kept: `ESC` lives on moments
    that can be streamed, `ESCT` on the features of D_f and the head. No method is ever handed the backbone.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    """Where the method and its defaults come from."""
    when: ClassVar[str] = ""
    """When to choose it, in a sentence."""
    measures: ClassVar[type] = dict
    """The TypedDict of what the eraser's `measured` holds."""
    needs_features: ClassVar[bool] = False
    """Fitted on the features [n, d] themselves instead of their second moment."""
    needs_head: ClassVar[bool] = False
    """Needs the head and the labels of D_f."""
    needs_retain: ClassVar[bool] = False
    """Needs `RetainMoments` of retained features as well: `fit` and `fit_taps` take them as `retain`."""
    needs_labels: ClassVar[bool] = False
    """Needs the labels of D_f, and of D_r where that is needed, in the model's classes."""
    masks_head: ClassVar[bool] = False
    """Whether the model stops answering the forgotten classes, unless the user says otherwise."""

    @property
    def views(self) -> int:
        """Features of how many further views of every forget image are wanted: `fit_taps` takes them as `views`."""
        return 0

    @property
    def by_class(self) -> bool:
        """Whether moments are wanted for each forget class on its own."""
        return False

    @abstractmethod
    def fit(self, forget: ForgetData, labels: Tensor | None = None, head: Head | None = None) -> Eraser:
        """Fit on D_f.

        Args:
            forget: Moments of D_f, moments by class, or features [n, d], as the class attributes declare.
            labels: Classes of the features [n], where they are needed.
            head: Features [n, d] -> logits [n, C], where it is needed.

        Returns:
            The fitted eraser.

        Raises:
            InvalidValueError: Where something is missing, empty or not finite.
        """

    def fit_taps(
        self,
        forget: Sequence[ForgetData],
        labels: Tensor | None = None,
        head: Callable[[Sequence[Tensor]], Tensor] | None = None,
        **given: Sequence[Any],
    ) -> list[Eraser]:
        """One eraser per tap of a model with several.

        The default fits each tap on its own, which is exact for methods that never look at the head.

        Args:
            forget: For each tap what `fit` takes.
            labels: Classes of the features [n], where they are needed.
            head: The features at all taps -> the model's logits [n, C].
            **given: For each tap what else the class attributes ask for, such as `retain` and `views`.

        Returns:
            An eraser for each tap.

        Raises:
            InvalidValueError: As `fit`, and for a method that needs the head, cannot fit taps together and is given several.
        """
        if self.needs_head and len(forget) > 1:
            raise InvalidValueError(
                f"Method {self.name!r} needs the head and this model has {len(forget)} taps; it has to implement "
                "fit_taps to fit them together. Use method='esc', or name one tap with tap='path.to.module'."
            )
        single = None if head is None else (lambda features: head([features]))
        return [
            self.fit(data, labels, single, **{name: values[i] for name, values in given.items()})
            for i, data in enumerate(forget)
        ]

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as plain values."""
        return dataclasses.asdict(self)


def condition_number(matrix: Tensor) -> float:
    """Ratio of the extreme singular values of a matrix; `inf` beyond 1e6, the precision of float32 buffers.

    Args:
        matrix: [d, d].
    """
    values = torch.linalg.svdvals(matrix.cpu().double())
    smallest, largest = float(values[-1]), float(values[0])
    return float("inf") if smallest <= 1e-6 * largest else largest / smallest


def describe(eraser: Eraser) -> dict[str, Any]:
    """What a configuration stores about an eraser: `{"kind": ..., **spec}`.

    Args:
        eraser: Of a registered kind.
    """
    return {"kind": eraser.kind, **eraser.spec()}


def build(description: Mapping[str, Any]) -> Eraser:
    """The eraser of a description, with empty buffers that wait for the values of a checkpoint.

    Args:
        description: What `describe` gave.

    Raises:
        InvalidValueError: For an unknown kind or unfit settings.
    """
    spec = dict(description)
    kind = spec.pop("kind", None)
    cls = eraser_class(kind)
    try:
        return cls.from_spec(spec)
    except (TypeError, KeyError) as error:
        raise InvalidValueError(
            f"The eraser {kind!r} cannot be built from {spec}: {error}. The description is damaged."
        ) from error
