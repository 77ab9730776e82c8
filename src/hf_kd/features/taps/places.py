"""What a tap is, as plain data that goes into a model's configuration, and an output without what bypasses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transformers.utils import ModelOutput


@dataclass(frozen=True)
class Place:
    """One spot in a model: the input or the output of a module, or a field of its structured output."""

    module: str
    """Dotted path of the module; empty for the model itself."""
    side: Literal["input", "output"]
    field: str | None = None
    """Field of the `ModelOutput` that carries the features; None when they are the whole tensor."""

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
        return cls(
            dim=int(data["dim"]),
            places=tuple(Place(**place) for place in data["places"]),
            heads=tuple(data.get("heads", ())),
            head_input_shape=tuple(data.get("head_input_shape", ())),
        )


def without_fields(output: Any, leaking: Sequence[str]) -> Any:
    """The output without the fields that bypass the erasers, at any depth; `leaking` are their dotted names."""
    if not leaking or not isinstance(output, ModelOutput):
        return output
    kept = {}
    for name, value in output.items():
        if name in leaking:
            continue
        inside = [field.removeprefix(f"{name}.") for field in leaking if field.startswith(f"{name}.")]
        kept[name] = without_fields(value, inside)
    return type(output)(**kept)
