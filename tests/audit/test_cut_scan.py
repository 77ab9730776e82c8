"""The figure of a scan is drawn from the record alone."""

from __future__ import annotations

import pytest

from hf_kd import unlearn
from hf_kd.audit.cut_scan import draw_cut_scan
from hf_kd.testing.unlearning import loader, planted_images, trained_model


def test_a_scan_is_drawn_and_a_model_without_one_refused(tmp_path):
    model = trained_model("convolutional")
    forget, retain = loader(*planted_images([2], per_class=500)), loader(*planted_images([0, 1, 3, 4]))
    changed = unlearn(model, forget, "regrow", retain=retain, progress=False, keep="auto", scan_epochs=1, epochs=1)
    for name in ("scan.png", "scan.svg"):
        assert draw_cut_scan(changed, tmp_path / name).stat().st_size > 1000
    with pytest.raises(ValueError, match="keep='auto'"):
        draw_cut_scan(model, tmp_path / "none.png")
