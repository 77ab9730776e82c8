"""Inside a model: hidden states of every block for the layer profile, activation maps for Grad-CAM.

All of it lies below the tap, where erasers do not act.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from hf_kd.data.distributed import gather_rows
from hf_kd.data.hidden_state import as_map, hidden_state, pooled
from hf_kd.data.masked_classes import masked_logits
from hf_kd.data.modes import drop_caches, evaluating, hooked
from hf_kd.data.paths import local_path
from hf_kd.data.progress import counted
from hf_kd.data.samples import of_rows, one_batch
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import has_head, own_head
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader, ReadOptions, probe_batch
from hf_kd.features.taps.blocks import AT_MOST, find_blocks
from hf_kd.features.taps.inputs import image_inputs, main_input, run
from hf_kd.methods.records import changes_of, treatment
from hf_kd.metrics._inputs import first_rows

from .class_maps import ClassMaps, class_map, panel
from .classes import forgotten_labels
from .other_models import wrapped

MOST_ROWS = {"train": 4_000, "test": 2_000}
"""Samples of each split that the layer profile reads at most."""

FORGOTTEN_SHARE = {"train": 0.0, "test": 0.5}
"""Share of these that forgotten classes get where they would have less. None in train: the more of its samples are the
forgotten class's, the more often a probe that knows little answers it. In test, more of them only make D_ft more exact."""

MOST_SPECIAL = 8
"""Tokens before the grid of a map (class, distillation, registers); with more of them there is no grid."""


def blocks_of(
    model: TappedModel, every: bool = False, at_most: int | None = AT_MOST, also: str | None = None
) -> tuple[str, ...]:
    """Names of the blocks of the inner model, in order; see `taps.find_blocks`."""
    name, inputs = main_input(model.inner), probe_batch(model)
    if name != "input_ids":  # which are text, then
        inputs = image_inputs(inputs)
    with _in_place_of_erasers(model, [None] * len(model.sites)):
        return find_blocks(model.inner, inputs, name, every, at_most, also)


def blocks_read(model: TappedModel, blocks: Sequence[str]) -> str:
    """How many of a model's blocks are read, in words: "9 of 9 blocks"."""
    count = len(blocks) if len(blocks) < AT_MOST else len(blocks_of(model, at_most=None))
    return f"{len(blocks)} of {max(count, len(blocks))} blocks"


def read_layers(
    model: TappedModel, data: Any, options: ReadOptions, blocks: Sequence[str], rows: Tensor
) -> dict[str, Tensor]:
    """Pooled hidden states of the samples in `rows` (numbers, ascending): {block: float32 [len(rows), d]} on the CPU."""
    if isinstance(data, Dataset):  # only what is read needs to be decoded
        data, rows = data.select(rows.tolist()), torch.arange(rows.numel())
    taken: dict[str, list[Tensor]] = {name: [] for name in blocks}
    numbers: list[Tensor] = []
    loader = ImageReader(model, data, options).batches()
    with (
        evaluating(model.inner),
        torch.no_grad(),
        block_outputs(model.inner, blocks) as take,
        counted(loader, "every block", "batch", options.progress) as batches,
    ):
        for batch in batches:
            chosen = torch.isin(batch["rows"], rows)
            if chosen.any():
                run(model.inner, of_rows(batch["inputs"], chosen))
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


def sampled_rows(labels: Tensor, kept: Tensor, forget: Sequence[int], most: int, share: float = 0.0) -> Tensor:
    """Numbers of at most `most` of the `kept` rows, ascending; forgotten ones in proportion or `share`, if more.

    Two of every class are among them, where there are so many, also where they are more than `most`.
    """
    rng = torch.Generator().manual_seed(0)
    rows = torch.nonzero(kept).flatten()
    if rows.numel() <= most:
        return rows
    is_forgotten = torch.isin(labels[rows], torch.tensor(list(forget)))
    parts = [rows[is_forgotten], rows[~is_forgotten]]
    forgotten = max(round(most * parts[0].numel() / rows.numel()), min(parts[0].numel(), round(most * share)), 1)
    chosen = []
    for part, size in zip(parts, (forgotten, most - forgotten), strict=True):
        mixed = part[torch.randperm(part.numel(), generator=rng)]
        chosen.append(mixed[first_rows(labels[mixed], size)])
    return torch.cat(chosen).sort().values


