"""The sections of a report that look at what heads answer: the model's own head, agreement with other models, and the
gap to a retrained one. Works on logits [n, C], whose columns are the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

from torch import Tensor

from hf_kd.audit.schema import Quantity, Score, Section, scores_of
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import answered
from hf_kd.metrics._inputs import ArrayLike, as_classes, as_logits
from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.membership_share import member_rate
from hf_kd.metrics.scores import ForgetRetainScores, average_gap, nearest_retained_classes, per_class_accuracy
from hf_kd.metrics.similarity import activation_distances, completeness, js_divergence, zrf

from .retention import changes, rates

NEAREST = 5
"""Retained classes named as answers to forgotten samples."""

SEVERAL = (
    "The head may give an image several labels: an image counts as answered where its own label has a probability above "
    "1/2, whatever other labels it is given beside it. Agreement, membership and attacks on the weights, where they are "
    "measured, take the logits for a choice of one class."
)


class Answers:
    """Checked logits of one version's own head, and what is read from them."""

    def __init__(self, name: str, train: Any, test: Any, data: AuditData, several: bool = False):
        """several: whether the head may give an image several labels; see `answered`."""
        self.data, self.several = data, several
        self.train, self.test = as_logits(train, f"{name} train logits"), as_logits(test, f"{name} test logits")
        for logits, labels, split in ((self.train, data.train_labels, "train"), (self.test, data.test_labels, "test")):
            if len(logits) != len(labels):
                raise InvalidValueError(
                    f"{name} {split} logits have {len(logits)} rows and the features {len(labels)}; pass one row for each "
                    "sample, in the same order."
                )
            as_classes(labels.cpu(), logits, f"{split} labels")
        train_labels, self.test_labels = data.train_labels.cpu(), data.test_labels.cpu()
        of_train = answered(self.train, train_labels if several else None).cpu()
        self.predictions = answered(self.test, self.test_labels if several else None).cpu()
        self.scores = ForgetRetainScores.from_predictions(
            of_train, train_labels, self.predictions, self.test_labels, data.forget
        )

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Logits and labels of D_f, D_r, D_ft or D_rt."""
        return part_of(self.data, name, self.train, self.test)

    def nearest(self) -> dict[int, float]:
        """Percent of D_ft that each retained class is answered for, the most frequent first."""
        if not self.several:
            rows = nearest_retained_classes(self.predictions, self.test_labels, self.data.forget)
            return {row.label: row.share for row in rows}
        given = 100 * (self.part("D_ft")[0] > 0).double().mean(dim=0)  # none, one or several for each image
        shares = {c: share for c, share in enumerate(given.tolist()) if share and c not in self.data.forget}
        return dict(sorted(shares.items(), key=lambda pair: (-pair[1], pair[0])))


def head_section(answers: Mapping[str, Answers]) -> Section:
    """The model's own head: the four accuracies, every class, and where forgotten samples go."""
    title = "The model's own head"
    if "erased" not in answers:
        return Section("head", title, notes=("Not measured: no logits were given (an embedding model has none).",))
    several = answers["erased"].several
    protocol = "probability above 1/2" if several else "top-1 over all logits"
    scores = [
        *_paired(scores_of(answers, rates(lambda a: [a.scores]), protocol=protocol), answers),
        *_class_scores(answers),
        *_nearest_scores(answers),
    ]
    notes = (
        "A head can be silenced without erasing anything (W_c = 0, b_c = -inf gives D_ft = 0): low accuracy here says "
        "nothing about what the features reveal.",
    )
    return Section("head", title, tuple(scores), (*notes, SEVERAL) if several else notes)


def _paired(scores: list[Score], answers: Mapping[str, Answers]) -> list[Score]:
    """The scores of the test split with the number of its samples, and of those that changed sides."""
    if "original" not in answers:
        return scores
    forget = answers["erased"].data.test_forget.cpu()
    paired = {
        name: {"samples": int(rows.sum()), **_changed(answers, rows)}
        for name, rows in (("D_ft", forget), ("D_rt", ~forget))
    }
    return [replace(score, settings=paired.get(score.name, score.settings)) for score in scores]


def _changed(answers: Mapping[str, Answers], rows: Tensor) -> dict[str, float]:
    """How many of these test samples changed sides; nothing where there is no original to compare with."""
    if "original" not in answers:
        return {}
    now, before = (answers[version].predictions == answers[version].test_labels for version in ("erased", "original"))
    return changes(now[rows], before[rows])


