"""Data that is read more than once: what is kept of its first pass goes with what later passes read only in one order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from .distributed import process_state

UNKNOWN = -2
"""Of a label that another numbering has no name for."""


@dataclass(frozen=True, eq=False)
class ReadBefore:
    """A DataLoader or a torch data set that a pass has read, and the labels that it gave: later passes have to as well."""

    data: Any
    labels: Tensor
    """Of the data set [n], in the order of the rows."""
    names: Sequence[str] | None
    """What each label is called, where it is a text: the ids of another model's reader may be others."""

    def checked(self, loader: Iterable[dict[str, Any]], names: Sequence[str] | None) -> Iterable[dict[str, Any]]:
        """The batches of a later pass.

        Args:
            loader: Batches as `make_loader` gives them.
            names: As `self.names`, of its labels; where only one of them has any, nothing can be compared.
        """
        if (names is None) != (self.names is None):
            return loader
        labels = self.labels
        if names is not None and self.names is not None and tuple(names) != tuple(self.names):
            ids = {name: number for number, name in enumerate(names)}
            own = torch.tensor([*(ids.get(name, UNKNOWN) for name in self.names), -1])
            labels = own[labels]  # the last is what -1 finds: no label
        return _SameLabels(loader, labels)


class _SameLabels:
    """Batches of a loader that have just these labels, row by row, as far as they are not `UNKNOWN`."""

    def __init__(self, loader: Any, labels: Tensor) -> None:
        self.loader, self.labels = loader, labels

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = 0
        for batch in self.loader:
            known = batch["rows"] < len(self.labels)
            wanted = self.labels[batch["rows"][known]]
            same = (batch["labels"].cpu()[known] == wanted) | (wanted == UNKNOWN)
            if not bool(known.all()) or not bool(same.all()):
                raise other_samples("other labels than the first")
            count += len(known)
            yield batch
        if process_state().num_processes == 1 and count < len(self.labels):  # of several, each reads a part
            raise other_samples(f"{count:,} samples and the first {len(self.labels):,}")


def other_samples(what: str) -> InvalidValueError:
    """The error for a second pass that read something else, such as "3 samples and the first 4"."""
    return InvalidValueError(
        f"A second pass read {what}: the data gives other samples, or in another order, each time. Pass data that can be "
        "read again in the same order: a DataLoader without shuffling, or the data set itself."
    )
