"""The layer profile: where the knowledge sits that an eraser does not touch.

The converged probe on the pooled hidden state of every block, up to the tap. Works on features by layer and labels.
"""

from __future__ import annotations

from collections.abc import Mapping

from .preparation import ArrayLike
from .probes import checked_splits, fit_linear_probe
from .report import Score, Section
from .scores import ForgetRetainScores

TOLERANCE = 1e-5
"""Gradient norm at which a layer's probe counts as converged."""


def layers(
    train: Mapping[str, ArrayLike],
    train_labels: ArrayLike,
    test: Mapping[str, ArrayLike],
    test_labels: ArrayLike,
    forget_labels: int | ArrayLike,
    tap: tuple[Mapping[str, ArrayLike], Mapping[str, ArrayLike]] | None = None,
) -> Section:
    """The section of a report with D_ft and D_rt of the converged probe at every layer.

    train, test: pooled hidden states [n, d] by name of the layer, in the order in which an image passes them; rows are
        the same samples in all of them. Each layer may have its own d.
    tap: train and test features at the tap for the versions `original` and `erased`, the same samples.

    A layer below the tap is the same in the original and in the erased model. Raises ValueError on malformed input, as
    `knowledge_retention` does.
    """

    def scores(x: ArrayLike, x_test: ArrayLike) -> tuple[ForgetRetainScores, dict]:
        features, labels, test_features, own_test_labels = checked_splits(
            x, train_labels, x_test, test_labels, forget_labels
        )
        probe = fit_linear_probe(features, labels, tolerance=TOLERANCE)
        found = ForgetRetainScores.from_predictions(
            probe.predict(features), labels, probe.predict(test_features), own_test_labels, forget_labels
        )
        return found, {"d": features.shape[1], "train": len(labels), "test": len(own_test_labels),
                       "converged": probe.convergence.converged}  # fmt: skip

    rows = {}
    for name in train:
        found, settings = scores(train[name], test[name])
        rows[name] = (found, found, settings)
    if tap is not None:
        original, settings = scores(tap[0]["original"], tap[1]["original"])
        erased, _ = scores(tap[0]["erased"], tap[1]["erased"])
        rows["tap"] = (erased, original, settings)
    found = tuple(
        Score(
            name,
            getattr(erased, name),
            direction,
            layer,
            original=getattr(original, name),
            protocol="converged linear probe on the pooled hidden state",
            settings=settings | {"depth": depth},
        )
        for depth, (layer, (erased, original, settings)) in enumerate(rows.items())
        for name, direction in (("D_ft", "lower"), ("D_rt", "higher"))
    )
    notes = [
        "Hidden states are pooled by their mean over positions. The eraser stands at the tap: every layer below it is as it "
        "was, for whoever can read it."
    ]
    slow = [layer for layer, (*_, settings) in rows.items() if not settings["converged"]]
    if slow:
        notes.append(f"Not converged, read as lower bounds: {', '.join(slow)}.")
    return Section("layers", "Layer profile, converged linear probe", found, tuple(notes))
