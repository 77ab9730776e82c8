"""Known classes need few labels, noise is never learned, and the one number behaves at its ends."""

import dataclasses

import numpy as np
import pytest
import torch

from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.label_efficiency import (
    CodeLength,
    EfficiencyPoint,
    FewLabelAttack,
    LabelEfficiency,
    default_shots,
    label_efficiency,
    prequential_code_length,
    relative_area,
)
from tests.metrics.planted import noise, planted


def curve(values, shots=(1, 10, 100)):
    points = tuple(
        EfficiencyPoint(n, {"a": FewLabelAttack(v, None, 0.0, 1)}, "a") for n, v in zip(shots, values, strict=True)
    )
    return LabelEfficiency(points, CodeLength(1.0, 1.0, 2.0, (0,)), 0)


def test_default_shots():
    assert default_shots(120) == (1, 2, 5, 10, 20, 50, 100, 120)
    assert default_shots(1) == (1,)


def test_few_labels_suffice_for_a_known_class_and_none_for_noise():
    known = label_efficiency(*planted(n=300), 0, draws=4)
    assert known.points[-1].n == 100
    assert known.points[2].advantage > 95
    assert known.code_length.forget < 0.5 < known.code_length.uniform == pytest.approx(np.log2(3))
    blank = label_efficiency(*noise(n=300), 0, (5, 50), draws=4)
    assert all(abs(point.advantage) < 15 for point in blank.points)
    assert blank.code_length.forget > 0.9 * blank.code_length.uniform


def test_best_is_the_attacker_with_most_advantage_and_all_are_stated():
    result = label_efficiency(*planted(n=300, strength=0.4), 0, (1, 5), draws=4)
    for point in result.points:
        assert {"prototype-l2", "prototype-cosine", "linear-whitened"} <= set(point.attackers)
        assert point.advantage == max(attack.advantage for attack in point.attackers.values())
    dataclasses.asdict(result)


def test_deterministic_for_a_seed():
    state = torch.random.get_rng_state()
    first, second = (label_efficiency(*planted(n=120, strength=0.4), 0, (1, 5), draws=3, seed=2) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.random.get_rng_state())


def test_code_is_shorter_the_more_the_features_know():
    lengths = [
        prequential_code_length(AuditData.of(*planted(n=600, strength=strength), 0)).forget
        for strength in (0.0, 0.3, 0.8, 4.0)
    ]
    assert lengths == sorted(lengths, reverse=True)


def test_code_survives_a_class_that_comes_late():
    train, y, test, test_y = planted(n=300)
    rows = torch.cat([torch.nonzero(y != 0).flatten(), torch.nonzero(y == 0).flatten()[:2]])
    length = prequential_code_length(AuditData.of(train[rows], y[rows], test, test_y, 0))
    assert np.isfinite(length.forget)


def test_relative_area_is_one_for_the_original_and_zero_for_the_reference():
    original, reference = curve([60, 80, 82]), curve([10, 50, 78])
    assert relative_area(original, original, reference).value == pytest.approx(1)
    assert relative_area(reference, original, reference).value == pytest.approx(0)
    between = curve([35, 65, 80])
    assert relative_area(between, original, reference, "recall").value == pytest.approx(0.5)
    assert relative_area(curve([0, 0, 0]), original, reference).value < 0


def test_relative_area_weighs_log_n_evenly_and_interpolates():
    original, reference = curve([100, 100, 100]), curve([0, 0], shots=(1, 100))
    assert relative_area(curve([0, 100, 100]), original, reference).value == pytest.approx(0.75)
    assert relative_area(curve([50], shots=(5,)), original, reference).value is None


def test_relative_area_refuses_to_divide_by_noise():
    result = relative_area(curve([60, 80, 82]), curve([60, 80, 82]), curve([60, 79.5, 82]))
    assert result.value is None
    assert "points above the reference" in result.reason
    with pytest.raises(ValueError, match="measure"):
        relative_area(curve([1, 2, 3]), curve([1, 2, 3]), curve([1, 2, 3]), "precision")


def test_bad_shots_are_refused():
    with pytest.raises(ValueError, match="positive"):
        label_efficiency(*planted(n=60), 0, (0, 5))
