"""The pair of maps that forgets a concept by its name in the joint space of a two-tower model. Imports torch only.

Scores are cosines of image and text embeddings, so what one tower keeps, the other, public one reads. Both are mapped:

    texts   P = I - U R^T     R^T U = I: what texts of the concept have in common, U, is gone; retained names stay
    images  P^T = I - R U^T   nothing is left along U, whichever text tower asks

R minimises what P does to the retained names (R = C^-1 U (U^T C^-1 U)^-1, with C their covariance), and as <P^T x, t> =
<x, P t>, the scores of retained names stay as they were, with the erased text tower and with the original one.

Without anything along U a concept is as likely as the mean of all names, and among unlike candidates the mean wins.
Therefore both maps put a constant there: a step against `common`, the direction that all images share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_kd.errors import InvalidValueError

from .choices import check_fields
from .erasers.base import Eraser
from .erasers.esc import Projection
from .erasers.oblique import ObliqueProjection

METHODS = ("oblique", "esc")


@dataclass(frozen=True)
class ConceptMethod:
    """Take a concept out of the joint space of a two-tower model by its names, with or without images of it.

    Attributes:
        name: "oblique", or "esc": the orthogonal projection on the complement of U, on both towers alike.
        variance: Share of the energy of the concept's prompts, each less the mean of its template, that U holds.
        k: Number of directions in U instead.
        ridge: What is added to the covariance of the retained names, relative to its mean eigenvalue. Towards infinity
            the oblique projection becomes the orthogonal one.
        push: How far below the least likely retained name the concept is put, in multiples of that name's distance from
            the mean of all names; 0 leaves it at the mean. Not with "esc".
    """

    name: str = "oblique"
    variance: float = 0.9
    k: int | None = None
    ridge: float = 0.1
    push: float = 1.0

    needs: ClassVar[str] = "texts"
    source: ClassVar[str] = "ours"
    when: ClassVar[str] = "A concept of CLIP, SigLIP and the like is to be forgotten by its name."

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise InvalidValueError(
                f"method={self.name!r}: texts are forgotten by {' or '.join(map(repr, METHODS))}. Other methods are fitted "
                "on images; give images alone for them."
            )
        check_fields(self)
        if not 0 < self.variance <= 1 or (self.k is not None and self.k < 1):
            raise InvalidValueError(f"variance={self.variance}, k={self.k}: 0 < variance <= 1, and k is 1 or more.")
        if self.ridge < 0 or self.push < 0:
            raise InvalidValueError(f"ridge={self.ridge}, push={self.push}: neither can be negative.")


@dataclass(frozen=True)
class Prompts:
    """Embeddings of prompts, unit length, float64.

    Attributes:
        embeddings: [n, d].
        names: Which name each speaks of [n].
        templates: In which wording [n].
    """

    embeddings: Tensor
    names: Tensor
    templates: Tensor

    def template_means(self, count: int) -> Tensor:
        """What each of so many templates has in common [count, d]."""
        return _means(self.embeddings, self.templates, count)

    def by_name(self, less: Tensor | None = None) -> Tensor:
        """The mean of each name's prompts [names, d], less those of their templates where given."""
        rows = self.embeddings if less is None else self.embeddings - less[self.templates]
        return _means(rows, self.names, 1 + int(self.names.max()))


