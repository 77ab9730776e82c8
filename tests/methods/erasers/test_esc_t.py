"""ESC-T: the mask trained on cached features is the mask of the loop that runs the backbone, and is re-checked hard."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_kd import ESC, ESCT, SecondMoment
from hf_kd.methods.erasers.base import Composition, build, describe


@pytest.fixture
def problem():
    """Ten classes with clear means in R^24, a head that tells them apart, and the samples of class 3."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, 24, generator=generator) * 2
    head = nn.Linear(24, 10)
    with torch.no_grad():
        head.weight.copy_(means / 20)  # not too sure of itself: the published loss has no gradient where p = 1
        head.bias.copy_(-means.square().sum(dim=1) / 40)
    labels = torch.arange(10).repeat_interleave(60)
    features = means[labels] + 0.7 * torch.randn(600, 24, generator=generator)
    return features, labels, head


def test_no_forget_sample_is_classified_correctly_any_more(problem):
    features, labels, head = problem
    forget = labels == 3
    eraser = ESCT(lr=1.0).fit(features[forget], labels[forget], head)
    measured = eraser.measured
    assert measured["forget_hits_before"] > 90
    assert measured["forget_hits_soft"] == 0
    hits = (head(eraser(features[forget])).argmax(dim=1) == 3).float().mean() * 100
    assert measured["forget_hits_hard"] == pytest.approx(float(hits), abs=1e-4), "re-checked after thresholding"
    retained = head(eraser(features[~forget])).argmax(dim=1) == labels[~forget]
    assert float(retained.float().mean()) > 0.8


def test_the_operator_is_symmetric_psd_and_says_when_it_can_be_inverted(problem):
    features, labels, head = problem
    eraser = ESCT().fit(features[labels == 3], labels[labels == 3], head)
    eigenvalues = torch.linalg.eigvalsh(eraser.operator.double())
    assert torch.equal(eraser.operator, eraser.operator.T)
    assert float(eigenvalues.min()) > -1e-6
    assert eraser.rank_removed == int((eigenvalues <= 1e-6 * eigenvalues.max()).sum())
    if eraser.rank_removed == 0:
        assert eraser.condition_number == pytest.approx(float(eigenvalues.max() / eigenvalues.min()), rel=1e-3)
        recovered = eraser(features.double()) @ torch.linalg.inv(eraser.operator.double())
        assert torch.allclose(recovered, features.double(), atol=1e-4), "an invertible map hides nothing"


def test_cached_features_give_the_mask_of_the_loop_through_the_backbone(problem):
    """The published loop, restated: run the backbone on every batch of every epoch, one masked forward, one step."""
    features, labels, head = problem
    backbone = nn.Sequential(nn.Linear(24, 24, bias=False), nn.ReLU()).requires_grad_(False)
    images, y = features[labels == 3], labels[labels == 3]
    method = ESCT(lr=0.5, epochs=3, batch_size=16, threshold=0.9)
    eraser = method.fit(backbone(images), y, head)

    u = SecondMoment.of(backbone(images)).principal_directions()[0].float()
    mask = torch.ones(24, 24, requires_grad=True)
    generator = torch.Generator().manual_seed(method.seed)
    for _ in range(method.epochs):
        for rows in torch.randperm(len(y), generator=generator).split(16):
            logits = head(backbone(images[rows]) @ (u * mask) @ (u * mask).T)
            right = logits.argmax(dim=1) == y[rows]
            if right.any():
                loss = nn.functional.cross_entropy(logits[right], y[rows][right])
                (gradient,) = torch.autograd.grad(loss, mask)
                mask = (mask + method.lr * gradient).clamp(0, 1).detach().requires_grad_()
        with torch.no_grad():
            if not (head(backbone(images) @ (u * mask) @ (u * mask).T).argmax(dim=1) == y).any():
                break
    masked = u * (mask > method.threshold)
    assert torch.allclose(eraser.operator, masked @ masked.T, atol=1e-5)


def test_several_taps_are_trained_together(problem):
    """Two heads whose mean answers: each alone may be right about the mean being wrong."""
    features, labels, head = problem
    other = nn.Linear(24, 10)
    y = labels[labels == 3]
    taps = [features[labels == 3], features[labels == 3] * 0.5 + 0.1]
    mean = lambda fs: (head(fs[0]) + other(fs[1])) / 2  # noqa: E731
    erasers = ESCT(lr=1.0).fit_taps(taps, y, mean)
    assert len(erasers) == 2
    hits = (mean([e(f) for e, f in zip(erasers, taps, strict=True)]).argmax(dim=1) == 3).float().mean() * 100
    assert float(hits) == pytest.approx(erasers[0].measured["forget_hits_hard"], abs=1e-4)


