"""Protocols: which images are to be forgotten, which stay, and what is asked about them.

class: whole classes; by default those whose id ends in 4, a tenth of them, as in the paper. random: a share of all training
images. incremental: one class after another. subclass: a fine class inside the model's super-classes. identities: people
from one folder each, split into train and test without an image in both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from datasets import Image as ImageFeature
from torch import Tensor

from hf_kd.data.draw import stratified_rows
from hf_kd.data.image_source import inspect_images
from hf_kd.data.labels import match_labels, own_mapping, resolve_forget_labels
from hf_kd.data.load import load_source
from hf_kd.errors import InvalidValueError

from .config import Experiment
from .shape import listed

Both = tuple[Tensor, Tensor]
"""Labels of both splits, train first."""
LEAST = 2
"""Images of each class that a limit leaves: one to forget or to train on, and another."""


@dataclass
class Problem:
    """What one experiment asks, on data whose rows do not move."""

    kind: str
    train: Dataset
    test: Dataset
    train_labels: Tensor
    """Class ids of the model [n]."""
    test_labels: Tensor
    stages: tuple[Tensor, ...]
    """Rows of `train` to forget, request after request; the protocols but "incremental" have one."""
    classes: tuple[tuple[int, ...], ...]
    """What each stage forgets, in ids of `probe` labels; empty where it is no class."""
    probe_train: Tensor
    """What probes read [n]: the model's labels, or finer ones."""
    probe_test: Tensor
    names: Mapping[int, str] = field(default_factory=dict)
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    """Further masks of test images whose accuracy is of interest, such as the siblings of a forgotten fine class."""

    @property
    def forgets_whole_classes(self) -> bool:
        """Whether a class of the model that is asked about is forgotten as a whole: not a sample of it, and no part."""
        return self.kind not in ("random", "subclass")

    def forget_rows(self, stage: int) -> Tensor:
        """All rows [k] of `train` to forget, ascending.

        Args:
            stage: Up to and with this one, from 0.
        """
        return torch.cat(self.stages[: stage + 1]).sort().values

    def forget_train(self, stage: int) -> Tensor:
        """Mask [n] of D_f.

        Args:
            stage: Up to and with this one, from 0.
        """
        mask = torch.zeros(len(self.train_labels), dtype=torch.bool)
        mask[self.forget_rows(stage)] = True
        return mask

    def forget_classes(self, stage: int) -> list[int]:
        """The classes to forget, in ids of `probe` labels, ascending; none where it is no class.

        Args:
            stage: Up to and with this one, from 0.
        """
        return sorted({label for classes in self.classes[: stage + 1] for label in classes})

    def forget_test(self, stage: int) -> Tensor | None:
        """Mask [m] of D_ft; None where no class is forgotten.

        Args:
            stage: Up to and with this one, from 0.
        """
        if not self.forget_classes(stage):
            return None
        return torch.isin(self.probe_test, torch.tensor(self.forget_classes(stage)))

    def images_to_keep(self, stage: int, most: int | None) -> Dataset:
        """D_r after a stage.

        Args:
            stage: From 0.
            most: At most so many images, drawn by a fixed seed; None for all.
        """
        rows = torch.nonzero(~self.forget_train(stage)).flatten()
        if most is not None and most < len(rows):
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
            rows = rows[order[:most]].sort().values
        return self.train.select(rows.tolist())


def without_report(experiment: Experiment) -> str:
    """Why there is no audit of its rows, "" where there is one.

    Args:
        experiment: What is asked for.
    """
    return {
        "random": "an audit is about forgotten classes, and the random protocol forgets none",
        "subclass": "an audit is about classes of the model, and the subclass protocol forgets a part of one",
    }.get(experiment.protocol["kind"], "")


def not_measured(experiment: Experiment) -> list[str]:
    """What is asked for that its protocol does not have, each with the reason.

    Args:
        experiment: What is asked for.
    """
    asked, why = experiment.measures, without_report(experiment)
    found = [f"no report: {why}"] if asked.report and why else []
    if asked.attacks and experiment.protocol["kind"] == "random":
        found.append("no attacks: they look for forgotten classes, and the random protocol forgets none")
    return found


