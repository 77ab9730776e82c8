"""What erasers read off a classification head: its weights, and where retained classes lie as seen from forgotten ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from .base import Head


def missing_input(fitted_on: str, labels: Tensor | None, head: Any) -> InvalidValueError:
    """The error where features, labels and the head are needed, and one of them was not given."""
    missing = "a classification head" if head is None else "labels" if labels is None else "the features of D_f"
    return InvalidValueError(
        f"{fitted_on} features [n, d], labels and the head, and {missing} is missing here. Without them use method='esc', "
        "which needs the images alone."
    )


def affine_head(head: Head, like: Tensor) -> tuple[Tensor, Tensor]:
    """W [C, d] and b [C] with head(h) = W h + b, in float64 on the CPU.

    Args:
        head: Features [n, d] -> logits [n, C].
        like: Features [n, d] of the dtype and on the device that the head takes.

    Raises:
        InvalidValueError: Where the head is not affine.
    """
    dim = like.shape[1]
    probe = torch.cat([torch.zeros(1, dim), torch.eye(dim)]).to(like)
    with torch.no_grad():
        answers = torch.cat([head(rows) for rows in probe.split(4096)]).cpu().double()
        found, expected = answers[1:].T - answers[:1].T, answers[0]
        seen = like[:64]
        wanted, got = head(seen).cpu().double(), seen.cpu().double() @ found.T + expected
    error = float((wanted - got).abs().max())
    if not error <= 1e-3 * max(1.0, float((wanted - expected).abs().max())):
        raise InvalidValueError(
            f"The head is not affine in the features (off by {error:.3g}), so it has no class directions to work with. Use "
            "method='esc', which never looks at the head."
        )
    return found, expected


def checked_labels(features: Tensor, labels: Tensor, num_labels: int) -> list[int]:
    """The forgotten classes, ascending.

    Args:
        features: [n, d].
        labels: Their classes [n].
        num_labels: C.

    Raises:
        InvalidValueError: For labels that do not fit the features or the head.
    """
    if labels.shape != features.shape[:1] or not len(labels):
        raise InvalidValueError(f"{len(features)} features and {labels.numel()} labels: every feature needs its label.")
    forgotten = sorted(set(labels.tolist()))
    unknown = [label for label in forgotten if not 0 <= label < num_labels]
    if unknown:
        raise InvalidValueError(f"labels {unknown} are no classes of the head, which answers 0 to {num_labels - 1}.")
    return forgotten


def still_answered(head: Head, num_labels: int, forgotten: Sequence[int]) -> list[int]:
    """The retained classes: those that the head answers and that are not forgotten, now or by an earlier request.

    Args:
        head: Its `masked`, where it has that, are classes that it answers no more, `forgotten` those of earlier requests.
        num_labels: C.
        forgotten: Ids of the forgotten classes.

    Raises:
        InvalidValueError: Where a forgotten class is masked already: there is nothing in the head that tells it.
    """
    masked = set(getattr(head, "masked", ()))
    unanswered = [f for f in forgotten if f in masked]
    if unanswered:
        raise InvalidValueError(
            f"Classes {unanswered} are never answered since an earlier request, so the head tells nothing of them any more. "
            "Leave them out, or call reset() and forget all classes together."
        )
    gone = {*forgotten, *masked, *getattr(head, "forgotten", ())}
    return [c for c in range(num_labels) if c not in gone]


def mirrored_prototypes(
    weight: Tensor, bias: Tensor, means: Mapping[int, Tensor], retained: Sequence[int]
) -> dict[int, Tensor]:
    """Where each retained class lies, guessed from the head and the means m_f [d] of the forgotten classes alone.

    P_c is m_f mirrored in the hyperplane between f and c, averaged over f: under neural collapse class means are mirror
    images of each other.
    """
    found = {}
    for c in retained:
        images = []
        for f, mean in means.items():
            normal = weight[f] - weight[c]
            distance = (mean @ normal + bias[f] - bias[c]) / (normal @ normal).clamp(min=torch.finfo(normal.dtype).tiny)
            images.append(mean - 2 * distance * normal)
        found[c] = torch.stack(images).mean(dim=0)
    return found


def settled(
    weight: Tensor, bias: Tensor, prototype: Tensor, label: int, margin: float, rounds: int = 500
) -> Tensor | None:
    """The prototype [d], moved as little as the head asks for until it answers `label` by `margin`; None where that fails.

    Each round projects on the halfspace of the strongest rival.
    """
    others = torch.arange(len(bias)) != label
    for _ in range(rounds):
        logits = weight @ prototype + bias
        rival = int(torch.where(others, logits, -torch.inf).argmax())
        missing = margin - float(logits[label] - logits[rival])
        if missing <= 0:
            return prototype
        normal = weight[label] - weight[rival]
        square = float(normal @ normal)
        if square == 0:
            return None
        prototype = prototype + 1.01 * missing / square * normal
    return None


def recognised_by(logits: Tensor, forgotten: Sequence[int], tau: float) -> Tensor:
    """Mask [n] of logits [n, C] whose largest forgotten entry exceeds every other by more than tau."""
    mask = torch.zeros(logits.shape[1], dtype=torch.bool)
    mask[list(forgotten)] = True
    return logits[:, mask].amax(dim=1) > logits.masked_fill(mask, -torch.inf).amax(dim=1) + tau
