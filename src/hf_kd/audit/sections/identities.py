"""The section of a report about erased identities (faces): are they still verified, found in a gallery, told from unseen?

For embeddings, where identity is asked by comparison and not by a head. Every number by the raw cosine and by the cosine
after the retained mean was subtracted: ESC moves an erased identity next to the origin, where raw cosines are noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_kd.audit.schema import Quantity, Score, Section, scores_of
from hf_kd.metrics._inputs import generator
from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.identities import MOST_IMAGES, SIMILARITIES, open_set_identification, retrieval, verification

MOST_QUERIES = 1_000
MOST_ENROLLED = 5_000


@dataclass(frozen=True)
class _Rows:
    """Which test images ask and which training images are enrolled; the same in every version."""

    queries: Tensor
    gallery: Tensor
    open_gallery: Tensor
    """Without every other retained identity: their queries are the unseen identities of the open set."""


def identities_section(versions: Mapping[str, AuditData]) -> Section:
    """Verification, closed-set and open-set identification of the forgotten identities: test images ask, training images
    are enrolled. `versions` holds `erased`, `original` and maybe `reference`.
    """
    title = "Erased identities: verification and retrieval"
    data = versions["erased"]
    rows = _rows(data)
    forgotten = int(data.test_forget[rows.queries].sum())
    asked = {"rank1": forgotten, "rank1_retained": rows.queries.numel() - forgotten}
    scores: list[Score] = []
    skipped: set[str] = set()
    for similarity in SIMILARITIES:
        measured: dict[str, dict[tuple[str, str], tuple[float | None, float | None]]] = {}
        for version, features in versions.items():
            measured[version], missing = _measure(features, rows, similarity)
            skipped |= missing
        for (group, name), (_, chance) in measured["erased"].items():
            quantity = Quantity(
                name,
                "higher" if name.endswith("retained") else "lower",
                lambda found, key=(group, name): found[key][0] if key in found else None,
                chance=chance,
            )
            scores += scores_of(
                measured,
                [quantity],
                f"{group}, {similarity}",
                protocol=f"{similarity} similarity",
                settings={
                    "queries": rows.queries.numel(),
                    "enrolled": rows.gallery.numel(),
                    **({"samples": asked[name]} if name in asked else {}),
                },
            )
    notes = [
        "Chance is what random scores give. Read raw and centred together: an identity that ESC moved next to the origin "
        "seems gone by the raw cosine, and subtracting the mean of the retained ones brings it back.",
        *sorted(skipped),
    ]
    kept = tuple(score for score in scores if score.value is not None)
    return Section("identities", title, kept, tuple(notes), {"sampled": _sampled(data, rows)})


def _sampled(data: AuditData, rows: _Rows) -> dict[str, dict[str, int]]:
    """What of it was measured on a part of the images only."""
    asked = torch.isin(data.train_labels, data.test_labels[rows.queries])
    sizes = {
        "queries": (len(rows.queries), len(data.test)),
        "enrolled images": (len(rows.gallery), int(asked.sum())),
        "verification images": (min(MOST_IMAGES, len(rows.queries)), len(data.test)),
    }
    return {what: {"drawn": size, "of": of, "seed": 0} for what, (size, of) in sizes.items() if size < of}


def _measure(
    data: AuditData, rows: _Rows, similarity: str
) -> tuple[dict[tuple[str, str], tuple[float | None, float | None]], set[str]]:
    """(group, name) -> value and chance, in percent; and what could not be measured, in words."""
    queries, labels = data.test[rows.queries], data.test_labels[rows.queries]
    gallery, enrolled = data.train[rows.gallery], data.train_labels[rows.gallery]
    found: dict[tuple[str, str], tuple[float | None, float | None]] = {}
    missing: set[str] = set()
    counts = labels[torch.isin(labels, torch.tensor(data.forget, device=labels.device))].unique(return_counts=True)[1]
    if (counts > 1).any():
        for point in verification(queries, labels, data.forget, similarity=similarity).points:
            group, chance = f"verification, FAR {point.far:g}", 100 * point.far
            found[group, "tar"] = point.erased, chance
            found[group, "tar_as_deployed"] = point.erased_as_deployed, None
            found[group, "tar_retained"] = point.retained, chance
    else:
        missing.add("Verification needs two test images of a forgotten identity.")
    closed = retrieval(queries, labels, gallery, enrolled, data.forget, similarity=similarity)
    found["closed set", "rank1"] = closed.rank1_erased, closed.chance_erased
    found["closed set", "map"] = closed.map_erased, None
    found["closed set", "rank1_retained"] = closed.rank1_retained, None
    if rows.open_gallery.numel() == rows.gallery.numel():
        missing.add("The open set needs two retained identities, one of them in the part of the unseen.")
        return found, missing
    gallery, enrolled = data.train[rows.open_gallery], data.train_labels[rows.open_gallery]
    for point in open_set_identification(queries, labels, gallery, enrolled, data.forget, similarity=similarity):
        found[f"open set, FPIR {point.fpir:g}", "identified"] = point.erased, None
        found[f"open set, FPIR {point.fpir:g}", "identified_retained"] = point.retained, None
    return found, missing


def _rows(data: AuditData) -> _Rows:
    """At most `MOST_QUERIES` and `MOST_ENROLLED` images, the forgotten first and at most half of them."""
    rng = generator(0)
    queries = _some(data.test_forget, ~data.test_forget, MOST_QUERIES, rng)
    asked = torch.isin(data.train_labels, data.test_labels[queries])
    gallery = _some(data.train_forget & asked, ~data.train_forget & asked, MOST_ENROLLED, rng, each=data.train_labels)
    retained = data.train_labels[gallery][~data.train_forget[gallery]].unique()
    unseen = torch.isin(data.train_labels[gallery], retained[1::2])
    return _Rows(queries, gallery, gallery[~unseen])


def _some(forgotten: Tensor, retained: Tensor, most: int, rng: torch.Generator, each: Tensor | None = None) -> Tensor:
    """Row numbers: at most `most`, half of them forgotten; with `each` labels at least one row of every label stays."""

    def shuffled(mask: Tensor) -> Tensor:
        rows = torch.nonzero(mask).flatten()
        return rows[torch.randperm(rows.numel(), generator=rng).to(rows.device)]

    first, rest = shuffled(forgotten), shuffled(retained)
    if each is not None:  # one of every label comes before the rest, so that cutting keeps it
        first, rest = (_one_of_each_first(rows, each) for rows in (first, rest))
    first = first[: max(most // 2, most - rest.numel())]
    return torch.cat([first, rest[: most - first.numel()]])


def _one_of_each_first(rows: Tensor, labels: Tensor) -> Tensor:
    order = torch.argsort(labels[rows], stable=True)
    ordered = labels[rows][order]
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    first = torch.zeros_like(fresh)
    first[order] = fresh
    return torch.cat([rows[first], rows[~first]])
