"""What everything in `metrics` does first: check features, labels and logits, and walk through them in float64.

Errors name the argument, the value found, the rule and the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

ArrayLike = Tensor | np.ndarray | Sequence

ROWS_PER_CHUNK = 8192
"""Rows of features that `chunks` promotes to float64 at a time."""

CHUNK = 4096
"""Rows promoted to float64 at a time: bounds the memory of every pass to CHUNK x columns."""


def as_features(features: ArrayLike, name: str = "features") -> Tensor:
    """Features as a floating [n, d] tensor on their own device, without a graph.

    Raises ValueError on ragged or other than two-dimensional input, on no rows or columns, on a non-numeric dtype and
    on NaN or infinite entries (naming the first such row).
    """
    if not isinstance(features, Tensor):
        try:
            array = np.asarray(features)
        except ValueError as error:
            raise InvalidValueError(
                f"The {name} are ragged: every row has to have the same number of columns."
            ) from error
        if array.dtype.kind not in "fiub":
            raise InvalidValueError(
                f"The {name} have dtype {array.dtype}; expected numbers in [n, d] with rows of equal length."
            )
        features = torch.from_numpy(np.ascontiguousarray(array))
    features = features.detach()
    if features.ndim != 2 or 0 in features.shape:
        raise InvalidValueError(
            f"The {name} have shape {tuple(features.shape)}; expected [n, d] with n, d >= 1. Flatten or pool."
        )
    if features.is_complex():
        raise InvalidValueError(f"The {name} are complex; expected real numbers.")
    if not features.is_floating_point():
        features = features.to(torch.float32)
    if features.device.type == "mps":  # no float64 there
        features = features.cpu()
    finite = torch.isfinite(features)
    if not finite.all():
        bad = torch.nonzero(~finite.all(dim=1)).flatten()
        raise InvalidValueError(
            f"Row {int(bad[0])} of the {name} is not finite ({bad.numel()} such rows of {features.shape[0]}); "
            "drop these samples or fix the model's precision."
        )
    return features


def as_columns(features: ArrayLike, columns: int, name: str = "features", like: str = "training features") -> Tensor:
    """`as_features`, and an error where the number of columns is not that of the features they are compared with."""
    checked = as_features(features, name)
    if checked.shape[1] != columns:
        raise InvalidValueError(
            f"The {name} have {checked.shape[1]} columns and the {like} {columns}; both have to come from the "
            "same tap of the same model."
        )
    return checked


def as_labels(labels: ArrayLike, n: int, device: torch.device | str = "cpu", name: str = "labels") -> Tensor:
    """Integer class labels as an int64 [n] tensor on `device`.

    Raises ValueError where they are not n integers >= 0.
    """
    labels = torch.as_tensor(labels if isinstance(labels, Tensor) else np.asarray(labels)).detach()
    if labels.ndim != 1 or labels.shape[0] != n:
        raise InvalidValueError(
            f"The {name} have shape {tuple(labels.shape)}; expected one label for each of the {n} rows."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InvalidValueError(f"The {name} have dtype {labels.dtype}; expected integer class ids.")
    labels = labels.to(device, torch.int64)
    if labels.numel() and int(labels.min()) < 0:
        row = int(torch.nonzero(labels < 0)[0])
        raise InvalidValueError(
            f"Row {row} of the {name} is {int(labels[row])}; class ids are >= 0. Drop unlabelled samples."
        )
    return labels


def as_forget_labels(forget_labels: int | ArrayLike) -> tuple[int, ...]:
    """The forgotten classes as a sorted tuple; raises ValueError on none."""
    if isinstance(forget_labels, Tensor):
        forget_labels = forget_labels.tolist()
    if isinstance(forget_labels, (int, np.integer)):
        forget_labels = [forget_labels]
    forget = tuple(sorted({int(label) for label in forget_labels}))
    if not forget:
        raise InvalidValueError("forget_labels is empty; name at least one class that was to be forgotten.")
    return forget


def is_in(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Boolean [n]: which labels are among `classes`."""
    return torch.isin(labels, torch.tensor(list(classes), dtype=labels.dtype, device=labels.device))


