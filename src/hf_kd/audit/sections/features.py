"""The sections of a report that look at the features as such (similarity, inputs, norms), and the numbers of the figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_kd.audit.report_data import PlotSamples
from hf_kd.audit.schema import Quantity, Score, Section, scores_of
from hf_kd.features.protocol import TappedModel
from hf_kd.methods.erasers.base import Eraser
from hf_kd.methods.erasers.moments import SecondMoment
from hf_kd.methods.registry import available_methods, make_method
from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.neighbours import distinct_rows
from hf_kd.metrics.similarity import linear_cka, repeated_vectors, share_changed, uncentred_cosine
from hf_kd.metrics.weights import class_mean_cosines

FitClass = Callable[[Tensor], Callable[[Tensor], Tensor] | None]
"""From features [n, d] of one class to the map that erases it; None where that cannot be fitted."""

REPEATED = (
    Quantity("repeated_vectors", "none", lambda found: float(found.repeated), "vectors"),
    Quantity("rows_sharing", "none", lambda found: float(found.share)),
    Quantity("largest_group", "none", lambda found: float(found.largest), "rows"),
)
"""Of the vectors that several inputs share."""

MOST_CLASSES_DRAWN = 20
HISTOGRAM_BINS = 40


def class_fit(model: TappedModel) -> FitClass | None:
    """The method of the last request, fitted on one class; None where it needs more than the moments of D_f, or several
    taps.
    """
    if not model.erasures or len(model.taps) > 1:
        return None
    record = model.erasures[-1]
    if record.method not in available_methods():
        return None
    method = make_method(record.method, **record.settings)
    if method.needs_features or method.needs_head or method.needs_retain or method.by_class or method.views:
        return None

    def fit(features: Tensor) -> Eraser | None:
        moment = SecondMoment(features.shape[1])
        moment.update(features)
        try:
            return method.fit(moment)
        except ValueError:  # too few images of this class for so many directions
            return None

    return fit


def similarity_section(original: AuditData | None, erased: AuditData) -> Section:
    """How far the features of retained samples stayed as they were."""
    title = "Retained features, before and after (D_rt)"
    if original is None:
        return Section("similarity", title, notes=("Not measured: no original was given.",))
    keep = ~original.test_forget
    before, after = original.test[keep], erased.test[keep]
    if before.shape != after.shape:
        return Section("similarity", title, notes=("Not measured: the two have different dimensions.",))
    cosine = uncentred_cosine(before, after)
    scores = (
        Score("linear_cka", linear_cka(before, after), "higher", unit="", original=1.0, protocol="D_rt, centred"),
        Score(
            "cosine", cosine.mean, "higher", unit="", original=1.0, protocol="D_rt, not centred",
            settings={"sd_over_samples": cosine.sd, "zero_rows": cosine.zero_rows},
        ),
    )  # fmt: skip
    return Section("similarity", title, scores, ("1 is unchanged. CKA does not see a removed mean; the cosine does.",))


def inputs_section(original: AuditData | None, erased: AuditData) -> Section:
    """How many inputs the eraser changes, and how many it sends to the same vector.

    Where it leaves some as they are, also how many different vectors those have that it changes: a map that replaces has
    few.
    """
    title = "Inputs changed and vectors shared (test)"
    scores: list[Score] = []
    for name, mask in (("D_ft", erased.test_forget), ("D_rt", ~erased.test_forget)):
        if original is not None and original.test.shape == erased.test.shape:
            changed = share_changed(original.test[mask], erased.test[mask])
            scores.append(Score("changed", changed, "none", name, original=0.0, protocol="any entry differs"))
            rows = (original.test != erased.test.to(original.test.device)).any(dim=1)
            if bool(rows.any()) and not bool(rows.all()):
                vectors = float(len(distinct_rows(erased.test[mask & rows])[0])) if bool((mask & rows).any()) else 0.0
                scores.append(
                    Score("changed_vectors", vectors, "none", name, unit="vectors", protocol="of the changed")
                )
        versions = {version: repeated_vectors(data.test[mask]) for version, data in _given(original, erased).items()}
        settings = {"rows": versions["erased"].rows, "distinct": versions["erased"].distinct}
        scores += scores_of(versions, REPEATED, name, protocol="equal bit for bit", settings=settings)
    notes = ["Attackers break exact ties at random and average, so shared vectors neither hide nor feign forgetting."]
    return Section("inputs", title, tuple(scores), tuple(notes))


def _given(original: AuditData | None, erased: AuditData) -> dict[str, AuditData]:
    return ({} if original is None else {"original": original}) | {"erased": erased}


def norms_section(original: AuditData | None, erased: AuditData) -> Section:
    """Mean feature norms: erasing a direction shortens what pointed along it, and that alone can be read."""
    scores: list[Score] = []
    for name, mask in (("D_ft", erased.test_forget), ("D_rt", ~erased.test_forget)):
        lengths = {version: data.test[mask].double().norm(dim=1) for version, data in _given(original, erased).items()}
        scores += scores_of(
            lengths,
            [Quantity("mean_norm", "none", lambda values: float(values.mean()), unit="")],
            name,
            protocol="Euclidean, test",
            settings={"sd_over_samples": float(lengths["erased"].std(unbiased=False))},
        )
    return Section(
        "norms",
        "Feature norms",
        tuple(scores),
        ("The attack `norm`, where it is run, reads the forgotten classes from these.",),
    )


# For the figures


def plot_numbers(original: AuditData | None, erased: AuditData, fit_class: FitClass | None = None) -> dict[str, Any]:
    """Histograms of the norms and, beside an original, cosines and lengths of class means (Fig. 3) of at most 20 classes.

    fit_class: gives the eraser fitted on one class's training features; with it each class is also shown behind its own
        eraser, as in the paper's right panel.
    """
    if original is not None and original.test.shape != erased.test.shape:
        return {}
    lengths = {
        version: data.test.double().norm(dim=1).cpu().numpy() for version, data in _given(original, erased).items()
    }
    top = max(float(values.max()) for values in lengths.values()) or 1.0
    edges = np.linspace(0.0, top, HISTOGRAM_BINS + 1)
    forget = erased.test_forget.cpu().numpy()
    return ({} if original is None else {"cosines": _cosines(original, erased, fit_class)}) | {
        "norms": {
            "edges": edges,
            **{
                version: {
                    part: np.histogram(values[mask], edges)[0] / mask.sum()
                    for part, mask in (("forget", forget), ("retain", ~forget))
                }
                for version, values in lengths.items()
            },
        },
    }


def _cosines(original: AuditData, erased: AuditData, fit_class: FitClass | None) -> dict[str, Any]:
    drawn = drawn_classes(original)
    rows = torch.isin(original.test_labels, drawn)
    labels = original.test_labels[rows]
    cosines = class_mean_cosines(original.test[rows], erased.test[rows], labels)
    each = None if fit_class is None else _each_erased(original, rows, drawn, fit_class)
    own = None if each is None else class_mean_cosines(original.test[rows], each, labels)
    return vars(cosines) | ({} if own is None else {"after_each": own.after, "norms_after_each": own.norms_after})


def _each_erased(data: AuditData, rows: Tensor, drawn: Tensor, fit_class: FitClass) -> Tensor | None:
    """Test features of the drawn classes, each behind an eraser of its own; None where one cannot be fitted."""
    features, labels = data.test[rows].clone(), data.test_labels[rows]
    for label in drawn:
        own = data.train[data.train_labels == label]
        eraser = fit_class(own) if len(own) else None
        if eraser is None:
            return None
        features[labels == label] = eraser(features[labels == label])
    return features


def drawn_classes(data: AuditData) -> Tensor:
    """The forgotten classes and the retained ones whose means are nearest to theirs, at most 20, ascending."""
    labels = data.test_labels.unique()
    if labels.numel() <= MOST_CLASSES_DRAWN:
        return labels
    means = torch.stack([data.test[data.test_labels == label].double().mean(dim=0) for label in labels])
    centre = means[torch.isin(labels, torch.tensor(data.forget, device=labels.device))].mean(dim=0)
    distance = (means - centre).norm(dim=1)
    distance[torch.isin(labels, torch.tensor(data.forget, device=labels.device))] = -1.0
    return labels[distance.argsort()[:MOST_CLASSES_DRAWN].sort().values]


def plot_samples(original: AuditData | None, erased: AuditData, most: int = 600) -> PlotSamples | None:
    """A few test samples of every drawn class, the same of both versions."""
    if original is not None and original.test.shape != erased.test.shape:
        return None
    drawn = drawn_classes(original or erased)
    each = max(5, most // drawn.numel())
    rows = torch.cat([torch.nonzero(erased.test_labels == label).flatten()[:each] for label in drawn])
    return PlotSamples(
        None if original is None else original.test[rows].float().cpu().numpy(),
        erased.test[rows].float().cpu().numpy(),
        erased.test_labels[rows].cpu().numpy(),
    )
