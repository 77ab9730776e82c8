"""Features as such: class means, each behind an eraser of its own."""

from __future__ import annotations

import torch

from tests.helpers.audited import LEAST, audited


def test_each_class_behind_its_own_eraser():
    def mean_direction(features):
        u = torch.nn.functional.normalize(features.mean(0), dim=0)
        return lambda x: x - (x @ u)[:, None] * u

    plots = audited(**LEAST, fit_class=mean_direction).plots["cosines"]
    own = torch.tensor(plots["norms_after_each"])
    assert (own < 0.5 * torch.tensor(plots["norms_before"])).all(), "every class loses its own mean"
    one = torch.tensor(plots["norms_after"])
    assert (one[1:] > 0.9 * torch.tensor(plots["norms_before"])[1:]).all(), "one request erases one class"
    assert "after_each" not in audited(**LEAST, fit_class=lambda features: None).plots["cosines"]
