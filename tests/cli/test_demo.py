"""`hf-kd demo`."""

from __future__ import annotations

import json

from hf_kd import ErasedModel
from tests.cli.runner import hf_kd


def test_the_demo_tells_both_numbers_and_reloads(tmp_path):
    result = json.loads(hf_kd("demo", "--json", "--output", tmp_path / "demo").stdout)
    assert result["reloaded_equal"]
    rows = {row["method"]: row for row in result["rows"]}
    assert rows["original"]["head"]["D_ft"] > 90
    assert rows["original"]["head"]["D_rt"] > 95
    for method in ("ESC", "ESC-T"):
        assert rows[method]["head"]["D_ft"] < 15
        assert rows[method]["head"]["D_rt"] > 90
        assert rows[method]["probe_converged"]
        assert rows[method]["converged_probe"]["D_ft"] > 80, "and nobody is misled"
    assert ErasedModel.from_pretrained(tmp_path / "demo").is_erased
