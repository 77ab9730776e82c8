"""Closed-form comparators: what each says it does to means, covariances and prototypes, from moments that stream."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_kd import ESC, SecondMoment
from hf_kd.methods.erasers.base import Composition
from hf_kd.methods.erasers.esc import Projection
from hf_kd.methods.erasers.leace import LEACE
from hf_kd.methods.erasers.mean_difference import MeanDifference
from hf_kd.methods.erasers.mean_projection import MeanProjection
from hf_kd.methods.erasers.moments import RetainMoments
from hf_kd.methods.erasers.oblique import ObliqueProjection
from hf_kd.methods.erasers.prototype_orthogonal import PrototypeOrthogonal

D, CLASSES = 16, 5


def planted(n: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated Gaussian classes [n, d], off the origin, and their labels."""
    mixing = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3)))[0]
    mixing = mixing * torch.logspace(0.5, -0.7, D)
    means = torch.randn(CLASSES, D, generator=torch.Generator().manual_seed(4)) + 1.5
    labels = torch.arange(CLASSES).repeat_interleave(n)
    noise = torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed))
    return means[labels] + noise @ mixing.T, labels


@pytest.fixture(scope="module")
def problem():
    return planted()


def split(problem, *classes: int):
    """Forget features and labels, and the moments of the others."""
    features, labels = problem
    forget = torch.isin(labels, torch.tensor(classes))
    return features[forget], labels[forget], RetainMoments.of(features[~forget], labels[~forget])


def fit(method, problem, *classes: int):
    forget, labels, retain = split(problem, *classes)
    return method.fit(forget, labels, **({"retain": retain} if method.needs_retain else {}))


def r_squared(features: Tensor, target: Tensor) -> float:
    """Of the best affine predictor of a target, among directions above the rounding of float32."""
    left, values, _ = torch.linalg.svd(features.double() - features.double().mean(dim=0), full_matrices=False)
    left = left[:, values > 1e-5 * values[0]]
    target = target.double() - target.double().mean()
    return float((left.T @ target).square().sum() / target.square().sum())


ALL = [MeanProjection(), MeanDifference(), LEACE(), PrototypeOrthogonal(), PrototypeOrthogonal(remap=True)]
every_method = pytest.mark.parametrize(
    "method", ALL, ids=lambda m: m.name + ("-remap" if getattr(m, "remap", 0) else "")
)


# What all owe.


@every_method
@pytest.mark.parametrize("classes", [(2,), (1, 3)])
def test_idempotent_and_honest_about_its_rank(method, problem, classes):
    eraser = fit(method, problem, *classes)
    features = problem[0].double()
    once = eraser(features)
    assert torch.allclose(eraser(once), once, atol=1e-4)
    assert eraser.rank_removed == len(classes) == eraser.measured["k"]
    assert int(torch.linalg.matrix_rank(eraser.matrix(), rtol=1e-5)) == D - len(classes)
    assert eraser.condition_number == float("inf")
    assert eraser.is_linear
    assert eraser.measured["n_forget"] == 300 * len(classes)
    assert torch.allclose(features @ eraser.matrix() + eraser.offset(), once, atol=1e-4), "h M + c"


@every_method
def test_streamed_moments_give_what_the_features_give(method, problem):
    forget, labels, retain = split(problem, 1, 3)
    direct = fit(method, problem, 1, 3)
    moments = {label: SecondMoment(D) for label in (3, 1)}
    streamed = RetainMoments(D)
    for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(37):
        for label, moment in moments.items():
            moment.update(forget[rows][labels[rows] == label])
    others, names = problem[0][~torch.isin(problem[1], torch.tensor([1, 3]))], problem[1]
    names = names[~torch.isin(names, torch.tensor([1, 3]))]
    for rows in torch.randperm(len(names), generator=torch.Generator().manual_seed(1)).split(41):
        streamed.update(others[rows], names[rows])
    again = method.fit(moments, **({"retain": streamed} if method.needs_retain else {}))
    for name, value in direct.state_dict().items():
        assert torch.allclose(again.state_dict()[name], value, atol=1e-5), name
    assert retain.moment.count == streamed.moment.count


# LEACE.


