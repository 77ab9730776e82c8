"""Modes of a model: eval as long as it is read, and every module's own afterwards; hooks for a while, caches dropped,
statistics anew, weights in the order that is fastest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
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


@contextlib.contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Hooks inside; afterwards they are removed.

    Args:
        handles: What registering them gave.
    """
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


@torch.no_grad()
def mean_statistics(model: nn.Module, norms: Sequence[nn.modules.batchnorm._NormBase], passes: Iterable[Any]) -> None:
    """Running statistics become the mean over batches, as the weights make them now.

    Args:
        model: All but the norms is in eval mode meanwhile, dropout too, which `torch.optim.swa_utils.update_bn` trains.
        norms: Of its norms those that are meant; where there are none, nothing is run.
        passes: Sends a batch through the model whenever the next is asked for.
    """
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # of all batches alike
    with evaluating(model):
        for norm in norms:
            norm.training = True
        for _ in passes:
            pass
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def prefer_channels_last(model: nn.Module, run: Callable[[], object]) -> bool:
    """Put a convolutional network's weights in the order in which kernels take half the time or less; whether they are now.

    A network that cannot run so (it views a feature map as rows) stays as it is.

    Args:
        model: Changed in place.
        run: Sends images through it.
    """
    if sum(isinstance(module, nn.Conv2d) for module in model.modules()) < 2:
        return False
    set_memory_format(model, torch.channels_last)
    try:
        run()
    except RuntimeError:
        set_memory_format(model, torch.contiguous_format)
        return False
    return True


def set_memory_format(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Put the weights of a model in this order."""
    model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue] - the stubs of torch lack this overload
