"""The verdict: what the numbers of a report say, in one or two plain sentences, and never more than they bear.

Pure functions from numbers to words. What counts as a difference is decided in `shares`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_kd.data.text import one_line
from hf_kd.metrics.intervals import unpaired_difference, wilson_interval

from .downloader import downloader_sentence
from .report_data import ReportData, scores_in
from .schema import Score
from .shares import Share, group_size, hardest_hit

FALSE_ALARMS_SAID = 5.0
"""Percent of the other images from which on the verdict says that an attacker takes them for the forgotten."""
NAMED = 3
"""Forgotten classes that are named; of more, so many and their number."""

BY_NAME = "recall, all templates"
"""The score of zero-shot labelling: images of the concept whose nearest text, of all classes' names, is its own."""

WORST_WORDING = "recall, worst wording"
"""The same with the one wording of the concept that finds most."""

ASKED_OTHERWISE = (
    (BY_NAME, "original texts", "with the original's text tower"),
    (WORST_WORDING, "", "by the wording that finds most"),
    (WORST_WORDING, "original texts", "by such a wording with the original's text tower"),
)
"""Score, group and words of what may find more than the name does, the plainest first."""

BY_NAMES = "accuracy of the others"
"""The same of images of the other classes."""

ASSUME = "assume that its features still reveal what it was made to forget."
NOT_AUDITED = f"No report of an audit lies beside this model: {ASSUME}"


@dataclass(frozen=True)
class Verdict:
    """What a result says, for wherever it is shown."""

    sentences: tuple[str, ...]
    short: str
    """The title of a figure: the best attacker's number first."""
    change: str = "unknown"
    """Of what the best attacker reads: `lower`, `same`, `within`, `higher`, `mixed` or `unknown`."""
    warnings: tuple[str, ...] = ()
    """Those of the records, to stand beside it."""

    @property
    def text(self) -> str:
        """One paragraph."""
        return " ".join(self.sentences)

    def __str__(self) -> str:
        return self.text


def verdict(report: ReportData) -> Verdict:
    """What a report says: the head, the best attacker against the original's own best, the reference, the other classes.

    Where the concept was asked for by its name, what its name finds comes first, then what images of it give away. The name
    is the label's, which every report has; of the texts that somebody asked with only what they find stands in a verdict.

    Args:
        report: Also one that was loaded from JSON, of this version or an earlier one.

    Returns:
        The verdict; where the report lacks a number, its sentence is left out.
    """
    compared = compares(report)
    head = share(report, "head", "D_ft", compared)
    attack = share(report, "worst_case", "recall", compared)
    rest = share(report, "head", "D_rt", compared)
    asked, named_rest = (share(report, "concepts", name, compared) for name in (BY_NAME, BY_NAMES))
    found_rest = share(report, "identities", "rank1_retained", compared)
    rests = [(rest, "right"), (named_rest, "right by their names"), (found_rest, "found")]
    price = next((own.price(what) for own, what in rests if own is not None), "")
    found = [_head_sentence(report, head), _attack_sentence(report, attack), _labels_sentence(report, compared)]
    name = subject(report)
    told = [sentence for sentence in found if sentence]
    if asked is not None:
        told = [f"{name} by its name: {_name_words(report, asked)}.", *told]
    else:
        told = [f"{name}: {_lower(told[0])}", *told[1:]] if told else [f"{name}: no attacker was run."]
    if price:
        told.append(f"The other classes: {price}{_hardest(report, compared)}.")
    told += [_alone(report, compared), _downloader(report, attack), _sampled(report.sampled)]
    short = _short(report, head, attack, asked, price)
    change = "unknown" if attack is None else attack_change(report, attack)
    return Verdict(tuple(one_line(part) for part in told if part), short, change, tuple(_warnings(report)))


