"""`audit_features`: from feature matrices of the original and the erased model to a `RetentionReport`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hf_kd.data.progress import Steps, working
from hf_kd.errors import InvalidValueError
from hf_kd.methods.records import installed, treatment
from hf_kd.metrics._inputs import ArrayLike, as_features, as_forget_labels, as_labels, count_shared_rows
from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.attacks import attack_names

from .measurement import Measurement, Measurements, mean_measurement, measure, steps_of, unseen_data
from .options import AuditOptions, Reference, Retrained, Unseen, checked_options, checked_reference, refuse_unknown
from .report import RetentionReport
from .sampling import of_fewer_classes, sampled_notes
from .schema import SECTIONS, Section
from .sections import features as feature_sections
from .sections import head, retention
from .sections.identities import identities_section
from .sections.membership import membership_section

VERSIONS = ("original", "erased", "before_projection")
"""Of feature matrices that may be given."""

SHOWN_AS = {"before_projection": "changed"}
"""What the bar calls versions that it does not call by their name, but for the audited one, of which records say it."""

Versions = ArrayLike | Mapping[str, ArrayLike]
"""One matrix [n, d], or one for each of `VERSIONS`."""

VARIES = (
    "Mean and sd are over {seeds} seeds. A seed decides about the initialisation of MLP and paper probes and their order "
    "of samples, random features, tie-breaking and which labelled samples few-label attackers get; the model, its eraser "
    "and the data stay the same, and the converged probe does not depend on it."
)

NO_ORIGINAL = (
    "No original was given, so nothing of before stands beside these numbers, and this report cannot tell what was "
    'forgotten. It can with features of both, {"original": ..., "erased": ...}, or with the model before its weights were '
    "changed, original=..."
)


@dataclass(frozen=True, eq=False)
class AuditExtras:
    """What features and labels alone do not say, of use to who has the model.

    Attributes:
        views: For each version of the features, further views of the training and of the test images, a list of [n, d] each,
            for the views attacks of "full".
        random_logits: What a randomly initialised model answers on D_f [n_f, C], for ZRF.
        fit_class: From the training features [n, d] of one class to the map that erases it, or None where that cannot be
            fitted; for the figure of class means only.
        extra_sections: Sections measured elsewhere, put in their place: the layer profile, moved weights.
        sampled: Splits of which these features are a sample, as `RetentionReport.sampled` has it.
        context: What was audited: architecture, taps, erasures; kept in the report as it is.
        class_names: Name of each class id.
        several_labels: Whether the heads may give an image several labels: it counts as answered where its own label has a
            probability above 1/2, not where its logit is the largest.
    """

    views: Mapping[str, tuple[Sequence[ArrayLike], Sequence[ArrayLike]]] | None = None
    random_logits: ArrayLike | None = None
    fit_class: feature_sections.FitClass | None = None
    extra_sections: Sequence[Section] = ()
    sampled: Mapping[str, Mapping[str, int]] | None = None
    context: Mapping[str, Any] | None = None
    class_names: Mapping[int, str] | None = None
    several_labels: bool = False


def audit_features(
    train: Versions,
    train_labels: ArrayLike,
    test: Versions,
    test_labels: ArrayLike,
    forget_labels: int | ArrayLike,
    *,
    reference: Reference = None,
    options: AuditOptions | None = None,
    logits: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    extras: AuditExtras | None = None,
    **unknown: Any,
) -> RetentionReport:
    """Measure what the erased features still reveal of `forget_labels`, beside the original features.

    Versions that are equal bit for bit are measured once. Warns, with the count, where train and test overlap.

    Args:
        train: Features of the training samples: a dict of matrices [n, d], those of the `original` model, the `erased` ones
            and, where the weights were changed too, those `before_projection`. Rows are the same samples in every version.
            Without an original, as one matrix [n, d] is, they are audited with nothing of before beside them, and the
            report says so.
        train_labels: Class ids [n].
        test: Features of the test samples [m, d], in the same versions.
        test_labels: Class ids [m].
        forget_labels: The forgotten class ids, one or several. The report is of those with a training sample, and warns and
            says so where one has none.
        reference: `Retrained(train, test)`, features of a model retrained without the forgotten classes on the same samples,
            or `Unseen(features, labels)`, original features of classes it was never trained on.
        options: Attacks, seeds and what else is measured.
        logits: Train and test logits [n, C] and [m, C] of a version's own head, whose columns are the labels; without them
            head, recovery ratio and membership are left out.
        extras: Names of the classes, and what only a model can give.
        **unknown: Refused, with a message that says where each belongs.

    Returns:
        The report. Rates are in percent.

    Raises:
        ValueError: For a missing or unknown version, a reference without its matrices, and malformed input: no forgotten or
            no retained sample in a split, a single class, no more samples than classes, features that are not finite.
        TypeError: For an argument that there is not; the message says where it belongs.
    """
    started = time.perf_counter()
    refuse_unknown("audit_features", unknown, ("reference", "options", "logits", "extras"))
    reference, options = checked_reference(reference, of_features=True), checked_options(options)
    extras = extras or AuditExtras()
    _refuse_what_needs_a_model(options)
    data = _checked(train, train_labels, test, test_labels, forget_labels, extras.views or {})
    original, erased = data.get("original"), data["erased"]
    first = _first(data)
    retrained = None
    if isinstance(reference, Retrained):
        retrained = AuditData.of(reference.source, train_labels, reference.test, test_labels, forget_labels)
        if reference.logits is not None:
            logits = {**(logits or {}), "reference": reference.logits}
    overlap = [*_not_measured(as_forget_labels(forget_labels), first), *_overlap(first)]
    fewer, drawn = of_fewer_classes(data if retrained is None else data | {"reference": retrained}, options.max_classes)
    done = extras.context or {}
    shown = SHOWN_AS | {"erased": treatment(done.get("changes"), done.get("erasures", True))}
    measurements, about = _measure(fewer, reference, options, shown)
    notes = [*([NO_ORIGINAL] if original is None else ()), *overlap, *about]
    notes += [VARIES.format(seeds=options.seeds)] if options.seeds > 1 else []
    answers = {name: head.Answers(name, *pair, first, extras.several_labels) for name, pair in (logits or {}).items()}
    with working("membership, features", options.progress):
        found = [*_sections(measurements, answers, original, erased, options, extras), *extras.extra_sections]
    if options.identities:
        versions = {"erased": erased, "original": original, "reference": retrained}
        with working("identities", options.progress):
            found.append(identities_section({name: own for name, own in versions.items() if own is not None}))
    sampled = {**(extras.sampled or {}), **drawn}
    for section in found:
        sampled |= section.settings.get("sampled", {})
    return RetentionReport(
        forget_labels=first.forget,
        reference="none" if reference is None else "unseen" if retrained is None else "retrained",
        samples=_counts(first),
        dimension=first.train.shape[1],
        seeds=options.seeds,
        sections=tuple(sorted(found, key=lambda section: SECTIONS.index(section.key))),
        class_names={int(label): str(name) for label, name in (extras.class_names or {}).items()},
        notes=(*notes, *sampled_notes(sampled)),
        context={"date": time.strftime("%Y-%m-%d"), **(extras.context or {})},
        plots=feature_sections.plot_numbers(original, erased, extras.fit_class),
        versions={name: installed(name) for name in ("hf-kd", "torch", "scikit-learn", "numpy")},
        sampled=sampled,
        seconds=round(time.perf_counter() - started, 2),
        plot_samples=feature_sections.plot_samples(original, erased),
    )


def _refuse_what_needs_a_model(options: AuditOptions) -> None:
    if options.access != "features":
        raise InvalidValueError("access='weights' needs a model, whose weights it attacks: ErasedModel.audit.")
    if options.texts is not None:
        raise InvalidValueError("texts=[...] needs a model, whose text tower reads them: ErasedModel.audit.")
    if options.layer_profile:
        raise InvalidValueError(
            "layer_profile=True needs a model, whose blocks it reads: ErasedModel.audit. Here, hand over its section in "
            "extras=AuditExtras(extra_sections=[...])."
        )


def _counts(data: AuditData) -> dict[str, int]:
    train, test = data.train_forget, data.test_forget
    parts = {"D_f": train, "D_r": ~train, "D_ft": test, "D_rt": ~test}
    return {name: int(rows.sum()) for name, rows in parts.items()}


def _measure(
    data: Mapping[str, AuditData], reference: Reference, options: AuditOptions, shown: Mapping[str, str]
) -> tuple[Measurements, list[str]]:
    """Every version measured, those that are the same object once; and notes on the reference. `shown`: names on the bar."""
    bare, retrained = _first(data), data.get("reference")
    names = retention.attacks_to_run(attack_names(options.attacks, len(bare.train_views)))
    asked = {version: names if version != "reference" else _without_views(names) for version in data}
    parts = {id(part): asked[version] for version, part in data.items()}
    in_turn = torch.as_tensor(reference.labels).unique() if isinstance(reference, Unseen) else ()
    total = sum(steps_of(each, options) for each in parts.values()) + len(in_turn)
    made: dict[int, Measurement] = {}
    other, few, notes = None, None, []
    with Steps(total, "attacks", options.progress) as bar:
        for version, part in data.items():
            if id(part) not in made:
                begin = partial(_begin, bar, shown.get(version, version))
                made[id(part)] = measure(part, asked[version], options, begin)
        first, second, third = (made[id(data[version])] if version in data else None for version in VERSIONS)
        if retrained is not None:
            other = made[id(retrained)]
        elif isinstance(reference, Unseen):
            asked_of = [own for own in (second, first) if own is not None]
            best = [name for own in asked_of for name in own.strongest(_without_views(names))]
            other, note, few = _measure_unseen(bare, reference, best, options, bar.begin)
            notes.append(note)
    before = None if third is first else third
    return Measurements(
        made[id(data["erased"])], first, other, before, bare.classes.numel(), second is first, few
    ), notes


def _begin(bar: Steps, version: str, step: str) -> None:
    bar.begin(f"{step}, {version}")


def _sections(
    measurements: Measurements,
    answers: Mapping[str, head.Answers],
    original: AuditData | None,
    erased: AuditData,
    options: AuditOptions,
    extras: AuditExtras,
) -> list[Section]:
    """All sections that features and answers give, but identities."""
    gap = head.gap_section(answers)
    has_eraser = bool((extras.context or {}).get("erasures", True))  # matrices alone do not say
    return [
        retention.converged_section(measurements),
        retention.worst_case_section(measurements, erased.test_labels[erased.test_forget].cpu(), has_eraser),
        retention.label_efficiency_section(measurements),
        retention.paper_section(measurements),
        head.head_section(answers),
        retention.recovery_section(measurements, {name: answer.scores for name, answer in answers.items()}),
        retention.attacks_section(measurements),
        membership_section(answers, options.membership_references),
        head.agreement_section(answers, extras.random_logits),
        *([] if gap is None else [gap]),
        feature_sections.similarity_section(original, erased),
        feature_sections.inputs_section(original, erased),
        feature_sections.norms_section(original, erased),
    ]


def _checked(
    train: Versions, train_labels: Any, test: Versions, test_labels: Any, forget_labels: Any, views: Mapping[str, Any]
) -> dict[str, AuditData]:
    """Checked data of each version; a version equal to an earlier one bit for bit is that very object."""
    if not isinstance(train, Mapping) and not isinstance(test, Mapping):
        train, test = {"erased": train}, {"erased": test}
    if not isinstance(train, Mapping) or not isinstance(test, Mapping):
        kinds = ["a dict of versions" if isinstance(split, Mapping) else "one matrix" for split in (train, test)]
        raise InvalidValueError(f"train is {kinds[0]} and test {kinds[1]}; give both in the same form.")
    for name, versions in (("train", train), ("test", test)):
        if "erased" not in versions or not set(versions) <= set(VERSIONS):
            raise InvalidValueError(
                f"{name} has the versions {list(versions)}; it needs 'erased', may have 'original' and "
                "'before_projection', and nothing else. A reference goes into reference=."
            )
    if set(train) != set(test):
        raise InvalidValueError(f"train has the versions {sorted(train)} and test {sorted(test)}; give both the same.")
    data: dict[str, AuditData] = {}
    for name in (name for name in VERSIONS if name in train):
        own = AuditData.of(
            train[name], train_labels, test[name], test_labels, forget_labels, *views.get(name, ((), ()))
        )
        data[name] = next((known for known in data.values() if _equal(known, own)), own)
    return data


def _first(data: Mapping[str, AuditData]) -> AuditData:
    """The version with the least done to it: what all of them share, and what unseen classes are put among."""
    return next(data[name] for name in ("original", "before_projection", "erased") if name in data)


def _equal(a: AuditData, b: AuditData) -> bool:
    """Whether two versions are the same bit for bit, their views too."""
    pairs = zip(
        (a.train, a.test, *a.train_views, *a.test_views), (b.train, b.test, *b.train_views, *b.test_views), strict=False
    )
    return len(a.train_views) == len(b.train_views) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y.to(x.device)) for x, y in pairs
    )


def _not_measured(asked: Sequence[int], data: AuditData) -> list[str]:
    """Notes, and warnings that say which they are, on forgotten classes that a split has no sample of."""
    untrained = [label for label in asked if label not in data.forget]
    untested = [label for label in data.forget if not bool((data.test_labels == label).any())]
    notes = []
    for split, absent, what in (
        ("training", untrained, "this report is of the others alone"),
        ("test", untested, "how well they are read is in none of the numbers"),
    ):
        if absent:
            notes.append(f"Forgotten classes without a {split} sample: {len(absent)} of {len(asked)}; {what}.")
            warnings.warn(
                f"{notes[-1]} They are {absent}. Add samples of them, or audit the others alone.", stacklevel=3
            )
    return notes


def _overlap(data: AuditData) -> list[str]:
    """A note, and a warning, where test rows are training rows."""
    shared = count_shared_rows(data.train, data.test)
    if not shared:
        return []
    note = (
        f"{shared:,} of {len(data.test):,} test rows are exact copies of training rows: the splits overlap, and test scores "
        "are too high."
    )
    warnings.warn(f"{note} Pass splits without common images.", stacklevel=3)
    return [note]


def _without_views(attacks: Sequence[str]) -> tuple[str, ...]:
    """The attacks that need one view of every image only."""
    return tuple(name for name in attacks if not name.startswith("views-"))


def _measure_unseen(
    original: AuditData,
    unseen: Unseen,
    attacks: Sequence[str],
    options: AuditOptions,
    begin: Callable[[str], None],
) -> tuple[Measurement, str, int | None]:
    """The mean over unseen classes, what it is, and its number of labelled samples where clearly too small to compare."""
    features = as_features(unseen.source, "unseen features")
    labels = as_labels(unseen.labels, len(features), name="unseen labels")
    if features.shape[1] != original.train.shape[1]:
        raise InvalidValueError(
            f"Unseen features have {features.shape[1]} columns and the rest {original.train.shape[1]}; both have to come "
            "from the original model."
        )
    in_turn = unseen_data(original, features, labels)
    names = retention.attacks_to_run(attacks)
    measured = []
    for number, data in enumerate(in_turn, 1):
        begin(f"unseen class {number} of {len(in_turn)}")
        measured.append(measure(data, names, options))
    other = mean_measurement(measured)
    sizes = sorted({int(data.train_forget.sum()) for data in in_turn})
    note = (
        f"Reference: {len(in_turn)} classes that were never trained on, each in turn in place of the forgotten one, with "
        f"{' to '.join(map(str, sorted({sizes[0], sizes[-1]})))} labelled training samples; values are means over them."
    )
    enough = 0.9 * min(int((original.train_labels == label).sum()) for label in original.forget)
    return other, note, sizes[0] if sizes[0] < enough else None