def trained_forget_labels(forget_labels: int | ArrayLike, train_labels: Tensor) -> tuple[int, ...]:
    """Those of the forgotten classes that have a training sample; all where none has, which is refused elsewhere.

    Nothing can be fitted that reads the others: to measure them as forgotten would be to say something of them.
    """
    forget = as_forget_labels(forget_labels)
    return tuple(label for label in forget if bool((train_labels == label).any())) or forget


def forget_mask(labels: Tensor, forget_labels: int | ArrayLike, split: str) -> Tensor:
    """Boolean [n]: which samples are to be forgotten. Raises ValueError where that is none of them, or all."""
    forget = as_forget_labels(forget_labels)
    mask = is_in(labels, forget)
    if not mask.any():
        raise InvalidValueError(
            f"No {split} sample has a label in forget_labels {list(forget)} (labels run from {int(labels.min())} to "
            f"{int(labels.max())}); pass samples of the forgotten classes, or correct forget_labels."
        )
    if mask.all():
        raise InvalidValueError(
            f"Every {split} sample has a label in forget_labels {list(forget)}; "
            "what was retained can only be measured with samples of other classes."
        )
    return mask


def check_labels(train_y: Tensor, test_y: Tensor, forget_labels: int | ArrayLike) -> None:
    """Raise ValueError for labels of splits by which nothing can be measured: class ids of train [n] and test [m]."""
    require_classes(train_y)
    forget_mask(train_y, forget_labels, "training")
    forget_mask(test_y, forget_labels, "test")
    unseen = sorted(set(test_y.unique().tolist()) - set(train_y.unique().tolist()))
    if unseen:
        raise InvalidValueError(
            f"Test labels {unseen[:10]} do not occur among the training labels; a probe cannot predict them. "
            "Add training samples of these classes or drop them from the test split."
        )


