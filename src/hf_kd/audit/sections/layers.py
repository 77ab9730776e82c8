"""The layer profile: where the knowledge sits that an eraser does not touch.

The converged probe on the pooled hidden state of every block, up to the tap. Works on features by layer and labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_kd.audit.schema import Score, Section
from hf_kd.metrics._inputs import ArrayLike, as_forget_labels, checked_splits, is_in
from hf_kd.metrics.linear_probe import fit_linear_probe
from hf_kd.metrics.scores import forget_retain_accuracy

PARTS = (("D_ft", "lower", "%", None), ("D_rt", "higher", "%", None), ("advantage", "lower", "points", 0.0))
"""Name, which way is forgetting, unit and chance of the scores of a layer."""


def layers(
    train: Mapping[str, ArrayLike],
    train_labels: ArrayLike,
    test: Mapping[str, ArrayLike],
    test_labels: ArrayLike,
    forget_labels: int | ArrayLike,
    tap: tuple[Mapping[str, ArrayLike], Mapping[str, ArrayLike]] | None = None,
) -> Section:
    """The section of a report with D_ft, D_rt and recall minus false alarms of the converged probe at every layer.

    train, test: pooled hidden states [n, d] by name of the layer, in the order in which an image passes them; rows are
        the same samples in all of them. Each layer may have its own d.
    tap: train and test features at the tap for the versions `original` and `erased`, the same samples.

    A layer below the tap is the same in the original and in the erased model. Raises ValueError on malformed input, as
    `knowledge_retention` does.
    """

    forget = as_forget_labels(forget_labels)

    def scores(x: ArrayLike, x_test: ArrayLike) -> tuple[dict[str, float], dict[str, Any]]:
        features, labels, test_features, own = checked_splits(x, train_labels, x_test, test_labels, forget)
        probe = fit_linear_probe(features, labels)
        answers, retained = probe.predict(test_features), ~is_in(own, forget)
        d_ft, d_rt = forget_retain_accuracy(answers, own, forget)
        alarms = 100 * float(is_in(answers[retained], forget).double().mean())
        found = {"D_ft": d_ft, "D_rt": d_rt, "advantage": d_ft - alarms}
        return found, {"d": features.shape[1], "train": len(labels), "test": len(own),
                       "converged": probe.convergence.converged}  # fmt: skip

    rows = {}
    for name in train:
        found, settings = scores(train[name], test[name])
        rows[name] = (found, found, settings)
    if tap is not None:
        original, settings = scores(tap[0]["original"], tap[1]["original"])
        erased, own = scores(tap[0]["erased"], tap[1]["erased"])
        rows["tap"] = (erased, original, settings | {"converged": settings["converged"] and own["converged"]})
    found = tuple(
        Score(
            name,
            erased[name],
            direction,
            layer,
            unit=unit,
            chance=chance,
            original=original[name],
            protocol="converged linear probe on the pooled hidden state",
            settings=settings | {"depth": depth},
        )
        for depth, (layer, (erased, original, settings)) in enumerate(rows.items())
        for name, direction, unit, chance in PARTS
    )
    sizes = next(((settings["train"], settings["test"]) for *_, settings in rows.values()), (0, 0))
    notes = [
        "Hidden states are pooled by their mean over positions. The eraser stands at the tap: every layer below it is as it "
        "was, for whoever can read it.",
        f"Read from {sizes[0]:,} training and {sizes[1]:,} test images, the tap too: from fewer images than the "
        "headline's, a probe reads less.",
    ]
    slow = [layer for layer, (*_, settings) in rows.items() if not settings["converged"]]
    if slow:
        notes.append(f"Not converged, read as lower bounds: {', '.join(slow)}.")
    return Section("layers", "Layer profile, converged linear probe", found, tuple(notes))