@pytest.mark.parametrize("classes", [(2,), (1, 3)])
def test_no_linear_predictor_beats_a_constant_on_the_fitted_data(problem, classes):
    features, labels = problem
    eraser = fit(LEACE(), problem, *classes)
    erased = eraser(features.double())
    for c in classes:
        z = (labels == c).double()
        assert r_squared(features, z) > 0.2
        assert r_squared(erased, z) < 1e-6
        covariance = (erased - erased.mean(dim=0)).T @ (z - z.mean()) / len(z)
        assert float(covariance.abs().max()) < 1e-6
    kept = next(c for c in range(CLASSES) if c not in classes)
    assert r_squared(erased, (labels == kept).double()) > 0.2, "others can be told as before"


def test_leace_changes_as_little_as_it_can(problem):
    """The mean of all stays, and in the metric of the covariance no projection that does the same moves features less."""
    features = problem[0].double()
    erased = fit(LEACE(), problem, 2)(features)
    assert torch.allclose(erased.mean(dim=0), features.mean(dim=0), atol=1e-5)
    moved = float((erased - features).square().sum())
    assert moved < float((fit(MeanDifference(), problem, 2)(features) - features).square().sum())


def test_leace_commutes_with_invertible_maps(problem):
    features, labels = problem
    change = torch.randn(D, D, generator=torch.Generator().manual_seed(8)) / D**0.5 + torch.eye(D)
    here = fit(LEACE(), problem, 2)(features.double()) @ change.double() + 0.7
    there = fit(LEACE(), (features @ change + 0.7, labels), 2)((features @ change + 0.7).double())
    assert torch.allclose(here, there, atol=2e-3)


@pytest.mark.parametrize("constant", [0.0, 1.0, 1e3])
def test_directions_without_variance_are_not_blown_up(problem, constant):
    """A dead unit, or one that always says the same, in float64 sums whose rounding is not zero."""
    features, labels = problem
    wide = torch.cat([features, torch.full((len(labels), 2), constant), features[:, :1] + features[:, 1:2]], dim=1)
    eraser = fit(LEACE(), (wide, labels), 2)
    plain = fit(LEACE(), problem, 2)(features.double())
    erased = eraser(wide.double())
    assert torch.allclose(erased[:, :D], plain, atol=1e-3)
    assert torch.allclose(erased[:, D : D + 2], wide[:, D : D + 2].double(), atol=1e-3)
    assert r_squared(erased, labels == 2) < 1e-4
    moved = wide.double() + 0.01 * torch.randn(wide.shape, generator=torch.Generator().manual_seed(1)).double()
    assert float((eraser(moved) - erased).abs().max()) < 1.0, "what never varied decides nothing about new features"


def test_leace_without_correlation_has_nothing_to_do():
    features = torch.cat([torch.eye(D), -torch.eye(D)]).repeat(10, 1)
    with pytest.raises(ValueError, match="nothing for LEACE"):
        LEACE().fit(features, torch.zeros(len(features)), retain=RetainMoments.of(features, torch.ones(len(features))))
    with pytest.raises(ValueError, match="tolerance=1"):
        LEACE(tolerance=1)


# Means.


def test_mean_difference_equalises_the_means(problem):
    features, labels = problem
    erased = fit(MeanDifference(), problem, 2)(features.double())
    assert torch.allclose(erased[labels == 2].mean(dim=0), erased[labels != 2].mean(dim=0), atol=1e-5)
    assert not torch.allclose(features[labels == 2].mean(dim=0), features[labels != 2].mean(dim=0), atol=0.1)


def test_mean_projection_removes_the_mean_and_is_nearly_esc_where_the_mean_dominates(problem):
    features, labels = problem
    far = features + 20 * (labels == 2)[:, None]
    eraser = fit(MeanProjection(), (far, labels), 2)
    assert type(eraser) is Projection
    assert float(eraser(far[labels == 2].double()).mean(dim=0).norm()) < 1e-4
    esc = ESC(k=1).fit(far[labels == 2])
    assert abs(float(eraser.directions[:, 0] @ esc.directions[:, 0])) > 0.9999
    share = eraser.measured["energy_removed"]
    assert share == pytest.approx(esc.measured["energy_removed"], abs=1e-3)
    assert share <= esc.measured["energy_removed"], "no single direction holds more than the first principal one"


def test_mean_projection_takes_each_class(problem):
    eraser = fit(MeanProjection(), problem, 1, 3)
    for c in (1, 3):
        assert float(eraser(problem[0][problem[1] == c].double()).mean(dim=0).norm()) < 1e-4