def checked_splits(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    forget_labels: int | ArrayLike,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test features and labels as tensors on the training features' device, or a ValueError that says why."""
    train = as_features(train_features, "training features")
    test = as_features(test_features, "test features").to(train.device)
    train_y = as_labels(train_labels, train.shape[0], train.device, "training labels")
    test_y = as_labels(test_labels, test.shape[0], train.device, "test labels")
    if train.shape[1] != test.shape[1]:
        raise InvalidValueError(
            f"Training features have {train.shape[1]} columns and test features {test.shape[1]}; both have to come "
            "from the same tap of the same model."
        )
    check_labels(train_y, test_y, forget_labels)
    return train, train_y, test, test_y


def require_classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes present (ascending) and each sample's position among them.

    Raises ValueError on a single class and on no more samples than classes.
    """
    classes, targets = labels.unique(return_inverse=True)
    if classes.numel() < 2:
        raise InvalidValueError(
            f"All {labels.numel()} samples have label {int(labels[0])}; a probe needs samples of at least two classes."
        )
    if labels.numel() <= classes.numel():
        raise InvalidValueError(
            f"{labels.numel()} samples for {classes.numel()} classes are too few to fit a probe; pass several a class."
        )
    return classes, targets


def count_shared_rows(train: Tensor, test: Tensor) -> int:
    """Number of test rows that equal some training row bit for bit."""
    wide = train.dtype if train.dtype == torch.float64 else torch.float32
    known = {row.tobytes() for row in train.to("cpu", wide).numpy()}
    return sum(row.tobytes() in known for row in test.to("cpu", wide).numpy())


def as_logits(values: ArrayLike, name: str, dims: int = 2) -> Tensor:
    """Logits [..., C] as a tensor; -inf is a class the model cannot answer (head surgery, masking) and is allowed.

    Raises ValueError on NaN, +inf, rows that are -inf throughout, fewer than two classes, or another number of
    dimensions than `dims`.
    """
    logits = torch.as_tensor(values).detach()
    if not logits.is_floating_point():
        raise InvalidValueError(f"{name} has dtype {logits.dtype}; logits are floating point. Convert them to float32.")
    if logits.ndim != dims or 0 in logits.shape or logits.shape[-1] < 2:
        raise InvalidValueError(
            f"{name} has shape {tuple(logits.shape)}; logits need {dims} dimensions, at least one sample and at least "
            "two classes in the last one."
        )
    if torch.isnan(logits).any() or torch.isposinf(logits).any():
        raise InvalidValueError(
            f"{name} contains NaN or +inf; logits have to be finite, or -inf for a class that was removed from the "
            "head. Compute them in float32."
        )
    if torch.isneginf(logits).all(dim=-1).any():
        raise InvalidValueError(
            f"{name} has rows in which every logit is -inf: the softmax of such a row does not exist."
        )
    return logits.cpu() if logits.device.type == "mps" else logits  # no float64 there


def as_classes(values: ArrayLike, logits: Tensor, name: str) -> Tensor:
    """The true class of each row of `logits` [n, C], int64 [n] on its device; raises ValueError outside 0..C-1."""
    labels = as_labels(values, logits.shape[-2], logits.device, name)
    if int(labels.max()) >= logits.shape[-1]:
        raise InvalidValueError(
            f"The {name} reach {int(labels.max())}, but the logits have {logits.shape[-1]} columns; labels have to lie "
            f"in 0..{logits.shape[-1] - 1}. Map the dataset's labels to the model's own ids first."
        )
    return labels


def same_shape(a: Tensor, b: Tensor, names: str, rows_only: bool = False) -> None:
    """Raise ValueError unless two matrices describe the same samples (and, unless `rows_only`, the same columns)."""
    if a.shape[0] != b.shape[0] or (not rows_only and a.shape != b.shape):
        rule = "the same samples in the same order" + ("" if rows_only else " and the same columns")
        raise InvalidValueError(f"{names} have shapes {tuple(a.shape)} and {tuple(b.shape)}; they have to hold {rule}.")


def chunks(features: Tensor, rows: int = ROWS_PER_CHUNK) -> Iterator[Tensor]:
    """The features in float64, a few thousand rows at a time, so that a copy of everything is never needed."""
    return (part for (part,) in aligned_chunks(features, rows=rows))


def aligned_chunks(*matrices: Tensor, rows: int = CHUNK) -> Iterator[tuple[Tensor, ...]]:
    """The same few thousand rows of each of several matrices, in float64 on the device of the first."""
    for start in range(0, len(matrices[0]), rows):
        yield tuple(matrix[start : start + rows].to(matrices[0].device, torch.float64) for matrix in matrices)


def generator(seed: int) -> torch.Generator:
    """A CPU generator of our own, so that the global state is neither read nor moved."""
    return torch.Generator().manual_seed(int(seed))


def stratified_subset(labels: Tensor, share: float, rng: torch.Generator, least: int = 1) -> Tensor:
    """Sorted row numbers of a random `share` of every class, `least` rows of each where there are so many."""
    rows = []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten().cpu()
        count = max(least, round(share * members.numel()))
        rows.append(members[torch.randperm(members.numel(), generator=rng)[:count]])
    return torch.cat(rows).sort().values.to(labels.device)


def few_of_each(labels: Tensor, count: int, seed: int) -> Tensor:
    """Row numbers of `count` random rows of every class, all where a class has fewer; class by class, ascending."""
    rng = generator(seed)
    rows = []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        rows.append(members[torch.randperm(members.numel(), generator=rng)[:count].to(members.device)])
    return torch.cat(rows)


def first_rows(labels: Tensor, most: int, least: int = 2) -> Tensor:
    """Ascending row numbers of the first `most` rows, among them the first `least` of every class.

    These stand in the place of the last others where the first `most` rows lack them, and are more than `most` where the
    classes are so many: what is fitted on a part of the rows knows every class.
    """
    order = torch.argsort(labels, stable=True)
    sizes = labels[order].unique_consecutive(return_counts=True)[1]
    place = torch.arange(labels.numel(), device=labels.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    needed = torch.zeros_like(labels, dtype=torch.bool)
    needed[order] = place < least
    others = torch.nonzero(~needed).flatten()[: max(0, most - int(needed.sum()))]
    return torch.cat([torch.nonzero(needed).flatten(), others]).sort().values
