"""Attack 6: draw the upper part anew and train it with all labels of the class: what the kept part can give."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_kd.errors import InvalidValueError
from hf_kd.features.taps.inputs import run
from hf_kd.metrics.attack_data import AttackResult

from .answers import head_answers
from .network import Network, WhiteBoxData, answer, own_generators, with_rows

IMAGES = 5_000
"""Labelled images, of all classes together, at most."""


def kept_modules(network: Network, data: WhiteBoxData, block: str) -> set[str]:
    """Names of the modules that an image has entered by the time it leaves `block`, those that only hold others included."""
    entered: set[str] = set()
    over = False

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if not over:
                entered.add(name)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal over
        over = True

    handles = [m.register_forward_pre_hook(enter(name)) for name, m in network.model.named_modules()]
    handles.append(network.model.get_submodule(block).register_forward_hook(leave))
    try:
        with torch.no_grad():
            run(network.model, data.train.rows(slice(2)).inputs)
    finally:
        for handle in handles:
            handle.remove()
    return entered


def regrow_attack(
    network: Network, data: WhiteBoxData, seed: int = 0, *, share: float = 1 / 3, epochs: int = 4, images: int = IMAGES
) -> AttackResult:
    """Keep the lower `share` of the blocks frozen, start the rest anew, and train it on labelled images of every class.

    SGD at .1, Nesterov, one cycle with a fifth of warm-up (AdamW at 1e-3 where there is no BatchNorm). A lower bound of
    what the kept part can give: few epochs on at most `images` images, the same for all networks that are compared.

    Args:
        network: Whose lower part is kept.
        data: Its images.
        seed: Of the new weights and the order of images.
        share: Of the blocks that are kept, at least one.
        epochs: Passes.
        images: At most.

    Raises:
        InvalidValueError: For a network without blocks, or one that cannot be made anew.
    """
    if network.fresh is None or not network.blocks:
        raise InvalidValueError(
            f"{type(network.model).__name__} has no blocks that were found, or cannot be made anew: there is no upper part "
            "to draw again."
        )
    block = network.blocks[max(0, int(len(network.blocks) * share) - 1)]
    made, _ = with_rows(network, data, data.shots(5, seed))
    kept = kept_modules(made, data, block)
    with own_generators(network.device, seed):
        fresh = dict(network.fresh().state_dict())
        for head in made.linear_heads():  # may have more rows than that of the fresh model
            nn.init.normal_(head.weight, std=0.01)
            if head.bias is not None:
                nn.init.zeros_(head.bias)
    model = made.model.eval()
    new: list[nn.Parameter] = []
    anew: list[nn.Module] = []
    with torch.no_grad():
        for path, module in model.named_modules():
            if path in kept:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
                continue
            anew.append(module)
            new += [parameter.requires_grad_(True) for parameter in module.parameters(recurse=False)]
            if path in network.heads:
                continue
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                full = f"{path}.{name}"
                if full in fresh and fresh[full].shape == tensor.shape:
                    tensor.copy_(fresh[full])
    few = data.train.rows(slice(images))
    columns = torch.tensor([made.column_of(int(c)) for c in data.classes], device=made.device)
    targets = torch.searchsorted(data.classes, few.labels).to(made.device)
    rng = torch.Generator().manual_seed(seed)
    total = epochs * -(-len(few) // 128)
    if network.norms:
        optimiser: Any = torch.optim.SGD(new, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        top = 0.1
    else:
        optimiser, top = torch.optim.AdamW(new, 1e-3), 1e-3
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, top, total_steps=total, pct_start=0.2, cycle_momentum=False
    )
    with own_generators(network.device, seed):
        for _ in range(epochs):
            for module in anew:
                module.training = True
            for rows in torch.randperm(len(few), generator=rng).to(few.labels.device).split(128):
                if len(rows) == 1:
                    schedule.step()
                    continue
                logits = answer(model, few.rows(rows).inputs)
                loss = F.cross_entropy(logits[:, columns], targets[rows.to(targets.device)])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    model.eval()
    result = head_answers(made, data, "regrown with all labels")
    return AttackResult(
        result.name, result.recall_forget, result.accuracy_retain, result.false_alarms, result.auc,
        {"kept_to": block, "images": len(few), "epochs": epochs},
    )  # fmt: skip
