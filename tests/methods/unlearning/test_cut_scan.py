"""Where to cut, by a scan or beside a reference. See also test_regrow.py, and test_resume.py for a scan that was killed."""

from __future__ import annotations

import copy

import torch

from hf_kd import unlearn
from hf_kd.testing.unlearning import loader, planted_images, trained_model
from tests.methods.unlearning.test_regrow import FORGET, RETAINED, measured


def test_a_reference_in_half_precision_is_read_like_the_model():
    original = copy.deepcopy(trained_model("convolutional")).to(torch.bfloat16)
    forget, retain = loader(*planted_images(FORGET, per_class=24)), loader(*planted_images(RETAINED, per_class=12))
    changed = unlearn(original, forget, "regrow", retain=retain, progress=False, keep="auto", epochs=1,
                      reference_model=original)  # fmt: skip
    assert changed.dtype == torch.bfloat16
    assert all(one["reading"] == one["reference"] for one in measured(changed)["scan"])
