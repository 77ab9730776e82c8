"""Find the cut by trying: grow a network above each of some blocks, from the top down, and read the class from it.

It is read before the head and at blocks behind the cut, beside a network of which nothing was kept, and all are trained
until they answer as many retained images as that one: a worse network is read less, whether it knows the class or not. No
rule for the cut was found that needs neither a reference nor a scan: what a network that never saw a class has in common
with one that did ends at a depth that differs from class to class.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_kd.data.distributed import sum_over_processes
from hf_kd.data.hidden_state import first_of, pooled
from hf_kd.data.modes import hooked
from hf_kd.data.samples import Samples
from hf_kd.errors import InvalidValueError
from hf_kd.methods.measured import CutTried
from hf_kd.metrics._inputs import as_features
from hf_kd.metrics.linear_probe import fit_linear_probe
from hf_kd.metrics.scaling import principal_scales

from .cut import Cut, choose_block, hidden_at, nothing_kept
from .resume import count_earlier, load_scan, save_scan
from .task import Task

logger = logging.getLogger(__name__)

AT_MOST = 6
"""Cuts that are tried."""

IMAGES = {"forget": 4_000, "retain": 16_000}
"""Of each set, read for the probe at most: each half is asked by the probe of the other."""

FEWEST = 500
"""Images of the forgotten classes: two readings of fewer are apart by more than `ALIKE` by chance."""

HEADS = "heads"
"""Stands among names of blocks for what the heads are fed with."""

ALIKE = 3.2
"""Points that two readings which count as alike are apart at most, the noise of both included: at 50 %, where it is largest,
that of `FEWEST` images is 100 sqrt(2 * 0.25 / 500) = 3.16."""


def scan(
    task: Task, retain: Samples, grow: Callable[[Cut, float], float], same: Mapping[str, Any]
) -> tuple[Cut, list[CutTried], bool]:
    """Try cuts from the top down until the class is read no better than from a network that never saw it.

    With `Task.checkpoint` what was read is kept after each cut, and the same call goes on behind the last one.

    Args:
        task: Its model is as it was before each cut is tried, and afterwards.
        retain: D_r, with labels.
        grow: Draws what lies above a cut anew, trains it for a few epochs or until it answers a percent of D_r, and returns
            what it answers. What it draws does not depend on cuts before.
        same: What has to be as it was for the scan to go on (`run_identity`); where it is empty, nothing is kept.

    Returns:
        The cut, what was read at each and where nothing was kept, and whether the scan could tell: where the class was read
        better at every cut, its noise could hide that, or fewer retained images were answered, the last one is taken.

    Raises:
        InvalidValueError: Where there are too few images of the forgotten classes to read anything, and where what was kept
            is of another run.
    """
    blocks = task.find_blocks()
    if len(blocks) < 2:
        choose_block(task, 0.5)  # which says so
    forget, kept = _drawn(task, retain)
    start = {name: tensor.detach().clone() for name, tensor in task.model.state_dict().items()}
    folder = task.checkpoint if same else None
    done = {} if folder is None else load_scan(folder, same)
    count_earlier(task, done)
    tried: list[CutTried] = done.get("tried", [])
    depths = [0, *_depths(len(blocks))]
    if [row["blocks_kept"] for row in tried] != depths[: len(tried)] or any("above" not in row for row in tried):
        logger.warning("What was kept of the scan is of an older version, which tried other cuts: it begins anew.")
        tried = []
    while len(tried) < len(depths) and not _reads_no_more(tried):
        depth = depths[len(tried)]
        cut = choose_block(task, blocks[depth - 1]) if depth else nothing_kept(task.model)
        try:
            accuracy = grow(cut, tried[0].get("retained", 0.0) if tried else math.inf)
            behind = [blocks[other - 1] for other in reversed(depths) if other > depth]
            read = {at: read_class(task, forget, kept, states) for at, states in _states(task, behind, forget, kept)}
        finally:
            task.model.load_state_dict(start)
        (reading, noise), above = read.pop(HEADS), {at: list(found) for at, found in read.items()}
        row: CutTried = {
            "block": cut.block, "blocks_kept": depth, "reading": reading, "noise": noise, "above": above,
            "retained": accuracy,
        }  # fmt: skip
        told = f"{cut.block}: {reading:.1f} % of the class is read, {accuracy:.1f} % of retained images answered"
        if tried:
            row["excess"] = _excess(tried[0], row)
            told += f", at most {row['excess']:.1f} points more, the noise included, than where nothing is kept"
        tried.append(row)
        logger.info(f"{told}.")
        if folder is not None and task.state.is_main_process:
            save_scan(folder, {**same, "tried": tried, "seconds": task.seconds})
    return choose_block(task, tried[-1]["block"]), tried, _reads_no_more(tried)


def _reads_no_more(tried: Sequence[CutTried]) -> bool:
    """Whether the last of these cuts reads no more of the class than where nothing is kept, the first of them.

    Noise that would hide a difference counts as one: where the two cannot be told apart for it, the scan goes on. So it does
    where fewer retained images are answered.
    """
    if len(tried) < 2:
        return False
    level, last = tried[0], tried[-1]
    return last.get("excess", math.inf) <= ALIKE and last.get("retained", 0.0) >= level.get("retained", 0.0)


def _excess(level: CutTried, row: CutTried) -> float:
    """Points by which the class is read better in a row than in `level`, where that is most, the noise of both included.

    Before the head, and at blocks that were drawn anew: what a network gives away lower down need not show before its head.
    """
    pairs = [((row["reading"], row["noise"]), (level["reading"], level["noise"]))]
    pairs += [(read, level.get("above", {})[block]) for block, read in row.get("above", {}).items()]
    return round(max(max(here - there, 0.0) + math.hypot(sd, other) for (here, sd), (there, other) in pairs), 2)


def where_profiles_part(task: Task, retain: Samples, reference: nn.Module) -> tuple[Cut, list[CutTried], bool]:
    """The last block up to which the class is read no better than from a network that never saw it.

    Nothing is trained: the pooled hidden states of each block of both networks are probed, from the bottom up. Where they
    part at the first block, or nowhere, this tells no cut, and the deepest is taken.

    Args:
        task: Its model is the one to change.
        retain: D_r.
        reference: Of the same class and depth; it stays as it is.

    Returns:
        The cut, what was read at each block up to the one where they part, and whether that told it.

    Raises:
        InvalidValueError: For a reference of another class or depth, and too few images of the forgotten classes.
    """
    names = task.find_blocks()
    own, other = (_beside(names, model) for model in (task.model, reference))
    if type(reference) is not type(task.model) or own != other:
        raise InvalidValueError(
            f"The reference is a {type(reference).__name__} and the model a {type(task.model).__name__}, with {len(other)} "
            f"and {len(own)} modules where the blocks are: their blocks cannot be compared. Give one of the same class and "
            "depth, or leave it out: the cut is then found by trying."
        )
    forget, kept = _drawn(task, retain)
    tried: list[CutTried] = []
    below = 0
    for depth, block in enumerate(names, 1):
        reading, noise = read_class(task, forget, kept, _pooled(task, task.model, block, forget, kept))
        level, spread = read_class(task, forget, kept, _pooled(task, reference, block, forget, kept))
        tried.append({"block": block, "blocks_kept": depth, "reading": reading, "noise": noise, "reference": level})
        if reading - level > 2 * math.hypot(noise, spread):
            break
        below = depth
    told = 0 < below < len(names)
    return choose_block(task, names[below - 1 if told else 0]), tried, told


def _beside(blocks: Sequence[str], model: nn.Module) -> set[str]:
    """Names of the modules of a model that lie where some blocks do."""
    places = {name.rpartition(".")[0] for name in blocks}
    return {name for name, _ in model.named_modules() if name.rpartition(".")[0] in places}


@torch.no_grad()
def _pooled(task: Task, model: nn.Module, block: str, *sets: Samples) -> Tensor:
    """The pooled hidden states of a block for some sets of samples, one behind the other [n, channels]."""
    found = []
    with task.mode("eval"):
        for batch in (batch for samples in sets for batch in samples.batches(256)):
            with task.autocast():  # as `Task.head_inputs` reads
                found.append(pooled(hidden_at(model, block, batch.to(task.device).inputs)).cpu())
    return torch.cat(found)


def _states(task: Task, blocks: Sequence[str], *sets: Samples) -> Iterator[tuple[str, Tensor]]:
    """What all heads are fed with, side by side, as `HEADS`, and the pooled hidden states of blocks: [n, d] each.

    All are read in one pass: images that lie on disk are decoded once, and nothing is run up to each block again.
    """
    here: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {block: [] for block in blocks}

    def see(module: nn.Module, args: Any, output: Any, *, block: str) -> None:
        here.setdefault(block, pooled(first_of(output)).cpu())  # the first, as `hidden_at`, where it runs again

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        for block, states in kept.items():
            states.append(here.pop(block))

    handles = [task.model.get_submodule(block).register_forward_hook(partial(see, block=block)) for block in blocks]
    with hooked([*handles, task.model.register_forward_hook(keep)]):
        heads = [torch.cat(task.head_inputs(samples), dim=1).cpu() for samples in sets]
    yield HEADS, torch.cat(heads)
    for block, states in kept.items():
        yield block, torch.cat(states)


def read_class(task: Task, forget: Samples, retain: Samples, features: Tensor) -> tuple[float, float]:
    """Percent of held-out forgotten images that a converged linear probe recognises by their features, and its sd.

    Two probes are fitted, each on every second image, and each is asked for the others. From features that are the same for
    all images nothing is read.

    Args:
        task: Whose processes agree.
        forget: D_f, or some of it.
        retain: D_r, or some of it.
        features: Of both, one behind the other [n, d].
    """
    features = as_features(features)
    labels = torch.cat([forget.labels, retain.labels])
    hits, asked = torch.zeros(1, dtype=torch.float64), len(forget)
    for half in (0, 1):
        fits = torch.arange(len(labels)) % 2 == half
        scales = principal_scales(features[fits])
        if not scales["whitened"].rank:
            continue
        probe = fit_linear_probe(features[fits], labels[fits], scales=scales)
        rows = ~fits & (torch.arange(len(labels)) < asked)
        hits += (probe.predict(features[rows]) == labels[rows]).sum()
    # the mean over processes: what they decide by it has to be the same in all of them
    share = float(sum_over_processes(hits)) / (asked * task.state.num_processes)
    return round(100 * share, 2), round(100 * math.sqrt(max(share * (1 - share), 0.25 / asked) / asked), 2)


def _depths(blocks: int) -> list[int]:
    """How many blocks are kept, from the most down: at most `AT_MOST` of them, evenly."""
    if blocks - 1 <= AT_MOST:
        return list(range(blocks - 1, 0, -1))
    even = [round(1 + (blocks - 2) * i / (AT_MOST - 1)) for i in range(AT_MOST)]
    return sorted(set(even), reverse=True)


def refuse_few(forget: Samples) -> None:
    """Raise InvalidValueError for so few images of the forgotten classes that readings of them differ by chance."""
    if len(forget) < FEWEST:
        raise InvalidValueError(
            f"keep='auto' compares how much of the class is read at different depths, and readings of {len(forget)} "
            f"images of it differ by chance (at least {FEWEST}). Give more, or say the share that is kept: keep=0.33."
        )


def _drawn(task: Task, retain: Samples) -> tuple[Samples, Samples]:
    """Images of D_f and D_r that the class is read from."""
    refuse_few(task.forget)
    draws = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    return _some(task.forget, IMAGES["forget"], draws), _some(retain, IMAGES["retain"], draws)


def _some(samples: Samples, most: int, draws: torch.Generator) -> Samples:
    """At most `most` of them, in a random order: halves are then alike."""
    order: Tensor = torch.randperm(len(samples), generator=draws)[:most]
    return samples.subset(order)
