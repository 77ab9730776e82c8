"""Eval mode for as long as a model is read, and every module's own mode afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


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
