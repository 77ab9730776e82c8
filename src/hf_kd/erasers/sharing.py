"""Share features out among a few points: by class scores, or along the axis that changes least between views of an image.

Both give affine scores s(z) = S z + t whose largest entry says where a feature goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Scores = tuple[Tensor, Tensor]
"""S [m, d] and t [m], float64."""


def affine_scores(logits: Tensor, weight: Tensor, bias: Tensor, wanted: Tensor, rounds: int = 200) -> Scores:
    """s_c = (l_c - shift_c) / sd_c for logits l = W z + b [n, m], shifted until argmax shares them out as `wanted` [m].

    Starts from the mean and moves the shifts by what a class has too much, in smaller and smaller steps; the best that was
    seen is returned.
    """
    shift, scale = logits.mean(dim=0), logits.std(dim=0, correction=0)
    scale = scale.clamp(min=1e-6 * max(float(scale.max()), 1e-6))
    best, found = float("inf"), shift
    for number in range(rounds):
        got = torch.bincount(((logits - shift) / scale).argmax(dim=1), minlength=len(wanted)).double() / len(logits)
        error = float((got - wanted).abs().max())
        if error < best:
            best, found = error, shift.clone()
        shift = shift + (got - wanted) * scale * (2.0 / (1 + 0.1 * number))
    return weight / scale[:, None], (bias - found) / scale


def axis_scores(features: Tensor, views: Sequence[Tensor], wanted: Tensor, scores: Scores) -> Scores:
    """Intervals along the stable axis of features [n, d] that hold the `wanted` shares [m].

    Which interval belongs to which class follows `scores`: where a class's score rises along the axis it gets a far one.
    As affine scores: interval i has slope i along the axis, and the lines cross at the cuts.
    """
    axis = stable_axis(features, views)
    along = features @ axis
    rise = ((along - along.mean())[:, None] * (features @ scores[0].T)).mean(dim=0)
    order = rise.argsort()
    cuts = torch.quantile(along, wanted[order].cumsum(0)[:-1].clamp(max=1.0)) if len(wanted) > 1 else along[:0]
    slopes = torch.arange(len(wanted), dtype=along.dtype)
    offsets = torch.cat([cuts.new_zeros(1), -cuts.cumsum(0)])
    weight, bias = torch.zeros_like(scores[0]), torch.zeros_like(scores[1])
    weight[order], bias[order] = slopes[:, None] * axis, offsets
    return weight, bias


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
    floor = 1e-3 * within.diagonal().mean().clamp(min=torch.finfo(within.dtype).tiny)
    noise, turned = torch.linalg.eigh(within + floor * torch.eye(kept, dtype=within.dtype))
    whiten = turned * noise.rsqrt()
    ratio = whiten.T @ (basis.T @ between @ basis) @ whiten
    axis = basis @ (whiten @ torch.linalg.eigh((ratio + ratio.T) / 2).eigenvectors[:, -1])
    axis = axis / axis.norm()
    return axis * torch.where(axis[axis.abs().argmax()] < 0, -1.0, 1.0)
