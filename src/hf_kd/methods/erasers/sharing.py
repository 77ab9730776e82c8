"""Share features out among a few points: by class scores, or along the axis that changes least between views of an image.

Both give affine scores s(z) = S z + t whose largest entry says where a feature goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from .moments import fix_signs

Scores = tuple[Tensor, Tensor]
"""S [m, d] and t [m], float64."""

TIE_BREAK = 1e-3
"""By how much, in standard deviations, the first score beats the last where they are equal: far above any rounding."""

EQUAL = 1e-9
"""What differs by less than this, relative to its size, is equal but for rounding, which must not decide anything."""


def affine_scores(
    logits: Tensor, weight: Tensor, bias: Tensor, wanted: Tensor, mass: Tensor | None = None, rounds: int = 200
) -> Scores:
    """s_c = (l_c - shift_c) / sd_c for logits l = W z + b [n, m], shifted until argmax shares them out as `wanted` [m].

    mass: how much each row counts [n], 1 in all; equally much unless given. Starts from the mean and moves the shifts by
    what a class has too much, in smaller and smaller steps; the best that was seen is returned. Scores of few rows may be
    equal by construction (of two rows all are 1 and -1); therefore the sd of each class is taken to be a little smaller
    than the last one's, and its shift a little larger.
    """
    shift, scale = logits.mean(dim=0), logits.std(dim=0, correction=0)
    size = float(logits.abs().max()) or 1.0
    scale = scale.clamp(min=1e-6 * scale.max()) if float(scale.max()) > EQUAL * size else torch.full_like(scale, size)
    turn = TIE_BREAK * torch.arange(len(wanted)).to(scale) / len(wanted)
    scale = scale / (1 + turn)
    shift = shift + scale * turn / 2
    mass = _equal(logits) if mass is None else mass
    best, found = float("inf"), shift
    for number in range(rounds):
        got = torch.bincount(((logits - shift) / scale).argmax(dim=1), weights=mass, minlength=len(wanted))
        error = float((got - wanted).abs().max())
        if error < best - EQUAL:
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
    order = snapped(rise).argsort(stable=True)
    cuts = cuts_between(along, wanted[order].cumsum(0)[:-1], mass)
    slopes = torch.arange(len(wanted), dtype=along.dtype)
    offsets = torch.cat([cuts.new_zeros(1), -cuts.cumsum(0)])
    weight, bias = torch.zeros_like(scores[0]), torch.zeros_like(scores[1])
    weight[order], bias[order] = slopes[:, None] * axis, offsets
    return weight, bias


def _equal(rows: Tensor) -> Tensor:
    return rows.new_full((len(rows),), 1 / len(rows))


def snapped(values: Tensor, scale: Tensor | None = None) -> Tensor:
    """Values [n] on a grid of a millionth of `scale` (of the largest): such as are equal but for rounding are equal."""
    scale = values.abs().max() if scale is None else scale
    return (values / scale.clamp(min=torch.finfo(values.dtype).tiny) * 2**20).round()


def cuts_between(values: Tensor, wanted: Tensor, mass: Tensor | None = None) -> Tensor:
    """Where to cut values [n] so that nearest to `wanted` [m] of their mass [n] (equal unless given; 1 in all) lies below.

    Halfway between neighbours that differ, or beyond the ends: never on a value, whose side would be left to rounding.
    Of two cuts equally near the lower one.
    """
    values, order = values.sort()
    mass = _equal(values) if mass is None else mass[order]
    size, spread = values.abs().max().clamp(min=torch.finfo(values.dtype).tiny), values[-1] - values[0]
    different = torch.nonzero(values.diff() > EQUAL * size).flatten()
    beyond = spread / len(values) if len(different) else TIE_BREAK * size
    middle = (values[different] + values[different + 1]) / 2
    places = torch.cat([values[:1] - beyond, middle, values[-1:] + beyond])
    below = torch.cat([mass.new_zeros(1), mass.cumsum(0)[different], mass.sum()[None]])
    off = (below - wanted[:, None]).abs()
    return places[(off <= off.amin(dim=1, keepdim=True) + EQUAL).int().argmax(dim=1)]


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
    return fix_signs(axis[:, None])[:, 0]


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