@pytest.mark.parametrize("method", [MeanProjection(), MeanDifference()], ids=lambda m: m.name)
def test_a_mean_of_zero_has_no_direction(method):
    forget = torch.cat([torch.eye(D), -torch.eye(D)])
    retain = {"retain": RetainMoments.of(forget, torch.ones(2 * D))} if method.needs_retain else {}
    with pytest.raises(ValueError, match="mean direction of the forget features is zero"):
        method.fit(forget, None, **retain)


# Prototypes.


def means(problem) -> Tensor:
    return torch.stack([problem[0][problem[1] == c].double().mean(dim=0) for c in range(CLASSES)])


@pytest.mark.parametrize("classes", [(2,), (1, 3)])
def test_forgotten_prototypes_vanish_and_retained_ones_stay(problem, classes):
    eraser = fit(PrototypeOrthogonal(), problem, *classes)
    before = means(problem)
    after = eraser(before)
    for c in range(CLASSES):
        wanted = torch.zeros(D).double() if c in classes else before[c]
        assert torch.allclose(after[c], wanted, atol=1e-4)
    outside = torch.randn(7, D, generator=torch.Generator().manual_seed(0)).double()
    outside = outside - outside @ torch.linalg.pinv(before) @ before
    assert torch.allclose(eraser(outside), outside, atol=1e-5), "what lies outside all prototypes stays"


def test_what_stays_of_a_class_that_is_forgotten_in_part_keeps_its_prototype(problem):
    """A fine class goes, its siblings stay: both have the label of the class above them."""
    features, fine = problem
    above, forget = fine.clamp(min=1) - 1, fine == 0  # 0 and 1 are one class
    retain = RetainMoments.of(features[~forget], above[~forget])
    eraser = PrototypeOrthogonal().fit(features[forget], above[forget], retain=retain)
    before = means(problem)
    assert torch.allclose(eraser(before[1:]), before[1:], atol=1e-4)
    assert torch.allclose(eraser(before[:1]), torch.zeros(1, D).double(), atol=1e-4)
    some = torch.arange(len(fine)) % 2 == 0
    retain = RetainMoments.of(features[~some], fine[~some])
    with pytest.raises(ValueError, match="every class of the retained ones is forgotten in part"):
        PrototypeOrthogonal().fit(features[some], fine[some], retain=retain)


@pytest.mark.parametrize("classes", [(2,), (1, 3)])
def test_remapped_prototypes_land_on_the_nearest_retained_one(problem, classes):
    eraser = fit(PrototypeOrthogonal(remap=True), problem, *classes)
    before = means(problem)
    after, unit = eraser(before), torch.nn.functional.normalize(before, dim=1)
    retained = [c for c in range(CLASSES) if c not in classes]
    for number, c in enumerate(classes):
        nearest = retained[int((unit[retained] @ unit[c]).argmax())]
        assert eraser.measured["remapped_to"][number] == nearest
        assert torch.allclose(after[c], before[nearest], atol=1e-4)
    assert torch.allclose(after[retained], before[retained], atol=1e-4)


def test_prototypes_need_classes_and_independence(problem):
    forget, labels, retain = split(problem, 2)
    unnamed = RetainMoments.of(problem[0], torch.full_like(problem[1], -1))
    for given in ({"labels": None, "retain": retain}, {"labels": labels, "retain": unnamed}):
        with pytest.raises(ValueError, match="classes of all forgotten and retained images"):
            PrototypeOrthogonal().fit(forget, **given)
    twins = RetainMoments.of(torch.cat([forget, forget]), torch.tensor([0] * 300 + [1] * 300))
    with pytest.raises(ValueError, match=r"not linearly independent in d = 16.*leace"):
        PrototypeOrthogonal().fit(forget, labels, retain=twins)
    many = RetainMoments.of(torch.randn(40, D), torch.arange(40) + 10)
    with pytest.raises(ValueError, match="41 class means are not linearly independent"):
        PrototypeOrthogonal().fit(forget, labels, retain=many)


def test_an_oblique_projection_that_was_damaged_is_noticed(problem):
    for name in ("read", "write", "center"):
        eraser = fit(LEACE(), problem, 2)
        getattr(eraser, name).view(-1)[0] = float("nan")
        with pytest.raises(ValueError, match="damaged"):
            eraser.check()
    assert isinstance(ObliqueProjection(4, 1).then(ObliqueProjection(4, 1)), Composition)
