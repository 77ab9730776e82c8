"""Random Label (RL; Golatkar et al., Graves et al.): teach D_f labels that are wrong, and that are not forgotten either.

"random-label" trains on D_f alone; "amnesiac" on D_f with wrong and D_r with true labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hf_kd.data.samples import Samples
from hf_kd.errors import InvalidValueError
from hf_kd.methods.measured import TrainedMeasured

from .task import Task
from .training import TrainedMethod


def random_labels(labels: Tensor, allowed: Tensor) -> Tensor:
    """Wrong labels [n]: uniform among the allowed ones, and not the label itself.

    Args:
        labels: True labels [n].
        allowed: Class ids [m] to choose among.

    Raises:
        InvalidValueError: Where a label is the only one allowed.
    """
    if len(allowed) < 2 and bool(torch.isin(labels, allowed).any()):
        raise InvalidValueError("There is no wrong label to give: the model would need one more class.")
    drawn = allowed[torch.randint(len(allowed), (len(labels),))]
    while bool((clash := drawn == labels).any()):
        drawn[clash] = allowed[torch.randint(len(allowed), (int(clash.sum()),))]
    return drawn


def union(*parts: Samples) -> Samples:
    """All samples of `parts` as one set, in their order. Each part reads its own, as one stream of batches."""

    def fetch(order: Sequence[Sequence[int]]) -> Iterator[dict[str, Tensor]]:
        chunks = [torch.tensor(rows) for rows in order]
        streams, start = [], 0
        for part in parts:
            inside = [torch.nonzero((chunk >= start) & (chunk < start + len(part))).flatten() for chunk in chunks]
            own = [chunk[places] - start for chunk, places in zip(chunks, inside, strict=True) if len(places)]
            streams.append((inside, part.gathered(own)))
            start += len(part)
        for number in range(len(chunks)):
            pieces = [(inside[number], next(stream).inputs) for inside, stream in streams if len(inside[number])]
            back = torch.cat([places for places, _ in pieces]).argsort()
            yield {name: torch.cat([inputs[name] for _, inputs in pieces])[back] for name in pieces[0][1]}

    return Samples(torch.cat([part.labels for part in parts]), fetch=fetch)


@dataclass(frozen=True, kw_only=True)
class RandomLabel(TrainedMethod):
    """Train on D_f with random wrong labels (Golatkar et al. 2020; Graves et al. 2021).

    min CE(f(x), y~) over D_f, y~ drawn once from the classes that are not forgotten (for random samples: from all others).
    """

    name: ClassVar[str] = "random-label"
    when: ClassVar[str] = "D_f is all there is, and each image is to be answered as some other class."
    needs: ClassVar[str] = "D_f"
    source: ClassVar[str] = "Golatkar et al. 2020; lr and epochs of the grid in DELETE (2025)"

    epochs: int = 20
    lr: float = 1e-4
    batch_size: int = 128

    def change(self, task: Task) -> TrainedMeasured:
        wrong = task.forget.relabelled(random_labels(task.forget.labels, task.kept_classes))

        return {"n_forget": len(task.forget), **self.descend(task, wrong, task.cross_entropy)}


@dataclass(frozen=True, kw_only=True)
class Amnesiac(TrainedMethod):
    """Train on D_f with random wrong labels and D_r with its own, in one shuffled union (Graves et al. 2021).

    min CE(f(x), y~) over D_f and CE(f(x), y) over D_r.
    """

    name: ClassVar[str] = "amnesiac"
    when: ClassVar[str] = "As random-label, with retained images in the same batches."
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = "Graves et al. 2021; settings of SSD's comparison (Foster et al. 2024)"

    epochs: int = 3
    lr: float = 1e-4
    batch_size: int = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"

    def change(self, task: Task) -> TrainedMeasured:
        retain = task.needed_retain(self.name)
        both = union(task.forget.relabelled(random_labels(task.forget.labels, task.kept_classes)), retain)

        return {"n_forget": len(task.forget), "n_retain": len(retain), **self.descend(task, both, task.cross_entropy)}