def test_a_head_with_batch_norm_works(problem):
    features, labels, head = problem
    norm = nn.BatchNorm1d(24).eval()
    norm.running_mean.copy_(features.mean(dim=0))
    wrapped = nn.Sequential(norm, head).eval()
    eraser = ESCT(lr=1.0).fit(features[labels == 3], labels[labels == 3], wrapped)
    assert eraser.measured["forget_hits_soft"] < eraser.measured["forget_hits_before"]


def test_composition_with_esc_applies_both_in_order(problem):
    features, labels, head = problem
    forget, y = features[labels == 3], labels[labels == 3]
    first = ESCT().fit(forget, y, head)
    second = ESC(k=2).fit(first(forget))
    both = first.then(second)
    assert isinstance(both, Composition)
    assert torch.allclose(both(features), second(first(features)), atol=1e-6)
    assert both.rank_removed == 2
    assert both.condition_number == float("inf")
    rebuilt = build(describe(both))
    rebuilt.load_state_dict(both.state_dict())
    assert torch.equal(rebuilt(features), both(features))
    assert torch.allclose(both.matrix(), first.matrix() @ second.matrix(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"lr": 0}, "lr=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch"),
        ({"loss": "mse"}, "loss='mse'"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ESCT(**options)


def test_what_is_missing_is_named(problem):
    features, labels, head = problem
    with pytest.raises(ValueError, match="classification head is missing"):
        ESCT().fit(features, labels, None)
    with pytest.raises(ValueError, match="labels is missing"):
        ESCT().fit(features, None, head)
    with pytest.raises(ValueError, match="features of D_f is missing"):
        ESCT().fit(SecondMoment.of(features), labels, head)
    with pytest.raises(ValueError, match="600 features and 3 labels"):
        ESCT().fit(features, labels[:3], head)


# The parts that the paper's Table 3 takes away.


def gradient_ascent(features, labels, head, method, penalised: bool) -> torch.Tensor:
    """One full-batch step per epoch on the masked features, restated: the soft mask."""
    u = SecondMoment.of(features).principal_directions()[0].float()
    mask = torch.ones(24, 24, requires_grad=True)
    for _ in range(method.epochs):
        logits = head(features @ (u * mask) @ (u * mask).T)
        right = logits.argmax(dim=1) == labels
        rows = right if penalised else torch.ones_like(right)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits[rows], labels[rows]), mask)
        step = mask + method.lr * gradient
        mask = (step.clamp(0, 1) if method.clip else step).detach().requires_grad_()
        with torch.no_grad():
            if not (head(features @ (u * mask) @ (u * mask).T).argmax(dim=1) == labels).any():
                break
    return (u * mask).detach()


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("loss", ["pce", "ce"])
def test_without_a_threshold_the_operator_is_that_of_the_soft_mask(problem, loss, clip):
    features, labels, head = problem
    forget, y = features[labels == 3], labels[labels == 3]
    method = ESCT(threshold=None, loss=loss, clip=clip, lr=0.3, epochs=4, batch_size=1000)
    eraser = method.fit(forget, y, head)
    masked = gradient_ascent(forget, y, head, method, penalised=loss == "pce")
    assert torch.allclose(eraser.operator, masked @ masked.T, atol=1e-4)
    measured = eraser.measured
    assert measured["forget_hits_hard"] == measured["forget_hits_soft"], "nothing was thresholded"
    binary = ESCT(loss=loss, clip=clip, lr=0.3, epochs=4, batch_size=1000).fit(forget, y, head)
    assert binary.measured["forget_hits_soft"] == measured["forget_hits_soft"]
    assert not torch.allclose(binary.operator, eraser.operator, atol=1e-3)


def test_the_plain_loss_counts_samples_that_are_answered_wrongly_too(problem):
    features, labels, head = problem
    rows = labels == 3
    forget, y = features[rows], labels[rows].clone()
    y[::2] = 4  # never answered so
    options = {"lr": 0.005, "epochs": 1, "threshold": None, "batch_size": 1000}
    penalised, plain = (ESCT(loss=loss, **options).fit(forget, y, head).operator for loss in ("pce", "ce"))
    assert not torch.allclose(penalised, plain, atol=1e-4)


def test_a_mask_that_runs_away_is_an_error(problem):
    features, labels, head = problem
    method = ESCT(lr=1e30, clip=False, loss="ce", batch_size=8)
    with pytest.raises(ArithmeticError, match=r"no longer finite.*lr=1e\+30.*clip=True"):
        method.fit(features[labels == 3], labels[labels == 3], head)


def test_the_parts_are_settings_that_come_back(problem):
    method = ESCT(threshold=None, loss="ce", clip=False)
    assert ESCT(**method.settings()) == method