def grad_cam(
    model: TappedModel,
    data: Any,
    path: str | Path,
    label: int | str | None = None,
    *,
    original: Any = None,
    most: int = 6,
    reading: ReadOptions | None = None,
) -> Path:
    """Draw Grad-CAM maps (Fig. 6) of a few images of a forgotten class, before and after forgetting, into the PNG `path`.

    Weights and map are those of `class_maps`. The figure shows images of D_f: it is drawn only here, never for a model
    card.

    Args:
        model: The model whose maps are drawn.
        data: Labelled images, anything `erase` takes.
        path: The file to write; its folder is made.
        label: Name or id of the class; by default the first of the records.
        original: The model before its weights were changed, as in an audit. Without it, maps of `model` without its erasers
            stand in its place, and none where its weights were changed.
        most: Number of images.
        reading: How images are read, as in `erase`; by default without a bar.

    Returns:
        The file.

    Raises:
        ValueError: Without a head, without such images, without a map, or where the model does not take images as pixels.
        ImportError: Without matplotlib.
    """
    if not has_head(model):
        raise InvalidValueError(
            f"{type(model.inner).__name__} has no classification head: there is no class to draw a map for. Leave "
            "grad_cam out."
        )
    names = model.class_names
    wanted = forgotten_labels(model, label, names)[0]
    inputs = _images_of(ImageReader(model, data, reading or ReadOptions(progress=False)), wanted, most)
    pictures = inputs[main_input(model.inner)]
    if pictures.ndim != 4 or not pictures.is_floating_point():
        raise InvalidValueError(
            f"{type(model.inner).__name__} takes its images as {list(pictures.shape)} and not as pixels [n, c, h, w]: there "
            "is no picture to lay a map over. Leave grad_cam out."
        )
    maps = class_maps(model, inputs, wanted)
    changed = bool(changes_of(model.config))
    if original is not None:
        maps = replace(maps, original=class_maps(wrapped(model, original), inputs, wanted).original)
    elif changed:
        maps = replace(maps, original=None)
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = [str(names.get(int(p), int(p))) for p in maps.predicted]
    panel(pictures.float().cpu(), maps, str(names[wanted]), answers, path, treatment=treatment(changed, model.erasures))
    return path


def class_maps(model: TappedModel, inputs: dict[str, Any], label: int) -> ClassMaps:
    """Grad-CAM maps [n, height, width] of `label` for the original and the erased model, and of what it answers now.

    The maps of a masked class are those of its logit before the mask, as a mask answers without looking.

    The map is the last hidden state that the answer depends on at more than one place of the image (of a transformer that
    reads its class token: what its last block is given). Where the pooled features are its mean over positions, the weights
    have a closed form: dy_c / dh, which is P^T W_c for an eraser P and a linear head, over the number of positions.
    Otherwise they are the mean gradient of y_c in the map.

    Args:
        model: The model, with its erasers.
        inputs: What it takes, with images [n, c, h, w].
        label: Id of the class.

    Raises:
        ValueError: Where there is no such map.
    """
    name = main_input(model.inner)
    count, *_, height, width = inputs[name].shape
    model.find_taps()
    passing = [_Keep() for _ in model.sites]
    images = inputs[name].clone().requires_grad_(True)  # there is a graph even where all parameters are frozen
    try:
        with (
            evaluating(model.inner),
            torch.enable_grad(),
            block_outputs(model.inner, blocks_of(model, every=True)) as take,
            _in_place_of_erasers(model, passing),
        ):
            run(model.inner, inputs | {name: images})
            hidden = take(count)
        features = [keep.rows[0] for keep in passing]
        head = own_head(model)
        pairs = list(zip(model.sites, features, strict=True))
        with torch.enable_grad():
            original = head([rows.float() for rows in features])
            erased = head([(rows if site.eraser is None else site.eraser(rows)).float() for site, rows in pairs])
        block, closed, (rows, columns) = _last_map(hidden, features, original, (height, width))
        last = hidden[block]
        predicted = masked_logits(erased, model.config.masked).argmax(dim=1)
        targets = torch.full_like(predicted, label)

        def one(logits: Tensor, classes: Tensor) -> Tensor:
            picked = logits.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(picked, features[0] if closed else last, retain_graph=True)
            maps = as_map(last).detach().float()
            weights = gradient.float()[:, :, None] / maps.shape[2] if closed else as_map(gradient).float().mean(2, True)
            found = class_map(maps, weights).cpu()
            return found[:, found.shape[1] - rows * columns :].reshape(-1, rows, columns)

        maps = one(original, targets), one(erased, targets), one(erased, predicted)
    finally:
        drop_caches(model.inner)  # LeViT keeps tensors of this graph
    return ClassMaps(*maps, predicted.cpu(), block, closed)


