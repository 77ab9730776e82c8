"""From readings of original, erased and reference features to the sections of a report, in the order of `SECTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_kd.audit.measurement import Reading, mean
from hf_kd.audit.schema import Score, Section
from hf_kd.metrics.attack_data import AttackResult
from hf_kd.metrics.attacks import ATTACKS
from hf_kd.metrics.label_efficiency import RelativeArea, relative_area
from hf_kd.metrics.scores import ForgetRetainScores, mean_and_sd, normalised_retention, recovery_ratio

RATES = {"D_ft": "lower", "D_rt": "higher", "D_f": "lower", "D_r": "higher", "HM_t": "higher", "HM": "higher"}
"""Score -> which way is forgetting; test before train, as what generalises counts."""

NO_REFERENCE = (
    "There is no reference that never knew the forgotten classes, so this report cannot say how much of what is read here "
    "was known and how much any features would give. Pass reference_model= (retrained without them) or unseen= (labelled "
    "images of classes the model was never trained on)."
)


@dataclass(frozen=True)
class Readings:
    """What was read from each version of the features."""

    original: Reading
    erased: Reading
    before: Reading | None
    """Before the eraser, where that is not the original (weights were changed too)."""
    reference: Reading | None
    classes: int
    equal: bool
    """Whether erased and original features are the same bit for bit."""
    reference_labels: int | None = None
    """Labelled samples of the reference's class, where they are fewer than the forgotten classes'."""

    def score(
        self,
        name: str,
        direction: str,
        pick: Callable[[Reading], float | Sequence[float] | None],
        group: str = "",
        same_labels: bool = False,
        **about: Any,
    ) -> Score:
        """The same number of every version; `pick` gives one number, or one for each seed.

        A reference with fewer labels is left out unless the attacker has the `same_labels` of every version.
        """
        numbers = {}
        for version in ("erased", "original", "reference", "before"):
            reading = getattr(self, version)
            if version == "reference" and self.reference_labels is not None and not same_labels:
                reading = None
            picked = None if reading is None else pick(reading)
            picked = [picked] if picked is None or isinstance(picked, int | float) else list(picked)
            numbers[version] = None if None in picked or not picked else mean_and_sd(picked)
        value, sd = numbers["erased"], None
        if value is not None and value.count > 1:
            sd = value.sd
        return Score(
            name,
            None if value is None else value.mean,
            direction,
            group,
            original=numbers["original"] and numbers["original"].mean,
            reference=numbers["reference"] and numbers["reference"].mean,
            before_projection=numbers["before"] and numbers["before"].mean,
            sd=sd,
            **about,
        )


def converged(readings: Readings) -> Section:
    """Knowledge Retention by the converged probe: the headline."""
    fit = readings.erased.convergence
    settings = {
        version: asdict(getattr(readings, version).convergence)
        for version in ("erased", "original", "reference", "before")
        if getattr(readings, version) is not None
    }
    chance = 100 / readings.classes
    scores = [
        readings.score(
            name,
            direction,
            lambda reading, name=name: getattr(reading.converged, name),
            chance=chance if name in ("D_f", "D_ft") else None,
            protocol="converged linear probe",
            settings={"converged": fit.converged, "geometry": fit.geometry, "l2": fit.l2, "rank": fit.rank},
        )
        for name, direction in RATES.items()
    ]
    comparable = readings.reference is not None and readings.reference_labels is None
    base = readings.reference.converged.D_ft if comparable else None
    retention = normalised_retention(readings.erased.converged.D_ft, readings.original.converged.D_ft, base)
    scores.append(
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
    )
    scores.append(readings.score("gradient_norm", "none", lambda r: r.convergence.gradient_norm, unit="nats"))
    notes = []
    for version, name in (("erased", "erased"), ("original", "original"), ("reference", "reference")):
        reading = getattr(readings, version)
        if reading is not None and not reading.convergence.converged:
            notes.append(
                f"The probe on the {name} features has NOT converged (gradient norm "
                f"{reading.convergence.gradient_norm:.1e}, asked {reading.convergence.tolerance:.0e}): "
                "read its numbers as a lower bound."
            )
    if not notes:
        notes.append(f"All probes converged: gradient norm at most {fit.tolerance:.0e}.")
    if readings.reference_labels is not None:
        notes.append(
            f"The reference had only {readings.reference_labels:,} labelled samples, fewer than the forgotten class. Read "
            f"with so few (converged D_ft {readings.reference.converged.D_ft:.1f} %) it is no measure here, and only "
            "attackers with equal numbers of labels are compared with it: see the label efficiency."
        )
    if readings.equal:
        notes.append("The features are the original's, bit for bit: nothing was erased from them.")
    notes.append(
        "Given enough labels such a probe also reads classes that a network never saw: read it with the label efficiency."
    )
    return Section("converged", "Knowledge Retention, converged linear probe", tuple(scores), tuple(notes), settings)


def worst_case(readings: Readings) -> Section:
    """The strongest attacker on the erased features, and what whoever removes the eraser reads."""
    means = {name: _advantage(readings.erased, name) for name in readings.erased.attacks[0]}
    strongest = max(means, key=means.get)
    highest_recall = max(means, key=lambda name: mean(run[name].recall_forget for run in readings.erased.attacks))
    rule = "highest recall minus false alarms"
    scores = _attack_scores(readings, strongest, ("recall", "false_alarms", "advantage"), protocol=rule)
    notes = [f"Strongest of {len(means)} attacks by {rule}: {strongest}."]
    if highest_recall != strongest:
        scores += _attack_scores(readings, highest_recall, ("recall", "false_alarms"), protocol="highest recall")
        notes.append(f"Highest recall, whatever the false alarms: {highest_recall}.")
    white = readings.before or readings.original
    scores.append(
        Score(
            "recall_without_eraser",
            white.converged.D_ft,
            "lower",
            "white box: linear",
            original=readings.original.converged.D_ft,
            protocol="converged linear probe before the projection",
        )
    )
    notes.append("Whoever holds the weights can take the eraser away; the white-box row is what they read.")
    return Section("worst_case", "Strongest attack", tuple(scores), tuple(notes), {"strongest": strongest})


def attacks(readings: Readings) -> Section:
    """All attacks."""
    parts = ("recall", "accuracy_retain", "false_alarms", "advantage", "auc")
    scores = [score for name in readings.erased.attacks[0] for score in _attack_scores(readings, name, parts)]
    notes = (
        "Recall: forgotten test samples given their label (binary attacks: flagged). Accuracy: the other samples. "
        "Advantage: recall minus false alarms, 0 for guessing.",
    )
    return Section("attacks", "All attacks", tuple(scores), notes)


_PARTS: dict[str, tuple[Callable[[AttackResult], float | None], str, float | None]] = {
    "recall": (lambda result: result.recall_forget, "lower", None),
    "accuracy_retain": (lambda result: result.accuracy_retain, "higher", None),
    "false_alarms": (lambda result: result.false_alarms, "none", None),
    "advantage": (lambda result: result.advantage, "lower", 0.0),
    "auc": (lambda result: result.auc, "lower", 50.0),
}


def _attack_scores(readings: Readings, name: str, parts: Sequence[str], protocol: str = "attack") -> list[Score]:
    scores = []
    for part in parts:
        pick, direction, chance = _PARTS[part]
        score = readings.score(
            part,
            direction,
            lambda reading, pick=pick: [pick(run[name]) for run in reading.attacks if name in run],
            name,
            same_labels=name.startswith("few-shot-"),
            unit="points" if part == "advantage" else "%",
            chance=chance,
            protocol=protocol,
            settings=readings.erased.attacks[0][name].settings,
        )
        if score.value is not None:
            scores.append(score)
    return scores


def _advantage(reading: Reading, name: str) -> float:
    return mean(run[name].advantage for run in reading.attacks)


def label_efficiency(readings: Readings) -> Section:
    """The curve of the best few-label attacker, the code length, and the area that sums the curve up."""
    scores = []
    for position, point in enumerate(readings.erased.efficiency[0].points):
        for part in ("recall", "advantage"):
            scores.append(
                readings.score(
                    part,
                    "lower",
                    lambda reading, n=point.n, part=part: _at(reading, n, part),
                    f"n = {point.n}",
                    same_labels=True,
                    unit="points" if part == "advantage" else "%",
                    chance=0.0 if part == "advantage" else None,
                    protocol="best of four attackers with n labels of each forgotten class",
                    settings={
                        "n": point.n,
                        "attacker": [curve.points[position].best for curve in readings.erased.efficiency],
                        "draws": point.attackers[point.best].draws,
                    },
                )
            )
    uniform = readings.erased.efficiency[0].code_length.uniform
    for part, direction in (("forget", "higher"), ("retain", "lower")):
        scores.append(
            readings.score(
                f"{part}_bits",
                direction if part == "forget" else "none",
                lambda reading, part=part: [getattr(c.code_length, part) for c in reading.efficiency],
                "code length",
                unit="bits per image",
                chance=uniform,
                protocol="prequential code of the labels",
            )
        )
    notes = ["Recall of the best attacker who has n labelled images of each forgotten class and all others."]
    if readings.reference is None:
        notes.append(NO_REFERENCE)
    else:
        areas = _areas(readings)
        values = [area.value for area in areas]
        summary = None if None in values else mean_and_sd(values)
        scores.append(
            Score(
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
        )
        reasons = sorted({area.reason for area in areas if area.reason})
        notes += [f"There is no area number: {reason}." for reason in reasons]
        notes.append("Area: 0 = as if never seen, 1 = nothing forgotten.")
    return Section("label_efficiency", "Label efficiency", tuple(scores), tuple(notes))


def _at(reading: Reading, n: int, part: str) -> list[float | None]:
    values = []
    for curve in reading.efficiency:
        at = {point.n: getattr(point, part) for point in curve.points}
        values.append(at.get(n))
    return values


def _areas(readings: Readings) -> list[RelativeArea]:
    curves = (readings.erased.efficiency, readings.original.efficiency, readings.reference.efficiency)
    return [relative_area(*seed) for seed in zip(*curves, strict=True)]


def paper(readings: Readings) -> Section:
    """Knowledge Retention as published; second, and why."""
    scores = [
        readings.score(
            name,
            direction,
            lambda reading, name=name: [getattr(run, name) for run in reading.paper],
            chance=100 / readings.classes if name in ("D_f", "D_ft") else None,
            protocol="paper: SGD 1e-3, batch 64, 10 epochs",
        )
        for name, direction in RATES.items()
    ]
    fit = readings.erased.paper_convergence
    notes = (
        f"Second, because this probe is stopped after {fit.iterations:,} steps of SGD, far from its optimum (gradient norm "
        f"{fit.gradient_norm:.0e}), and so measures mostly how large the features are: scaling the original's by 0.1 lowers "
        "it too, without erasing anything. Half the images are half the steps, and a lower number.",
    )
    return Section(
        "paper", "Knowledge Retention, paper protocol", tuple(scores), notes, {"steps": fit.iterations} | asdict(fit)
    )


def recovery(readings: Readings, heads: Mapping[str, ForgetRetainScores]) -> Section:
    """Fig. 1: the probe's accuracy on the forgotten classes over the original head's."""
    title = "Recovery ratio (Fig. 1)"
    head = heads.get("original")
    if head is None:
        return Section("recovery", title, notes=("Not measured: it needs the answers of the original's own head.",))
    if not head.D_ft > 0:
        return Section("recovery", title, notes=("Does not exist: the original's head never answers the forgotten.",))
    protocols = {"converged": lambda reading: [reading.converged], "paper": lambda reading: reading.paper}
    scores = tuple(
        readings.score(
            "recovery",
            "lower",
            lambda reading, runs=runs: [recovery_ratio(run.D_ft, head.D_ft) for run in runs(reading)],
            name,
            protocol=f"{name} probe, D_ft over the original head's",
        )
        for name, runs in protocols.items()
    )
    return Section("recovery", title, scores, ("Probe accuracy on D_ft over the original head's; 100 % is all of it.",))


def attacks_to_run(names: Sequence[str]) -> tuple[str, ...]:
    """The attacks to run: those asked for and always the linear probe, in the order of the registry."""
    return tuple(name for name in ATTACKS if name in {"linear", *names})
