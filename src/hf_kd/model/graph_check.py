"""What a graph that left the model is compared with: the model's own answers, on batches of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import TowerGraph

BATCHES = (1, 2, 5)
"""Sizes of the batches that are compared: of `SAMPLES` together."""


@dataclass(frozen=True)
class GraphReference:
    """The answers of a tower.

    Attributes:
        batches: Inputs by name, in batches of the sizes `BATCHES`.
        answers: The outputs by name, of each batch.
        units: Root mean square of each output, of features before the erasers: in these deviations are told.
        masked: Columns of the logits that are never answered, which have to be equal.
        acts: Whether the erasers changed any of these samples by more than a thousandth of a unit.
    """

    batches: tuple[dict[str, Tensor], ...]
    answers: tuple[dict[str, Tensor], ...]
    units: dict[str, float]
    masked: tuple[int, ...]
    acts: bool

    @classmethod
    def of(cls, graph: TowerGraph) -> GraphReference:
        """Ask the model about the samples of a graph, one tower of it."""
        rows = graph.samples
        parts = {name: value.split(list(BATCHES)) for name, value in rows.items()}
        batches = tuple({name: part[n] for name, part in parts.items()} for n in range(len(BATCHES)))
        answers = tuple(graph.answers(batch) for batch in batches)
        names = graph.output_names
        of_features = names[1:] if graph.has_logits else names
        before = dict(zip(of_features, graph.unerased(rows), strict=True))
        after = {name: torch.cat([answer[name] for answer in answers]) for name in names}
        config = graph.model.config
        masked = tuple(config.masked) if graph.has_logits and not config.dropped else ()
        units = {name: _root_mean_square(rows) for name, rows in before.items()}
        if graph.has_logits:
            units["logits"] = _root_mean_square(after["logits"][:, _answered(after["logits"], masked)])
        acts = any(_largest(after[name] - rows) > 1e-3 * units[name] for name, rows in before.items())
        return cls(batches, answers, units, masked, acts)

    def deviations(self, run: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> dict[str, float]:
        """The largest difference of each output from the model's, in its unit; infinite for another shape or mask.

        Args:
            run: From the inputs of a batch by name to the outputs by name.
        """
        found = dict.fromkeys(self.answers[0], 0.0)
        for batch, answers in zip(self.batches, self.answers, strict=True):
            got = run(batch)
            for name, wanted in answers.items():
                found[name] = max(found[name], self._deviation(name, got[name], wanted))
        return found

    def _deviation(self, name: str, got: Tensor, wanted: Tensor) -> float:
        if got.shape != wanted.shape or not bool(got.isfinite().all()):
            return float("inf")
        masked = self.masked if name == "logits" else ()
        if not torch.equal(got[:, masked], wanted[:, masked]):
            return float("inf")
        columns = _answered(wanted, masked)
        return _largest(got[:, columns] - wanted[:, columns]) / self.units[name]


def _answered(logits: Tensor, masked: Sequence[int]) -> list[int]:
    return [c for c in range(logits.shape[1]) if c not in masked]


def _root_mean_square(values: Tensor) -> float:
    return max(float(values.square().mean().sqrt()), 1e-6)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
