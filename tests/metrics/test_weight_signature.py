"""Size and effective rank of a change, by part."""

from __future__ import annotations

import pytest
import torch

from hf_kd.metrics.weight_signature import weight_signature


def test_rank_one_and_full_rank_changes():
    rng = torch.Generator().manual_seed(0)
    before = {f"{part}.weight": torch.randn(16, 16, generator=rng) for part in ("a", "b", "c")} | {
        "a.bias": torch.ones(16)
    }
    step = torch.outer(torch.randn(16, generator=rng), torch.randn(16, generator=rng))
    after = before | {
        "a.weight": before["a.weight"] + step,
        "b.weight": before["b.weight"] + torch.eye(16),
        "a.bias": torch.zeros(16),
    }
    found = {part.part: part for part in weight_signature(before, after, ["a", "b", "c"])}
    assert found["a"].effective_rank == pytest.approx(1.0, abs=1e-3)
    assert found["b"].effective_rank == pytest.approx(16.0, abs=1e-3)
    assert found["c"].effective_rank is None
    assert found["c"].relative == 0
    assert found["b"].relative == pytest.approx(4 / float(before["b.weight"].norm()), rel=1e-4)
    assert found["a"].full_rank == 16


def test_other_shapes_and_missing_tensors_are_left_out():
    before = {"a.weight": torch.eye(2), "head.weight": torch.ones(3, 2)}
    assert [
        p.part for p in weight_signature(before, {"a.weight": torch.eye(2), "head.weight": torch.ones(2, 2)}, ["a"])
    ] == ["a"]