@dataclass(frozen=True)
class NameVectors:
    """What names mean: their prompts less what their templates have in common.

    Attributes:
        concept: Of each prompt of the concept [n, d].
        retained: Of each retained name, the mean of its prompts [m, d].
    """

    concept: Tensor
    retained: Tensor

    @classmethod
    def of(cls, concept: Prompts, retained: Prompts, also: Prompts | None = None) -> NameVectors:
        """From prompts in the same templates; `also` are of retained names that say nothing of what templates are.

        Raises:
            InvalidValueError: Where a template of the concept's prompts is in none of a retained name.
        """
        count = 1 + int(torch.cat([concept.templates, retained.templates]).max())
        if not bool(torch.isin(concept.templates, retained.templates).all()):
            raise InvalidValueError("A template has no prompt of a retained name: give more retained names.")
        means = retained.template_means(count)
        names = [retained.by_name(means)] + ([] if also is None else [also.by_name(means)])
        return cls(concept.embeddings - means[concept.templates], torch.cat(names))

    @property
    def centroid(self) -> Tensor:
        """Mean of the concept's vectors [d]."""
        return self.concept.mean(dim=0)

    def nearness(self) -> Tensor:
        """Cosine of each retained name with the concept [m]."""
        return normalize(self.retained, dim=1) @ normalize(self.centroid, dim=0)

    def without(self, rows: Tensor) -> NameVectors:
        """Without some retained names; `rows` is a mask [m]."""
        return NameVectors(self.concept, self.retained[~rows])


@dataclass(frozen=True)
class SeenImages:
    """Image embeddings, unit length, float64: [n, d] of the concept and [m, d] of anything else; either may be empty."""

    concept: Tensor
    others: Tensor


@dataclass(frozen=True)
class ConceptMaps:
    """One eraser for each tower, and what was measured."""

    images: Eraser
    texts: Eraser
    measured: dict[str, Any]


def fit_concept(
    method: ConceptMethod, names: NameVectors, common: Tensor | None, seen: SeenImages | None
) -> ConceptMaps:
    """Fit both maps.

    Args:
        method: How.
        names: What the names mean.
        common: Mean of unit embeddings of images [d], of any images; None where nothing is known of them.
        seen: Images of the concept and of other things, for the part of the concept that its name does not have.

    Raises:
        InvalidValueError: For prompts that are all alike, and more directions than there are.
    """
    directions, share = concept_directions(names.concept, method.variance, method.k)
    measured = {"k": directions.shape[1], "energy_removed": share, "n_prompts": len(names.concept)}
    visual = None if seen is None or min(len(seen.concept), len(seen.others)) == 0 else _difference(seen)
    if method.name == "esc":
        basis = directions if visual is None else _with_column(directions, visual)
        return ConceptMaps(
            Projection.onto_complement_of(basis, **measured), Projection.onto_complement_of(directions), measured
        )
    covariance = _ridged(names.retained.T @ names.retained / len(names.retained), method.ridge)
    read, write = _read(covariance, directions, common), directions
    images_read = directions
    level = directions.T @ names.centroid
    if common is not None and method.push > 0:
        unit = normalize(common, dim=0)
        step = method.push * _least(names, seen) / (level @ level)
        height = float((seen.others if seen is not None and len(seen.others) else common[None]).mean(dim=0) @ unit)
        against = step / max(height, 1e-6) * torch.outer(unit, level)
        images_read, write = directions + against, directions + against
        measured["push"] = float(step * (level @ level))
    texts = ObliqueProjection.of(read, _dual(write, read), **measured)
    images_write = _dual(read, images_read)
    if visual is not None and seen is not None:
        images_read, images_write = _and_visual(images_read, images_write, visual, seen.others, method.ridge)
        measured["visual_share"] = float((visual - directions @ (directions.T @ visual)).norm() / visual.norm())
    return ConceptMaps(ObliqueProjection.of(images_read, images_write, **measured), texts, measured)