def measured_verdict(
    names: Sequence[str],
    head: Share | None,
    rest: Share | None,
    *,
    hardest: tuple[str, Share] | None = None,
    chance: float | None = None,
    sampled: Mapping[str, Mapping[str, int]] | None = None,
    by_name: bool = False,
) -> Verdict:
    """What erasing or changing weights says before any audit: of the head alone, and that this is not all.

    Args:
        names: The forgotten classes, or one word for what was forgotten.
        head: Of the forgotten classes' test images; None where they were not measured.
        rest: Of the other classes'.
        hardest: The one of them that lost most, by name, where it did.
        chance: What guessing gives, in percent.
        sampled: What only a sample was taken of, as in a report.
        by_name: Whether it was forgotten by its name, for which no head answers.
    """
    who = _listed(list(names)) if names else "The images to forget"
    otherwise = "not measured yet: an audit with these texts says what they still find"
    told = [f"{who}: {otherwise if by_name else 'not measured on test images'}."]
    short = f"{who}: not measured"
    if head is not None:
        told = [f"{who}: the head answers {head.counted()}{_head_words(head, chance)}."]
        short = f"{who}: head {head.counted()}{head.beside_before()}"
    if rest is not None:
        told.append(f"The other classes: {rest.price()}{'' if hardest is None else hardest_words(*hardest)}.")
    told += [sentence for sentence in [_sampled(sampled or {})] if sentence]
    told.append("What attackers still read from the features is not measured yet.")
    return Verdict(tuple(one_line(part) for part in told), one_line(short))


def subject(report: ReportData) -> str:
    """The forgotten classes by name, as far as names are known; of many, their number and some."""
    return _listed([class_name(report, label) for label in report.forget_labels])


def class_name(report: ReportData, label: int) -> str:
    """A class by its name, without further names after a comma; "class 3" where it has none."""
    return short_name(report.class_names, label)


def short_name(names: Mapping[int, str], label: int) -> str:
    """As `class_name`, from the names of classes."""
    name = names.get(label)
    return one_line(name.partition(",")[0], 40) if name else f"class {label}"


def compares(report: ReportData) -> bool:
    """Whether there is an original to compare with: one matrix, or changed weights alone, say nothing of before."""
    return report.original_known and _settings(report, "worst_case").get("compared") != "alone"


def attack_change(report: ReportData, attack: Share) -> str:
    """As `Share.change`, where recall minus false alarms agrees; `mixed` where the two point different ways."""
    advantage = _score(report, "worst_case", "advantage")
    if attack.change not in ("lower", "higher") or advantage is None or advantage.original is None:
        return attack.change
    step = (advantage.value or 0.0) - advantage.original
    return attack.change if (step < 0 if attack.change == "lower" else step > 0) else "mixed"


# Sentences


def _head_sentence(report: ReportData, head: Share | None) -> str:
    if head is None:
        return _gallery_sentence(report)
    most = _most([(s.settings["label"], s.value, s.settings["samples"]) for s in _class_scores(report)], report)
    probe = _score(report, "converged", "D_ft")
    words = _head_words(head, None if probe is None else probe.chance)
    return f"The head answers {head.counted()}{most}{words}."


def _head_words(head: Share, chance: float | None) -> str:
    begins = head.begins_at(chance)
    nothing = "; it knew nothing to begin with" if begins == "guessing" else ""
    if begins == "unclear":
        nothing = f"; {head.bare(head.before or 0.0)} of {head.samples:,} before are too few to say what was lost"
    return f"{head.beside_before()}{nothing}"


def _name_words(report: ReportData, asked: Share) -> str:
    """Labelling by the name; by the original's text tower, which is public, and other wordings where these find more."""
    own = _score(report, "concepts", BY_NAME, "")
    told = f"{asked.counted()} images are labelled so{_head_words(asked, None if own is None else own.chance)}"
    most = asked.now
    for name, group, how in ASKED_OTHERWISE:
        score = _score(report, "concepts", name, group)
        if score is not None and asked.bare(score.value or 0.0) != asked.bare(most) and (score.value or 0.0) > most:
            most, before = score.value or 0.0, score.original
            other = before if asked.before is not None and before != asked.before else None
            told += f"; {how} {asked.bare(most)}" + ("" if other is None else f" (before {asked.bare(other)})")
    return told


