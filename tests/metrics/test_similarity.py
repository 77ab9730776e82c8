"""Distances of outputs, features, weights and class means: their bounds, invariances and published special cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_kd.data.masked_classes import MASKED_LOGIT
from hf_kd.metrics.similarity import (
    activation_distances,
    completeness,
    js_divergence,
    linear_cka,
    uncentred_cosine,
    zrf,
)
from hf_kd.metrics.weights import class_mean_cosines, weight_distance


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_js_is_symmetric_bounded_and_zero_for_equal_outputs():
    a, b = 5 * gaussian(5000, 10), 5 * gaussian(5000, 10, seed=1)  # more rows than one chunk
    js = js_divergence(a, b)
    assert js.shape == (5000,)
    assert torch.allclose(js, js_divergence(b, a))
    assert js.min() >= 0
    assert js.max() <= math.log(2)
    assert js_divergence(a, a + 3).max() < 1e-12
    assert torch.allclose(js_divergence(a, b, log_base=2), js / math.log(2))


def test_js_of_disjoint_answers_is_its_maximum():
    a = torch.tensor([[0.0, -math.inf]])
    assert js_divergence(a, a.flip(1)).item() == pytest.approx(math.log(2))
    assert zrf(a, a.flip(1)) == pytest.approx(0)
    assert zrf(a, a.flip(1), log_base=math.e) == pytest.approx(1 - math.log(2))


def test_zrf_is_one_for_a_model_that_answers_like_the_random_one():
    random = 0.1 * gaussian(200, 10)
    assert zrf(random, random) == 1
    assert zrf(8 * gaussian(200, 10, seed=1), random) < 0.7


def test_activation_distances_are_ordered_and_bounded():
    a, b = 5 * gaussian(300, 10), 5 * gaussian(300, 10, seed=1)
    distances = activation_distances(a, b)
    assert 0 < distances.l2 <= distances.rms <= distances.l1 <= 2
    assert activation_distances(a, a).l1 == 0
    apart = torch.tensor([[0.0, -math.inf]])
    far = activation_distances(apart, apart.flip(1))
    assert (far.l1, far.l2, far.rms) == pytest.approx((2, math.sqrt(2), math.sqrt(2)))


def test_completeness_counts_equal_answers():
    logits = gaussian(40, 4)
    assert completeness(logits, 2 * logits) == 100
    assert completeness(logits, -logits) < 50


def test_cka_ignores_rotation_scale_and_shift_and_sees_other_maps():
    x = gaussian(5000, 16, seed=3) * torch.arange(1, 17)
    rotation = torch.linalg.qr(gaussian(16, 16))[0]
    assert linear_cka(x, -3 * x @ rotation + 100) == pytest.approx(1, abs=1e-4)
    assert linear_cka(x, x[:, :4]) < 0.99
    assert linear_cka(x, x[:, 4:]) == pytest.approx(linear_cka(x[:, 4:], x))


def test_cka_is_one_formula_in_chunks():
    x, y = gaussian(5000, 8), gaussian(5000, 5, seed=1) + gaussian(5000, 8)[:, :5]
    a, b = ((m - m.mean(0)).double().numpy() for m in (x, y))
    expected = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-5)


def test_features_that_are_all_equal_align_with_nothing():
    x = gaussian(300, 8)
    constant = torch.full((300, 8), 0.1) + 1e-8 * gaussian(300, 8, seed=1)  # one vector, up to float32 rounding
    assert linear_cka(x, constant) == 0
    assert linear_cka(constant, constant) == 0


@pytest.mark.parametrize("score", [linear_cka])
@pytest.mark.parametrize("constant", [1.0, 0.1, 1e3, 1e5])
@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_vary_aligns_with_nothing_and_hides_nothing(score, constant, seed):
    """A unit that always says the same, but for the last bit or not, and an offset of all."""
    x = gaussian(300, 8, seed=seed)
    y = x @ gaussian(8, 6, seed=seed + 10) + gaussian(300, 6, seed=seed + 20)
    plain, units = score(x, y), torch.full((300, 2), constant)
    up = gaussian(300, 2, seed=seed + 30) > 0
    for steady in (units, torch.where(up, torch.nextafter(units, units + 1), units)):
        assert score(torch.cat([x, steady], dim=1), y) == pytest.approx(plain, abs=1e-4)
        assert score(x, torch.cat([steady, y], dim=1)) == pytest.approx(plain, abs=1e-4)
    assert score(x.double() + constant, y.double() - constant) == pytest.approx(plain, abs=1e-9)


def test_centring_hides_the_removal_of_the_mean_and_the_cosine_shows_it():
    x = gaussian(500, 32) + 5
    without_mean = x - x.mean(0)
    assert linear_cka(x, without_mean) == pytest.approx(1, abs=1e-6)
    cosine = uncentred_cosine(x, without_mean)
    assert cosine.mean < 0.3
    assert uncentred_cosine(x, 0.1 * x).mean == pytest.approx(1)
    erased = without_mean.clone()
    erased[:100] = 0
    assert uncentred_cosine(x, erased).zero_rows == 100


def network(seed: int = 0) -> dict[str, torch.Tensor]:
    return {
        "backbone.conv.weight": gaussian(4, 3, seed=seed),
        "backbone.norm.num_batches_tracked": torch.tensor(7),
        "classifier.1.weight": gaussian(5, 4, seed=seed + 1),
        "classifier.1.bias": torch.zeros(5),
    }


def test_weight_distance_tells_head_from_backbone():
    original, current = network(), network()
    unchanged = weight_distance(original, current, ["classifier"])
    assert unchanged.total.frobenius == 0
    current["classifier.1.weight"] = 1.5 * original["classifier.1.weight"]
    current["classifier.1.bias"] = original["classifier.1.bias"] + 1
    changed = weight_distance(original, current)
    by_name = {tensor.name: tensor for tensor in changed.tensors}
    assert by_name["classifier.1.weight"].relative == pytest.approx(0.5)
    assert by_name["classifier.1.bias"].relative is None
    assert by_name["classifier.1.bias"].mean_abs == 1
    assert changed.other.frobenius == 0
    assert changed.head.frobenius == changed.total.frobenius > 0
    assert changed.head.entries + changed.other.entries == changed.total.entries == 37
    assert "backbone.norm.num_batches_tracked" not in by_name


def test_weight_distance_takes_a_module_of_the_body_with_the_heads_name_for_the_body():
    """As the gates of a SENet, whose layers are called `fc` like its head."""
    before = {"layer1.0.se.fc.weight": torch.ones(2, 2), "fc.weight": torch.ones(2, 2), "fc.1.bias": torch.ones(2)}
    moved = weight_distance(before, before | {"layer1.0.se.fc.weight": torch.zeros(2, 2)}, head=["fc"])
    assert (moved.head.frobenius, moved.head.entries) == (0.0, 6)
    assert moved.other.relative == 1.0


@pytest.mark.parametrize("mark", [-math.inf, MASKED_LOGIT])
def test_weight_distance_leaves_out_removed_classes_and_says_so(mark):
    original, current = network(), network()
    current["classifier.1.bias"] = torch.tensor([0.0, mark, 0, 0, 0])
    distance = weight_distance(original, current)
    assert distance.total.not_finite == 1
    assert distance.total.frobenius == 0


def test_weight_distance_counts_what_is_as_low_and_no_bias_of_the_head():
    """Statistics of BatchNorm, of inputs that nobody normalised."""
    before = network() | {"backbone.norm.running_mean": torch.tensor([-2e4, 3.0])}
    distance = weight_distance(before, before | {"backbone.norm.running_mean": torch.tensor([-3e4, 3.0])})
    assert distance.other.frobenius == 1e4
    assert distance.total.not_finite == 0


def test_weight_distance_refuses_other_architectures():
    original, current = network(), network()
    with pytest.raises(ValueError, match="same head"):
        weight_distance(original, current | {"classifier.1.bias": torch.zeros(6)})
    with pytest.raises(ValueError, match=r"differ in 1 names \(extra\)"):
        weight_distance(original, current | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="head="):
        weight_distance(original, current, head=["fc"])


def test_class_means_before_and_after_erasing_one_class():
    labels = torch.arange(3).repeat(100)
    means = torch.tensor([[5.0, 0, 0], [0, 4.0, 0], [3.0, 3.0, 0]])
    features = means[labels] + 0.01 * gaussian(300, 3)
    erased = features * torch.tensor([0.0, 1, 1])  # the direction of class 0
    heat = class_mean_cosines(features, erased, labels + 10)
    assert heat.classes == (10, 11, 12)
    assert np.diag(heat.before) == pytest.approx(1)
    assert heat.before == pytest.approx(heat.before.T)
    assert heat.before[0, 2] == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert heat.after[1, 1] == pytest.approx(1)
    assert heat.after[1, 2] == pytest.approx(1, abs=1e-4)
    assert heat.norms_before[0] == pytest.approx(5, abs=0.02)
    assert heat.norms_after[0] < 0.02


def test_class_means_of_turned_features_are_as_alike_among_themselves_as_before():
    """What was drawn anew has directions of its own: only the cosines within it can be compared with the original's."""
    features, labels = gaussian(60, 4), torch.arange(3).repeat(20)
    turned = features @ torch.linalg.qr(gaussian(4, 4)).Q
    heat = class_mean_cosines(features, turned, labels)
    assert heat.after_own == pytest.approx(heat.before, abs=1e-5)
    assert np.abs(heat.after - heat.before).max() > 0.1


def test_a_mean_of_length_zero_has_cosine_zero():
    heat = class_mean_cosines(gaussian(20, 4), torch.zeros(20, 4), torch.arange(2).repeat(10))
    assert (heat.after == 0).all()


def test_different_samples_are_refused():
    x = gaussian(10, 4)
    for score in (linear_cka, uncentred_cosine, js_divergence, completeness, activation_distances):
        with pytest.raises(ValueError, match=r"\(10, 4\) and \(9, 4\)"):
            score(x, x[:9])
    with pytest.raises(ValueError, match="log_base"):
        js_divergence(x, x, log_base=1)