def make_problem(experiment: Experiment, class_names: Mapping[int, str]) -> Problem:
    """Open the data of an experiment and say what is to be forgotten.

    Args:
        experiment: What is asked for. A label that its mapping names may be one of either split alone.
        class_names: The model's, by id.

    Returns:
        The images, and which of them each request forgets.

    Raises:
        InvalidValueError: Labels do not exist, the data set has none, or a setting is out of range.
    """
    protocol, where = experiment.protocol, experiment.dataset
    if protocol["kind"] == "identities":
        train, test = split_identities(open_split(where, "train"), where, protocol)
    else:
        train, test = (open_split(where, split) for split in ("train", "test"))
    columns = [_columns(part, where) for part in (train, test)]
    fine = protocol.get("fine_column")
    if fine is not None and not all(fine in part.column_names for part in (train, test)):
        raise InvalidValueError(
            f"The splits have no column {fine!r} of fine labels in common; the columns are {', '.join(train.column_names)}."
        )
    train, test = (
        limited(part, fine or column, experiment.limit)
        for part, (column, _) in zip((train, test), columns, strict=True)
    )
    names, mapping = [own for _, own in columns], where.get("label_mapping") or {}
    to_model_ids = [
        match_labels(own, class_names, own_mapping(mapping, own, [other]))
        for own, other in zip(names, reversed(names), strict=True)
    ]
    train_labels, test_labels = (
        in_model(torch.tensor(part[column]))
        for part, (column, _), in_model in zip((train, test), columns, to_model_ids, strict=True)
    )
    make = {"random": _random, "subclass": _subclass}.get(protocol["kind"], _classes)
    return make(protocol, train, test, (train_labels, test_labels), names[0], to_model_ids[0])


def _classes(protocol, train, test, labels: Both, names, to_model_ids) -> Problem:
    present = labels[0].unique().tolist()
    wanted = protocol.get("forget")
    if wanted is None:
        ids = [label for label in present if label % 10 == 4]
        if not ids:
            raise InvalidValueError(
                "No class id ends in 4; say which classes to forget: protocol: {kind: class, forget: [...]}."
            )
    else:
        ids = to_model_ids(torch.tensor(resolve_forget_labels(listed(wanted), names))).tolist()
    one_by_one = protocol["kind"] == "incremental"
    groups = [(label,) for label in ids] if one_by_one else [tuple(ids)]
    stages = tuple(torch.nonzero(torch.isin(labels[0], torch.tensor(group))).flatten() for group in groups)
    for group, rows in zip(groups, stages, strict=True):
        if not len(rows) or not bool(torch.isin(labels[1], torch.tensor(group)).any()):
            raise InvalidValueError(
                f"Classes {group} have no images in one of the splits, so nothing can be measured of them."
            )
    if set(ids) >= set(present) or set(ids) >= set(labels[1].unique().tolist()):
        raise InvalidValueError(f"All {len(present)} classes are to be forgotten; nothing would be left to keep.")
    titles = {} if names is None else dict(
        zip(to_model_ids(torch.arange(len(names))).tolist(), names, strict=True)
    )  # fmt: skip
    return Problem(protocol["kind"], train, test, *labels, stages, tuple(groups), *labels, names=titles)


def _random(protocol, train, test, labels: Both, names, to_model_ids) -> Problem:
    share = protocol.get("share", 0.1)
    rows = random_rows(labels[0], share, protocol.get("seed", 0), protocol.get("stratified", True))
    if not 0 < len(rows) < len(train):
        raise InvalidValueError(
            f"share={share} of {len(train)} images leaves {len(rows)} to forget; some have to stay and some go."
        )
    return Problem("random", train, test, *labels, (rows,), ((),), *labels)


def random_rows(labels: Tensor, share: float, seed: int = 0, stratified: bool = True) -> Tensor:
    """Which images the random protocol forgets.

    Args:
        labels: Of all images [n].
        share: How many of them, between 0 and 1.
        seed: Of the draw.
        stratified: The share of each class, not of all.

    Returns:
        Their rows, ascending.
    """
    generator = torch.Generator().manual_seed(seed)
    every = torch.arange(len(labels))
    parts = [every[labels == label] for label in labels.unique()] if stratified else [every]
    drawn = [part[torch.randperm(len(part), generator=generator)[: round(share * len(part))]] for part in parts]
    return torch.cat(drawn).sort().values