def _gallery_sentence(report: ReportData) -> str:
    """The best gallery search, whichever similarity it uses: of identities, or of a concept that was asked for by name."""
    name = _score(report, "concepts", BY_NAME)
    found = scores_in(report, "identities", "rank1") or scores_in(report, "concepts", "image to image R@1")
    found = [score for score in found if score.value is not None]
    if not found:
        return ""
    best = max(found, key=lambda score: score.value or 0.0)
    before = [score.original for score in found if score.original is not None]
    told = f"A gallery search finds {best.value:.0f} % of the images"
    if name is not None:
        still = "still " if (best.value or 0.0) > 2 * (name.chance or 0.0) else ""
        told = f"Images of it are {still}found by images: {best.value:.0f} %"
    plain = next((score for score in found if score.group.endswith(", cosine")), best)
    differ = round(best.value or 0.0) != round(plain.value or 0.0)
    told += f" by the {best.group.rpartition(', ')[2]} cosine" if differ else ""
    told += f" (before {max(before):.0f} %)" if before and compares(report) else ""
    told += f", by the plain cosine {plain.value:.0f} %" if differ else ""
    return f"{told}."


def _attack_sentence(report: ReportData, attack: Share | None) -> str:
    if attack is None:
        return ""
    change, score = attack_change(report, attack), report.worst_case
    groups = score.group.startswith("groups-")
    what = f"{attack.counted()} of the groups" if groups else attack.counted() + _most(_by_class(score), report)
    guessing = _guesses(report, attack)
    still = "" if change == "higher" or guessing else "still "
    told = f"An attacker with labels {still}reads {what} from the features"
    told += ", no more than by guessing" if guessing else ""
    if _settings(report, "worst_case").get("compared") == "equal" and compares(report):
        told += ": they are the original's, bit for bit, and nothing was erased from them"
    elif change == "mixed":
        told += f" (before {attack.bare(attack.before or 0.0)}, at other false alarms)"
    else:
        told += attack.beside_before()
    return f"{told}{_alarms(report)}{_reference(report, attack)}."


def _hardest(report: ReportData, compared: bool) -> str:
    """Of the other classes the one that the own head lost most of, where it lost more than chance."""
    scores = [s for s in scores_in(report, "head", "accuracy") if not s.settings.get("forgotten")]
    found = {s.settings["label"]: Share.of(s, s.settings["samples"], compared) for s in scores if "label" in s.settings}
    worst = hardest_hit({label: own for label, own in found.items() if own is not None})
    return "" if worst is None else hardest_words(class_name(report, worst[0]), worst[1])


def hardest_words(name: str, own: Share) -> str:
    """What follows the price: the other class that is hit hardest."""
    return f"; hit hardest: {name}, {own.counted()}{own.beside_before()}"


def _guesses(report: ReportData, attack: Share) -> bool:
    """Whether an attacker's recall is not told apart from the share of other images that it takes for the forgotten."""
    alarms = _score(report, "worst_case", "false_alarms")
    rest = report.samples.get("D_rt", 0) // group_size(report.worst_case)
    if alarms is None or alarms.value is None or not rest:
        return False
    hits, false = (attack.samples * attack.now / 100, rest * alarms.value / 100)
    return unpaired_difference(min(hits, attack.samples), attack.samples, min(false, rest), rest)[0] <= 0


def _alarms(report: ReportData) -> str:
    alarms = _score(report, "worst_case", "false_alarms")
    if alarms is None or alarms.value is None:
        return ""
    before = alarms.original if compares(report) else None
    if max(alarms.value, before or 0.0) < FALSE_ALARMS_SAID:
        return ""
    return f", and takes {alarms.value:.0f} % of the other images for it" + (
        "" if before is None else f" (before {before:.0f} %)"
    )


def _reference(report: ReportData, attack: Share) -> str:
    value = report.worst_case.reference
    if value is None:
        return ""
    if report.reference == "retrained":
        return f"; from a model trained without it {attack.bare(value)}"
    return f"; of a class never trained on {value:.0f} %"


def _labels_sentence(report: ReportData, compared: bool) -> str:
    """Where the reference had fewer labels: both at the largest number of labels that it had too."""
    score = _score(report, "worst_case", "recall")
    points = [
        s for s in scores_in(report, "label_efficiency", "recall") if s.reference is not None and s.value is not None
    ]
    if report.reference == "none" or not points or (score is not None and score.reference is not None):
        return ""
    last = points[-1]
    before = f" (before {last.original:.0f} %)" if compared and last.original is not None else ""
    other = "a model trained without it" if report.reference == "retrained" else "a class never trained on"
    return f"From {last.settings['n']:,} labels it reads {last.value:.0f} %{before}, of {other} {last.reference:.0f} %."


