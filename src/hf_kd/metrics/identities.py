"""Is an erased identity still recognised? Verification and retrieval on embeddings, as face recognition measures them.

Class accuracy is the wrong question for embeddings: identities that the model was never trained on stay verifiable.
Here the questions are whether two images of the erased person are still matched (verification), whether the person is
found in a gallery (closed set), and whether that works when most queries show people who are not enrolled (open set).
Always beside the retained identities, and to be compared with identities that the model was never trained on.

Similarity is the cosine, as usual for faces, or the cosine after the mean of the retained identities was subtracted.
Report both: ESC moves the erased identity next to the origin, where raw cosines are noise and it seems gone, and one
subtraction brings it back. On a CIFAR-10 ResNet-20, a class taken for a person, ESC at k = 1 takes open-set
identification at an FPIR of 10 % from 89.6 to 3.4 % by the raw cosine, and from 85.0 to 87.2 % centred.

Ties are broken at random and averaged: an eraser that maps a person to one vector makes them perfectly recognisable,
one that maps everybody there makes them indistinguishable, and both have to show. Shares are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._identities import SIMILARITIES as SIMILARITIES
from ._identities import centre_of, drawn_images, erased_mask, listed, percent, query_and_gallery, rounded
from ._inputs import ArrayLike, as_features, as_labels
from .scaling import unit_rows
from .scores import check_rate, recall_at

MOST_IMAGES = 1400
"""Images whose pairs are all compared, about a million; of more that many are drawn."""

QUERIES = 256
"""Queries compared with the whole gallery at a time."""


@dataclass(frozen=True)
class VerificationPoint:
    """True-accept rates at one false-accept rate, percent; chance is 100 * `far`. Lower on `erased` is forgetting."""

    far: float
    erased: float
    """Genuine pairs of erased identities accepted, at the threshold where `far` of their own impostor pairs are."""
    erased_as_deployed: float | None
    """The same at the threshold set on retained identities, which a running system would keep."""
    far_as_deployed: float | None
    """Impostor pairs with an erased identity accepted at that threshold, percent: a collapsed person matches others."""
    retained: float | None


@dataclass(frozen=True)
class Verification:
    """Verification of erased and retained identities; None where no retained pairs exist."""

    points: tuple[VerificationPoint, ...]
    genuine_erased: int
    impostor_erased: int
    genuine_retained: int
    impostor_retained: int
    similarity: str
    images: int
    """Images whose pairs were compared."""
    sampled: bool
    """Whether these were drawn from more."""


@dataclass(frozen=True)
class Retrieval:
    """Closed-set gallery retrieval, percent; lower on `erased` is forgetting."""

    rank1_erased: float
    map_erased: float
    """Mean average precision."""
    rank1_retained: float | None
    map_retained: float | None
    chance_erased: float
    """Expected rank-1 of a random order: the share of the gallery that shows the query's identity."""
    queries_erased: int
    queries_retained: int
    gallery: int
    similarity: str


@dataclass(frozen=True)
class OpenSetPoint:
    """Detection-and-identification rates at one false-positive identification rate; lower on `erased` is forgetting."""

    fpir: float
    similarity: str
    threshold: float
    """Cosine of the best gallery match above which a query counts as known."""
    erased: float
    """Queries of erased, enrolled identities above the threshold whose best match is right, percent."""
    retained: float | None


def verification(
    embeddings: ArrayLike,
    identities: ArrayLike,
    erased: Sequence[int],
    *,
    far: Sequence[float] = (1e-2, 1e-3),
    similarity: str = "cosine",
    max_images: int = MOST_IMAGES,
    seed: int = 0,
) -> Verification:
    """True-accept rate (TAR) of erased identities at stated false-accept rates (FAR).

    Genuine pairs show one identity twice, impostor pairs two identities; a pair is "erased" when one of its images
    shows an erased identity. All pairs of the images are compared. Of more than `max_images` that many are drawn,
    identity by identity and at most half of them erased while there are retained ones.

    Args:
        embeddings: [n, d].
        identities: [n].
        erased: The erased identities.
        far: Rates in (0, 1).
        similarity: "cosine", or "centred": cosine after subtracting the mean of the retained images.
        max_images: At most so many images are compared.
        seed: Of the drawing of more.

    Raises:
        InvalidValueError: When no erased identity has two images, no other identity is there to compare with, or a FAR is
            outside (0, 1).

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> people = torch.tensor([0, 0, 1, 1])
        >>> found = verification(x, people, erased=[0], far=[0.1])
        >>> found.points[0].erased, found.genuine_erased, found.impostor_erased
        (100.0, 1, 4)
    """
    for rate in far:
        check_rate(rate, "far")
    if max_images < 2:
        raise InvalidValueError(f"max_images={max_images}; a pair has two images.")
    x = as_features(embeddings, "embeddings")
    labels = as_labels(identities, len(x), name="identities").numpy()
    is_erased = erased_mask(labels, erased, "identities")
    centre = centre_of(x, ~is_erased, similarity)
    rows = drawn_images(labels, is_erased, max_images, seed)
    unit = unit_rows(x[torch.from_numpy(rows).to(x.device)] - centre)[0]
    kinds = _pairs(unit, labels[rows], is_erased[rows])
    genuine, impostor, genuine_retained, impostor_retained = kinds
    if not len(genuine) or not len(impostor):
        raise InvalidValueError(
            f"The erased identities give {len(genuine)} genuine and {len(impostor)} impostor pairs; verification needs "
            "two images of an erased identity and one of somebody else."
        )
    points = tuple(_verification_point(rate, *kinds) for rate in far)
    counts = (len(genuine), len(impostor), len(genuine_retained), len(impostor_retained))
    return Verification(points, *counts, similarity, images=len(rows), sampled=len(rows) < len(x))


