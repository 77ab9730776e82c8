"""The feature pass: images -> pooled features, once, on one process or many.

The model runs in eval mode without gradients, so BatchNorm statistics stay as they are. Nothing is kept here: each
batch of features goes to a consumer, which adds it to a second moment or stores it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hf_kd.data.distributed import autocast, gather_rows, process_state, sum_over_processes
from hf_kd.data.modes import evaluating
from hf_kd.data.progress import counted
from hf_kd.errors import InvalidValueError
from hf_kd.features.taps.inputs import input_device, run
from hf_kd.features.taps.site import TapSite, record


class Consumer(Protocol):
    """What becomes of the features of one batch: [n, d] at each tap, labels [n] (-1: none), row numbers [n]."""

    def __call__(self, features: Sequence[Tensor], labels: Tensor, rows: Tensor) -> None: ...


def feature_pass(
    model: nn.Module,
    sites: Sequence[TapSite],
    loader: Iterable[dict[str, Any]],
    consume: Consumer,
    *,
    stage: Literal["before", "after"] = "after",
    mixed_precision: str | None = None,
    progress: bool = True,
    description: str = "features",
) -> int:
    """Run the batches of `loader` through `model` and hand the features at `sites` to `consume`; returns their number.

    loader: batches {"inputs": {...}, "labels": [n], "rows": [n]} of this process.
    stage: features "before" or "after" the erasers at the sites.
    mixed_precision: "no", "fp16" or "bf16"; by default what `accelerate launch` was told.

    With several processes the model moves to the process's device and the count is of all processes together; otherwise
    it runs where it is. Raises ValueError naming the row of a NaN or infinite feature.
    """
    state = process_state()
    if state.num_processes > 1:
        model.to(state.device)
    device = input_device(model)
    count = 0
    with (
        evaluating(model),
        torch.no_grad(),
        autocast(device, mixed_precision),
        record(sites, stage) as take,
        counted(loader, description, "batch", progress and state.is_main_process) as batches,
    ):
        for batch in batches:
            run(model, batch["inputs"])
            features = take()
            for part in features:
                _check_finite(part, batch["rows"])
            consume(features, batch["labels"], batch["rows"])
            count += features[0].shape[0]
    return int(sum_over_processes(torch.tensor([count], dtype=torch.float64))[0])


class FeatureStore:
    """A consumer that keeps features and labels, for methods that are fitted on the features themselves."""

    def __init__(self) -> None:
        self._parts: list[tuple[list[Tensor], Tensor, Tensor]] = []
        self.rows = torch.zeros(0, dtype=torch.long)
        """Row numbers [n] of what was collected, ascending."""

    def __call__(self, features: Sequence[Tensor], labels: Tensor, rows: Tensor) -> None:
        self._parts.append(([f.float().cpu() for f in features], labels.cpu(), rows.cpu()))

    def collect(self, taps: int) -> tuple[list[Tensor], Tensor]:
        """Features [n, d] at each tap and labels [n] of all processes, in the order of the rows."""
        empty = [torch.zeros(0, 1) for _ in range(taps)]
        features = [torch.cat([part[0][i] for part in self._parts]) if self._parts else empty[i] for i in range(taps)]
        labels = torch.cat([part[1] for part in self._parts]) if self._parts else torch.zeros(0, dtype=torch.long)
        rows = torch.cat([part[2] for part in self._parts]) if self._parts else torch.zeros(0, dtype=torch.long)
        if process_state().num_processes > 1:
            rows = gather_rows(rows, fill=-1)
            present = rows >= 0
            features = [gather_rows(f)[present] for f in features]
            labels, rows = gather_rows(labels)[present], rows[present]
        order = torch.argsort(rows, stable=True)
        self.rows = rows[order]
        return [f[order] for f in features], labels[order]


def _check_finite(features: Tensor, rows: Tensor) -> None:
    finite = torch.isfinite(features).all(dim=1)
    if not bool(finite.all()):
        row = int(rows[int((~finite).nonzero()[0])])
        raise InvalidValueError(
            f"The model gives features that are not finite for row {row} of the data: check that image, and that the "
            "model's weights and precision (fp16 overflows where bf16 does not) are sound."
        )
