"""Fold erasers into weights: a stock checkpoint whose logits are erased and whose features are not.

For a head W h + b and a linear eraser h M (row vectors) the folded weight is W M^T; layers of
the head before its Linear, such as LeViT's BatchNorm, are folded through by their own affine map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hf_kd.data.masked_classes import silence_rows
from hf_kd.errors import InvalidValueError
from hf_kd.features.protocol import TappedModel
from hf_kd.features.taps.places import Tap
from hf_kd.features.taps.site import TapSite, plain_copy
from hf_kd.hub.files import save_processor
from hf_kd.methods.erasers.base import Eraser


def save_with_processor(stock: Any, model: TappedModel) -> None:
    """Let `stock.save_pretrained` write the processor of the erased model too, without which no pipeline takes a folder."""
    source = SimpleNamespace(processor=model.processor, whole_processor=getattr(model, "whole_processor", None))
    stock.save_pretrained = partial(_save_pretrained, stock, source)  # which copies and pickles with the model


def _save_pretrained(stock: Any, source: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    done = type(stock).save_pretrained(stock, save_directory, *args, **kwargs)
    if kwargs.get("is_main_process", args[0] if args else True):
        save_processor(source, save_directory)
    return done


@torch.no_grad()
def fold_site(model: nn.Module, site: TapSite) -> None:
    """Write the eraser of a site into the weights of `model`, in place. The site is not looked at again.

    Raises ValueError when the eraser is not linear or nothing linear reads or writes the features.
    """
    tap, eraser = site.tap, site.eraser
    if eraser is not None:
        _fold(model, tap, eraser)
    if site.masked:
        for name in tap.heads:
            _silence(model, name, site.masked)


def _fold(model: nn.Module, tap: Tap, eraser: nn.Module) -> None:
    if not isinstance(eraser, Eraser) or not eraser.is_linear:
        raise InvalidValueError(
            f"An eraser of kind {getattr(eraser, 'kind', type(eraser).__name__)!r} is not linear and cannot be folded "
            "into a weight. Publish the model unfolded: save_pretrained keeps the eraser."
        )
    matrix, constant = eraser.matrix(), eraser.offset()
    if tap.heads:
        for name in tap.heads:
            _fold_into_head(model, tap, name, matrix, constant)
        return
    place = tap.places[0]
    producer = model.get_submodule(place.module)
    if place.side == "output" and place.field is None and isinstance(producer, nn.Linear):
        bias = constant if producer.bias is None else producer.bias.cpu().double() @ matrix + constant
        if producer.bias is None and float(bias.abs().max()) > 0:
            raise InvalidValueError(
                f"{place.module} makes the features without a bias that could take up the eraser's constant. Publish the "
                "model unfolded: save_pretrained keeps the eraser."
            )
        weight = matrix.T @ producer.weight.cpu().double()  # (x W^T + b) M + c: the features themselves are erased
        producer.weight.copy_(weight)
        if producer.bias is not None:
            producer.bias.copy_(bias)
        return
    raise InvalidValueError(
        f"The features at the {tap} are read by no classification head and made by no Linear, so there is no weight to "
        "fold the eraser into. Publish the model unfolded: save_pretrained keeps the eraser."
    )


def _only_linear(head: nn.Module, name: str) -> tuple[str, nn.Linear]:
    linears = [(path, module) for path, module in head.named_modules() if isinstance(module, nn.Linear)]
    if len(linears) != 1:
        raise InvalidValueError(
            f"The head {name} holds {len(linears)} Linear layers; folding needs exactly one. Publish the model unfolded: "
            "save_pretrained keeps the eraser."
        )
    return linears[0]


def _silence(model: nn.Module, name: str, classes: Sequence[int]) -> None:
    """Head surgery: rows that are never answered."""
    _, linear = _only_linear(model.get_submodule(name), name)
    if linear.bias is None:
        raise InvalidValueError(
            f"The Linear of the head {name} has no bias, so masked classes cannot be written into it. Publish the model "
            "unfolded: save_pretrained keeps the mask."
        )
    silence_rows(linear, classes)


def _fold_into_head(model: nn.Module, tap: Tap, name: str, matrix: Tensor, constant: Tensor) -> None:
    head = plain_copy(model, name, torch.float64, torch.device("cpu"))
    _, linear = _only_linear(head, name)
    seen: list[Tensor] = []
    # rows of the identity and zero give the affine map h -> h J + c from the features to the Linear
    probe = torch.cat([torch.eye(tap.dim, dtype=torch.float64), torch.zeros(1, tap.dim, dtype=torch.float64)])
    with linear.register_forward_pre_hook(lambda module, args: seen.append(args[0].reshape(-1, linear.in_features))):
        head(probe.reshape(-1, *tap.head_input_shape))
    offset = seen[0][-1]
    inner = seen[0][:-1] - offset
    # the Linear sees u = h J + o; with W' the logits of h are those W gives for h M + c:  J W'^T = M J W^T
    wanted = matrix @ inner @ linear.weight.T
    weight = (torch.linalg.pinv(inner) @ wanted).T
    error = float((inner @ weight.T - wanted).abs().max())
    if error > 1e-6 * max(1.0, float(wanted.abs().max())):
        raise InvalidValueError(
            f"The head {name} drops part of the features before its Linear (error {error:.2g}), so the eraser cannot be "
            "folded exactly. Publish the model unfolded: save_pretrained keeps the eraser."
        )
    bias = (
        (linear.bias if linear.bias is not None else 0)
        + (constant @ inner + offset) @ linear.weight.T
        - offset @ weight.T
    )
    _, target = _only_linear(model.get_submodule(name), name)
    target.weight.copy_(weight)
    if target.bias is not None:
        target.bias.copy_(bias)
    elif float(bias.abs().max()) > 1e-12 * max(1.0, float(weight.abs().max())):
        raise InvalidValueError(
            f"The Linear of the head {name} has no bias to take up the constant of the eraser or of the layers before it. "
            "Publish the model unfolded: save_pretrained keeps the eraser."
        )
