"""The layer profile: where the knowledge sits that an eraser does not touch.

The converged probe on the pooled hidden state of every block, up to the tap. Works on features by layer and labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from hf_kd.audit.schema import Quantity, Score, Section, scores_of
from hf_kd.metrics._inputs import ArrayLike, as_forget_labels, checked_splits, is_in
from hf_kd.metrics.linear_probe import fit_linear_probe
from hf_kd.metrics.scores import forget_retain_accuracy

QUANTITIES = (
    Quantity("D_ft", "lower", itemgetter("D_ft")),
    Quantity("D_rt", "higher", itemgetter("D_rt")),
    Quantity("advantage", "lower", itemgetter("advantage"), "points", 0.0),
)
"""Of a layer."""


Layers = Mapping[str, Mapping[str, ArrayLike]]
"""By version, `erased` and where it is known `original`: pooled hidden states [n, d] by name of the layer."""


def layer_profile_section(
    train: Layers,
    train_labels: ArrayLike,
    test: Layers,
    test_labels: ArrayLike,
    forget_labels: int | ArrayLike,
    tap: tuple[Mapping[str, ArrayLike], Mapping[str, ArrayLike]] | None = None,
) -> Section:
    """The section of a report with D_ft, D_rt and recall minus false alarms of the converged probe at every layer.

    Args:
        train: Hidden states in the order in which an image passes them, each layer with its own d. Rows are the same samples
            in all of them. What is one object in both versions, as below an eraser, is read once.
        train_labels: Class ids [n].
        test: Those of the test images.
        test_labels: Class ids [m].
        forget_labels: The forgotten class ids.
        tap: Train and test features at the tap by version, `before_projection` maybe among them; the same samples.

    Raises:
        ValueError: On malformed input, as `knowledge_retention` does.
    """
    forget = as_forget_labels(forget_labels)

    def read(x: ArrayLike, x_test: ArrayLike) -> _Layer:
        return _read_layer(x, train_labels, x_test, test_labels, forget)

    rows: dict[str, dict[str, _Layer]] = {}
    for name, own in train["erased"].items():
        first = train.get("original", {}).get(name)
        rows[name] = {"erased": read(own, test["erased"][name])}
        if first is not None:
            rows[name]["original"] = rows[name]["erased"] if first is own else read(first, test["original"][name])
    if tap is not None:
        rows["tap"] = {version: read(tap[0][version], tap[1][version]) for version in tap[0]}
    found: list[Score] = []
    for depth, (layer, versions) in enumerate(rows.items()):
        settings = versions["erased"].settings | {"converged": all(v.converged for v in versions.values())}
        found += scores_of(
            {version: own.scores for version, own in versions.items()},
            QUANTITIES,
            layer,
            protocol="converged linear probe on the pooled hidden state",
            settings=settings | {"depth": depth},
        )
    sizes = next(((score.settings["train"], score.settings["test"]) for score in found), (0, 0))
    notes = [
        f"Hidden states are pooled by their mean over positions. {_beside(train)}",
        f"Read from {sizes[0]:,} training and {sizes[1]:,} test images, the tap too: from fewer images than the "
        "headline's, a probe reads less.",
    ]
    slow = list(dict.fromkeys(score.group for score in found if not score.settings["converged"]))
    if slow:
        notes.append(f"Not converged, read as lower bounds: {', '.join(slow)}.")
    return Section("layer_profile", "Layer profile, converged linear probe", tuple(found), tuple(notes))


def _beside(versions: Layers) -> str:
    """What the column of the original is."""
    if "original" not in versions:
        return "The weights were changed and no original was given: nothing of before stands beside the layers."
    if all(versions["original"].get(name) is own for name, own in versions["erased"].items()):
        return "The eraser acts at the tap: every layer below it is as it was, for whoever can read it."
    return "Every layer stands beside the same layer of the original model that was given."


@dataclass(frozen=True)
class _Layer:
    """What the converged probe reads at one layer."""

    scores: dict[str, float]
    converged: bool
    settings: dict[str, Any]


def _read_layer(x: ArrayLike, y: ArrayLike, x_test: ArrayLike, y_test: ArrayLike, forget: tuple[int, ...]) -> _Layer:
    features, labels, test_features, test_labels = checked_splits(x, y, x_test, y_test, forget)
    probe = fit_linear_probe(features, labels)
    answers, retained = probe.predict(test_features), ~is_in(test_labels, forget)
    d_ft, d_rt = forget_retain_accuracy(answers, test_labels, forget)
    alarms = 100 * float(is_in(answers[retained], forget).double().mean())
    return _Layer(
        {"D_ft": d_ft, "D_rt": d_rt, "advantage": d_ft - alarms},
        probe.convergence.converged,
        {"d": features.shape[1], "train": len(labels), "test": len(test_labels)},
    )
