"""What the part of a network above a cut is trained on: hidden states read once and kept, or images through the part below.

Kept hidden states are halves, in the memory of the accelerator or the machine up to a share of what is free, and in a file
without a name beyond: the system takes it back when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hf_kd.data.distributed import memory_room
from hf_kd.data.samples import Samples, consecutive

from .cut import hidden_at, upper_part, upper_part_stands_alone
from .retrain import augmented, image_name, own_draws
from .task import Task

logger = logging.getLogger(__name__)

READ_AT_ONCE = 256
"""Images in a forward pass that fills the cache."""

View = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Source(Protocol):
    """Batches of one epoch: logits [b, C] of the model that is trained, and the rows [b] of this process they are of."""

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass
class ThroughNetwork:
    """Images, changed anew each time, through the whole network.

    Attributes:
        task: Model and how it is called.
        samples: Of this process.
        rows: How many of them an epoch has: the same number in every process.
        augment: As in `Retrain`.
    """

    task: Task
    samples: Samples
    rows: int
    augment: str

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        chunks = consecutive(self.samples.shuffled()[: self.rows], batch_size)
        draws = own_draws(self.task)
        for rows, batch in zip(chunks, self.samples.gathered(chunks), strict=True):
            inputs = augmented(batch.to(self.task.device).inputs, self.augment, draws)
            yield self.task.logits(inputs), rows.to(self.task.device)


@dataclass
class KeptActivations:
    """Hidden states of a block, for several views of every image.

    Attributes:
        store: [views * n, values] halves.
        shape: Of one hidden state.
        is_channels_last: Whether values are in that order, as the kernels that made them left them.
        rows: How many images an epoch has: the same number in every process.
        views: Views of every image; one of them is drawn each time.
        device: Where the model is.
        place: "device", "memory" or "disk".
        above: Hidden states [b, ...] -> logits [b, C].
    """

    store: Tensor
    shape: torch.Size
    is_channels_last: bool
    rows: int
    views: int
    device: torch.device
    place: str
    above: Callable[[Tensor], Tensor] | None = None

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        images = len(self.store) // self.views
        rows = torch.randperm(images)[: self.rows]
        at = (rows + images * torch.randint(self.views, (len(rows),))).to(self.store.device)
        rows = rows.to(self.device)
        above = self.above
        if above is None:
            raise RuntimeError("the part above the cut was not given")
        for chunk, positions in zip(consecutive(rows, batch_size), consecutive(at, batch_size), strict=True):
            yield above(self.hidden(positions)), chunk

    def hidden(self, positions: Tensor) -> Tensor:
        """Hidden states [b, ...] at positions [b] of the store, in float32 on the model's device."""
        values = self.store[positions].to(self.device, non_blocking=True).float()
        if self.is_channels_last:
            channels, height, width = self.shape
            return values.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return values.view(-1, *self.shape)


@contextlib.contextmanager
def source_of(
    task: Task, retain: Samples, block: str, augment: str, crops: int = 0, place: str = "auto", share: float = 1.0
) -> Iterator[Source]:
    """What the part above `block` is trained on: kept activations where they can be kept, else images.

    Args:
        task: Model and how it is called.
        retain: Of all processes; each has every n-th sample and the same number of them in an epoch.
        block: Path of a module that hands on a hidden state.
        augment: As in `Retrain`.
        crops: Shifted views that are kept; with none of them, images are shifted anew in each epoch.
        place: "memory", "disk", "none", or "auto", as `Regrow.cache`.
        share: Of free memory that activations may take, those of all processes together.
    """
    index, processes = task.state.process_index, task.state.num_processes
    own, rows = retain.subset(torch.arange(index, len(retain), processes)), len(retain) // processes
    kept = None
    if place != "none" and (crops or augment != "flip-crop"):
        if upper_part_stands_alone(task, block):
            views = views_of(task, augment, crops, own_draws(task))
            kept = keep_activations(task, own, rows, block, views, place=place, share=share)
        else:
            logger.info(f"What lies above {block} cannot be run on its own: images go through the kept part too.")
    if kept is None:
        yield ThroughNetwork(task, own, rows, augment)
        return
    try:
        with upper_part(task, block) as kept.above:
            yield kept
    finally:
        kept.store = torch.empty(0)  # a traceback that somebody keeps would keep the memory or the file with it


