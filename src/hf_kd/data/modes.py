"""Eval mode for as long as a model is read, and every module's own mode afterwards; what is cached in it, and dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is in the mode it was in, whatever its neighbours' modes.

    Args:
        model: In any mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            # one with a way of its own may drop what it cached in eval mode (LeViT does); torch's would reach neighbours
            if training and type(module).train is not nn.Module.train:
                module.train()
        for module, training in modes:
            module.training = training


def drop_caches(model: nn.Module) -> None:
    """Let modules drop what they cached in eval mode (LeViT).

    With its graph it could not be copied, nor gone back through twice, and after a step it is of older weights.

    Args:
        model: Its modules keep their modes.
    """
    # none has a way of its own into training mode, in which it would drop anything
    if all(type(module).train in (nn.Module.train, PreTrainedModel.train) for module in model.modules()):
        return
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, training in modes:
        module.training = training