def retrieval(
    queries: ArrayLike,
    query_identities: ArrayLike,
    gallery: ArrayLike,
    gallery_identities: ArrayLike,
    erased: Sequence[int],
    *,
    similarity: str = "cosine",
    tie_draws: int = 5,
    seed: int = 0,
) -> Retrieval:
    """Rank-1 and mean average precision of queries against a gallery that holds every queried identity (closed set).

    No image may be query and gallery image at once.

    Args:
        queries: [q, d].
        query_identities: [q].
        gallery: [g, d].
        gallery_identities: [g].
        erased: The erased identities.
        similarity: "cosine", or "centred": cosine after subtracting the mean of the gallery's retained images.
        tie_draws: Orders of equally similar images that are averaged.
        seed: Of these.

    Returns:
        Percent, for erased and retained queries.

    Raises:
        InvalidValueError: When a queried identity is not in the gallery or none of the queries is of an erased identity.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> people = torch.tensor([0, 0, 1, 1])
        >>> found = retrieval(x[::2], people[::2], x[1::2], people[1::2], erased=[0])
        >>> found.rank1_erased, found.map_retained, found.chance_erased
        (100.0, 100.0, 50.0)
    """
    q, q_labels, g, g_labels = query_and_gallery(
        queries, query_identities, gallery, gallery_identities, erased, similarity
    )
    _refuse_not_enrolled(q_labels, g_labels)
    is_erased = erased_mask(q_labels, erased, "query_identities")
    first, precision = _ranked(q, q_labels, g, g_labels, tie_draws, seed)
    enrolled = np.array([np.mean(g_labels == label) for label in q_labels[is_erased]])
    return Retrieval(
        rank1_erased=percent(first[is_erased]),
        map_erased=percent(precision[is_erased]),
        rank1_retained=percent(first[~is_erased]) if not is_erased.all() else None,
        map_retained=percent(precision[~is_erased]) if not is_erased.all() else None,
        chance_erased=percent(enrolled),
        queries_erased=int(is_erased.sum()),
        queries_retained=int((~is_erased).sum()),
        gallery=len(g_labels),
        similarity=similarity,
    )


def open_set_identification(
    queries: ArrayLike,
    query_identities: ArrayLike,
    gallery: ArrayLike,
    gallery_identities: ArrayLike,
    erased: Sequence[int],
    *,
    fpir: Sequence[float] = (1e-1, 1e-2),
    similarity: str = "cosine",
) -> tuple[OpenSetPoint, ...]:
    """Detection-and-identification rate when people who are not enrolled ask too (open set), a point for each `fpir`.

    The threshold on the best gallery match is set so that the share `fpir` of the queries whose identity is not
    enrolled exceeds it. A query of an enrolled identity counts when it exceeds the threshold and its best match shows
    the right identity; of equally good matches the share that does.

    Args:
        queries: [q, d].
        query_identities: [q].
        gallery: [g, d].
        gallery_identities: [g].
        erased: The erased identities.
        fpir: False-positive identification rates in (0, 1).
        similarity: As in `retrieval`.

    Raises:
        InvalidValueError: When every query's identity is enrolled, or no query is of an erased identity that is enrolled.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> people = torch.tensor([0, 0, 1, 1])
        >>> point, = open_set_identification(x, people, x[:1], people[:1], erased=[0], fpir=[0.5])
        >>> point.erased, point.retained
        (100.0, None)
    """
    for rate in fpir:
        check_rate(rate, "fpir")
    q, q_labels, g, g_labels = query_and_gallery(
        queries, query_identities, gallery, gallery_identities, erased, similarity
    )
    known = np.isin(q_labels, g_labels)
    if known.all():
        raise InvalidValueError(
            "Every query's identity is in the gallery; an open set needs others to set the threshold on. Leave some "
            "identities out of the gallery, or use `retrieval`."
        )
    is_erased = known & erased_mask(q_labels, erased, "query_identities")
    if not is_erased.any():
        raise InvalidValueError(
            f"No query is of an erased identity ({listed(erased)}) that is in the gallery; enrol some of its images."
        )
    best, right = _best_matches(q, q_labels, g, g_labels)
    retained = known & ~is_erased
    return tuple(
        OpenSetPoint(
            fpir=rate,
            similarity=similarity,
            threshold=float(np.sort(best[~known])[::-1][int(rate * np.sum(~known))]),
            erased=_identified(best, right, is_erased, ~known, rate),
            retained=_identified(best, right, retained, ~known, rate) if retained.any() else None,
        )
        for rate in fpir
    )


