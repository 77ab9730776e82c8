"""Look inside a model: hidden states of every block for the layer profile, activation maps for Grad-CAM.

Part of the modelling room. What is looked at lies below the tap, where erasers do not act.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .audit.grad_cam import ClassMaps, class_map, panel
from .data import gather_rows
from .erasing import PassSettings, probe_batch
from .measuring import batches_of, model_has_head
from .taps import (
    as_map,
    evaluating,
    find_blocks,
    head_function,
    hidden_state,
    image_inputs,
    main_input,
    pooled,
    record,
    run,
)

if TYPE_CHECKING:
    from .modeling import ErasedModel

MOST_ROWS = {"train": 4_000, "test": 2_000}
"""Samples of each split that the layer profile reads at most."""

LEAST = 20
"""Forgotten samples of a split that it reads at least, where there are so many."""


def blocks_of(model: ErasedModel, every: bool = False) -> tuple[str, ...]:
    """Names of the blocks of the inner model, in order; see `taps.find_blocks`."""
    return find_blocks(model.inner, image_inputs(probe_batch(model, None)), main_input(model.inner), every)


def read_layers(
    model: ErasedModel, data: Any, settings: PassSettings, blocks: Sequence[str], rows: Tensor
) -> dict[str, Tensor]:
    """Pooled hidden states of the samples in `rows` (numbers, ascending): {block: float32 [len(rows), d]} on the CPU."""
    loader, _ = batches_of(model, data, settings)
    taken: dict[str, list[Tensor]] = {name: [] for name in blocks}
    numbers: list[Tensor] = []
    with evaluating(model.inner), torch.no_grad(), _hidden_states(model.inner, blocks) as take:
        for batch in loader:
            chosen = torch.isin(batch["rows"], rows)
            if chosen.any():
                run(model.inner, {name: value[chosen] for name, value in batch["inputs"].items()})
                for name, hidden in take(int(chosen.sum())).items():
                    taken[name].append(pooled(hidden).cpu())
                numbers.append(batch["rows"][chosen])
    own = torch.cat(numbers) if numbers else torch.zeros(0, dtype=torch.long)
    everywhere = gather_rows(own, fill=-1).cpu()
    order = torch.argsort(everywhere[everywhere >= 0], stable=True)
    found = {}
    for name, parts in taken.items():
        features = gather_rows(torch.cat(parts) if parts else torch.zeros(0, 1)).cpu()
        found[name] = features[everywhere >= 0][order]
    return found


def sampled_rows(labels: Tensor, kept: Tensor, forget: Sequence[int], most: int) -> Tensor:
    """Numbers of at most `most` of the `kept` rows, ascending; the forgotten in proportion, but at least `LEAST` of them.

    More of them would teach a probe to guess the forgotten classes.
    """
    rng = torch.Generator().manual_seed(0)
    rows = torch.nonzero(kept).flatten()
    if rows.numel() <= most:
        return rows
    is_forgotten = torch.isin(labels[rows], torch.tensor(list(forget)))
    parts = [rows[is_forgotten], rows[~is_forgotten]]
    share = max(round(most * parts[0].numel() / rows.numel()), min(parts[0].numel(), LEAST))
    chosen = [
        part[torch.randperm(part.numel(), generator=rng)[:size]]
        for part, size in zip(parts, (share, most - share), strict=True)
    ]
    return torch.cat(chosen).sort().values


def grad_cam(
    model: ErasedModel,
    data: Any,
    path: str | Path,
    label: int | str | None = None,
    *,
    most: int = 6,
    **reading: Any,
) -> Path:
    """Draw Grad-CAM maps (Fig. 6) of a few images of a forgotten class, before and after erasing, into the PNG `path`.

    Weights of the channels: dy_c / dh at the pooled features, which is P^T W_c behind an eraser P and before a linear
    head, over the number of positions, where the features are the mean of the last map; otherwise the gradient of y_c
    in the last map that the answer depends on at more than one position (a transformer that reads its class token:
    what its last block is given). The figure shows images of D_f: it is drawn only here, never for a model card.

    label: name or id of the class; by default the first of the records. most: number of images.
    reading: as in `audit`. Raises ValueError without a head, without such images or without a map, and ImportError
    without matplotlib.
    """
    from .auditing import forgotten_labels

    if not model_has_head(model):
        raise ValueError(
            f"{type(model.inner).__name__} has no classification head: there is no class to draw a map for."
        )
    names = model.config.id2label
    wanted = forgotten_labels(model, label, names)[0]
    settings = PassSettings(**{"progress": False} | reading)
    inputs = _images_of(model, data, settings, wanted, most)
    maps = class_maps(model, inputs, wanted)
    pictures = inputs[main_input(model.inner)].float().cpu()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    panel(pictures, maps, str(names[wanted]), [str(names[int(p)]) for p in maps.predicted], path)
    return path


def class_maps(model: ErasedModel, inputs: dict[str, Any], label: int) -> ClassMaps:
    """Grad-CAM maps [n, height, width] of `label` for the original and the erased model, and of what it predicts now."""
    with _hidden_states(model.inner, blocks_of(model, every=True)) as take, evaluating(model.inner):
        count = inputs[main_input(model.inner)].shape[0]
        predicted = _logits(model, inputs).argmax(dim=1).cpu()
        with _erasers(model, on=False), record(list(model.sites), "before") as features_of:
            logits = _logits(model, inputs)
            hidden, before = take(count), features_of()
        name, closed = _last_map(hidden, before, logits)
        targets = torch.full_like(predicted, label)

        def one(kind: str, wanted: Tensor) -> Tensor:
            with _erasers(model, on=kind == "erased"):
                if closed:
                    weights = _closed_form(model, before, wanted)
                    weights = weights[:, :, None] / as_map(hidden[name]).shape[2]
                    return class_map(as_map(hidden[name]).detach().float().cpu(), weights)
                answer = _logits(model, inputs)
                again = take(count)[name]
                picked = answer.gather(1, wanted.to(answer.device)[:, None]).sum()
                (gradient,) = torch.autograd.grad(picked, again)
                weights = as_map(gradient).float().mean(dim=2, keepdim=True)
                return class_map(as_map(again).detach().float().cpu(), weights.cpu())

        shape = _grid(hidden[name])
        maps = [one("original", targets), one("erased", targets), one("erased", predicted)]
    original, behind, answered = (
        found[:, found.shape[1] - shape[0] * shape[1] :].reshape(-1, *shape) for found in maps
    )
    return ClassMaps(original, behind, answered, predicted, name, closed)


def _last_map(hidden: dict[str, Tensor], before: Sequence[Tensor], logits: Tensor) -> tuple[str, bool]:
    """The last hidden state on which the answers depend at more than one position; whether the features are its mean."""
    for name in reversed(hidden):
        mean = pooled(hidden[name])
        if len(before) == 1 and mean.shape == before[0].shape and torch.allclose(mean, before[0].float(), atol=1e-5):
            return name, True
        (gradient,) = torch.autograd.grad(logits.sum(), hidden[name], retain_graph=True, allow_unused=True)
        if gradient is not None and int((as_map(gradient).abs().amax(dim=(0, 1)) > 0).sum()) > 1:
            return name, False
    raise ValueError("No block hands on a map that the answers depend on: Grad-CAM has nothing to draw.")


def _closed_form(model: ErasedModel, before: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """dy_c / dh [n, d] through eraser and head alone: P^T W_c where both are linear."""
    head = head_function(model.inner, model.taps)
    features = before[0].detach().float().clone().requires_grad_(True)
    behind = features if model.sites[0].eraser is None else model.sites[0].eraser(features)
    picked = head([behind]).gather(1, wanted.to(behind.device)[:, None]).sum()
    return torch.autograd.grad(picked, features)[0].cpu()


def _logits(model: ErasedModel, inputs: dict[str, Any]) -> Tensor:
    """Answers [n, C] with their graph, also of a model whose parameters are frozen."""
    name = main_input(model.inner)
    images = inputs[name]
    with torch.enable_grad():
        output = run(model.inner, inputs | {name: images.clone().requires_grad_(images.is_floating_point())})
    return output.logits


def _images_of(model: ErasedModel, data: Any, settings: PassSettings, label: int, most: int) -> dict[str, Any]:
    """Model inputs of the first `most` images with a label."""
    loader, mapping = batches_of(model, data, settings)
    parts: list[dict[str, Any]] = []
    found = 0
    for batch in loader:
        own = batch["labels"] if mapping is None else mapping(batch["labels"])
        rows = torch.nonzero(own == label).flatten()[: most - found]
        if rows.numel():
            parts.append({name: value[rows] for name, value in batch["inputs"].items()})
            found += rows.numel()
        if found >= most:
            break
    if not parts:
        raise ValueError(f"No image in the data has the label {label} ({model.config.id2label.get(label)}).")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _grid(hidden: Tensor) -> tuple[int, int]:
    """Height and width of a map; tokens before a square grid (class and register tokens) are not part of it."""
    if hidden.ndim == 4:
        _, a, b, c = hidden.shape
        return (a, b) if a == b != c else (b, c)
    side = math.isqrt(hidden.shape[1])
    return side, side


@contextlib.contextmanager
def _erasers(model: ErasedModel, on: bool) -> Iterator[None]:
    """The erasers of the sites, or none of them, inside; afterwards what was there."""
    kept = [site.eraser for site in model.sites]
    try:
        for site in model.sites:
            site.eraser = site.eraser if on else None
        yield
    finally:
        for site, eraser in zip(model.sites, kept, strict=True):
            site.eraser = eraser


@contextlib.contextmanager
def _hidden_states(model: Any, blocks: Sequence[str]) -> Iterator[Callable[[int], dict[str, Tensor]]]:
    """Yields a function that returns (and forgets) the hidden states of the last forward, of so many images, by block."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: seen.__setitem__(name, output)

    def take(images: int) -> dict[str, Tensor]:
        found = {name: hidden_state(seen[name], images) for name in blocks}
        seen.clear()
        return {name: hidden for name, hidden in found.items() if hidden is not None}

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in blocks]
    try:
        yield take
    finally:
        for handle in handles:
            handle.remove()
