"""The feature pass: images -> pooled features, once, on one process or many.

The model runs in eval mode without gradients, so BatchNorm statistics stay as they are. Nothing is kept here: each
batch of features goes to a consumer, which adds it to a second moment or stores it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import gather, reduce
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_kd.features.taps.inputs import run
from hf_kd.features.taps.site import TapSite, evaluating, record

MIXED_PRECISION = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class Consumer(Protocol):
    """What becomes of the features of one batch: [n, d] at each tap, labels [n] (-1: none), row numbers [n]."""

    def __call__(self, features: Sequence[Tensor], labels: Tensor, rows: Tensor) -> None: ...


def feature_pass(
    model: nn.Module,
    sites: Sequence[TapSite],
    loader: DataLoader,
    consume: Consumer,
    *,
    stage: str = "after",
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
    device = next(model.parameters()).device
    batches = tqdm(loader, desc=description, unit="batch", delay=1, disable=not (progress and state.is_main_process))
    count = 0
    with evaluating(model), torch.no_grad(), _autocast(device, mixed_precision), record(sites, stage) as take:
        for batch in batches:
            run(model, batch["inputs"])
            features = take()
            for part in features:
                _check_finite(part, batch["rows"])
            consume(features, batch["labels"], batch["rows"])
            count += features[0].shape[0]
    return int(sum_over_processes(torch.tensor([count], dtype=torch.float64))[0])


def process_state() -> PartialState:
    """Which process of how many this is. On a machine without accelerator it has to be told that the CPU is meant, or
    every process would take itself for the only one."""
    return PartialState() if torch.accelerator.is_available() else PartialState(cpu=True)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a float64 tensor over all processes, on the device it came from."""
    state = process_state()
    if state.num_processes == 1:
        return tensor
    return reduce(tensor.to(state.device), reduction="sum").to(tensor.device)


class FeatureStore:
    """A consumer that keeps features and labels, for methods that are fitted on the features themselves."""

    def __init__(self) -> None:
        self._parts: list[tuple[list[Tensor], Tensor, Tensor]] = []

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
        return [f[order] for f in features], labels[order]


def gather_rows(tensor: Tensor, fill: int = 0) -> Tensor:
    """Concatenate [n, ...] over processes whose numbers of rows differ; short ones are padded with `fill`."""
    state = process_state()
    if state.num_processes == 1:
        return tensor
    width = tensor.shape[1] if tensor.ndim == 2 else 0
    widest = int(gather(torch.tensor([width], device=state.device)).max())
    if tensor.ndim == 2 and width != widest:  # this process had no row, so it does not know d
        tensor = tensor.new_zeros(0, widest)
    longest = int(gather(torch.tensor([tensor.shape[0]], device=state.device)).max())
    moved = tensor.to(state.device)
    if moved.shape[0] < longest:
        padding = moved.new_full((longest - moved.shape[0], *moved.shape[1:]), fill)
        moved = torch.cat([moved, padding])
    return gather(moved).cpu()


def _autocast(device: torch.device, mixed_precision: str | None) -> contextlib.AbstractContextManager[Any]:
    name = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if name not in MIXED_PRECISION:
        raise ValueError(f"mixed_precision={name!r} is unknown; choose {', '.join(map(repr, MIXED_PRECISION))}.")
    dtype = MIXED_PRECISION[name]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _check_finite(features: Tensor, rows: Tensor) -> None:
    finite = torch.isfinite(features).all(dim=1)
    if not bool(finite.all()):
        row = int(rows[int((~finite).nonzero()[0])])
        raise ValueError(
            f"The model gives features that are not finite for row {row} of the data: check that image, and that the "
            "model's weights and precision (fp16 overflows where bf16 does not) are sound."
        )


def probe_from_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Two different samples for the tap search, made from the first batch of a loader.

    A batch of one gets a second sample by mirroring its pixels.
    """
    inputs = {name: value for name, value in batch["inputs"].items() if isinstance(value, Tensor)}
    size = max((value.shape[0] for value in inputs.values() if value.ndim), default=0)
    if size >= 2:
        return {name: value[:2] for name, value in inputs.items()}
    return {name: torch.cat([value, value.flip(-1)]) for name, value in inputs.items()}
