"""Is an erased identity still recognised? Verification and retrieval on embeddings, as face recognition measures them.

Class accuracy is the wrong question for embeddings: identities that the model was never trained on stay verifiable.
Here the questions are whether two images of the erased person are still matched (verification), whether the person is
found in a gallery (closed set), and whether that works when most queries are strangers (open set). Always beside the
retained identities, and to be compared with identities that the model never saw.

Similarity is the cosine, as usual for faces, or the cosine after the mean of the retained identities was subtracted.
Report both: ESC moves the erased identity next to the origin, where raw cosines are noise and it seems gone, and one
subtraction brings it back. On a CIFAR-10 ResNet-20, a class taken for a person, ESC at k = 1 takes open-set
identification at an FPIR of 10 % from 88 to 2.5 % by the raw cosine, and from 82 to 82 % centred.

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

from ._inputs import ArrayLike, as_features, as_labels
from .scaling import unit_rows
from .scores import acceptance, check_rate, percent_accepted, threshold_at

SIMILARITIES = ("cosine", "centred")

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
    sampled: bool
    """Whether some kind of pair was more numerous than `max_pairs` and drawn at random."""


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
    max_pairs: int = 500_000,
    seed: int = 0,
) -> Verification:
    """True-accept rate (TAR) of erased identities at stated false-accept rates (FAR).

    Genuine pairs show one identity twice, impostor pairs two identities; a pair is "erased" when one of its images
    shows an erased identity. All pairs of a kind are compared, or `max_pairs` drawn with `seed`. `similarity` is
    "cosine" or "centred" (cosine after subtracting the mean of the retained images).

    Shapes: embeddings [n, d], identities [n]. Raises ValueError when no erased identity has two images, no other
    identity is there to compare with, or a FAR is outside (0, 1).
    """
    for rate in far:
        check_rate(rate, "far")
    if max_pairs < 1:
        raise InvalidValueError(f"max_pairs={max_pairs}; at least one pair of each kind has to be compared.")
    x = as_features(embeddings, "embeddings")
    labels = as_labels(identities, len(x), name="identities").numpy()
    is_erased = _erased_mask(labels, erased, "identities")
    unit, _ = unit_rows(x - _centre(x, ~is_erased, similarity))
    generator = np.random.default_rng(seed)
    inside, outside, nobody = np.flatnonzero(is_erased), np.flatnonzero(~is_erased), np.empty(0, np.int64)
    pairs = {
        "genuine_erased": _genuine_pairs(labels, inside, max_pairs, generator),
        "impostor_erased": _impostor_pairs(labels, inside, outside, max_pairs, generator),
        "genuine_retained": _genuine_pairs(labels, outside, max_pairs, generator),
        "impostor_retained": _impostor_pairs(labels, outside, nobody, max_pairs, generator),
    }
    counts = {kind: available for kind, (_, available) in pairs.items()}
    genuine, impostor, genuine_r, impostor_r = (_cosines(unit, drawn) for drawn, _ in pairs.values())
    if not len(genuine) or not len(impostor):
        raise InvalidValueError(
            f"The erased identities give {len(genuine)} genuine and {len(impostor)} impostor pairs; verification needs "
            "two images of an erased identity and one of somebody else."
        )
    points = []
    for rate in far:
        deployed = deployed_far = retained = None
        if len(impostor_r):
            deployed, deployed_far = (percent_accepted(side, impostor_r, rate) for side in (genuine, impostor))
            retained = percent_accepted(genuine_r, impostor_r, rate) if len(genuine_r) else None
        points.append(
            VerificationPoint(rate, percent_accepted(genuine, impostor, rate), deployed, deployed_far, retained)
        )
    return Verification(points=tuple(points), similarity=similarity, sampled=max(counts.values()) > max_pairs, **counts)


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

    No image may be query and gallery image at once. `similarity` is "cosine" or "centred" (cosine after subtracting the
    mean of the gallery's retained images). Shapes: queries [q, d], gallery [g, d], identities [q] and [g].
    Raises ValueError when a queried identity is not in the gallery or none of the queries is of an erased identity.
    """
    q, q_labels, g, g_labels = _query_and_gallery(
        queries, query_identities, gallery, gallery_identities, erased, similarity
    )
    strangers = ~np.isin(q_labels, g_labels)
    if strangers.any():
        raise InvalidValueError(
            f"{int(strangers.sum())} queries show identities that are not in the gallery (such as "
            f"{q_labels[strangers][0]}); a closed set has every queried identity enrolled. Drop them, or use "
            "`open_set_identification`."
        )
    is_erased = _erased_mask(q_labels, erased, "query_identities")
    generator = np.random.default_rng(seed)
    first, precision = np.zeros(len(q_labels)), np.zeros(len(q_labels))
    for start in range(0, len(q_labels), QUERIES):
        rows = slice(start, start + QUERIES)
        cosines = _rounded(q[rows] @ g.T)
        ordered = np.sort(cosines, axis=1)
        draws = tie_draws if (ordered[:, 1:] == ordered[:, :-1]).any() else 1
        for _ in range(draws):
            shuffled = generator.permutation(cosines.shape[1])
            order = shuffled[np.argsort(-cosines[:, shuffled], axis=1, kind="stable")]
            hits = g_labels[order] == q_labels[rows, None]
            precisions = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
            first[rows] += hits[:, 0] / draws
            precision[rows] += (precisions * hits).sum(1) / hits.sum(1) / draws
    enrolled = np.array([np.mean(g_labels == label) for label in q_labels[is_erased]])
    return Retrieval(
        rank1_erased=_percent(first[is_erased]),
        map_erased=_percent(precision[is_erased]),
        rank1_retained=_percent(first[~is_erased]) if not is_erased.all() else None,
        map_retained=_percent(precision[~is_erased]) if not is_erased.all() else None,
        chance_erased=_percent(enrolled),
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
    """Detection-and-identification rate when strangers ask too (open set), one point for each `fpir`.

    The threshold on the best gallery match is set so that the share `fpir` of the queries whose identity is not
    enrolled exceeds it. A query of an enrolled identity counts when it exceeds the threshold and its best match shows
    the right identity; of equally good matches the share that does.

    Shapes and `similarity` as in `retrieval`. Raises ValueError when no query is a stranger, or no query is of an
    erased identity that is enrolled.
    """
    for rate in fpir:
        check_rate(rate, "fpir")
    q, q_labels, g, g_labels = _query_and_gallery(
        queries, query_identities, gallery, gallery_identities, erased, similarity
    )
    known = np.isin(q_labels, g_labels)
    if known.all():
        raise InvalidValueError(
            "Every query's identity is in the gallery; an open set needs strangers to set the threshold on. Leave some "
            "identities out of the gallery, or use `retrieval`."
        )
    is_erased = known & _erased_mask(q_labels, erased, "query_identities")
    if not is_erased.any():
        raise InvalidValueError(
            f"No query is of an erased identity ({_some(erased)}) that is in the gallery; enrol some of its images."
        )
    best, right = np.zeros(len(q_labels)), np.zeros(len(q_labels))
    for start in range(0, len(q_labels), QUERIES):
        rows = slice(start, start + QUERIES)
        cosines = _rounded(q[rows] @ g.T)
        best[rows] = cosines.max(1)
        top = cosines == best[rows, None]
        right[rows] = (top & (g_labels == q_labels[rows, None])).sum(1) / top.sum(1)

    points = []
    for rate in fpir:
        identified = acceptance(best, best[~known], rate) * right
        retained = known & ~is_erased
        points.append(
            OpenSetPoint(
                fpir=rate,
                similarity=similarity,
                threshold=threshold_at(best[~known], rate),
                erased=_percent(identified[is_erased]),
                retained=_percent(identified[retained]) if retained.any() else None,
            )
        )
    return tuple(points)


def _genuine_pairs(
    labels: np.ndarray, rows: np.ndarray, limit: int, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Pairs [p, 2] of different rows with one label, and how many exist."""
    groups = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    sizes = np.array([len(group) * (len(group) - 1) // 2 for group in groups], dtype=np.int64)
    available = int(sizes.sum())
    if available <= limit:
        parts = [group[np.stack(np.triu_indices(len(group), 1), 1)] for group in groups]
        return np.concatenate([np.empty((0, 2), np.int64), *parts]), available
    drawn = generator.multinomial(limit, sizes / available)
    parts = []
    for group, number in zip(groups, drawn, strict=True):
        if number:
            left = generator.integers(len(group), size=number)
            right = (left + generator.integers(1, len(group), size=number)) % len(group)
            parts.append(np.stack([group[left], group[right]], 1))
    return np.concatenate(parts), available


def _impostor_pairs(
    labels: np.ndarray, rows: np.ndarray, rest: np.ndarray, limit: int, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Pairs [p, 2] with different labels, one image of `rows` and one of `rows` or `rest`, and how many exist.

    No label occurs in both `rows` and `rest`; a pair with both images in `rows` counts once.
    """
    classes, size = np.unique(labels[rows], return_counts=True)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    start = np.cumsum(size) - size
    within = int((len(rows) ** 2 - (size.astype(np.int64) ** 2).sum()) // 2)
    available = within + len(rows) * len(rest)
    if available <= limit:
        inner = [_cross(rows[a : a + n], rows[a + n :]) for a, n in zip(start, size, strict=True)]
        return np.concatenate([np.empty((0, 2), np.int64), *inner, _cross(rows, rest)]), available
    number = int(generator.binomial(limit, within / available))
    chosen = []
    if number:
        # The first image's class with the weight of its pairs; the second image skips over that class.
        weights = size * (len(rows) - size)
        drawn = np.repeat(np.arange(len(classes)), generator.multinomial(number, weights / weights.sum()))
        first = start[drawn] + generator.integers(size[drawn])
        second = generator.integers(len(rows) - size[drawn])
        second = np.where(second < start[drawn], second, second + size[drawn])
        chosen.append(np.stack([rows[first], rows[second]], 1))
    if limit > number:
        chosen.append(np.stack([side[generator.integers(len(side), size=limit - number)] for side in (rows, rest)], 1))
    return np.concatenate(chosen), available


def _cross(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(rows, others, indexing="ij"), -1).reshape(-1, 2)


def _cosines(unit: Tensor, pairs: np.ndarray, size: int = 16_384) -> np.ndarray:
    parts = [
        (unit[part[:, 0]] * unit[part[:, 1]]).sum(1) for part in torch.from_numpy(pairs).to(unit.device).split(size)
    ]
    return _rounded(torch.cat(parts))


def _rounded(cosines: Tensor) -> np.ndarray:
    """Cosines of equal vectors can differ in the last bits, by their place in the product; they have to be ties."""
    return cosines.cpu().numpy().round(12)


def _query_and_gallery(
    queries: ArrayLike,
    query_identities: ArrayLike,
    gallery: ArrayLike,
    gallery_identities: ArrayLike,
    erased: Sequence[int],
    similarity: str,
) -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
    q, g = as_features(queries, "queries"), as_features(gallery, "gallery images")
    g = g.to(q.device)
    if q.shape[1] != g.shape[1]:
        raise InvalidValueError(
            f"queries have {q.shape[1]} and the gallery {g.shape[1]} dimensions; embed both with the same model."
        )
    q_labels = as_labels(query_identities, len(q), name="query identities").numpy()
    g_labels = as_labels(gallery_identities, len(g), name="gallery identities").numpy()
    centre = _centre(g, ~np.isin(g_labels, np.asarray(list(erased), dtype=np.int64)), similarity)
    return unit_rows(q - centre)[0], q_labels, unit_rows(g - centre)[0], g_labels


def _centre(embeddings: Tensor, retained: np.ndarray, similarity: str) -> Tensor:
    """What to subtract from every embedding, float64 [d]."""
    if similarity not in SIMILARITIES:
        raise InvalidValueError(f"similarity={similarity!r}; expected 'cosine' or 'centred'.")
    if similarity == "cosine":
        return embeddings.new_zeros(embeddings.shape[1], dtype=torch.float64)
    if not retained.any():
        raise InvalidValueError("Every identity is erased; similarity='centred' needs retained ones for the mean.")
    return embeddings[torch.from_numpy(retained).to(embeddings.device)].to(torch.float64).mean(dim=0)


def _erased_mask(labels: np.ndarray, erased: Sequence[int], name: str) -> np.ndarray:
    mask = np.isin(labels, np.asarray(list(erased), dtype=np.int64))
    if not mask.any():
        raise InvalidValueError(
            f"None of the erased identities ({_some(erased)}) occurs in {name}; pass images that show them."
        )
    return mask


def _some(erased: Sequence[int]) -> str:
    return ", ".join(map(str, list(erased)[:5])) or "none given"


def _percent(shares: np.ndarray) -> float:
    return 100 * float(np.mean(shares))
