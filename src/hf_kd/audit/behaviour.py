"""The sections of a report that look at answers and at the features as such: head, membership, similarity, inputs, norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import as_classes, as_logits
from .attack_data import AuditData
from .change import class_mean_cosines
from .membership import LossAttack, loss_attack
from .repetition import repeated_vectors, share_changed
from .report import PlotSamples, Score, Section
from .scores import ForgetRetainScores, nearest_retained_classes, per_class_accuracy
from .sections import RATES
from .similarity import linear_cka, uncentred_cosine

NEAREST = 5
MOST_CLASSES_DRAWN = 20
HISTOGRAM_BINS = 40


class Answers:
    """Checked logits of one version's own head, and what is read from them."""

    def __init__(self, name: str, train: Any, test: Any, data: AuditData):
        self.data = data
        self.train, self.test = as_logits(train, f"{name} train logits"), as_logits(test, f"{name} test logits")
        for logits, labels, split in ((self.train, data.train_labels, "train"), (self.test, data.test_labels, "test")):
            if len(logits) != len(labels):
                raise ValueError(
                    f"{name} {split} logits have {len(logits)} rows and the features {len(labels)}; pass one row for each "
                    "sample, in the same order."
                )
            as_classes(labels.cpu(), logits, f"{split} labels")
        self.predictions = self.test.argmax(dim=1).cpu()
        labels = (data.train_labels.cpu(), data.test_labels.cpu())
        self.scores = ForgetRetainScores.from_predictions(
            self.train.argmax(dim=1).cpu(), labels[0], self.predictions, labels[1], data.forget
        )

    def membership(self, seed: int = 0) -> LossAttack:
        """D_f against D_ft by the loss of the head."""
        forget, forget_test = self.data.train_forget.cpu(), self.data.test_forget.cpu()
        return loss_attack(
            self.train[forget],
            self.data.train_labels.cpu()[forget],
            self.test[forget_test],
            self.data.test_labels.cpu()[forget_test],
            seed=seed,
        )


def _score(
    name: str, direction: str, answers: Mapping[str, Any], pick: Callable[[Any], float | None], group: str = "", **about
) -> Score:
    values = {version: pick(answers[version]) if version in answers else None for version in _VERSIONS}
    erased, original, reference, before = values.values()
    return Score(
        name, erased, direction, group, original=original, reference=reference, before_projection=before, **about
    )


_VERSIONS = ("erased", "original", "reference", "before_projection")


def head(answers: Mapping[str, Answers]) -> Section:
    """The model's own head: the four accuracies, every class, and where forgotten samples go."""
    title = "The model's own head"
    if "erased" not in answers:
        return Section("head", title, notes=("Not measured: no logits were given (an embedding model has none).",))
    data = answers["erased"].data
    scores = [
        _score(name, direction, answers, lambda a, name=name: getattr(a.scores, name), protocol="top-1 over all logits")
        for name, direction in RATES.items()
    ]
    tables = {
        version: {row.label: row for row in per_class_accuracy(a.predictions, data.test_labels.cpu(), data.forget)}
        for version, a in answers.items()
    }
    for label, row in tables["erased"].items():
        scores.append(
            _score(
                "accuracy",
                "lower" if row.forgotten else "higher",
                tables,
                lambda table, label=label: table[label].accuracy,
                f"class {label}",
                protocol="top-1, test",
                settings={"label": label, "samples": row.samples, "forgotten": row.forgotten},
            )
        )
    nearest = {
        version: {
            row.label: row.share for row in nearest_retained_classes(a.predictions, data.test_labels.cpu(), data.forget)
        }
        for version, a in answers.items()
    }
    for label in list(nearest["erased"])[:NEAREST]:
        scores.append(
            _score(
                "answered",
                "none",
                nearest,
                lambda shares, label=label: shares.get(label, 0.0),
                f"as class {label}",
                protocol="share of D_ft that the head gives this retained class",
                settings={"label": label},
            )
        )
    notes = (
        "A head can be silenced without erasing anything (W_c = 0, b_c = -inf gives D_ft = 0): low accuracy here says "
        "nothing about what the features reveal.",
    )
    return Section("head", title, tuple(scores), notes)


