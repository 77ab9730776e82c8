"""Retained span: retained logits keep their differences, everything the head does not use of them becomes a constant."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_kd import SecondMoment
from hf_kd.features.taps.site import HeadFunction
from hf_kd.methods.erasers.base import build, describe
from hf_kd.methods.erasers.retained_span import KeptSpan, RetainedSpan
from tests.methods.erasers.test_cover import CLASSES, DIM, of, planted


@pytest.fixture(scope="module")
def problem():
    return planted()


@pytest.mark.parametrize("classes", [(3,), (3, 5)])
def test_retained_logits_keep_their_differences_and_nothing_else_is_left(problem, classes):
    features, _, head = problem
    eraser = RetainedSpan().fit(*of(problem, *classes))
    retained = [c for c in range(CLASSES) if c not in classes]
    before, after = head(features)[:, retained], head(eraser(features))[:, retained]
    centred = [logits - logits.mean(dim=1, keepdim=True) for logits in (before, after)]
    assert torch.allclose(*centred, atol=1e-4)
    out = eraser(features.double())
    rank = len(retained) - 1
    assert int((torch.linalg.svdvals(out - out.mean(dim=0)) > 1e-3).sum()) == rank
    assert eraser.measured["kept_dimensions"] == rank
    assert eraser.rank_removed == DIM - rank
    assert eraser.condition_number == float("inf")


def test_idempotent_linear_and_far_from_the_origin_by_its_constant(problem):
    eraser = RetainedSpan().fit(*of(problem, 3))
    features = problem[0].double()
    assert torch.allclose(eraser(eraser(features)), eraser(features), atol=1e-5)
    assert torch.allclose(features @ eraser.matrix() + eraser.offset(), eraser(features), atol=1e-5)
    assert float(eraser.offset().norm()) > 0.1
    assert torch.allclose(eraser.basis.T @ eraser.center, torch.zeros(CLASSES - 2), atol=1e-5)


def test_a_head_that_ignores_a_shift_of_all_rows_gives_the_same_span(problem):
    features, labels, head = of(problem, 3)
    shifted = copy.deepcopy(head)
    shifted.weight.add_(torch.randn(DIM, generator=torch.Generator().manual_seed(0)))
    one, other = (RetainedSpan().fit(features, labels, h).basis.double() for h in (head, shifted))
    assert float(torch.linalg.svdvals(one - other @ (other.T @ one))[0]) < 1e-5


def test_retained_rows_that_are_all_alike_span_nothing(problem):
    """Then no difference of retained logits depends on the features, and the class is gone with all of them."""
    features, labels, head = of(problem, 3)
    alike = copy.deepcopy(head)
    alike.weight[[c for c in range(CLASSES) if c != 3]] = alike.weight[0].clone()
    eraser = RetainedSpan().fit(features, labels, alike)
    assert eraser.measured["kept_dimensions"] == 0
    assert float(eraser(features).std(dim=0).max()) < 1e-6


def test_state_damage_and_dtype(problem):
    eraser = RetainedSpan().fit(*of(problem, 3))
    rebuilt = build(describe(eraser))
    with pytest.raises(ValueError, match="not loaded or is damaged"):
        rebuilt.check()
    rebuilt.load_state_dict(eraser.state_dict())
    rebuilt.check()
    assert torch.equal(rebuilt(problem[0]), eraser(problem[0]))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert eraser(problem[0].to(dtype)).dtype == dtype
    for name in ("basis", "center"):
        damaged = copy.deepcopy(eraser)
        getattr(damaged, name).view(-1)[0] = float("nan")
        with pytest.raises(ValueError, match="damaged"):
            damaged.check()
    assert isinstance(eraser, KeptSpan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_features_of_any_precision_are_fitted_by_a_head_in_float32(problem, dtype):
    features, labels, head = of(problem, 3)
    eraser = RetainedSpan().fit(features.to(dtype), labels, head)
    assert torch.allclose(eraser.basis, RetainedSpan().fit(features, labels, head).basis, atol=1e-4)


def test_each_tap_by_its_own_head(problem):
    features, labels, head = problem
    other = copy.deepcopy(head)
    other.weight.mul_(torch.linspace(0.5, 2, DIM))
    rows = labels == 3
    function = HeadFunction([(0, (DIM,), head), (1, (DIM,), other)])
    first, second = RetainedSpan().fit_taps([features[rows], features[rows] * 2], labels[rows], function)
    assert torch.equal(first.basis, RetainedSpan().fit(features[rows], labels[rows], head).basis)
    assert torch.equal(second.basis, RetainedSpan().fit(features[rows] * 2, labels[rows], other).basis)


def test_masked_classes_are_not_retained(problem):
    features, labels, head = of(problem, 3)
    function = HeadFunction([(0, (DIM,), head)], [5]).of_tap(0)
    assert RetainedSpan().fit(features, labels, function).measured["kept_dimensions"] == CLASSES - 3
    with pytest.raises(ValueError, match=r"Classes \[3\].*never answered"):
        RetainedSpan().fit(features, labels, HeadFunction([(0, (DIM,), head)], [3]).of_tap(0))


def test_classes_that_an_earlier_request_forgot_are_not_retained(problem):
    """Though the head answers them. One that is forgotten once more is no exception."""
    features, labels, head = of(problem, 3)
    function = HeadFunction([(0, (DIM,), head)], forgotten=[3, 5]).of_tap(0)
    assert RetainedSpan().fit(features, labels, function).measured["kept_dimensions"] == CLASSES - 3


def test_what_is_missing_or_does_not_fit_is_refused(problem):
    features, labels, head = of(problem, 3)
    for given, missing in (
        ((features, labels, None), "a classification head"),
        ((features, None, head), "labels"),
        ((SecondMoment.of(features), labels, head), "the features of D_f"),
    ):
        with pytest.raises(ValueError, match=f"and {missing} is missing here. Without them use method='esc'"):
            RetainedSpan().fit(*given)
    with pytest.raises(ValueError, match="200 features and 3 labels"):
        RetainedSpan().fit(features, labels[:3], head)
    small = nn.Linear(DIM, 2)
    with pytest.raises(ValueError, match="1 classes are retained"):
        RetainedSpan().fit(features, torch.zeros(200, dtype=torch.long), small)
    wide = nn.Linear(DIM, 40)
    with pytest.raises(ValueError, match="span all d = 20"):
        RetainedSpan().fit(features, labels, wide)
    with pytest.raises(ValueError, match="not affine"):
        RetainedSpan().fit(features, labels, nn.Sequential(head, nn.Tanh()))
