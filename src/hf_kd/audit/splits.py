"""Train and test images of an audit: in which ids their labels are numbered, and the features that models read from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_kd.data.again import ReadBefore, other_samples
from hf_kd.data.devices import own_generators
from hf_kd.data.distributed import gather_rows
from hf_kd.data.hidden_state import logits_of
from hf_kd.data.labels import has_no_names, in_numbering
from hf_kd.data.progress import working
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import apply_erasers
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader, ReadFeatures, ReadOptions
from hf_kd.features.readers import share_mapping
from hf_kd.features.taps.inputs import input_device, run

from .hidden_states import FORGOTTEN_SHARE, MOST_ROWS, blocks_of, blocks_read, read_layers, sampled_rows
from .schema import Section
from .sections.layers import layer_profile_section
from .weight_access import AuditImages

Split = tuple[Tensor, ...]
"""Features [n, d] of one split at each tap."""


class AuditSplits:
    """Train and test images, and the features that models read from them: always a pair, train first.

    Labels are class ids of the model wherever it knows the classes of the training images, as they are when it is erased.
    Otherwise, which only a model without a head may not, they are those of the training images, to which test labels are
    put by their names.
    """

    def __init__(
        self,
        model: TappedModel,
        train: Any,
        test: Any,
        reading: ReadOptions,
        original: TappedModel | None = None,
        changed: bool = False,
    ):
        """original: the model before its weights were changed, where it was given; changed: whether they were."""
        self.original, self.changed = original, changed
        given = {"train": (train, reading), "test": (test, reading.of_test())}
        self._readers = {split: ImageReader(model, images, own) for split, (images, own) in given.items()}
        share_mapping(self._readers)
        # what was drawn is drawn once: every later pass reads just that, as the labels are numbered
        self.model, self.reading = model, replace(reading, limit=None, limit_test=None)
        self._images = {
            split: reader.data if reader.sampled is None else reader.images.source
            for split, reader in self._readers.items()
        }

    def check_recorded(self) -> None:
        """Refuse data of other classes than those that the records name, which are the model's.

        Raises:
            LabelMismatchError: Naming them.
        """
        _ = self._readers["train"].mapping

    def read(self, wanted: Sequence[int] | None) -> None:
        """The first pass: features before the erasers of the model; of all labels, or of the `wanted` ones."""
        read = {split: reader.read(own_labels=True) for split, reader in self._readers.items()}
        # of what was drawn, later passes know nothing but what is left
        streamed = {split for split, reader in self._readers.items() if reader.images.kind == "stream"}
        self._numbers = {
            split: part.rows if split in streamed else torch.arange(len(part.rows)) for split, part in read.items()
        }
        self._all = {split: self._numbered(split, complete(part.labels, split)) for split, part in read.items()}
        for split, reader in self._readers.items():
            if not reader.reads_the_same_again:
                before = read[split].labels, reader.images.label_names
                self._images[split] = ReadBefore(self._images[split], *before)
        keep = None if wanted is None else torch.tensor(list(wanted))
        self._rows = {
            split: torch.ones_like(labels, dtype=torch.bool) if keep is None else torch.isin(labels, keep)
            for split, labels in self._all.items()
        }
        self.before = self._kept(read)
        self.labels = self._all["train"][self._rows["train"]], self._all["test"][self._rows["test"]]

    def _numbered(self, split: str, labels: Tensor) -> Tensor:
        """Labels of a split, of its own ids, by the ids of the audit."""
        own, train = self._readers[split], self._readers["train"]
        if train.mapping_where_known is not None:
            return labels if own.mapping is None else own.mapping(labels)
        names = own.label_names, train.label_names
        return labels if names[0] is None or names[1] is None else in_numbering(labels, names[0], names[1])

    def _kept(self, read: Mapping[str, ReadFeatures]) -> tuple[Split, Split]:
        train, test = (tuple(part[self._rows[split]] for part in read[split].before) for split in self._images)
        return train, test

    def read_again(self, other: TappedModel, view: str | None = None) -> tuple[Split, Split]:
        """Another model, or another view, on the same samples; before the erasers."""
        read = {
            split: ImageReader(other, images, self.reading).read(view, own_labels=True)
            for split, images in self._images.items()
        }
        for split, part in read.items():
            if len(part.labels) != len(self._all[split]):
                raise other_samples(f"{len(part.labels)} {split} samples and the first {len(self._all[split])}")
        return self._kept(read)

    @property
    def names(self) -> dict[int, str]:
        """What the labels are called: by the model where they are its class ids, else by the training images."""
        train = self._readers["train"]
        if train.mapping_where_known is None and (train.label_names or has_no_names(self.model.class_names)):
            return dict(enumerate(train.label_names or ()))
        return dict(self.model.class_names)

    @property
    def sampled(self) -> dict[str, dict[str, int]]:
        """The splits of which only a sample is read, and of how many images it is."""
        return {split: reader.sampled for split, reader in self._readers.items() if reader.sampled is not None}

    def behind(self, model: TappedModel, before: tuple[Split, Split]) -> tuple[Split, Split]:
        """Behind the erasers of `model`."""
        train, test = (apply_erasers(model, split) for split in before)
        return train, test

    def versions(self, view: str | None = None) -> dict[str, tuple[Split, Split]]:
        """Features of each version that is known: of changed weights without the model before, there is no original."""
        before = self.before if view is None else self.read_again(self.model, view)
        found = {"erased": self.behind(self.model, before)}
        if self.original is not None:
            found["original"] = self.of_other(self.original, view)
        elif not self.changed:
            found["original"] = before
        if self.model.erasures and found.get("original") is not before:
            found["before_projection"] = before
        return found

    def of_other(self, other: TappedModel, view: str | None = None) -> tuple[Split, Split]:
        """Features of another model behind its erasers."""
        return self.behind(other, self.read_again(other, view))

    def untrained_logits(self, forget: Sequence[int]) -> Tensor:
        """What a classifier's architecture answers on D_f before any training, [n, C]."""
        reading = replace(self.reading, label_mapping=self._readers["train"].options.label_mapping)
        return untrained_logits(ImageReader(self.model, self._images["train"], reading), forget)

    def for_weights(self, forget: Sequence[int]) -> AuditImages:
        """The same samples for attacks on the network itself."""
        return AuditImages(self._images, self._all, self._rows, forget, self.reading, self._numbers, self.names)

    def layer_profile(self, forget: Sequence[int], features: Mapping[str, tuple[Tensor, Tensor]]) -> Section:
        """The layer profile beside the original's, and the tap beside it on the same samples."""
        models = {"erased": self.model} | ({} if self.original is None else {"original": self.original})
        blocks = {version: blocks_of(model) for version, model in models.items()}
        blocks = {version: [name for name in own if name in blocks["erased"]] for version, own in blocks.items()}
        hidden, labels, tap = [], [], []
        for number, (split, images) in enumerate(self._images.items()):
            kept = self._rows[split]
            rows = sampled_rows(self._all[split], kept, forget, MOST_ROWS[split], FORGOTTEN_SHARE[split])
            numbers = self._numbers[split][rows]
            read = {
                version: read_layers(models[version], images, self.reading, own, numbers)
                for version, own in blocks.items()
            }
            if self.original is None and not self.changed:  # an eraser alone leaves what is below it
                read["original"] = read["erased"]
            hidden.append(read)
            labels.append(self._all[split][rows])
            among = torch.isin(torch.nonzero(kept).flatten(), rows)
            tap.append({version: pair[number][among] for version, pair in features.items()})
        with working("probing every block", self.reading.progress):
            section = layer_profile_section(hidden[0], labels[0], hidden[1], labels[1], forget, (tap[0], tap[1]))
        told = f"Read at {blocks_read(self.model, blocks['erased'])} and at the tap."
        return replace(section, notes=(*section.notes, told))


