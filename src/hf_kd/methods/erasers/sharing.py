"""Share features out among a few points: by class scores, or along the axis that changes least between views of an image.

Both give affine scores s(z) = S z + t whose largest entry says where a feature goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

Scores = tuple[Tensor, Tensor]
"""S [m, d] and t [m], float64."""


def affine_scores(
    logits: Tensor, weight: Tensor, bias: Tensor, wanted: Tensor, mass: Tensor | None = None, rounds: int = 200
) -> Scores:
    """s_c = (l_c - shift_c) / sd_c for logits l = W z + b [n, m], shifted until argmax shares them out as `wanted` [m].

    mass: how much each row counts [n], 1 in all; equally much unless given. Starts from the mean and moves the shifts by
    what a class has too much, in smaller and smaller steps; the best that was seen is returned.
    """
    shift, scale = logits.mean(dim=0), logits.std(dim=0, correction=0)
    scale = scale.clamp(min=1e-6 * max(float(scale.max()), 1e-6))
    mass = _equal(logits) if mass is None else mass
    best, found = float("inf"), shift
    for number in range(rounds):
        got = torch.bincount(((logits - shift) / scale).argmax(dim=1), weights=mass, minlength=len(wanted))
        error = float((got - wanted).abs().max())
        if error < best:
            best, found = error, shift.clone()
        shift = shift + (got - wanted) * scale * (2.0 / (1 + 0.1 * number))
    return weight / scale[:, None], (bias - found) / scale


def axis_scores(
    features: Tensor, views: Sequence[Tensor], wanted: Tensor, scores: Scores, mass: Tensor | None = None
) -> Scores:
    """Intervals along the stable axis of features [n, d] that hold the `wanted` shares [m] of their mass [n].

    Which interval belongs to which class follows `scores`: where a class's score rises along the axis it gets a far one.
    As affine scores: interval i has slope i along the axis, and the lines cross at the cuts.
    """
    axis = stable_axis(features, views)
    along = features @ axis
    rise = ((along - along.mean())[:, None] * (features @ scores[0].T)).mean(dim=0)
    order = rise.argsort()
    cuts = _quantiles(along, _equal(features) if mass is None else mass, wanted[order].cumsum(0)[:-1])
    slopes = torch.arange(len(wanted), dtype=along.dtype)
    offsets = torch.cat([cuts.new_zeros(1), -cuts.cumsum(0)])
    weight, bias = torch.zeros_like(scores[0]), torch.zeros_like(scores[1])
    weight[order], bias[order] = slopes[:, None] * axis, offsets
    return weight, bias


def _equal(rows: Tensor) -> Tensor:
    return rows.new_full((len(rows),), 1 / len(rows))


def _quantiles(values: Tensor, mass: Tensor, wanted: Tensor) -> Tensor:
    """Where the cumulated mass of values [n] passes `wanted`, linear in between; of equal mass these are the quantiles."""
    values, order = values.sort()
    before = mass[order].cumsum(0) - mass[order]
    position = before / before[-1].clamp(min=torch.finfo(before.dtype).tiny)
    above = torch.searchsorted(position, wanted.clamp(max=1.0)).clamp(min=1, max=max(1, len(values) - 1))
    above = above.clamp(max=len(values) - 1)
    below = (above - 1).clamp(min=0)
    gap = (position[above] - position[below]).clamp(min=torch.finfo(before.dtype).tiny)
    return torch.lerp(values[below], values[above], ((wanted - position[below]) / gap).clamp(0.0, 1.0))


def stable_axis(features: Tensor, views: Sequence[Tensor]) -> Tensor:
    """The unit direction [d] with the largest ratio of the variance between images to that between views of an image.

    features, views: [n, d] of the same images. Looked for among the first n / 10 principal directions, because with few
    images others look stable by chance; the variance between views is taken to be at least a thousandth of its mean.
    """
    centred = features - features.mean(dim=0)
    between = centred.T @ centred / len(features)
    values, directions = torch.linalg.eigh(between)
    kept = max(1, min(int((values > 1e-9 * values[-1]).sum()), len(features) // 10))
    basis = directions[:, -kept:]
    within = sum((features - view).T @ (features - view) for view in views) / (2 * len(features) * len(views))
    within = basis.T @ within @ basis
    least = max(1e-9 * float(values[-1]), torch.finfo(within.dtype).tiny)  # views may be equal altogether
    floor = (1e-3 * within.diagonal().mean()).clamp(min=least)
    noise, turned = torch.linalg.eigh(within + floor * torch.eye(kept, dtype=within.dtype))
    whiten = turned * noise.rsqrt()
    ratio = whiten.T @ (basis.T @ between @ basis) @ whiten
    axis = basis @ (whiten @ torch.linalg.eigh((ratio + ratio.T) / 2).eigenvectors[:, -1])
    axis = axis / axis.norm()
    return axis * torch.where(axis[axis.abs().argmax()] < 0, -1.0, 1.0)


def refuse_points(features: Tensor, labels: Tensor, recognised: Tensor) -> None:
    """Raise ValueError where all recognised features of a class are the same: they cannot be shared out."""
    for f in labels.unique().tolist():
        seen = features[recognised & (labels == f)]
        if len(seen) > 1 and bool((seen == seen[0]).all()):
            raise InvalidValueError(
                f"All {len(seen)} features that the head recognises as class {f} are one and the same point, which cannot "
                "be shared out among cover classes: wherever it went, it would be as frequent as its cover. Either the "
                "class was cover in an earlier request (then call reset() and forget both together), or the images are one."
            )