def concept_directions(vectors: Tensor, variance: float, k: int | None = None) -> tuple[Tensor, float]:
    """The leading right singular vectors U [d, k] of vectors [n, d] (not centred), and their share of the energy.

    Raises:
        InvalidValueError: Where the vectors are zero, or have fewer than k directions.
    """
    _, values, directions = torch.linalg.svd(vectors, full_matrices=False)
    energy = values.square()
    if float(energy.sum()) <= 1e-12:
        raise InvalidValueError(
            "The text tower embeds the texts to forget as it embeds the mean of all names, so their names mean nothing to "
            "it. Check the spelling, and that the tokenizer is the model's."
        )
    rank = int((values > 1e-6 * values[0]).sum())
    shares = energy.cumsum(0) / energy.sum()
    count = k or min(rank, 1 + int((shares < variance - 1e-9).sum()))
    if count > rank or count >= vectors.shape[1]:
        raise InvalidValueError(
            f"k={count}: the prompts of the concept have {rank} directions in d = {vectors.shape[1]}."
        )
    return directions[:count].T.contiguous(), float(shares[count - 1])


def _means(rows: Tensor, groups: Tensor, count: int) -> Tensor:
    sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, groups, rows)
    return sums / torch.bincount(groups, minlength=count).clamp(min=1)[:, None]


def _ridged(covariance: Tensor, ridge: float) -> Tensor:
    # of one vector, or of equal ones, nothing is left: the oblique projection is then the orthogonal one
    floor = max(ridge, 1e-6) * covariance.diagonal().mean().clamp(min=1e-12)
    return covariance + floor * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def _read(covariance: Tensor, directions: Tensor, common: Tensor | None) -> Tensor:
    """R [d, k] with R^T U = I (and R^T common = 0) that reads the least of what has this covariance."""
    fixed = directions if common is None else torch.cat([directions, normalize(common, dim=0)[:, None]], dim=1)
    solved = torch.linalg.solve(covariance, fixed)
    return (solved @ torch.linalg.inv(fixed.T @ solved))[:, : directions.shape[1]]


def _dual(write: Tensor, read: Tensor) -> Tensor:
    """The columns of `write`, mixed so that read^T write = I."""
    return write @ torch.linalg.inv(read.T @ write)


def _least(names: NameVectors, seen: SeenImages | None) -> float:
    """How far below the mean of all names the least likely retained one lies, on average over images (else over names)."""
    rows = seen.others if seen is not None and len(seen.others) else names.retained
    return float(-(rows @ names.retained.T).amin(dim=1).mean().clamp(max=0))


def _difference(seen: SeenImages) -> Tensor:
    """What images of the concept have and others do not: the difference of their means [d]."""
    return seen.concept.mean(dim=0) - seen.others.mean(dim=0)


def _with_column(basis: Tensor, column: Tensor) -> Tensor:
    rest = column - basis @ (basis.T @ column)
    rest = rest - basis @ (basis.T @ rest)
    return basis if float(rest.norm()) <= 1e-6 * float(column.norm()) else torch.cat(
        [basis, rest[:, None] / rest.norm()], dim=1
    )  # fmt: skip


def _and_visual(read: Tensor, write: Tensor, visual: Tensor, others: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The map x -> x - W R^T x with one more step behind it, after which no mean tells images of the concept from others.

    The step removes what the map leaves of the difference of means, d' = P d, as r reads it, with r = C^-1 d' / (d'^T C^-1
    d') and C the covariance of the other images behind the map. Nothing comes back along what `read` reads, as read^T d' =
    0, so both are one oblique projection.
    """
    left = visual - write @ (read.T @ visual)
    if float(left.norm()) <= 1e-6 * float(visual.norm()):
        return read, write
    rows = others - (others @ read) @ write.T
    rows = rows - rows.mean(dim=0)
    solved = torch.linalg.solve(_ridged(rows.T @ rows / len(rows), ridge), left)
    reader = solved / (left @ solved)
    reader = reader - read @ (write.T @ reader)
    return torch.cat([read, reader[:, None]], dim=1), torch.cat([write, left[:, None]], dim=1)


def as_unit(rows: Sequence[Tensor] | Tensor) -> Tensor:
    """Embeddings [n, d] of unit length, float64, on the CPU."""
    stacked = rows if isinstance(rows, Tensor) else torch.cat(list(rows))
    return normalize(stacked.detach().cpu().double(), dim=1)
