"""Find the cut by trying: grow a network above each of some blocks, from the top down, and read the class from it.

No rule for the cut was found that needs neither a reference nor a scan: what a network that never saw a class has in common
with one that did ends at a depth that differs from class to class.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_kd.data.samples import Samples
from hf_kd.errors import InvalidValueError
from hf_kd.methods.measured import CutTried
from hf_kd.metrics.linear_probe import fit_linear_probe

from .cut import Cut, choose_block
from .task import Task

logger = logging.getLogger(__name__)

AT_MOST = 6
"""Cuts that are tried."""

IMAGES = {"forget": 1_000, "retain": 4_000}
"""Of each set, read for the probe at most: one half to fit it, the other to ask it."""

FEWEST = 20
"""Images of the forgotten classes that a reading needs."""


def scan(task: Task, retain: Samples, grow: Callable[[Cut], float]) -> tuple[Cut, list[CutTried], bool]:
    """Try cuts from the top down until the reading of the class stops falling by more than its noise.

    Args:
        task: Its model is as it was before each cut is tried, and afterwards.
        retain: D_r.
        grow: Draws what lies above a cut anew, trains it for a few epochs, and returns the accuracy on D_r.

    Returns:
        The cut, what was read at each, and whether the scan could tell: where the reading fell up to the last cut, that is
        taken, and where it stopped, the deeper of the two that read alike.

    Raises:
        InvalidValueError: Where there are too few images of the forgotten classes to read anything.
    """
    if len(task.forget) < FEWEST:
        raise InvalidValueError(
            f"keep='auto' reads the class from networks cut at different depths, and {len(task.forget)} images of it are "
            f"too few (at least {FEWEST}). Give more, or say the share that is kept: keep=0.33."
        )
    blocks = task.find_blocks()
    if len(blocks) < 2:
        choose_block(task, 0.5)  # which says so
    draws = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    forget, kept = (
        _some(samples, IMAGES[name], draws) for name, samples in (("forget", task.forget), ("retain", retain))
    )
    start = {name: tensor.detach().clone() for name, tensor in task.model.state_dict().items()}
    tried: list[CutTried] = []
    chosen, told = None, False
    for depth in _depths(len(blocks)):
        cut = choose_block(task, blocks[depth - 1])
        accuracy = grow(cut)
        reading, noise = read_class(task, forget, kept)
        tried.append(
            {"block": cut.block, "blocks_kept": depth, "reading": reading, "noise": noise, "retained": accuracy}
        )
        logger.info(f"{cut.block}: {reading:.1f} % of the class is read, {accuracy:.1f} % of retained images answered.")
        with torch.no_grad():
            for name, tensor in task.model.state_dict().items():
                tensor.copy_(start[name])
        chosen = cut
        if len(tried) > 1 and tried[-2]["reading"] - reading <= math.hypot(noise, tried[-2]["noise"]):
            told = True
            break
    if chosen is None:
        raise RuntimeError("no cut was tried")
    return chosen, tried, told


@torch.no_grad()
def read_class(task: Task, forget: Samples, retain: Samples) -> tuple[float, float]:
    """Percent of held-out forgotten images that a converged linear probe on pooled features recognises, and its sd.

    What stands before the first head is read; every second image fits the probe.
    """
    features = torch.cat([task.head_inputs(samples)[0] for samples in (forget, retain)]).cpu()
    # retained images without labels are one class: whether it is the forgotten one is what is asked
    labels = torch.cat([forget.labels, retain.labels])
    fits = torch.arange(len(labels)) % 2 == 0
    probe = fit_linear_probe(features[fits], labels[fits])
    rows = ~fits & (torch.arange(len(labels)) < len(forget))
    share = float((probe.predict(features[rows]) == labels[rows]).double().mean())
    return round(100 * share, 2), round(
        100 * math.sqrt(max(share * (1 - share), 0.25 / len(rows)) / int(rows.sum())), 2
    )


def _depths(blocks: int) -> list[int]:
    """How many blocks are kept, from the most down: at most `AT_MOST` of them, evenly."""
    if blocks - 1 <= AT_MOST:
        return list(range(blocks - 1, 0, -1))
    even = [round(1 + (blocks - 2) * i / (AT_MOST - 1)) for i in range(AT_MOST)]
    return sorted(set(even), reverse=True)


def _some(samples: Samples, most: int, draws: torch.Generator) -> Samples:
    """At most `most` of them, in a random order: halves are then alike."""
    order: Tensor = torch.randperm(len(samples), generator=draws)[:most]
    return samples.subset(order)
