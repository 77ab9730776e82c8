"""`audit_features`: from feature matrices of the original and the erased model to a `RetentionReport`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from hf_kd.audit.sections.identities import identities as identity_section
from hf_kd.audit.sections.membership import membership
from hf_kd.errors import InvalidValueError
from hf_kd.metrics._inputs import ArrayLike, as_features, as_labels, count_shared_rows
from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.attacks import attack_names

from .measurement import Reading, mean_reading, read, unseen_data
from .report import RetentionReport
from .schema import SECTIONS, Section
from .sections import features as behaviour
from .sections import head as heads
from .sections import retention as sections

VERSIONS = ("original", "erased", "before_projection")

VARIES = (
    "Mean and sd are over {seeds} seeds. A seed decides about the initialisation of MLP and paper probes and their order "
    "of samples, random features, tie-breaking and which labelled samples few-label attackers get; the model, its eraser "
    "and the data stay the same, and the converged probe does not depend on it."
)


def audit_features(
    train: Mapping[str, ArrayLike],
    train_labels: ArrayLike,
    test: Mapping[str, ArrayLike],
    test_labels: ArrayLike,
    forget_labels: int | ArrayLike,
    *,
    logits: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    attacks: str | Sequence[str] = "standard",
    seeds: int = 1,
    reference: tuple[ArrayLike, ArrayLike] | None = None,
    unseen: tuple[ArrayLike, ArrayLike] | None = None,
    views: Mapping[str, tuple[Sequence[ArrayLike], Sequence[ArrayLike]]] | None = None,
    random_logits: ArrayLike | None = None,
    membership_references: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    identities: bool = False,
    fit_class: behaviour.FitClass | None = None,
    more: Sequence[Section] = (),
    shots: Sequence[int] | None = None,
    draws: int = 10,
    class_names: Mapping[int, str] | None = None,
    context: Mapping[str, Any] | None = None,
) -> RetentionReport:
    """Measure what the erased features still reveal of `forget_labels`, beside the original features.

    train, test: features [n, d] for the versions `original`, `erased` and, where the weights were changed too,
        `before_projection` (without it: the original's). Rows are the same samples in every version.
    logits: train and test logits [n, C] of a version's own head (`original`, `erased`, `before_projection`, `reference`),
        columns being the labels; without them head, recovery and membership are left out.
    attacks: `standard`, `full` or names of `ATTACKS`; the converged linear probe always runs.
    reference: train and test features of a model retrained without the forgotten classes, on the same samples.
    unseen: features of the ORIGINAL model [m, d] and labels [m] of classes it was never trained on; each stands in turn
        in the place of the forgotten class, a quarter of it held out for testing.
    views: for each version, further views of the train and of the test images, for the views attacks of `full`.
    random_logits: answers [n_f, C] of a randomly initialised model to D_f, for ZRF.
    membership_references: train and test logits of models that never saw D_f, for RMIA.
    identities: also ask the features for the forgotten labels as identities: verification, gallery, open set (faces).
    fit_class: see `behaviour.plot_numbers`; for the figure of class means only.
    more: sections measured elsewhere, put in their place: see `layers` and `change.weights`.
    shots, draws: see `label_efficiency`.

    Versions that are equal bit for bit are measured once. Warns, with the count, where train and test overlap. Raises
    ValueError on a missing version, on both references at once, and on malformed input as `knowledge_retention` does: no
    forget or no retained sample in a split, a single class, no more samples than classes, features that are not finite.
    """
    started = time.perf_counter()
    data = _checked(train, train_labels, test, test_labels, forget_labels, views or {})
    if reference is not None and unseen is not None:
        raise InvalidValueError("Both reference and unseen were given; a report has one reference. Pass one of them.")
    if seeds < 1:
        raise InvalidValueError(f"seeds is {seeds}; at least one is needed.")
    original, erased, before = (data[name] for name in VERSIONS)
    names = sections.attacks_to_run(attack_names(attacks, len(original.train_views)))
    notes = _overlap(original)

    first = read(original, names, seeds, shots, draws)
    second = first if erased is original else read(erased, names, seeds, shots, draws)
    third = None if before is original else second if before is erased else read(before, names, seeds, shots, draws)
    kind, never, few = "none", None, None
    if reference is not None:
        kind = "retrained"
        other = AuditData.of(reference[0], train_labels, reference[1], test_labels, forget_labels)
        without_views = tuple(name for name in names if not name.startswith("views-"))
        never = read(other, without_views, seeds, shots, draws)
    elif unseen is not None:
        kind = "unseen"
        never, note, few = _never_seen(original, unseen, second, seeds, shots, draws)
        notes.append(note)
    if seeds > 1:
        notes.append(VARIES.format(seeds=seeds))

    readings = sections.Readings(
        first, second, third, never, original.classes.numel(), equal=erased is original, reference_labels=few
    )
    answers = {name: heads.Answers(name, *pair, original) for name, pair in (logits or {}).items()}
    found = [
        sections.converged(readings),
        sections.worst_case(readings),
        sections.label_efficiency(readings),
        sections.paper(readings),
        heads.head(answers),
        sections.recovery(readings, {name: answer.scores for name, answer in answers.items()}),
        sections.attacks(readings),
        membership(answers, membership_references),
        heads.agreement(answers, random_logits),
        heads.gap(answers),
        behaviour.similarity(original, erased),
        behaviour.inputs(original, erased),
        behaviour.norms(original, erased),
        *more,
    ]
    if identities:
        versions = {"erased": erased, "original": original} | ({"reference": other} if reference is not None else {})
        found.append(identity_section(versions))
    return RetentionReport(
        forget_labels=original.forget,
        reference=kind,
        samples={
            "D_f": int(original.train_forget.sum()),
            "D_r": int((~original.train_forget).sum()),
            "D_ft": int(original.test_forget.sum()),
            "D_rt": int((~original.test_forget).sum()),
        },
        dimension=original.train.shape[1],
        seeds=seeds,
        sections=tuple(
            sorted((section for section in found if section is not None), key=lambda s: SECTIONS.index(s.key))
        ),
        class_names={int(label): str(name) for label, name in (class_names or {}).items()},
        notes=tuple(notes),
        context=dict(context or {}),
        plots=behaviour.plot_numbers(original, erased, fit_class),
        versions={name: version(name) for name in ("hf-kd", "torch", "scikit-learn", "numpy")},
        seconds=round(time.perf_counter() - started, 2),
        plot_samples=behaviour.plot_samples(original, erased),
    )


def _checked(
    train: Mapping[str, ArrayLike], train_labels, test: Mapping[str, ArrayLike], test_labels, forget_labels, views
) -> dict[str, AuditData]:
    """Checked data of each version; a version equal to an earlier one bit for bit is that very object."""
    for name, versions in (("train", train), ("test", test)):
        missing = [version for version in VERSIONS[:2] if version not in versions]
        unknown = [version for version in versions if version not in VERSIONS]
        if missing or unknown:
            raise InvalidValueError(
                f"{name} has the versions {list(versions)}; it needs 'original' and 'erased', may have "
                "'before_projection', and nothing else. A reference goes into reference=."
            )
    if set(train) != set(test):
        raise InvalidValueError(f"train has the versions {sorted(train)} and test {sorted(test)}; give both the same.")
    data: dict[str, AuditData] = {}
    for name in VERSIONS:
        if name not in train:
            data[name] = data["original"]
            continue
        own = AuditData.of(
            train[name], train_labels, test[name], test_labels, forget_labels, *views.get(name, ((), ()))
        )
        data[name] = next((known for known in data.values() if _equal(known, own)), own)
    return data


def _equal(a: AuditData, b: AuditData) -> bool:
    pairs = zip(
        (a.train, a.test, *a.train_views, *a.test_views), (b.train, b.test, *b.train_views, *b.test_views), strict=False
    )
    return len(a.train_views) == len(b.train_views) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y.to(x.device)) for x, y in pairs
    )


def _overlap(original: AuditData) -> list[str]:
    shared = count_shared_rows(original.train, original.test)
    if not shared:
        return []
    note = (
        f"{shared} of {len(original.test)} test rows of the original features are exact copies of training rows: the splits "
        "overlap, and test scores are too high."
    )
    warnings.warn(f"{note} Pass splits without common images.", stacklevel=3)
    return [note]


def _never_seen(
    original: AuditData,
    unseen: tuple[ArrayLike, ArrayLike],
    erased: Reading,
    seeds: int,
    shots: Sequence[int] | None,
    draws: int,
) -> tuple[Reading, str, int | None]:
    """The mean reading, what it is, and its number of labelled samples where that is clearly too small to compare."""
    features = as_features(unseen[0], "unseen features")
    labels = as_labels(unseen[1], len(features), name="unseen labels")
    if features.shape[1] != original.train.shape[1]:
        raise InvalidValueError(
            f"Unseen features have {features.shape[1]} columns and the others {original.train.shape[1]}; both have to come "
            "from the original model."
        )
    in_turn = unseen_data(original, features, labels)
    names = tuple(name for name in erased.attacks[0] if not name.startswith("views-"))
    strongest = max(names, key=lambda name: sum(run[name].advantage for run in erased.attacks))
    highest_recall = max(names, key=lambda name: sum(run[name].recall_forget for run in erased.attacks))
    read_names = sections.attacks_to_run((strongest, highest_recall))
    never = mean_reading([read(data, read_names, seeds, shots, draws) for data in in_turn])
    sizes = sorted({int(data.train_forget.sum()) for data in in_turn})
    note = (
        f"Reference: {len(in_turn)} classes that were never trained on, each in turn in place of the forgotten one, with "
        f"{' to '.join(map(str, sorted({sizes[0], sizes[-1]})))} labelled training samples; values are means over them."
    )
    enough = 0.9 * min(int((original.train_labels == label).sum()) for label in original.forget)
    return never, note, sizes[0] if sizes[0] < enough else None
