"""What does not vary says nothing: neither a unit that is always the same nor an offset changes a centred statistic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_kd import ESC, SecondMoment
from hf_kd.methods.erasers import LEACE, Eraser, MeanDifference, Projection, RetainMoments
from hf_kd.methods.erasers.esc import energy_share

D, CLASSES = 12, 4
CONSTANTS = [0.1, 1.0, 1e3, -1e5]
seeds = pytest.mark.parametrize("seed", range(3))
constants = pytest.mark.parametrize("constant", CONSTANTS)


def planted(seed: int) -> tuple[Tensor, Tensor]:
    """Float32 features [n, d] of classes with different means, of spreads from 3 to 0.3, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(150)
    spread = torch.logspace(0.5, -0.5, D)
    means = torch.randn(CLASSES, D, generator=generator) * spread
    features = means[labels] + spread * torch.randn(len(labels), D, generator=generator)
    return features[torch.randperm(len(labels), generator=generator)], labels


def steady(rows: int, constant: float, nearly: bool, seed: int = 0) -> Tensor:
    """Three units that always say the same; nearly: but for the last bit of float32."""
    units = torch.full((rows, 3), constant)
    if not nearly:
        return units
    up = torch.rand(units.shape, generator=torch.Generator().manual_seed(seed + 100)) < 0.5
    return torch.where(up, torch.nextafter(units, torch.full_like(units, torch.inf)), units)


def leace(features: Tensor, labels: Tensor) -> Eraser:
    rest = labels != 2
    return LEACE().fit(features[~rest], retain=RetainMoments.of(features[rest], labels[rest]))


def mean_difference(features: Tensor, labels: Tensor) -> Eraser:
    rest = labels != 2
    return MeanDifference().fit(features[~rest], retain=RetainMoments.of(features[rest], labels[rest]))


def centred_esc(features: Tensor, labels: Tensor) -> Eraser:
    return ESC(k=3, center=True).fit(features[labels == 2])


every_fit = pytest.mark.parametrize("fit", [leace, mean_difference, centred_esc], ids=lambda f: f.__name__)
nearly_too = pytest.mark.parametrize("nearly", [False, True], ids=["constant", "but for the last bit"])


@every_fit
@constants
@nearly_too
@seeds
def test_a_unit_that_never_varied_decides_nothing_about_new_features(fit, constant, nearly, seed):
    features, labels = planted(seed)
    wide = torch.cat([features, steady(len(features), constant, nearly, seed)], dim=1)
    eraser = fit(wide, labels)
    new = wide.double() + 0.01 * torch.randn(wide.shape, generator=torch.Generator().manual_seed(seed)).double()
    jolted = new.clone()
    jolted[:, D:] += 0.01
    moved = (eraser(jolted) - jolted) - (eraser(new) - new)
    assert float(moved.abs().max()) < 1e-4, "what they say now moves nothing else"
    plain = fit(features, labels)(new[:, :D])
    change = eraser(new) - new
    assert torch.allclose(change[:, :D], plain - new[:, :D], atol=1e-3 * max(1.0, abs(constant) * 1e-3))
    assert float(change[:, D:].abs().max()) < 1e-3


@every_fit
@pytest.mark.parametrize("offset", [1.0, 1e3, 1e4, 1e5])
@seeds
def test_an_offset_of_all_features_changes_no_direction(fit, offset, seed):
    features, labels = planted(seed)
    features = features.double()  # what float32 rounds off at this offset is not the matter here
    one, other = fit(features, labels), fit(features + offset, labels)
    assert one.rank_removed == other.rank_removed
    assert torch.allclose(one.matrix(), other.matrix(), atol=1e-5)


@constants
@nearly_too
@seeds
def test_centred_energy_is_that_of_what_varies(constant, nearly, seed):
    features, labels = planted(seed)
    wide = torch.cat([features, steady(len(features), constant, nearly, seed)], dim=1)[labels == 2]
    directions = torch.linalg.qr(torch.randn(D, 3, generator=torch.Generator().manual_seed(seed)).double()).Q
    padded = torch.cat([directions, directions.new_zeros(3, 3)])
    plain = energy_share(SecondMoment.of(features[labels == 2]), directions, center=True)
    assert energy_share(SecondMoment.of(wide), padded, center=True) == pytest.approx(plain, rel=1e-4)


@constants
@nearly_too
@seeds
def test_steady_units_add_nothing_to_the_rank_of_what_varies(constant, nearly, seed):
    features, labels = planted(seed)
    wide = torch.cat([steady(len(features), constant, nearly, seed), features], dim=1)[labels == 2]
    directions, values = SecondMoment.of(wide).principal_directions(center=True)
    assert int((values > 0).sum()) == D
    assert float(directions[:3, :D].abs().max()) < 1e-2
    with pytest.raises(ValueError, match=f"span only {D} of d = {D + 3}"):
        ESC(k=D + 1, center=True).fit(wide)


@constants
@nearly_too
def test_features_that_are_one_point_have_no_direction(constant, nearly):
    point = steady(200, constant, nearly).repeat(1, 3)
    with pytest.raises(ValueError, match="after centring"):
        ESC(k=1, center=True).fit(point)
    with pytest.raises(ValueError, match="mean direction of the forget features is zero"):
        MeanDifference().fit(point[:50], retain=RetainMoments.of(point[50:], torch.zeros(150)))
    with pytest.raises(ValueError, match="nothing for LEACE"):
        LEACE().fit(point[:50], retain=RetainMoments.of(point[50:], torch.zeros(150)))


@seeds
def test_an_erased_direction_does_not_come_back_by_its_rounding(seed):
    """Features of a second request: what an earlier eraser left of its directions in float32 is not whitened."""
    features, labels = planted(seed)
    features = features + 30
    directions = torch.linalg.qr(torch.randn(D, 2, generator=torch.Generator().manual_seed(seed)))[0]
    erased = Projection.onto_complement_of(directions)(features)
    eraser = leace(erased, labels)
    jolted = erased.double() + 1e-3 * directions[:, 0].double()
    assert float((eraser(jolted) - eraser(erased.double())).norm(dim=1).max()) < 2e-3
