"""What the battery attacks: a stock network as a downloader holds it, and labelled images on the network's device."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kd.audit.hidden_states import blocks_of
from hf_kd.data.hidden_state import logits_of
from hf_kd.data.labels import counterparts
from hf_kd.data.masked_classes import SILENT_BIAS
from hf_kd.data.modes import drop_caches, evaluating, hooked, mean_statistics, prefer_channels_last
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import has_head, linear_heads
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import probe_batch
from hf_kd.features.taps.inputs import image_inputs, input_device, run
from hf_kd.metrics._inputs import few_of_each

logger = logging.getLogger(__name__)

BATCH = {"cpu": 64, "cuda": 512}
"""Images in a forward pass without gradients, by kind of device; caches of processors hold no more."""

RECALIBRATION = 512
"""Images from which BatchNorm statistics are taken after the weights changed."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled model inputs in memory, in random order; on the network's device where they fit there."""

    inputs: dict[str, Tensor]
    labels: Tensor
    """Class ids [n], on the device of the inputs."""

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor | slice) -> Images:
        """Those at positions `index`, or where a mask holds."""
        return Images({name: value[index] for name, value in self.inputs.items()}, self.labels[index])

    def batches(self, size: int | None = None) -> Iterator[Images]:
        """All of them, in order; by default as many at a time as the device likes."""
        size = size or BATCH.get(self.labels.device.type, 64)
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def to(self, device: torch.device | str) -> Images:
        """On another device."""
        return Images({name: value.to(device) for name, value in self.inputs.items()}, self.labels.to(device))