def membership(answers: Mapping[str, Answers]) -> Section:
    """The loss attack, D_f against D_ft, two-sided."""
    title = "Membership of D_f (loss attack, two-sided)"
    if "erased" not in answers:
        return Section("membership", title, notes=("Not measured: no logits were given.",))
    data = answers["erased"].data
    sides = int(data.train_forget.sum()), int(data.test_forget.sum())
    if min(sides) < 10:
        return Section(
            "membership", title, notes=(f"Not measured: {sides[0]} and {sides[1]} images; it needs 10 a side.",)
        )
    found = {version: a.membership() for version, a in answers.items()}
    erased = found["erased"]
    settings = {"members": erased.members, "nonmembers": erased.nonmembers, "sd_over": f"{erased.draws} draws"}
    about = {"protocol": "loss of each image, D_f (members) against D_ft", "settings": settings}
    scores = (
        _score("accuracy", "chance", found, lambda a: a.accuracy, chance=50.0, sd=erased.accuracy_sd, **about),
        _score("auc_two_sided", "chance", found, lambda a: a.auc_two_sided, chance=50.0, sd=erased.auc_sd, **about),
        _score("tpr_at_1%_fpr", "chance", found, lambda a: max(a.tpr, a.tpr_reversed), chance=1.0, **about),
        _score("leak", "lower", found, lambda a: a.leak, unit="points", chance=0.0, **about),
    )
    notes = (
        "Far below 50 % is a leak too: the attacker turns the test around. A model retrained without the class answers "
        "neither its train nor its test images, so compare with a reference, not with 50 %. Deviations are "
        "over draws of the images, not over seeds.",
    )
    return Section("membership", title, scores, notes)


def similarity(original: AuditData, erased: AuditData) -> Section:
    """How far the features of retained samples stayed as they were."""
    keep = ~original.test_forget
    before, after = original.test[keep], erased.test[keep]
    title = "Retained features, before and after (D_rt)"
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


def inputs(original: AuditData, erased: AuditData) -> Section:
    """How many inputs the eraser changes, and how many it sends to the same vector."""
    title = "Inputs changed and vectors shared (test)"
    scores = []
    for name, mask in (("D_ft", original.test_forget), ("D_rt", ~original.test_forget)):
        if original.test.shape == erased.test.shape:
            changed = share_changed(original.test[mask], erased.test[mask])
            scores.append(Score("changed", changed, "none", name, original=0.0, protocol="any entry differs"))
        before, after = repeated_vectors(original.test[mask]), repeated_vectors(erased.test[mask])
        for part, unit in (("repeated", "vectors"), ("share", "%"), ("largest", "rows")):
            scores.append(
                Score(
                    {"repeated": "repeated_vectors", "share": "rows_sharing", "largest": "largest_group"}[part],
                    float(getattr(after, part)),
                    "none",
                    name,
                    unit=unit,
                    original=float(getattr(before, part)),
                    protocol="equal bit for bit",
                    settings={"rows": after.rows, "distinct": after.distinct},
                )
            )
    notes = ["Attackers break exact ties at random and average, so shared vectors neither hide nor feign forgetting."]
    return Section("inputs", title, tuple(scores), tuple(notes))


def norms(original: AuditData, erased: AuditData) -> Section:
    """Mean feature norms: erasing a direction shortens what pointed along it, and that alone can be read."""
    scores = []
    for name, mask in (("D_ft", original.test_forget), ("D_rt", ~original.test_forget)):
        before, after = original.test[mask].double().norm(dim=1), erased.test[mask].double().norm(dim=1)
        scores.append(
            Score(
                "mean_norm",
                float(after.mean()),
                "none",
                name,
                unit="",
                original=float(before.mean()),
                protocol="Euclidean, test",
                settings={"sd_over_samples": float(after.std(unbiased=False))},
            )
        )
    return Section(
        "norms", "Feature norms", tuple(scores), ("The attack `norm` reads the forgotten classes from these.",)
    )


# For the figures


def plot_numbers(original: AuditData, erased: AuditData) -> dict[str, Any]:
    """Cosines and lengths of class means (Fig. 3) of at most 20 classes, and histograms of the norms."""
    if original.test.shape != erased.test.shape:
        return {}
    drawn = drawn_classes(original)
    rows = torch.isin(original.test_labels, drawn)
    cosines = class_mean_cosines(original.test[rows], erased.test[rows], original.test_labels[rows])
    lengths = {
        version: data.test.double().norm(dim=1).cpu().numpy()
        for version, data in (("original", original), ("erased", erased))
    }
    top = max(float(values.max()) for values in lengths.values()) or 1.0
    edges = np.linspace(0.0, top, HISTOGRAM_BINS + 1)
    forget = original.test_forget.cpu().numpy()
    return {
        "cosines": vars(cosines),
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


def plot_samples(original: AuditData, erased: AuditData, most: int = 600) -> PlotSamples | None:
    """A few test samples of every drawn class, the same of both versions."""
    if original.test.shape != erased.test.shape:
        return None
    drawn = drawn_classes(original)
    each = max(5, most // drawn.numel())
    rows = torch.cat([torch.nonzero(original.test_labels == label).flatten()[:each] for label in drawn])
    return PlotSamples(
        original.test[rows].float().cpu().numpy(),
        erased.test[rows].float().cpu().numpy(),
        original.test_labels[rows].cpu().numpy(),
    )
