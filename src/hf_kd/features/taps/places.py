"""What a tap is, as plain data that goes into a model's configuration, and an output without what bypasses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transformers.utils.generic import ModelOutput

from hf_kd.errors import InvalidValueError


@dataclass(frozen=True)
class Place:
    """One spot in a model: the input or the output of a module, or a field of its structured output."""

    module: str
    """Dotted path of the module; empty for the model itself."""
    side: Literal["input", "output"]
    field: str | None = None
    """Field of the `ModelOutput` that carries the features; None when they are the whole tensor."""

    def __post_init__(self) -> None:
        if not isinstance(self.module, str) or self.side not in ("input", "output"):
            raise InvalidValueError(
                f"module={self.module!r}, side={self.side!r}: a place is the input or output of a path"
            )

    def __str__(self) -> str:
        name = self.module or "the model"
        return f"{self.side} of {name}" + (f", field {self.field}" if self.field else "")


@dataclass(frozen=True)
class Tap:
    """Where pooled features h(x) in R^d pass, and the heads that read them.

    A tap has several places when the same features are handed to several heads separately, or are returned beside the
    path to the heads. Each forward passes all of them; the first is where features are read.
    """

    dim: int
    """d."""
    places: tuple[Place, ...]
    heads: tuple[str, ...] = ()
    """Dotted paths of the modules that map the features to logits; none for an embedding model."""
    head_input_shape: tuple[int, ...] = ()
    """Shape of one sample at the head, e.g. (d,) or (1, d) or (d, 1, 1)."""

    def __str__(self) -> str:
        return " and ".join(str(place) for place in self.places) + f" (d = {self.dim})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tap:
        """Inverse of `to_dict`.

        Args:
            data: What `to_dict` gave, also after JSON.

        Raises:
            InvalidValueError: For a tap at which nothing could be erased.
        """
        tap = cls(
            dim=int(data["dim"]),
            places=tuple(Place(**place) for place in data["places"]),
            heads=tuple(data.get("heads", ())),
            head_input_shape=tuple(data.get("head_input_shape", ())),
        )
        if not tap.places or tap.dim < 1:
            raise InvalidValueError(f"a tap of dimension {tap.dim} at {len(tap.places)} places")
        return tap


def without_fields(output: Any, leaking: Sequence[str]) -> Any:
    """The output without the fields that bypass the erasers, at any depth.

    Args:
        output: What a model returned; anything but a `ModelOutput` comes back as it is.
        leaking: Dotted names of those fields.
    """
    if not leaking or not isinstance(output, ModelOutput):
        return output
    kept = {}
    for name, value in output.items():
        if name in leaking:
            continue
        inside = [field.removeprefix(f"{name}.") for field in leaking if field.startswith(f"{name}.")]
        kept[name] = without_fields(value, inside)
    return type(output)(**kept)


def hidden_state_fields(output: Any) -> list[str]:
    """Dotted names of the fields that hold the states between layers, `hidden_states` and the like, at any depth."""
    if not isinstance(output, ModelOutput):
        return []
    found = []
    for name, value in output.items():
        if name.endswith("hidden_states"):
            found.append(name)
        else:
            found += [f"{name}.{inside}" for inside in hidden_state_fields(value)]
    return found


def refuse_doubled(taps: Sequence[Tap]) -> None:
    """Raise ValueError for a place that several taps, or one twice, stand at: it would be erased more than once."""
    places = [place for tap in taps for place in tap.places]
    doubled = next((place for place in places if places.count(place) > 1), None)
    if doubled is not None:
        raise InvalidValueError(f"the {doubled} is named twice")
