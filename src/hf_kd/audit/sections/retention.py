"""The sections of a report that attackers on the features fill: from measurements of original, erased and reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from hf_kd.audit.measurement import Measurement, Measurements
from hf_kd.audit.schema import Quantity, Score, Section, none_missing, scores_of
from hf_kd.metrics.attacks import ATTACKS
from hf_kd.metrics.label_efficiency import RelativeArea, relative_area
from hf_kd.metrics.scores import ForgetRetainScores, mean_and_sd, normalised_retention, recovery_ratio

RATES = {"D_ft": "lower", "D_rt": "higher", "D_f": "lower", "D_r": "higher", "HM_t": "higher", "HM": "higher"}
"""Score -> which way is forgetting; test before train, as what generalises counts."""

NO_REFERENCE = (
    "There is no reference without this knowledge, so this report cannot say how much of what is read here was known and "
    "how much any features would give. Give one: a model retrained without the forgotten classes (--retrained, in Python "
    "reference=Retrained(...)) or classes the model was never trained on (--unseen, in Python reference=Unseen(...))."
)


def rates(runs: Callable[[Any], Sequence[ForgetRetainScores]], chance: float | None = None) -> list[Quantity]:
    """The four accuracies and two harmonic means of one or several runs; `chance` of the forgotten classes."""
    return [
        Quantity(
            name,
            direction,
            lambda measured, name=name: [getattr(run, name) for run in runs(measured)],
            chance=chance if name in ("D_f", "D_ft") else None,
        )
        for name, direction in RATES.items()
    ]


def converged_section(measurements: Measurements) -> Section:
    """Knowledge Retention by the converged probe: the headline."""
    fit, comparable = measurements.erased.convergence, measurements.comparable
    base = comparable["reference"].converged.D_ft if "reference" in comparable else None
    scores = [
        *scores_of(
            comparable,
            rates(lambda m: [m.converged], 100 / measurements.classes),
            protocol="converged linear probe",
            settings={"converged": fit.converged, "geometry": fit.geometry, "l2": fit.l2, "rank": fit.rank},
        ),
        *_normalised(measurements, base),
        *scores_of(comparable, [Quantity("gradient_norm", "none", lambda m: m.convergence.gradient_norm, unit="nats")]),
    ]
    settings = {version: asdict(measured.convergence) for version, measured in measurements.versions.items()}
    title = "Knowledge Retention, converged linear probe"
    return Section("converged", title, tuple(scores), tuple(_converged_notes(measurements)), settings)


def _normalised(measurements: Measurements, base: float | None) -> list[Score]:
    """D_ft of the converged probe, 1 for the original's and 0 for the reference's (`base`); none without an original."""
    if measurements.original is None:
        return []
    retention = normalised_retention(measurements.erased.converged.D_ft, measurements.original.converged.D_ft, base)
    return [
        Score(
            "normalised_retention",
            retention,
            "lower",
            unit="",
            original=None if retention is None else 1.0,
            reference=0.0 if base is not None and retention is not None else None,
            protocol="converged linear probe, D_ft",
            settings={"zero": "reference" if base is not None else "an accuracy of 0"},
        )
    ]


def _converged_notes(measurements: Measurements) -> list[str]:
    """What the reader of the headline has to know."""
    fits = {version: m.convergence for version, m in measurements.versions.items() if version != "before_projection"}
    notes = [
        f"The probe on the {version} features has NOT converged (gradient norm {fit.gradient_norm:.1e}, asked "
        f"{fit.tolerance:.0e}): read its numbers as a lower bound."
        for version, fit in fits.items()
        if not fit.converged
    ]
    if not notes:
        notes.append(f"All probes converged: gradient norm at most {fits['erased'].tolerance:.0e}.")
    if measurements.reference_labels is not None:
        notes.append(
            f"The reference had only {measurements.reference_labels:,} labelled samples, fewer than the forgotten class. "
            f"Read with so few (converged D_ft {measurements.versions['reference'].converged.D_ft:.1f} %) it is no measure "
            "here, and only attackers with equal numbers of labels are compared with it: see the label efficiency."
        )
    if measurements.equal:
        notes.append("The features are the original's, bit for bit: nothing was erased from them.")
    notes.append("Given enough labels such a probe also reads unseen classes: read it with the label efficiency.")
    return notes


def worst_case_section(measurements: Measurements, labels: Tensor, has_eraser: bool = True) -> Section:
    """The best attacker on the erased features beside the best on the original's and on the reference's, and, where there is
    an eraser, what whoever removes it reads. `labels` [n_ft] are those of D_ft.
    """
    comparable, rule = measurements.comparable, "highest recall minus false alarms"
    best = {version: measured.strongest() for version, measured in comparable.items()}
    strongest = {version: names[0] for version, names in best.items()}
    highest_recall = {version: names[1] for version, names in best.items()}
    scores = _best_scores(comparable, strongest, ("recall", "false_alarms", "advantage"), rule)
    scores[0] = replace(scores[0], settings={**scores[0].settings, **_paired(comparable, strongest, labels)})
    own = measurements.erased
    notes = [f"Strongest of {len(own.attacks[0])} attacks by {rule}: {_by_version(strongest)}."]
    if own.recall(highest_recall["erased"]) > own.recall(strongest["erased"]):
        scores += _best_scores(comparable, highest_recall, ("recall", "false_alarms"), "highest recall")
        notes.append(f"Highest recall, whatever the false alarms: {_by_version(highest_recall)}.")
    first = measurements.original
    white = measurements.before_projection or first
    if has_eraser and white is not None:
        scores += scores_of(
            {"erased": white} | ({} if first is None else {"original": first}),
            [Quantity("recall_without_eraser", "lower", lambda m: m.converged.D_ft)],
            "white box: linear",
            protocol="converged linear probe before the projection",
        )
    beside = "" if first is None else ": what is left is compared with the most that could be read before"
    notes.append(f"Every column has its own best attacker{beside}.")
    if has_eraser and white is not None:
        notes.append(
            "Whoever holds the weights can take the eraser away; the white-box row is what a linear probe then reads."
        )
    settings = {
        "strongest": strongest["erased"],
        "attackers": strongest,
        "compared": "equal" if measurements.equal else "alone" if first is None else "different",
    }
    return Section("worst_case", "Strongest attack", tuple(scores), tuple(notes), settings)


def _by_version(names: Mapping[str, str]) -> str:
    """The attack on the erased features, and on the others where it is another."""
    rest = [
        f"{name} on the {version.replace('before_projection', 'features before the eraser')}"
        for version, name in names.items()
        if version != "erased" and name != names["erased"]
    ]
    return ", ".join([names["erased"], *rest])


def _best_scores(
    versions: Mapping[str, Measurement], attacks: Mapping[str, str], parts: Sequence[str], rule: str
) -> list[Score]:
    """Scores of each version's own attack; the row is named by that on the erased features."""
    pairs = {version: (measured, attacks[version]) for version, measured in versions.items()}
    quantities = [
        Quantity(part, direction, lambda pair, name=name: [getattr(run[pair[1]], name) for run in pair[0].attacks],
                 unit=unit, chance=chance)
        for part, (name, direction, unit, chance) in _ATTACK.items()
        if part in parts
    ]  # fmt: skip
    settings = {**versions["erased"].attacks[0][attacks["erased"]].settings, "attackers": attacks}
    return scores_of(pairs, quantities, attacks["erased"], protocol=rule, settings=settings)