def _subclass(protocol, train, test, labels: Both, names, to_model_ids) -> Problem:
    column = protocol["fine_column"]
    feature = train.features[column]
    fine = torch.tensor(train[column]), torch.tensor(test[column])
    fine_names = feature.names if isinstance(feature, ClassLabel) else None
    ids = resolve_forget_labels(listed(protocol["forget"]), fine_names)
    rows = torch.nonzero(torch.isin(fine[0], torch.tensor(ids))).flatten()
    asked = torch.isin(fine[1], torch.tensor(ids))
    if not len(rows) or not bool(asked.any()) or bool(asked.all()):
        raise InvalidValueError(
            f"Of the fine labels {protocol['forget']} there are {len(rows)} training and {int(asked.sum())} test images; "
            "both splits need some, and test others too."
        )
    above = labels[0][rows].unique()
    siblings = torch.isin(labels[1], above) & ~asked
    titles = {} if fine_names is None else dict(enumerate(fine_names))
    groups = {"siblings": siblings} if bool(siblings.any()) else {}
    return Problem("subclass", train, test, *labels, (rows,), (tuple(ids),), *fine, names=titles, groups=groups)


def split_identities(data: Dataset, where: Mapping[str, Any], protocol: Mapping[str, Any]) -> tuple[Dataset, Dataset]:
    """A Lacuna-style split without its leakage: people with enough different images, drawn without replacement.

    Exact copies of an image count once, whoever they are filed under. No image is in both splits.

    Args:
        data: Images, labelled by the person.
        where: The data set's settings, of which `image_column` and `label_column` are read.
        protocol: `train_images` (400) and `test_images` (100), how many of each person are drawn; `people`, how many of
            those who have that many (all); `seed` (0).

    Returns:
        The training images and the test images, labelled among the people drawn.

    Raises:
        InvalidValueError: Where too few people have enough images, and where there is no single label column.
    """
    column, _ = _columns(data, where)
    image = inspect_images(data, where.get("image_column"), where.get("label_column")).image_column
    encoded = data.cast_column(image, ImageFeature(decode=False))
    seen: set[str] = set()
    by_person: dict[int, list[int]] = {}
    for row, (picture, person) in enumerate(zip(encoded[image], data[column], strict=True)):
        content = picture["bytes"]
        if content is None:
            with open(picture["path"], "rb") as file:
                content = file.read()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in seen:
            seen.add(digest)
            by_person.setdefault(person, []).append(row)
    train_images, test_images = protocol.get("train_images", 400), protocol.get("test_images", 100)
    enough = sorted(person for person, rows in by_person.items() if len(rows) >= train_images + test_images)
    people = protocol.get("people", len(enough))
    if people > len(enough) or not enough:
        raise InvalidValueError(
            f"{len(enough)} of {len(by_person)} people have {train_images + test_images} different images, and {people} are "
            "wanted. Lower people, train_images or test_images."
        )
    rng = np.random.default_rng(protocol.get("seed", 0))
    chosen = sorted(rng.choice(enough, people, replace=False).tolist())
    rows: dict[str, list[int]] = {"train": [], "test": []}
    for person in chosen:
        drawn = rng.permutation(by_person[person])[: train_images + test_images].tolist()
        rows["train"] += drawn[:train_images]
        rows["test"] += drawn[train_images:]
    train, test = (_renumbered(data.select(rows[split]), column, chosen) for split in ("train", "test"))
    return train, test


def _renumbered(data: Dataset, column: str, people: Sequence[int]) -> Dataset:
    """With the labels of these people alone: a model of theirs has no outputs for thousands who were not drawn."""
    feature = data.features[column]
    if not isinstance(feature, ClassLabel):
        return data
    place = {person: number for number, person in enumerate(people)}
    labels = [place[person] for person in data[column]]
    names = ClassLabel(names=[feature.names[person] for person in people])
    return data.remove_columns(column).add_column(column, labels, feature=names)


def open_split(where: Mapping[str, Any], split: str) -> Dataset:
    """The data set of one split of a data set's settings, "train" or "test", which may call it otherwise."""
    # which is a stream only where one is asked for
    return cast(Dataset, load_source(where["name"], split=where.get(split, split)))


def _columns(data: Dataset, where: Mapping[str, Any]) -> tuple[str, tuple[str, ...] | None]:
    described = inspect_images(data, where.get("image_column"), where.get("label_column"))
    if described.label_column is None:
        among = f" (candidates: {', '.join(described.label_candidates)})" if described.label_candidates else ""
        raise InvalidValueError(
            f"The data set has no single label column{among}; name it: dataset: {{label_column: ...}}."
        )
    return described.label_column, described.label_names


def limited(data: Dataset, column: str, limit: int | None) -> Dataset:
    """At most `limit` rows, every class in its share and with `LEAST` at least, in their order.

    Raises InvalidValueError for a limit that leaves some class fewer.
    """
    if limit is None or limit >= len(data):
        return data
    return data.select(stratified_rows(data[column][:], limit, least=LEAST))
