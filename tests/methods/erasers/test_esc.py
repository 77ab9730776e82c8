"""ESC: an orthogonal projection that removes exactly the top-k directions of the forget features."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_kd import ESC, SecondMoment
from hf_kd.methods.erasers.base import Composition, build, describe
from hf_kd.methods.erasers.esc import NormedProjection, Projection, orthonormal_union
from hf_kd.methods.registry import make_method
from tests.methods.erasers.test_moments import features


@pytest.mark.parametrize(("n", "d", "k"), [(200, 32, 1), (200, 32, 5), (10, 32, 3)])
def test_the_operator_is_an_orthogonal_projection_of_rank_d_minus_k(n, d, k):
    h = features(n, d)
    eraser = ESC(k=k).fit(h)
    p = eraser.matrix()
    assert torch.allclose(p, p.T, atol=1e-6)
    assert torch.allclose(p @ p, p, atol=1e-6)
    assert abs(float(p.trace()) - (d - k)) < 1e-5, "also for fewer samples than dimensions"
    assert eraser.rank_removed == k
    assert eraser.condition_number == float("inf")
    u = torch.linalg.svd(h.double().T)[0][:, :k]
    assert float((eraser(h.double()) @ u).abs().max()) < 1e-5
    orthogonal = torch.randn(7, d, dtype=torch.float64)
    orthogonal = orthogonal - orthogonal @ u @ u.T
    assert torch.allclose(eraser(orthogonal), orthogonal, atol=1e-5), "and touches nothing else"


def test_energy_removed_is_the_share_of_the_squared_singular_values():
    h = features(100, 16)
    eraser = ESC(k=2).fit(h)
    s = torch.linalg.svdvals(h.double())
    assert eraser.measured["energy_removed"] == pytest.approx(float((s[:2] ** 2).sum() / (s**2).sum()))
    lost = 1 - float(eraser(h.double()).square().sum() / h.double().square().sum())
    assert eraser.measured["energy_removed"] == pytest.approx(lost, abs=1e-6)


@pytest.mark.parametrize(("d", "p", "k", "published"), [(64, 1.5, 1, 0), (96, 1.5, 1, 1), (768, 1.5, 12, 11)])
def test_k_is_rounded_and_never_zero(d, p, k, published):
    eraser = ESC(p=p).fit(features(50, d))
    assert eraser.measured["k"] == k == eraser.rank_removed
    assert eraser.measured.get("k_of_published_code", k) == published


def test_moments_and_features_give_the_same_eraser():
    h = features(60, 16)
    assert torch.equal(ESC(k=2).fit(h).directions, ESC(k=2).fit(SecondMoment.of(h)).directions)


def test_per_class_takes_k_directions_of_each_class():
    h = torch.cat([features(30, 16, 1), features(90, 16, 2) * 3])
    labels = torch.tensor([0] * 30 + [1] * 90)
    eraser = ESC(k=2, per_class=True).fit(h, labels)
    assert eraser.rank_removed == 4
    for part in (h[:30], h[30:]):
        u = torch.linalg.svd(part.double().T)[0][:, :2]
        assert float((eraser(part.double()) @ u).abs().max()) < 1e-4
    by_class = {0: SecondMoment.of(h[:30]), 1: SecondMoment.of(h[30:])}
    assert torch.allclose(ESC(k=2, per_class=True).fit(by_class).directions, eraser.directions, atol=1e-6)
    with pytest.raises(ValueError, match="labels"):
        ESC(k=2, per_class=True).fit(h)
    with pytest.raises(ValueError, match="each class"):
        ESC(k=2, per_class=True).fit(SecondMoment.of(h))


def test_a_second_request_composes_to_the_union():
    h1, h2 = features(100, 24, 1), features(100, 24, 2).roll(5, dims=1)
    first = ESC(k=2).fit(h1)
    second = ESC(k=3).fit(first(h2))
    both = first.then(second)
    assert isinstance(both, Projection)
    assert both.rank_removed == 5
    x = torch.randn(50, 24, dtype=torch.float64)
    assert torch.allclose(both(x), second(first(x)), atol=1e-5)
    gram = both.directions.T.double() @ both.directions.double()
    assert torch.allclose(gram, torch.eye(5, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("gap", [1e-5, 1e-9])
def test_the_union_stays_orthonormal_where_columns_are_nearly_parallel(gap):
    """One pass of Gram-Schmidt leaves 1e-16 / gap of the first column in the second."""
    draws = torch.Generator().manual_seed(0)
    first = torch.nn.functional.normalize(torch.randn(32, 3, dtype=torch.float64, generator=draws), dim=0)
    other = torch.randn(32, 3, dtype=torch.float64, generator=draws)
    union = orthonormal_union([first, first + gap * other], tolerance=gap / 100)
    assert union.shape == (32, 6)
    assert float((union.T @ union - torch.eye(6, dtype=torch.float64)).abs().max()) < 1e-13


def test_the_union_drops_dependent_directions_and_keeps_the_span():
    a = torch.linalg.qr(torch.randn(20, 3, dtype=torch.float64)).Q
    mixed = torch.linalg.qr(torch.cat([a[:, :1] + 1e-9, torch.randn(20, 1, dtype=torch.float64)], dim=1)).Q
    union = orthonormal_union([a, mixed])
    assert union.shape == (20, 4)
    assert torch.allclose(union.T @ union, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(union @ (union.T @ mixed), mixed, atol=1e-7)


def test_the_union_drops_a_column_of_zeros():
    basis = torch.eye(4, dtype=torch.float64)[:, :2]
    assert torch.equal(orthonormal_union([torch.zeros(4, 1, dtype=torch.float64), basis]), basis)


def test_casting_the_model_does_not_round_the_directions():
    eraser = ESC(k=2).fit(features(50, 8))
    before = eraser.directions.clone()
    eraser.to(torch.bfloat16).half().to("cpu")
    assert torch.equal(eraser.directions, before)
    with torch.autocast("cpu", torch.bfloat16):
        out = eraser(features(50, 8))
    assert out.dtype == torch.float32
    assert float((out.double() @ before.double()).abs().max()) < 1e-5


def test_the_state_is_small_and_comes_back_from_its_description():
    eraser = ESC(k=2).fit(features(500, 32))
    assert {name: tuple(value.shape) for name, value in eraser.state_dict().items()} == {"directions": (32, 2)}
    rebuilt = build(describe(eraser))
    rebuilt.load_state_dict(eraser.state_dict())
    x = torch.randn(5, 32)
    assert torch.equal(rebuilt(x), eraser(x))
    assert torch.equal(copy.deepcopy(eraser)(x), eraser(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0}, "p=0"),
        ({"p": 100}, "p=100"),
        ({"p": -1.0}, "0 < p < 100"),
        ({"k": 0}, "k=0"),
        ({"k": 1.5}, "k=1.5"),
        ({"k": True}, "k=True"),
        ({"p": 1.0, "k": 1}, "not both"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ESC(**options)


@pytest.mark.parametrize(("n", "k"), [(100, 16), (100, 20), (5, 5), (5, 9), (1, 1)])
def test_k_has_to_stay_below_dimension_and_rank(n, k):
    with pytest.raises(ValueError, match=rf"{n} forget samples span only {min(n, 16)} of d = 16") as refused:
        ESC(k=k).fit(features(n, 16))
    assert ("dd forget samples" in str(refused.value)) == (k < 16), "more samples do not make more directions than d"


# renorm: every feature as long as it was.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_renorm_keeps_the_norm_and_the_direction_of_the_projection(dtype):
    h = features(200, 32).to(dtype)
    plain, normed = ESC(k=3).fit(h), ESC(k=3, renorm=True).fit(h)
    assert type(normed) is NormedProjection
    assert torch.equal(normed.directions, plain.directions)
    out, projected = normed(h).double(), plain(h).double()
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(out.norm(dim=1), h.double().norm(dim=1), rtol=tolerance)
    cosine = torch.nn.functional.cosine_similarity(out, projected)
    assert float(cosine.min()) > 1 - tolerance
    assert float((out @ normed.directions.double()).abs().max()) < tolerance * float(h.double().norm(dim=1).max())
    assert normed(h).dtype == dtype


def test_renorm_of_a_feature_of_which_nothing_is_left():
    """Neither NaN nor rounding blown up to the length of the feature, which would differ from batch to batch."""
    eraser = ESC(k=2, renorm=True).fit(features(200, 32))
    inside = eraser.directions.T * 7
    for dtype in (torch.float32, torch.float64):
        out = eraser(torch.cat([torch.zeros(1, 32), inside]).to(dtype))
        assert float(out.norm(dim=1).max()) < 1e-4
    assert torch.isfinite(eraser(torch.full((2, 32), 1e-30))).all()
    assert torch.isfinite(eraser(torch.full((2, 32), 1e15))).all()


def test_renorm_requests_compose():
    h1, h2 = features(100, 24, 1), features(100, 24, 2).roll(5, dims=1)
    first = ESC(k=2, renorm=True).fit(h1)
    second = ESC(k=3, renorm=True).fit(first(h2))
    both = first.then(second)
    assert type(both) is NormedProjection
    assert both.rank_removed == 5
    x = torch.randn(50, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(both(x), second(first(x)), atol=1e-5)
    mixed = first.then(ESC(k=1).fit(first(h2)))
    assert isinstance(mixed, Composition)
    assert not mixed.is_linear
    rebuilt = build(describe(both))
    rebuilt.load_state_dict(both.state_dict())
    assert torch.equal(rebuilt(h1), both(h1))


def test_renorm_is_a_setting_like_the_others():
    method = ESC(k=2, renorm=True)
    assert make_method("esc", **{"k": 2, "renorm": True, "p": None}) == method
    assert make_method("esc", **method.settings()) == method
    per_class = {0: SecondMoment.of(features(50, 16, 1)), 1: SecondMoment.of(features(50, 16, 2))}
    assert type(ESC(k=2, renorm=True, per_class=True).fit(per_class)) is NormedProjection
    with pytest.raises(ValueError, match="damaged"):
        NormedProjection(8, 2).check()
