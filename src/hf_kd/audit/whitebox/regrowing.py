"""Attack 6: draw the upper part anew and train it with all labels of the class: what the kept part can give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from hf_kd.data.devices import own_generators
from hf_kd.data.samples import consecutive
from hf_kd.errors import InvalidValueError
from hf_kd.methods.unlearning.cut import cut_behind, gradients_above, only_trainable, take_over
from hf_kd.methods.unlearning.fresh import initialised, seed_apart, take_replaced
from hf_kd.metrics.attack_data import AttackResult

from .answers import head_answers
from .network import Network, WhiteBoxData, recalibrated, train_step, with_rows
from .probes import BATCHNORM_IMAGES

IMAGES = 5_000
"""Labelled images, of all classes together, at most."""

BATCH = 128
"""Images a step."""


def regrow_attack(
    network: Network, data: WhiteBoxData, seed: int = 0, *, share: float = 1 / 3, epochs: int = 4, images: int = IMAGES
) -> AttackResult:
    """Keep the blocks up to `network.cut` frozen, start the rest anew, and train it on labelled images of every class.

    SGD at .1, Nesterov, one cycle with a fifth of warm-up (AdamW at 1e-3 where there is no BatchNorm). A lower bound of
    what the kept part can give: few epochs on at most `images` images, the same for all networks that are compared.

    Args:
        network: Whose lower part is kept.
        data: Its images.
        seed: Of the new weights and the order of images.
        share: Of the blocks that are kept where the network has no `cut`, at least one.
        epochs: Passes.
        images: At most.

    Raises:
        InvalidValueError: Where `no_regrowing` says why.
    """
    if reason := _no_upper_part(network, data):
        raise InvalidValueError(f"Nothing can be grown anew here: {reason}. Leave this attack out.")
    block = network.cut or network.blocks[max(0, int(len(network.blocks) * share) - 1)]
    made, _ = with_rows(network, data, data.shots(5, seed))
    model = made.model
    two = {name: value[:2].to(made.device) for name, value in data.train.inputs.items()}
    cut = cut_behind(model, block, two, network.blocks)
    with own_generators(made.device, seed_apart(seed)):
        take_over(model, _fresh(network, made), cut.new)
    new = only_trainable(model, cut.new)
    few = data.train.rows(slice(images))
    columns = torch.tensor(made.columns_of(data.classes), device=made.device)
    targets = torch.searchsorted(data.classes, few.labels).to(made.device)
    rng = torch.Generator().manual_seed(seed)
    total = epochs * len(consecutive(torch.arange(len(few)), BATCH))
    if network.norms:
        optimiser: Any = torch.optim.SGD(new, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        top = 0.1
    else:
        optimiser, top = torch.optim.AdamW(new, 1e-3), 1e-3
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, top, total_steps=total, pct_start=0.2, cycle_momentum=False
    )
    with own_generators(network.device, seed), gradients_above(model, cut):
        model.train()
        for name in cut.modules:
            model.get_submodule(name).eval()
        for _ in range(epochs):
            for rows in consecutive(torch.randperm(len(few), generator=rng).to(few.labels.device), BATCH):
                train_step(model, optimiser, few.rows(rows).inputs, targets[rows.to(targets.device)], columns)
                schedule.step()
    model.eval()
    told = {"kept_to": block, "images": len(few), "epochs": epochs}
    # from as many images as at the start: the statistics of the kept part stay as they were
    made = recalibrated(made, data.train.rows(slice(BATCHNORM_IMAGES[-1])))
    return replace(head_answers(made, data, "regrown with all labels"), settings=told)


def no_regrowing(network: Network, data: WhiteBoxData) -> str:
    """Why a network cannot be attacked so; nothing where it can."""
    if reason := _no_upper_part(network, data):
        return reason
    try:
        with own_generators(network.device, 0):
            _fresh(network, network)
    except InvalidValueError as error:
        return f"it cannot be made anew: {str(error).rstrip('.')}"
    return ""


def _no_upper_part(network: Network, data: WhiteBoxData) -> str:
    """Why there is nothing to draw anew, or no row to train; nothing where there is."""
    if network.fresh is None or not network.blocks:
        kind = type(network.model).__name__
        return (
            f"no blocks were found in this {kind}, or it cannot be made anew, so there is no upper part to draw again"
        )
    if network.cut is not None and network.cut not in network.blocks:
        return f"this {type(network.model).__name__} has no block {network.cut!r}, behind which the others are cut"
    return network.without_rows(data.classes)


def _fresh(network: Network, made: Network) -> nn.Module:
    """A model that has seen nothing, with heads of the kind and shape of those of `made`, whoever put them there."""
    fresh = cast("Callable[[], nn.Module]", network.fresh)()
    take_replaced(fresh, network.model)
    for path in made.heads:
        head = made.model.get_submodule(path)
        try:
            head = initialised(head, path)
        except InvalidValueError:  # it has no way to, and whoever attacks may begin with what they hold
            head = copy.deepcopy(head).cpu()
        fresh.set_submodule(path, head)
    return fresh