def _paired(versions: Mapping[str, Measurement], attacks: Mapping[str, str], labels: Tensor) -> dict[str, Any]:
    """How many images the attack reads, and how many of them changed sides against the original's own best attack."""
    hits = {version: measured.hits(attacks[version]) for version, measured in versions.items()}
    now, before = hits["erased"], hits.get("original")
    if now is None or before is None or len(now) != len(before):
        return {"samples": len(labels)}  # an attack's own setting of that name counts what it learned from
    found: dict[str, Any] = {"samples": len(now), **changes(now, before)}
    if len(now) == len(labels):
        found["by_class"] = {
            int(label): {
                "samples": int((labels == label).sum()),
                "erased": float(now[labels == label].sum()),
                "original": float(before[labels == label].sum()),
            }
            for label in labels.unique()
        }
    return found


def changes(now: Tensor, before: Tensor) -> dict[str, float]:
    """Of the same samples [n], hits of 0 to 1: how many are none any more, and how many were none before."""
    step = now.double() - before.double()
    return {"lost": float(-step.clamp(max=0).sum()), "gained": float(step.clamp(min=0).sum())}


def attacks_section(measurements: Measurements) -> Section:
    """All attacks."""
    parts = ("recall", "accuracy_retain", "false_alarms", "advantage", "auc")
    scores = [score for name in measurements.erased.attacks[0] for score in _attack_scores(measurements, name, parts)]
    notes = (
        "Recall: forgotten test samples given their label (binary attacks: flagged). Accuracy: the retained samples. "
        "Advantage: recall minus false alarms, 0 for guessing.",
    )
    return Section("attacks", "All attacks", tuple(scores), notes)


_ATTACK = {
    "recall": ("recall_forget", "lower", "%", None),
    "accuracy_retain": ("accuracy_retain", "higher", "%", None),
    "false_alarms": ("false_alarms", "none", "%", None),
    "advantage": ("advantage", "lower", "points", 0.0),
    "auc": ("auc", "lower", "%", 50.0),
}
"""Score -> attribute of an attack's result, which way is forgetting, unit and chance."""


def _attack_scores(measurements: Measurements, attack: str, parts: Sequence[str]) -> list[Score]:
    """Those of the parts that the attack has; a reference with fewer labels only beside attackers with as few."""
    versions = measurements.versions if attack.startswith("few-shot-") else measurements.comparable
    quantities = [
        Quantity(
            part,
            direction,
            lambda m, name=name: [getattr(run[attack], name) for run in m.attacks if attack in run],
            unit=unit,
            chance=chance,
        )
        for part, (name, direction, unit, chance) in _ATTACK.items()
        if part in parts
    ]
    settings = measurements.erased.attacks[0][attack].settings
    scores = scores_of(versions, quantities, attack, protocol="attack", settings=settings)
    return [score for score in scores if score.value is not None]