@dataclass(frozen=True, eq=False)
class WhiteBoxData:
    """The images that attackers have, those on which they are scored, and what was to be forgotten."""

    train: Images
    test: Images
    forget: tuple[int, ...]

    @cached_property
    def classes(self) -> Tensor:
        """Class ids in train, ascending [K]."""
        return self.train.labels.unique()

    @cached_property
    def test_forget(self) -> Tensor:
        """Bool [n_test]."""
        return torch.isin(self.test.labels, torch.tensor(self.forget, device=self.test.labels.device))

    @cached_property
    def train_forget(self) -> Tensor:
        """Bool [n_train]."""
        return torch.isin(self.train.labels, torch.tensor(self.forget, device=self.train.labels.device))

    @cached_property
    def forget_columns(self) -> Tensor:
        """Bool [K]: which of `classes` were forgotten."""
        return torch.isin(self.classes, torch.tensor(self.forget, device=self.classes.device))

    @cached_property
    def class_sizes(self) -> tuple[int, int]:
        """Images in train of the smallest and of the largest class."""
        counts = self.train.labels.unique(return_counts=True)[1]
        return int(counts.min()), int(counts.max())

    def balanced_test(self, most: int) -> WhiteBoxData:
        """The same with at most `most` test images, up to a third of them forgotten."""
        if len(self.test) <= most:
            return self
        forgotten, retained = (torch.nonzero(mask).flatten() for mask in (self.test_forget, ~self.test_forget))
        taken = min(len(forgotten), max(most // 3, most - len(retained)))
        rows = torch.cat([forgotten[:taken], retained[: most - taken]]).sort().values
        return replace(self, test=self.test.rows(rows))

    def shots(self, count: int, seed: int) -> Tensor:
        """Positions in train of `count` images of every class, all where a class has fewer."""
        return few_of_each(self.train.labels, count, seed)


@dataclass(frozen=True, eq=False)
class Network:
    """A model in eval mode without erasers, hooks and masks of classes; attacks work on copies of it."""

    model: nn.Module
    blocks: tuple[str, ...]
    """Names of the modules that hand on a hidden state, in the order in which an image passes them."""
    heads: tuple[str, ...] = ()
    """Dotted paths of what maps pooled features to logits; none for an embedding model."""
    columns: Mapping[int, int] | None = None
    """Column of the logits of each class id; None where they are the same. A class may have none."""
    fresh: Callable[[], nn.Module] | None = None
    """The same architecture, as its class initialises it."""
    cut: str | None = None
    """The last block that whoever draws the rest anew keeps; None for the lower third."""

    @classmethod
    def of(cls, model: TappedModel, class_names: Mapping[int, str] | None = None, cut: str | None = None) -> Network:
        """What is left of a model once everything that was added to it is taken off, in float32.

        An attacker trains in full precision: a step at 1e-4 is below what half precision can tell apart.

        Args:
            model: Not changed.
            class_names: Names of the class ids of the data, where they may be others than the model's; compared without
                regard to case and spelling. A model that has as many classes and none of these names is taken to have the
                same ids.
            cut: See the attribute; one of the blocks then, where there is such a module.
        """
        blocks = blocks_of(model, also=cut)
        heads = tuple(head for tap in model.taps for head in tap.heads) if has_head(model) else ()
        drop_caches(model.inner)
        bare = copy.deepcopy(model)
        for site in bare.sites:
            site.detach()
        inner = bare.inner.float().eval()
        if input_device(inner).type == "cpu":
            probe = image_inputs(probe_batch(model))
            with torch.no_grad():
                prefer_channels_last(inner, lambda: run(inner, probe))
        columns = None
        if class_names and model.class_names and dict(class_names) != dict(model.class_names):
            columns = counterparts(class_names, model.class_names)
            if not columns and len(class_names) == len(model.class_names):
                columns = None
                logger.warning(
                    "No class of this %s is called as in the audited model, and there are as many (%d): taking it that they "
                    "are the same, in the same order. If they are not, give its config the names: id2label and label2id.",
                    type(inner).__name__,
                    len(class_names),
                )
        return cls(inner, blocks, heads, columns, lambda: type(inner)(copy.deepcopy(inner.config)), cut)

    @property
    def device(self) -> torch.device:
        return input_device(self.model)

    @property
    def norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        """Layers with statistics of batches."""
        return [
            module
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        ]

    def copied(self) -> Network:
        """The same with a model of its own."""
        return replace(self, model=copy.deepcopy(self.model))

    def linear_heads(self) -> list[nn.Linear]:
        """The Linear layers that give the logits; none where a head is anything else."""
        return [cast(nn.Linear, self.model.get_submodule(path)) for path in linear_heads(self.model, self.heads)]

    @property
    def without_head(self) -> str:
        """Why no answers can be asked for; nothing where there is a head."""
        return "" if self.heads else f"this {type(self.model).__name__} has no classification head"

    def without_rows(self, classes: Tensor) -> str:
        """Why the head cannot be trained to answer all of `classes`; nothing where each has a row, or can be given one."""
        if not self.heads:
            return self.without_head
        columns = self.columns_of(classes)
        if None not in columns or (self.linear_heads() and any(column is not None for column in columns)):
            return ""
        return (
            f"the head of this {type(self.model).__name__} has no row for {columns.count(None)} of {len(columns)} classes, "
            "and is no Linear layer that a row could be added to"
        )

    def columns_of(self, classes: Tensor) -> list[int | None]:
        """Of the logits, for each class; see `column_of`."""
        return [self.column_of(label) for label in classes.tolist()]

    def column_of(self, label: int) -> int | None:
        """Of the logits, or None where the head has no row for the class or one that answers nothing."""
        column = label if self.columns is None else self.columns.get(label)
        if column is None:
            return None
        for head in self.linear_heads():
            if column >= head.out_features:
                return None
            weight, bias = head.weight[column], None if head.bias is None else head.bias[column]
            if not bool(torch.isfinite(weight).all()) or not bool(weight.any()):
                return None
            if bias is not None and not bool(torch.isfinite(bias)):
                return None
        return column

    def class_logits(self, images: Images, classes: Tensor) -> Tensor:
        """Logits [n, K] of `classes` in eval mode without gradients, where the labels are.

        Those of a class without a row are lower than all others.
        """
        columns = self.columns_of(classes)
        with evaluating(self.model), torch.no_grad():
            logits = torch.cat([answer(self.model, part.inputs) for part in images.batches()]).to(images.labels.device)
        floor = (
            logits[torch.isfinite(logits)].min() - 1.0 if bool(torch.isfinite(logits).any()) else logits.new_zeros(())
        )
        logits = torch.where(torch.isfinite(logits), logits, floor)
        found = [logits[:, column] if column is not None else floor.expand(len(logits)) for column in columns]
        return torch.stack(found, dim=1)

    @contextlib.contextmanager
    def fed(self, heads: Sequence[str]) -> Iterator[Callable[[], Tensor]]:
        """Yields a function that returns what heads were fed with in the last forward: [n, d] in float32, side by side.

        A tensor that several heads are fed with is there once.
        """
        seen: list[Tensor] = []

        def see(module: nn.Module, args: Any) -> None:
            if not any(args[0].is_set_to(other) for other in seen):  # by values it would hang on the images
                seen.append(args[0].detach())

        def take() -> Tensor:
            rows = torch.cat([features.flatten(1).float() for features in seen], dim=1)
            seen.clear()
            return rows

        with hooked([self.model.get_submodule(head).register_forward_pre_hook(see) for head in heads]):
            yield take

    def head_inputs(self, images: Images, head: str | None = None) -> Tensor:
        """What a head, by default all of them, is fed with, [n, d] in float32, in eval mode.

        Raises:
            InvalidValueError: For a model without a head.
        """
        if not self.heads:
            raise InvalidValueError(f"{type(self.model).__name__} has no classification head to read the input of.")
        kept: list[Tensor] = []
        with evaluating(self.model), torch.no_grad(), self.fed([head] if head else self.heads) as take:
            for part in images.batches():
                run(self.model, part.inputs)
                kept.append(take())
        return torch.cat(kept)


def answer(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits [n, C] in float32, with a graph where gradients are on."""
    return logits_of(run(model, inputs)).float().flatten(1)


def train_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, inputs: Mapping[str, Tensor], targets: Tensor, columns: Tensor
) -> None:
    """One step down the cross entropy of some columns of the logits; targets [n] are positions among them."""
    loss = F.cross_entropy(answer(model, inputs)[:, columns], targets.to(columns.device))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


@torch.no_grad()
def recalibrated(network: Network, images: Images) -> Network:
    """A copy whose BatchNorm statistics are those of `images`, which need no labels; itself where it has no BatchNorm.

    Statistics of changed networks may be stale: one pass in train mode can bring a "forgotten" class back.
    """
    if not network.norms:
        return network
    made = network.copied()
    made.model.eval()
    size = 256 if len(images) % 256 != 1 else 255  # a single image has no variance
    mean_statistics(made.model, made.norms, (run(made.model, part.inputs) for part in images.batches(size)))
    return made


@torch.no_grad()
def with_rows(network: Network, data: WhiteBoxData, rows: Tensor) -> tuple[Network, str]:
    """A copy whose head has a row for each of the data's classes, in their order; and where the forgotten ones come from.

    A row that is missing or answers nothing is made from the labelled images `rows` of train: along the mean of the class
    less that of all, as long as the others, its logit on them as high as the highest of the others. "own" where all rows
    are the head's, "none" where one is missing and the head cannot be changed (`Network.without_rows`).
    """
    heads = network.linear_heads()
    columns = network.columns_of(data.classes)
    alive = [c for c in columns if c is not None and all(_bias(head, c) > SILENT_BIAS for head in heads)]
    made = network.copied()
    if network.without_rows(data.classes) or len(alive) == len(columns) or not heads:
        return made, "none" if None in columns else "own"
    shown = data.train.rows(rows)
    for name, old in zip(linear_heads(network.model, network.heads), heads, strict=True):
        features = network.head_inputs(shown, name)
        new = cast(nn.Linear, nn.utils.skip_init(nn.Linear, old.in_features, len(columns))).to(old.weight)
        length = old.weight[alive].norm(dim=1).mean()
        best = (features @ old.weight[alive].T.float() + features.new_tensor([_bias(old, c) for c in alive])).amax(
            dim=1
        )
        for k, (label, column) in enumerate(zip(data.classes.tolist(), columns, strict=True)):
            if column in alive:
                new.weight[k], new.bias[k] = old.weight[column], _bias(old, column)
                continue
            own = (shown.labels == label).to(features.device)
            direction = features[own].mean(dim=0) - features.mean(dim=0)
            new.weight[k] = length * direction / direction.norm().clamp_min(1e-12)
            new.bias[k] = (best[own] - features[own] @ new.weight[k].float()).mean()
        made.model.set_submodule(name, new)
    return replace(made, columns={label: k for k, label in enumerate(data.classes.tolist())}), "made"


def _bias(head: nn.Linear, column: int) -> float:
    return 0.0 if head.bias is None else float(head.bias[column])