def _last_map(
    hidden: dict[str, Tensor], features: Sequence[Tensor], logits: Tensor, image: tuple[int, int]
) -> tuple[str, bool, tuple[int, int]]:
    """The last map on which the answers depend at more than one place; whether the features are its mean; its grid."""
    for name in reversed(hidden):
        grid = grid_of(hidden[name], image)
        if grid is None or (places := math.prod(grid)) < 2:
            continue
        mean, rows = pooled(hidden[name]), features[0].float()
        if len(features) == 1 and mean.shape == rows.shape and (mean - rows).abs().max() <= 1e-5 * rows.abs().max():
            return name, True, grid
        (gradient,) = torch.autograd.grad(logits.sum(), hidden[name], retain_graph=True, allow_unused=True)
        if gradient is not None and int((as_map(gradient)[:, :, -places:].abs().amax(dim=(0, 1)) > 0).sum()) > 1:
            return name, False, grid
    raise InvalidValueError(
        "No module hands on a map of the image that the answers depend on at more than one place: there is nothing to draw. "
        "Leave grad_cam out."
    )


def _images_of(reader: ImageReader, label: int, most: int) -> dict[str, Any]:
    """Model inputs of the first `most` images with a label."""
    parts: list[dict[str, Any]] = []
    found = 0
    for inputs, rows in reader.inputs_with_labels([label]):
        parts.append(of_rows(inputs, slice(most - found)))
        found += len(rows)
        if found >= most:
            break
    if not parts:
        raise InvalidValueError(
            f"No image in the data has the label {label} ({reader.model.class_names.get(label)}). Give data that shows it, "
            "or name another label."
        )
    shared = {name: value for name, value in parts[0].items() if not isinstance(value, Tensor) or not value.ndim}
    return shared | {name: one_batch([part[name] for part in parts]) for name in parts[0] if name not in shared}


def grid_of(hidden: Tensor, image: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of a map; None where its tokens form no grid of the images' shape.

    Tokens before the grid (class and register tokens) are not part of it.
    """
    if hidden.ndim == 4:
        _, a, b, c = hidden.shape
        return (a, b) if a == b != c else (b, c)
    height, width = image
    tokens = hidden.shape[1]
    for count in range(tokens, max(0, tokens - MOST_SPECIAL - 1), -1):
        rows = max(1, round(math.sqrt(count * height / width)))
        columns = count // rows
        if rows * columns == count and abs(rows * width - columns * height) < max(height, width):
            return rows, columns
    return None


class _Keep(nn.Module):
    """Stands in the place of an eraser, keeps what passes with its graph, and lets it pass."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Tensor] = []

    def forward(self, rows: Tensor) -> Tensor:
        self.rows.append(rows)
        return rows


@contextlib.contextmanager
def _in_place_of_erasers(model: TappedModel, modules: Sequence[nn.Module | None]) -> Iterator[None]:
    """Other modules at the sites inside; afterwards the erasers that were there."""
    kept = [site.eraser for site in model.sites]
    try:
        for site, module in zip(model.sites, modules, strict=True):
            site.eraser = module
        yield
    finally:
        for site, eraser in zip(model.sites, kept, strict=True):
            site.eraser = eraser


@contextlib.contextmanager
def block_outputs(model: Any, blocks: Sequence[str]) -> Iterator[Callable[[int], dict[str, Tensor]]]:
    """Yields a function that returns (and forgets) the hidden states of the last forward, of so many images, by block."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: seen.__setitem__(name, output)

    def take(images: int) -> dict[str, Tensor]:
        found = {name: hidden_state(seen[name], images) for name in blocks}
        seen.clear()
        return {name: hidden for name, hidden in found.items() if hidden is not None}

    with hooked([model.get_submodule(name).register_forward_hook(keep(name)) for name in blocks]):
        yield take