def _refuse_not_enrolled(q_labels: np.ndarray, g_labels: np.ndarray) -> None:
    unknown = ~np.isin(q_labels, g_labels)
    if unknown.any():
        raise InvalidValueError(
            f"{int(unknown.sum())} queries show identities that are not in the gallery (such as "
            f"{q_labels[unknown][0]}); a closed set has every queried identity enrolled. Drop them, or use "
            "`open_set_identification`."
        )


def _ranked(
    q: Tensor, q_labels: np.ndarray, g: Tensor, g_labels: np.ndarray, tie_draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each query, whether the first image is right and the average precision, as means over the orders of ties."""
    generator = np.random.default_rng(seed)
    first, precision = np.zeros(len(q_labels)), np.zeros(len(q_labels))
    for start in range(0, len(q_labels), QUERIES):
        rows = slice(start, start + QUERIES)
        cosines = rounded(q[rows] @ g.T)
        ordered = np.sort(cosines, axis=1)
        draws = tie_draws if (ordered[:, 1:] == ordered[:, :-1]).any() else 1
        for _ in range(draws):
            shuffled = generator.permutation(cosines.shape[1])
            order = shuffled[np.argsort(-cosines[:, shuffled], axis=1, kind="stable")]
            hits = g_labels[order] == q_labels[rows, None]
            precisions = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
            first[rows] += hits[:, 0] / draws
            precision[rows] += (precisions * hits).sum(1) / hits.sum(1) / draws
    return first, precision


def _best_matches(q: Tensor, q_labels: np.ndarray, g: Tensor, g_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each query, the highest cosine with a gallery image, and which share of those that have it is right."""
    best, right = np.zeros(len(q_labels)), np.zeros(len(q_labels))
    for start in range(0, len(q_labels), QUERIES):
        rows = slice(start, start + QUERIES)
        cosines = rounded(q[rows] @ g.T)
        best[rows] = cosines.max(1)
        top = cosines == best[rows, None]
        right[rows] = (top & (g_labels == q_labels[rows, None])).sum(1) / top.sum(1)
    return best, right


def _pairs(unit: Tensor, labels: np.ndarray, is_erased: np.ndarray) -> list[np.ndarray]:
    """Cosines of all pairs: genuine and impostor ones of erased identities, then those of retained ones."""
    left, right = np.triu_indices(len(labels), 1)
    cosines = rounded(unit @ unit.T)[left, right]
    same, touched = labels[left] == labels[right], is_erased[left] | is_erased[right]
    return [cosines[kind] for kind in (same & touched, ~same & touched, same & ~touched, ~same & ~touched)]


def _verification_point(
    rate: float, genuine: np.ndarray, impostor: np.ndarray, genuine_r: np.ndarray, impostor_r: np.ndarray
) -> VerificationPoint:
    """From the cosines of pairs of erased and of retained (r) identities."""
    deployed = deployed_far = retained = None
    if len(impostor_r):
        deployed, deployed_far = (_accepted(side, impostor_r, rate) for side in (genuine, impostor))
        retained = _accepted(genuine_r, impostor_r, rate) if len(genuine_r) else None
    return VerificationPoint(rate, _accepted(genuine, impostor, rate), deployed, deployed_far, retained)


def _accepted(genuine: np.ndarray, impostor: np.ndarray, rate: float) -> float:
    """Percent of `genuine` accepted where the share `rate` of `impostor` is."""
    positive = np.repeat([True, False], [len(genuine), len(impostor)])
    return recall_at(np.concatenate([genuine, impostor]), positive, rate)


def _identified(best: np.ndarray, right: np.ndarray, asked: np.ndarray, unknown: np.ndarray, rate: float) -> float:
    """Percent of the queries `asked` above the threshold, each counted with the share `right` of its best match."""
    if not right[asked].any():
        return 0.0
    rows = asked | unknown
    weights = np.where(unknown, 1.0, right)[rows]
    return recall_at(best[rows], asked[rows], rate, weights) * float(np.mean(right[asked]))