def _class_scores(answers: Mapping[str, Answers]) -> list[Score]:
    """The accuracy of every class."""
    tables = {
        version: {row.label: row for row in per_class_accuracy(a.predictions, a.test_labels, a.data.forget)}
        for version, a in answers.items()
    }
    scores: list[Score] = []
    for label, row in tables["erased"].items():
        settings = {"label": label, "samples": row.samples, "forgotten": row.forgotten}
        scores += scores_of(
            tables,
            [Quantity("accuracy", "lower" if row.forgotten else "higher", lambda table, n=label: table[n].accuracy)],
            f"class {label}",
            protocol="probability above 1/2, test" if answers["erased"].several else "top-1, test",
            settings=settings | _changed(answers, answers["erased"].test_labels == label),
        )
    return scores


def _nearest_scores(answers: Mapping[str, Answers]) -> list[Score]:
    """The retained classes that forgotten samples are most often given."""
    shares = {version: a.nearest() for version, a in answers.items()}
    rule = ", with a probability above 1/2" if answers["erased"].several else ""
    scores: list[Score] = []
    for label in list(shares["erased"])[:NEAREST]:
        scores += scores_of(
            shares,
            [Quantity("answered", "none", lambda own, n=label: own.get(n, 0.0))],
            f"as class {label}",
            protocol=f"share of D_ft that the head gives this retained class{rule}",
            settings={"label": label},
        )
    return scores


def part_of(data: AuditData, name: str, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of train or test, and their labels, that D_f, D_r, D_ft or D_rt names."""
    rows, labels, forget = (
        (test, data.test_labels, data.test_forget)
        if name.endswith("t")
        else (train, data.train_labels, data.train_forget)
    )
    mask = (forget if name.startswith("D_f") else ~forget).cpu()
    return rows[mask.to(rows.device)], labels.cpu()[mask]


def agreement_section(answers: Mapping[str, Answers], random_logits: ArrayLike | None = None) -> Section:
    """How close the answers are to the original's, to a retrained model's, and to those of a model that was not trained.

    random_logits: what a randomly initialised model answers on D_f [n, C], for ZRF; without it ZRF is left out.
    """
    title = "Agreement of the answers with other models"
    if "erased" not in answers:
        return Section("agreement", title, notes=("Not measured: no logits were given.",))
    scores: list[Score] = []
    for other, direction in (("original", "none"), ("reference", "lower")):
        if other not in answers:
            continue
        for part in ("D_ft", "D_rt"):
            distances = {
                version: _distances(answers[version].part(part)[0], answers[other].part(part)[0])
                for version in answers
                if version != other
            }
            quantities = [
                Quantity(name, direction, itemgetter(name), unit="") for name in ("js", "l1", "l2", "rms")
            ] + [Quantity("same_answer", "none", itemgetter("same_answer"))]
            scores += scores_of(
                distances, quantities, f"{part}, from the {other}", protocol=f"softmax of both heads on {part}"
            )
    notes = [
        "JS: Jensen-Shannon divergence in base 2, 0 (equal) to 1. l1, l2, rms: mean L1, mean L2 and root-mean-square L2 "
        'distance of the softmax outputs; papers use each as "activation distance". Same answer: share of images.'
    ]
    if random_logits is not None:
        quantity = Quantity("zrf", "chance", lambda a: zrf(a.part("D_f")[0], random_logits), unit="")
        scores += scores_of(answers, [quantity], "D_f, random model", protocol="1 - mean JS")
        notes.append("ZRF: 1 = answers as a randomly initialised model does.")
    return Section("agreement", title, tuple(scores), tuple(notes))


def _distances(logits: Tensor, other: Tensor) -> dict[str, float]:
    found = activation_distances(logits, other)
    return {
        "js": float(js_divergence(logits, other, log_base=2).mean()),
        **vars(found),
        "same_answer": completeness(logits, other),
    }


def gap_section(answers: Mapping[str, Answers]) -> Section | None:
    """Avg Gap of Table 5: mean distance from the retrained model in D_f, D_r, D_t and member rate; None without one."""
    if "reference" not in answers or "erased" not in answers:
        return None
    rows = {version: _table_5(a) for version, a in answers.items()}
    target = list(rows["reference"].values())
    quantities = [Quantity(name, "none", itemgetter(name)) for name in rows["reference"]] + [
        Quantity("average_gap", "lower", lambda row: average_gap(list(row.values()), target), unit="points")
    ]
    scores = scores_of(rows, quantities, protocol="Table 5")
    notes = ("Average gap: mean absolute difference to the retrained model's four numbers; 0 is its equal.",)
    return Section("gap", "Gap to the retrained model (Table 5)", tuple(scores), notes)


def _table_5(answers: Answers) -> dict[str, float]:
    return {
        "D_f": answers.scores.D_f,
        "D_r": answers.scores.D_r,
        "D_t": 100 * float((answers.predictions == answers.test_labels).double().mean()),
        "member_rate": member_rate(*(answers.part(name)[0] for name in ("D_r", "D_rt", "D_f"))).member_rate,
    }