def untrained_logits(reader: ImageReader, labels: Sequence[int]) -> Tensor:
    """What a classifier's architecture answers before any training: logits [n, C] of the samples with `labels`, in order.

    The weights are those the class initialises itself with, by a fixed seed.
    """
    inner = reader.model.inner
    with own_generators(torch.get_default_device(), 0):
        untrained = type(inner)(copy.deepcopy(inner.config)).eval().to(input_device(inner))
    rows, answers = [torch.zeros(0, dtype=torch.long)], []
    with torch.no_grad():
        for inputs, numbers in reader.inputs_with_labels(labels):
            rows.append(numbers)
            answers.append(logits_of(run(untrained, inputs)).float().cpu())
    numbers = gather_rows(torch.cat(rows), fill=-1)
    gathered = gather_rows(torch.cat(answers) if answers else torch.zeros(0, 1))
    present = numbers >= 0
    return gathered[present][torch.argsort(numbers[present], stable=True)].cpu()


def complete(labels: Tensor, split: str) -> Tensor:
    """Labels of a split.

    Raises:
        InvalidValueError: Where some have none.
    """
    missing = int((labels < 0).sum())
    if missing:
        raise InvalidValueError(
            f"{missing} of {len(labels)} {split} samples have no label; an audit needs one for every image. Name the label "
            "column with label_column=..., or filter these samples out."
        )
    return labels
