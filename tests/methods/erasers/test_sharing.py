"""Sharing out: the shares that were asked for, and the axis that tells images apart and views of one image not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_kd.methods.erasers.sharing import affine_scores, axis_scores, cuts_between, stable_axis

D = 12


def draws(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planted(n: int = 2000) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Images [n, d] and two views of each: along `stable` images differ and views do not, along `shaky` the reverse."""
    stable, shaky = torch.linalg.qr(draws(D, 1))[0][:, :2].T
    images = draws(n, 2)

    def view(seed: int) -> Tensor:
        moved = 0.5 * draws(n, seed)
        moved = moved - (moved @ stable)[:, None] * stable
        return images + moved + 4 * draws(n, seed + 50)[:, :1] * shaky

    return view(3), [view(4), view(5)], stable, shaky


def shares(scores: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
    rows = places(scores, features)
    return rows.bincount(minlength=len(scores[1])).double() / len(rows)


def places(scores: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
    return (features @ scores[0].T + scores[1]).argmax(dim=1)


def agreement(scores: tuple[Tensor, Tensor], features: Tensor, views: list[Tensor]) -> float:
    return float(torch.stack([places(scores, features) == places(scores, v) for v in views]).double().mean())


def by_logits(features: Tensor, wanted: Tensor, mass: Tensor | None = None) -> tuple[Tensor, Tensor]:
    weight, bias = draws(len(wanted), 7), draws(len(wanted), 8)[:, 0]
    return affine_scores(features @ weight.T + bias, weight, bias, wanted, mass)


WANTED = [[1.0], [0.5, 0.5], [0.2, 0.8], [0.25] * 4, [0.1, 0.2, 0.3, 0.4], [0.05] * 20]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_shares_are_those_asked_for(wanted):
    wanted, features = torch.tensor(wanted, dtype=torch.float64), draws(1000)
    scores = by_logits(features, wanted)
    assert torch.allclose(shares(scores, features), wanted, atol=0.02)
    axis = axis_scores(features, [features + 0.1 * draws(1000, 9)], wanted, scores)
    assert torch.allclose(shares(axis, features), wanted, atol=0.002), "exact: they are quantiles"


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_shares_do_not_depend_on_the_scale_of_the_features(scale):
    wanted, features = torch.full((3,), 1 / 3, dtype=torch.float64), draws(500)
    scores = by_logits(features * scale, wanted)
    assert torch.allclose(shares(scores, features * scale), wanted, atol=0.02)
    axis = axis_scores(features * scale, [(features + 0.1 * draws(500, 9)) * scale], wanted, scores)
    assert torch.allclose(shares(axis, features * scale), wanted, atol=0.01)


def test_shares_are_of_mass_not_of_rows():
    """A hundred rows that lie apart and weigh as much as the other thousand."""
    features = torch.cat([draws(1000), draws(100, 3) + 4])
    mass = torch.cat([torch.full((1000,), 0.5 / 1000), torch.full((100,), 0.5 / 100)]).double()
    wanted = torch.full((4,), 0.25, dtype=torch.float64)
    scores = by_logits(features, wanted, mass)
    for found in (scores, axis_scores(features, [features + 0.1 * draws(1100, 9)], wanted, scores, mass)):
        got = places(found, features).bincount(weights=mass, minlength=4)
        assert torch.allclose(got, wanted, atol=0.03)
        few = places(found, features[1000:]).bincount(minlength=4) / 100
        assert float(few.max()) < 0.6, "so that a class of few images is not put on one point"


def test_rows_that_are_all_one_go_to_one_place_without_an_error():
    features, wanted = draws(1).expand(30, D), torch.tensor([0.5, 0.5], dtype=torch.float64)
    scores = by_logits(features, wanted)
    assert sorted(shares(scores, features).tolist()) == [0, 1]
    nothing = affine_scores(torch.zeros(3, 2).double(), draws(2), torch.zeros(2).double(), wanted)
    assert all(float(part.abs().max()) < 100 for part in nothing), "scores that are all 0 as well"
    assert all(torch.isfinite(part).all() for part in scores)
    assert torch.isfinite(stable_axis(features, [features])).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rows(n):
    features, wanted = draws(n), torch.full((3,), 1 / 3, dtype=torch.float64)
    scores = by_logits(features, wanted)
    axis = axis_scores(features, [features + 0.1 * draws(n, 9)], wanted, scores)
    for found in (scores, axis):
        assert all(torch.isfinite(part).all() for part in found)
        assert float(shares(found, features).max()) <= max(1 / n, 0.61)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_where_few_rows_go_is_not_left_to_rounding(n, seed):
    """Of two rows every standardised score is 1 or -1, of one row 0; another processor rounds them otherwise."""
    features, wanted = draws(n, seed), torch.full((3,), 1 / 3, dtype=torch.float64)
    view = features + 0.1 * draws(n, 9)
    found = by_logits(features, wanted)
    expected = [places(found, features), places(axis_scores(features, [view], wanted, found), features)]
    for noise in range(1, 6):
        other = features * (1 + 1e-15 * draws(n, 100 + noise))
        scores = by_logits(other, wanted)
        for got, want in zip((scores, axis_scores(other, [view], wanted, scores)), expected, strict=True):
            assert torch.equal(places(got, features), want)
            assert torch.equal(places([part.float() for part in got], features.float()), want), "in float32 too"


@pytest.mark.parametrize("n", [1, 2, 7, 20, 21])
def test_cuts_never_lie_on_a_value(n):
    values = draws(n, 3)[:, 0]
    wanted = torch.tensor([0.0, 0.05, 1 / 3, 0.5, 0.95, 1.0]).double()
    cuts = cuts_between(values, wanted)
    assert float((cuts[:, None] - values).abs().min()) > 0
    assert torch.equal(cuts, cuts.sort().values)
    below = (values < cuts[:, None]).double().mean(dim=1)
    assert float((below - wanted).abs().max()) <= 0.5 / n + 1e-9
    assert below[0] == 0
    assert below[-1] == 1
    for noise in range(5):
        moved = cuts_between((values * (1 + 1e-15 * draws(n, noise)[:, 0])).flip(0), wanted + 1e-15)
        assert torch.allclose(moved, cuts, rtol=1e-12), "of two cuts equally near it is always the lower one"


def test_cuts_do_not_part_what_is_equal():
    values, wanted = torch.tensor([1.0, 1.0, 1.0, 2.0]).double(), torch.tensor([0.3, 0.5, 0.8]).double()
    assert cuts_between(values, wanted).tolist() == pytest.approx([1 - 0.25, 1.5, 1.5])
    assert cuts_between(values, wanted[:1], torch.tensor([0.1, 0.1, 0.1, 0.7]).double()).tolist() == [1.5]
    same = cuts_between(torch.full((4,), 3.0).double(), wanted)
    assert same[0] < 3.0
    assert same[2] > 3.0


def test_the_stable_axis_is_found():
    features, views, stable, shaky = planted()
    axis = stable_axis(features, views)
    assert float(axis.norm()) == pytest.approx(1)
    assert abs(float(axis @ stable)) > 0.99
    assert abs(float(axis @ shaky)) < 0.1
    largest = torch.linalg.eigh((features - features.mean(0)).T @ (features - features.mean(0)))[1][:, -1]
    assert abs(float(largest @ shaky)) > 0.95, "where the variance is largest, views differ most"


def test_the_axis_is_the_same_for_any_order_of_images_and_views():
    features, views, _, _ = planted(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    axis = stable_axis(features, views)
    assert torch.allclose(stable_axis(features[order], [v[order] for v in views]), axis, atol=1e-8)
    assert torch.allclose(stable_axis(features, views[::-1]), axis, atol=1e-8)
    assert torch.allclose(stable_axis(features + 100, [v + 100 for v in views]), axis, atol=1e-6)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_views_of_an_image_land_together_more_often_than_by_logits(m):
    features, views, _, _ = planted()
    wanted = torch.full((m,), 1 / m, dtype=torch.float64)
    scores = by_logits(features, wanted)
    axis = axis_scores(features, views, wanted, scores)
    fresh, fresh_views, _, _ = planted(3000)
    assert agreement(axis, fresh, fresh_views) > 0.998, "views do not differ along it"
    assert agreement(scores, fresh, fresh_views) < 0.85


def test_views_that_are_all_equal_leave_the_axis_of_most_variance():
    features = draws(500) * torch.linspace(1, 3, D, dtype=torch.float64)
    axis = stable_axis(features, [features, features])
    assert abs(float(axis[-1])) > 0.95
    assert torch.isfinite(axis).all()


def test_intervals_follow_the_scores_along_the_axis():
    """Which end of the axis belongs to which class: that at which the class scores higher."""
    features, views, stable, _ = planted()
    weight = torch.stack([stable, -stable])
    wanted = torch.tensor([0.5, 0.5], dtype=torch.float64)
    scores = (weight, torch.zeros(2, dtype=torch.float64))
    found = axis_scores(features, views, wanted, scores)
    assert float((places(found, features) == places(scores, features)).double().mean()) > 0.97


def test_few_images_do_not_choose_among_many_directions():
    """With 20 images in 12 directions one looks stable by chance; only the first two principal ones are looked at."""
    features = draws(20) * torch.tensor([9.0, 8.0] + [0.5] * (D - 2), dtype=torch.float64)
    axis = stable_axis(features, [features + draws(20, 4)])
    assert float(axis[:2].norm()) > 0.95
