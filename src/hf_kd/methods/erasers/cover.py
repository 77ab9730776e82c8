"""Cover erasure: put forgotten features, and a comparable number of retained ones, on the same few constant points.

A constant carries no residual, so whatever attacks a point knows only the ratio forgotten : cover that lies on it. With
more cover than forgotten mass the best decision for one output is never "forgotten". This is deniability, not deletion:
several views or several images of one subject, an attacker who accepts false alarms, and whoever holds the weights get
through. Works where the head can tell the forgotten classes, and costs their cover classes all within-class detail.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import index
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError
from hf_kd.methods.choices import check_fields
from hf_kd.methods.measured import CoverMeasured

from .base import Eraser, ForgetData, Head, Method
from .cover_map import CoverMap
from .heads import (
    affine_head,
    checked_labels,
    mirrored_prototypes,
    missing_input,
    recognised_by,
    settled,
    still_answered,
)
from .sharing import affine_scores, axis_scores, cuts_between, refuse_points, snapped

logger = logging.getLogger(__name__)

AUTO_SHARE = 0.01
"""guard="auto" may leave at most this share of the recognised forget features unreplaced."""

CLOSE_CALLS = 0.05
"""Share of the recognised forget features that are taken for close calls, and put where their retained answer is."""


@dataclass(frozen=True)
class Cover(Method):
    """Put forgotten features, and those of a few retained classes, on the same few constant points.

    Fitted from the forget features, their labels and the head alone; `CoverMap` is the map.

    Attributes:
        m: Number of cover classes, 2 |F| unless given: the retained classes whose logits are largest on D_f. 3 |F|
            withstands k-nearest-neighbour attackers better and several views worse.
        guard: Act only where the two largest logits are further apart than this quantile of the forget features; for
            models that meet inputs from elsewhere, which a head puts into few classes. "auto" takes the largest
            quantile that leaves at most 1 % of the recognised forget features unreplaced. Forgotten features below it
            pass unchanged.
        tau: By how much a forgotten logit has to exceed all others.
        cover_classes: Ids of the cover classes instead of the nearest ones.
        class_sizes: {class id: number of images}: takes as many cover classes as give twice the mass that is forgotten, and
            shares the forgotten features out by size. Without it classes are taken to be of equal size.
        prototypes: {class id: [d] values}: true class means, where retained images may be used; else they are guessed from
            the head (`mirrored_prototypes`).
        views: Further views of every forget image (mirrored, cropped) that are read to share the images out along the axis
            that changes least between them (`stable_axis`): what two photographs of one subject reveal is that they land on
            different points. 0, or a fit on bare features, shares them out by the cover classes' logits.
    """

    name: ClassVar[str] = "cover"
    source: ClassVar[str] = "ours"
    when: ClassVar[str] = "Whole classes are to be hard to tell from a few retained ones for whoever sees the features."
    measures: ClassVar[type] = CoverMeasured
    needs_features: ClassVar[bool] = True
    needs_head: ClassVar[bool] = True
    masks_head: ClassVar[bool] = True

    m: int | None = None
    guard: float | str | None = None
    tau: float = 0.0
    cover_classes: Sequence[int] | None = None
    class_sizes: Mapping[int, int] | None = None
    prototypes: Mapping[int, Any] | None = None
    views: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.m is not None and self.m < 1:
            raise InvalidValueError(
                f"m={self.m!r} is out of range: it has to be a whole number of cover classes, 1 or more."
            )
        if self.m is not None and self.cover_classes is not None:
            raise InvalidValueError(
                f"Give m or cover_classes, not both (got m={self.m}, cover_classes={self.cover_classes})."
            )
        if isinstance(self.guard, str):
            if self.guard != "auto":
                raise InvalidValueError(f"guard={self.guard!r} is unknown: give a quantile or 'auto', or leave it out.")
        elif self.guard is not None and not 0 <= self.guard < 1:
            raise InvalidValueError(f"guard={self.guard!r} is out of range: it is a quantile, 0 <= guard < 1.")
        for name in ("class_sizes", "prototypes"):  # from JSON the keys are strings
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, {int(label): value for label, value in given.items()})
        if self.class_sizes is not None and not all(size > 0 for size in self.class_sizes.values()):
            raise InvalidValueError(f"class_sizes={self.class_sizes!r}: every class has to have an image or more.")
        if self.views not in (0, 1, 2):
            raise InvalidValueError(f"views={self.views!r} is out of range: there are 0, 1 or 2 further views.")
        if not math.isfinite(self.tau):
            raise InvalidValueError(f"tau={self.tau!r} is out of range: it is a difference of logits, and finite.")
        if self.cover_classes is not None:
            chosen = tuple(map(index, self.cover_classes))
            if not chosen or len(set(chosen)) < len(chosen):
                what = "names a class twice" if chosen else "is empty"
                raise InvalidValueError(
                    f"cover_classes={list(chosen)} {what}: give different retained classes, one or more."
                )
            object.__setattr__(self, "cover_classes", chosen)

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as JSON has them: keys are strings, prototypes lists of numbers."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.prototypes is not None:
            values["prototypes"] = {str(c): torch.as_tensor(p).tolist() for c, p in self.prototypes.items()}
        if self.class_sizes is not None:
            values["class_sizes"] = {str(c): size for c, size in self.class_sizes.items()}
        if self.cover_classes is not None:
            values["cover_classes"] = list(self.cover_classes)
        return values

    def fit(
        self,
        forget: ForgetData,
        labels: Tensor | None = None,
        head: Head | None = None,
        views: Sequence[Tensor] = (),
    ) -> CoverMap:
        """The map of one tap.

        Args:
            forget: Features [n, d].
            labels: Their classes [n], in the head's own ids.
            head: Features [n, d] -> logits [n, C].
            views: Features [n, d] of further views of the same images.

        Returns:
            The map; `measured` is a `CoverMeasured`.

        Raises:
            InvalidValueError: Where something is missing, for too few retained classes, for classes or sizes that do
                not fit the model, and for forgotten classes that are masked already or were cover in an earlier
                request.
        """
        if head is None or labels is None or not isinstance(forget, Tensor):
            raise missing_input("Cover erasure is fitted on", labels, head)
        features, labels = forget.detach().cpu().double(), labels.cpu()
        weight, bias = affine_head(head, forget.detach().float())
        forgotten = checked_labels(features, labels, len(bias))
        retained = still_answered(head, len(bias), forgotten)
        self._check_classes(len(bias), retained)
        logits = features @ weight.T + bias
        recognised = recognised_by(logits, forgotten, self.tau)
        refuse_points(features, labels, recognised)
        means = {f: features[labels == f].mean(dim=0) for f in forgotten}
        chosen, measured = self._choose(weight, bias, logits, means, retained)
        cover = list(chosen)
        if len(cover) < 2 * len(forgotten) and self.class_sizes is None:
            logger.warning(
                f"{len(cover)} cover classes for {len(forgotten)} forgotten: with classes of equal size over a third of "
                f"what lies on a point is forgotten, and attackers read some of it. Take {2 * len(forgotten)} or more."
            )
        shares, mass = self._wanted_shares(cover), self._mass(labels)
        scores = affine_scores(logits[:, cover], weight[cover], bias[cover], shares, mass)
        if views:
            scores = axis_scores(features, [view.cpu().double() for view in views], shares, scores, mass)
        close = _close_calls(logits[recognised], forgotten) if views else -torch.inf
        quantile, margin = self._guard(logits[recognised])
        eraser = CoverMap(forget.shape[1], len(bias), forgotten, cover)
        eraser.load_state_dict(
            {
                "weight": weight,
                "bias": bias,
                "prototypes": torch.stack(list(chosen.values())),
                "share_weight": scores[0],
                "share_bias": scores[1],
                "limits": torch.tensor([self.tau, margin, close]),
                "roles": eraser.own_roles(),
            }
        )
        eraser.check()
        shared, replaced = _sharing(eraser, features, views, mass)
        measured |= shared | {
            "n_forget": len(labels),
            "cover_classes": cover,
            "share_of_forget_recognised": float(recognised.double().mean()),
            "share_of_forget_replaced": replaced,
            "share_of_inputs_expected": self._share_of_inputs(eraser, replaced),
        }
        if quantile is not None:
            measured |= {"guard_quantile": quantile, "guard_margin": margin}
        eraser.measured.update(measured)
        return eraser

    def fit_taps(
        self, forget: Sequence[ForgetData], labels: Tensor | None = None, head: Any = None, **given: Sequence[Any]
    ) -> list[Eraser]:
        """Each tap by its own head: what one head does not see as forgotten passes its tap unchanged.

        Args:
            forget: Features [n, d] at each tap.
            labels: Their classes [n], in the head's own ids.
            head: The model's logits as a function of features at all taps; see `hf_kd.features.taps.head_function`.
            **given: `views`, for each tap the features [n, d] of further views of the same images.

        Returns:
            A `CoverMap` for each tap.

        Raises:
            InvalidValueError: As `fit`.
        """
        views = given.get("views", [()] * len(forget))
        return [
            self.fit(data, labels, None if head is None else head.of_tap(i), views[i]) for i, data in enumerate(forget)
        ]

    def _choose(
        self, weight: Tensor, bias: Tensor, logits: Tensor, means: Mapping[int, Tensor], retained: Sequence[int]
    ) -> tuple[dict[int, Tensor], dict[str, Any]]:
        """The cover classes with their prototypes, each answered as its class, and what was done for that."""
        forgotten = list(means)
        wanted = len(self.cover_classes) if self.cover_classes is not None else self.m or 2 * len(forgotten)
        unknown = [c for c in self.cover_classes or () if c not in retained]
        if set(unknown) & set(forgotten):
            raise InvalidValueError(
                f"Classes {sorted(set(unknown) & set(forgotten))} are to be forgotten, and cannot be cover."
            )
        if unknown or wanted > len(retained):
            what = (
                f"Classes {unknown} are" if unknown else f"{wanted} cover classes of {len(retained)} retained ones are"
            )
            raise InvalidValueError(
                f"{what} not to be had: cover classes are retained classes of the model, and the {len(forgotten)} forgotten "
                "ones need more cover than that. Choose a smaller m, or forget fewer classes."
            )
        mass = 2 * sum(map(self._size, forgotten)) if self.class_sizes is not None else 0
        spread = logits[:, sorted([*forgotten, *retained])].std(correction=0)
        level = dict(zip(retained, snapped(logits[:, list(retained)].mean(dim=0), spread).tolist(), strict=True))
        order = self.cover_classes or sorted(retained, key=lambda c: (-level[c], c))
        guessed = mirrored_prototypes(weight, bias, means, [c for c in order if c not in (self.prototypes or {})])
        margin = max(1e-3 * float(spread), -1.01 * self.tau)  # a prototype must not be taken for a forgotten feature
        found: dict[int, Tensor] = {}
        moved, skipped = [], []
        for c in order:
            if len(found) >= wanted and (not mass or sum(self._size(c) for c in found) >= mass):
                break
            first = guessed[c] if c in guessed else self._prototype(c, weight.shape[1])
            place = settled(weight, bias, first, c, margin)
            if place is None:
                skipped.append(c)
                continue
            if place is not first:
                moved.append(c)
            found[c] = place
        had = sum(self._size(c) for c in found) if mass else 0
        if len(found) < wanted or had < mass:
            raise InvalidValueError(
                f"Only {len(found)} cover classes{f' of {had} images' if mass else ''} could be had (skipped, because no "
                f"point near their prototype is answered as them: {skipped}); {wanted} are wanted"
                + (f", of {mass} images or more, twice what is forgotten." if mass else ".")
            )
        return found, {"prototypes_moved": moved, "classes_skipped": skipped}

    def _check_classes(self, num_labels: int, retained: Sequence[int]) -> None:
        unknown = [c for c in self.prototypes or {} if c not in retained]
        if unknown:
            raise InvalidValueError(
                f"prototypes of classes {unknown}: only retained classes of the model can be cover. Leave the others out."
            )
        if self.class_sizes is not None and set(self.class_sizes) != set(range(num_labels)):
            missing = sorted(set(range(num_labels)) - set(self.class_sizes))
            unknown = sorted(set(self.class_sizes) - set(range(num_labels)))
            raise InvalidValueError(
                f"class_sizes has to give the size of every class of the model; missing: {missing}, unknown: {unknown}."
            )

    def _size(self, label: int) -> int:
        return 1 if self.class_sizes is None else self.class_sizes[label]

    def _prototype(self, label: int, dim: int) -> Tensor:
        given = torch.as_tensor(cast("Mapping[int, Any]", self.prototypes)[label], dtype=torch.float64).flatten()
        if len(given) != dim or not bool(torch.isfinite(given).all()):
            raise InvalidValueError(
                f"The prototype of class {label} has {len(given)} values; it has to be d = {dim} finite ones."
            )
        return given

    def _wanted_shares(self, cover: Sequence[int]) -> Tensor:
        sizes = torch.tensor([float(self._size(c)) for c in cover], dtype=torch.float64)
        return sizes / sizes.sum()

    def _mass(self, labels: Tensor) -> Tensor:
        """What each forget feature stands for [n], 1 in all: a class counts by its size, however many images were given."""
        classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
        sizes = torch.tensor([float(self._size(f)) for f in classes.tolist()], dtype=torch.float64)
        mass = (sizes / counts)[index]
        return mass / mass.sum()

    def _share_of_inputs(self, eraser: CoverMap, replaced: float) -> float:
        """Of all inputs, forgotten and retained, the share that is expected to be put on a point."""
        sizes = self.class_sizes or dict.fromkeys(range(len(eraser.bias)), 1)
        hit = sum(sizes[f] for f in eraser.forgotten) * replaced + sum(sizes[c] for c in eraser.cover)
        return hit / sum(sizes.values())

    def _guard(self, logits: Tensor) -> tuple[float | None, float]:
        """The quantile and its margin, from logits of recognised forget features; -inf where nothing is held back."""
        if self.guard is None or not len(logits):
            return None, -torch.inf
        first, second = logits.topk(2, dim=1).values.unbind(dim=1)
        margins = first - second
        if self.guard == "auto":
            margins = margins.sort().values
            passed = int(AUTO_SHARE * len(margins))  # so many may stay below
            rounding = 1e-5 * float(first.abs().max())  # the map works in float32
            return passed / len(margins), float(margins[passed]) - rounding
        guard = cast(float, self.guard)
        return guard, float(cuts_between(margins, margins.new_tensor([guard])))


def _close_calls(logits: Tensor, forgotten: Sequence[int]) -> float:
    """The margin up to which recognised forget features are close calls; -inf where none are recognised."""
    if not len(logits):
        return -torch.inf
    others = [c for c in range(logits.shape[1]) if c not in forgotten]  # as the map decides
    margins = logits[:, forgotten].amax(dim=1) - logits[:, others].amax(dim=1)
    return float(cuts_between(margins, margins.new_tensor([CLOSE_CALLS])))


def _sharing(eraser: CoverMap, features: Tensor, views: Sequence[Tensor], mass: Tensor) -> tuple[dict[str, Any], float]:
    """How the mass of D_f is shared out, how much of D_f lands elsewhere in another view, and how much is replaced."""
    with torch.no_grad():
        rows, replaced = eraser.decide(features.float())
        others = [eraser.decide(view.float().cpu())[0] for view in views]
    counts = torch.bincount(rows, weights=mass, minlength=len(eraser.cover))
    shared = {
        "shared_by": "views" if views else "logits",
        "shares": [round(share, 4) for share in counts.tolist()],
        "moved_by_views": [round(float((rows != other).double().mean()), 4) for other in others],
    }
    return shared, float(replaced.double().mean())
