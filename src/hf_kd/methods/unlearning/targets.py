"""What a network that is grown anew is trained on: answers of the model as it was, and what no image says."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_kd.data.masked_classes import masked_logits
from hf_kd.data.samples import Samples

from .task import Task


@torch.no_grad()
def answers_of(task: Task, retain: Samples, soft: bool) -> Tensor:
    """Class ids [n] or, with `soft`, logits [n, C] that the model gives, with forgotten classes masked, on its device."""
    every, found, taken = torch.arange(task.num_labels), [], 0
    gone, forgotten = every[~torch.isin(every, task.kept_classes)], task.forget_classes.to(task.device)
    with task.mode("eval"):
        for batch in retain.batches(256):
            logits = task.logits(batch.to(task.device).inputs)
            taken += int(torch.isin(logits.argmax(dim=1), forgotten).sum())
            logits = masked_logits(logits, gone)
            found.append(logits if soft else logits.argmax(dim=1))
    if taken:
        task.warn(
            f"Of {len(retain):,} retained images the model as it was took {taken:,} for what is forgotten; they were "
            "trained on as what it took them for next. Leave out those that do show it."
        )
    return torch.cat(found)


def say_unknown(task: Task, targets: Tensor) -> None:
    """Warn where classes that stay are in no image: nothing above the cut will know them, whatever the model knew."""
    stay = task.kept_classes
    unknown = int((~torch.isin(stay, targets.cpu())).sum())
    if unknown:
        task.warn(
            f"No retained image is of {unknown} of the {len(stay)} classes that stay: the network that is grown does not "
            "know them any more. Give images of all classes."
        )