@torch.no_grad()
def keep_activations(
    task: Task, samples: Samples, rows: int, block: str, views: list[View], *, place: str, share: float
) -> KeptActivations | None:
    """Read the hidden states of `block` for every view of every sample; None where no place has room for them.

    Args:
        task: Model and how it is called.
        samples: Of this process.
        rows: How many of them an epoch has.
        block: Path of a module that hands on a hidden state.
        views: Inputs of a batch -> inputs of another view of it.
        place: "memory", "disk", or "auto": memory where they take at most `share` of what is free.
        share: Of free memory.
    """
    with task.mode("eval"):
        first = _hidden(task, block, task.two_images())
        last = first.ndim == 4 and not first.is_contiguous() and first.is_contiguous(memory_format=torch.channels_last)
        count, values = len(views) * len(samples), first[0].numel()
        for dtype in (torch.float16, torch.bfloat16):
            where, store = _storage(count, values, dtype, task.device, place, share, task.state.num_processes)
            if store is None:
                return None
            if _fill(task, samples, block, views, store, last):
                return KeptActivations(store, first.shape[1:], last, rows, len(views), task.device, where)
            logger.info("Some activations are beyond the range of float16; kept as bfloat16.")
    return None


def views_of(task: Task, augment: str, crops: int, draws: torch.Generator) -> list[View]:
    """The views of every image that are kept: as it is, mirrored, and shifted `crops` times, mirrored or not."""

    def mirrored(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        name = image_name(inputs)
        return {**inputs, name: inputs[name].flip(-1)}

    def shifted(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return augmented(inputs, "flip-crop", draws)

    plain: View = lambda inputs: inputs  # noqa: E731
    if augment == "none":
        return [plain]
    image_name(task.two_images())  # refused here, before anything is read
    return [plain, mirrored, *[shifted] * crops]


def _fill(task: Task, samples: Samples, block: str, views: list[View], store: Tensor, channels_last: bool) -> bool:
    """Write all hidden states; False as soon as one does not fit into the precision of the store."""
    for number, view in enumerate(views):
        start = number * len(samples)
        for batch in samples.batches(READ_AT_ONCE):
            hidden = _hidden(task, block, view(batch.to(task.device).inputs))
            flat = (hidden.permute(0, 2, 3, 1) if channels_last else hidden).flatten(1).to(store.dtype)
            if not bool(torch.isfinite(flat).all()):
                return store.dtype != torch.float16  # not finite before either: the loss will say so
            store[start : start + len(flat)] = flat
            start += len(flat)
    return True


def _hidden(task: Task, block: str, inputs: dict[str, Tensor]) -> Tensor:
    with task.autocast():
        return hidden_at(task.model, block, inputs)


def _storage(
    count: int, values: int, dtype: torch.dtype, device: torch.device, place: str, share: float, processes: int = 1
) -> tuple[str, Tensor | None]:
    """Space for `count` rows of `values`, and where it is; `processes` take as much each, of one memory and one disk."""
    size = 2 * count * values
    if place != "disk":
        if device.type == "cuda" and size <= share * torch.cuda.mem_get_info(device)[0]:
            return "device", torch.empty(count, values, dtype=dtype, device=device)
        if place == "memory" or size <= memory_room(share, processes):
            return "memory", torch.empty(count, values, dtype=dtype, pin_memory=device.type == "cuda")
    folder, why = tempfile.gettempdir(), "it has less free"
    wanted = os.environ.get("TMPDIR")
    if wanted and os.path.abspath(wanted) != folder:  # which is passed over without a word
        logger.warning(
            f"The folder for activations is {folder} and not TMPDIR={wanted!r}, which is no folder that can be written to, "
            "or was named after the other had been used. Make it one, and start again."
        )
    if size * processes <= 0.9 * shutil.disk_usage(folder).free:
        try:
            with tempfile.TemporaryFile() as file:  # has no name; the mapping keeps it, and ends with the process
                if hasattr(os, "posix_fallocate"):  # a disk that is full when it is written to would end the process
                    os.posix_fallocate(file.fileno(), 0, max(size, 1))
                mapped = np.memmap(file, np.int16, "w+", shape=(count, values))
                return "disk", torch.from_numpy(mapped).view(dtype)
        except OSError as error:
            why = str(error)
    logger.warning(
        f"Activations of {count * processes:,} views take {math.ceil(size * processes / 2**30)} GiB, which cannot be kept "
        f"in {folder} ({why}): images go through the kept part in every epoch instead. TMPDIR names another folder."
    )
    return "none", None