def label_efficiency_section(measurements: Measurements) -> Section:
    """The curve of the best few-label attacker, the code length, and the area that sums the curve up."""
    curves = measurements.erased.efficiency
    scores: list[Score] = []
    for position, point in enumerate(curves[0].points):
        scores += scores_of(
            measurements.versions,
            [
                Quantity("recall", "lower", lambda m, n=point.n: _at(m, n, "recall")),
                Quantity("advantage", "lower", lambda m, n=point.n: _at(m, n, "advantage"), "points", 0.0),
            ],
            f"n = {point.n}",
            protocol="best of four attackers with n labels of each forgotten class",
            settings={
                "n": point.n,
                "attacker": [curve.points[position].best for curve in curves],
                "draws": point.attackers[point.best].draws,
            },
        )
    scores += scores_of(
        measurements.comparable,
        [
            Quantity(
                f"{part}_bits",
                direction,
                lambda m, part=part: [getattr(curve.code_length, part) for curve in m.efficiency],
                "bits per image",
                curves[0].code_length.uniform,
            )
            for part, direction in (("forget", "higher"), ("retain", "none"))
        ],
        "code length",
        protocol="prequential code of the labels",
    )
    notes = ["Recall of the best attacker who has n labelled images of each forgotten class and all retained ones."]
    if measurements.reference is None:
        notes.append(NO_REFERENCE)
    elif measurements.original is None:
        notes.append("There is no area number: it needs the original.")
    else:
        score, reasons = _area(measurements)
        scores.append(score)
        notes += [f"There is no area number: {reason}." for reason in reasons]
        notes.append("Area: 0 = as the reference, 1 = nothing forgotten.")
    return Section("label_efficiency", "Label efficiency", tuple(scores), tuple(notes))


def _at(measurement: Measurement, n: int, part: str) -> list[float | None]:
    """A part of the curve at n, for each seed; None where the curve has no such n."""
    curves = ({point.n: getattr(point, part) for point in curve.points} for curve in measurement.efficiency)
    return [curve.get(n) for curve in curves]


def _area(measurements: Measurements) -> tuple[Score, list[str]]:
    """The area between the curves of erased and reference over that of original and reference; or why there is none."""
    curves = (getattr(measurements, version).efficiency for version in ("erased", "original", "reference"))
    areas: list[RelativeArea] = [relative_area(*seed) for seed in zip(*curves, strict=True)]
    values = [area.value for area in areas]
    summary = mean_and_sd(values) if none_missing(values) else None
    score = Score(
        "area",
        None if summary is None else summary.mean,
        "lower",
        "area",
        unit="",
        original=None if summary is None else 1.0,
        reference=None if summary is None else 0.0,
        sd=None if summary is None else summary.sd,
        protocol="advantage over log n: (erased - reference) / (original - reference)",
    )
    return score, sorted({area.reason for area in areas if area.reason})


def paper_section(measurements: Measurements) -> Section:
    """Knowledge Retention as published; second, and why."""
    scores = scores_of(
        measurements.comparable,
        rates(lambda m: m.paper, 100 / measurements.classes),
        protocol="paper: SGD 1e-3, batch 64, 10 epochs",
    )
    fit = measurements.erased.paper_convergence
    notes = (
        f"Second, because this probe is stopped after {fit.iterations:,} steps of SGD, far from its optimum (gradient norm "
        f"{fit.gradient_norm:.0e}), and so measures mostly how large the features are: scaling the original's by 0.1 lowers "
        "it too, without erasing anything. Half the images are half the steps, and a lower number.",
    )
    return Section(
        "paper", "Knowledge Retention, paper protocol", tuple(scores), notes, {"steps": fit.iterations} | asdict(fit)
    )


def recovery_section(measurements: Measurements, heads: Mapping[str, ForgetRetainScores]) -> Section:
    """Fig. 1: the probe's accuracy on the forgotten classes over the original head's."""
    title = "Recovery ratio (Fig. 1)"
    head = heads.get("original")
    if head is None:
        return Section(
            "recovery_ratio", title, notes=("Not measured: it needs the answers of the original's own head.",)
        )
    if not head.D_ft > 0:
        return Section(
            "recovery_ratio", title, notes=("Does not exist: the original's head never answers the forgotten.",)
        )
    probes = {"converged": lambda m: [m.converged], "paper": lambda m: m.paper}
    scores = []
    for name, runs in probes.items():
        ratio = Quantity(
            "recovery_ratio", "lower", lambda m, runs=runs: [recovery_ratio(run.D_ft, head.D_ft) for run in runs(m)]
        )
        scores += scores_of(
            measurements.comparable, [ratio], name, protocol=f"{name} probe, D_ft over the original head's"
        )
    notes = ("Probe accuracy on D_ft over the original head's; 100 % is all of it.",)
    return Section("recovery_ratio", title, tuple(scores), notes)


def attacks_to_run(names: Sequence[str]) -> tuple[str, ...]:
    """The attacks to run: those asked for and always the linear probe, in the order of the registry."""
    return tuple(name for name in ATTACKS if name in {"linear", *names})