def _alone(report: ReportData, compared: bool) -> str:
    if compared:
        return ""
    missing = "the model before the change was not" if report.context.get("changes") else "only one set of features was"
    return f"What it was before is not known: {missing} given."


def _downloader(report: ReportData, attack: Share | None) -> str:
    """What a holder of the weights finds, where that was measured: at least what an attacker on the features finds."""
    weights = report.context.get("weights")
    return downloader_sentence(weights, features_read(report, attack)) if isinstance(weights, Mapping) else ""


def features_read(report: ReportData, attack: Share | None) -> float | None:
    """Percent of the forgotten images that the best attacker reads from the features; None of groups of images."""
    return None if attack is None or report.worst_case.group.startswith("groups-") else attack.now


def _sampled(sampled: Mapping[str, Mapping[str, int]]) -> str:
    """That only some of the data was used, where somebody limited it."""
    parts = [f"{what} {about['drawn']:,} of {about['of']:,}" for what, about in sampled.items()]
    return f"A sample, not everything: {', '.join(parts)}." if parts else ""


def _warnings(report: ReportData) -> Iterator[str]:
    yield from report.context.get("warnings") or ()
    probe, seen = _score(report, "converged", "D_ft"), [(0.0, 0.0, "")]
    for score in _class_scores(report) if report.reference == "retrained" else ():
        label, share, n = score.settings["label"], score.reference or 0.0, score.settings["samples"]
        seen.append((wilson_interval(share * n / 100, n)[0], share, class_name(report, label)))
    low, share, name = max(seen)  # of several classes the one that shows it best
    if share and low > (0.0 if probe is None else probe.chance or 0.0):
        yield (
            f"The reference answers {share:.0f} % of {name} rightly: it has seen it. Give a model that was trained without "
            "all that is forgotten (hf-kd train-original --without)."
        )
    for key in ("changes", "erasures"):
        for record in report.context.get(key) or ():
            yield from record.get("warnings") or ()


def _short(report: ReportData, head: Share | None, attack: Share | None, asked: Share | None, price: str) -> str:
    parts = []
    for what, own in (("best attacker", attack), ("head", head), ("by name", asked)):
        if own is not None:
            before = "" if own.before is None else f" (before {own.bare(own.before)})"
            parts.append(f"{what} {own.counted()}{before}")
    if price:
        parts.append(f"other classes {price.partition(' (')[0]}")
    return one_line(f"{subject(report)}: {', '.join(parts) or 'no attacker was run'}")


# Looking up


def _settings(report: ReportData, key: str) -> Mapping[str, Any]:
    return next((section.settings for section in report.sections if section.key == key), {})


def _score(report: ReportData, key: str, name: str, group: str | None = None) -> Score | None:
    return next((score for score in scores_in(report, key, name) if group in (None, score.group)), None)


def share(report: ReportData, key: str, name: str, compared: bool) -> Share | None:
    """A score of a report as a share of its test images; None where there is none."""
    score, part = _score(report, key, name), "D_rt" if name in ("D_rt", "rank1_retained", BY_NAMES) else "D_ft"
    samples = report.samples.get(part, 0)
    return None if score is None or not samples else Share.of(score, samples, compared)


def _class_scores(report: ReportData) -> list[Score]:
    return [s for s in scores_in(report, "head", "accuracy") if s.settings.get("forgotten") and s.value is not None]


def _by_class(score: Score) -> list[tuple[int, float, int]]:
    """Label, percent and samples of each forgotten class."""
    classes: Mapping[Any, Any] = score.settings.get("by_class") or {}
    return [(int(label), 100 * own["erased"] / own["samples"], own["samples"]) for label, own in classes.items()]


def _most(classes: Sequence[tuple[int, float | None, int]], report: ReportData) -> str:
    """Of several forgotten classes the one that is read most, by name."""
    if len(report.forget_labels) < 2 or not classes:
        return ""
    label, percent, samples = max(classes, key=lambda each: each[1] or 0.0)
    if not percent:
        return ""
    return f" (most of {class_name(report, int(label))}: {round(samples * percent / 100):,} of {samples:,})"


def _listed(names: list[str]) -> str:
    names = [one_line(name) for name in names]
    if len(names) > NAMED:
        return f"{len(names)} classes ({', '.join(names[:NAMED])}, ...)"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
