"""The converged probe is at its optimum and blind to invertible maps; the paper's is neither."""

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from hf_kd.metrics.knowledge_retention import knowledge_retention
from hf_kd.metrics.linear_probe import _geometry_by_held_out_loss, fit_linear_probe, fit_paper_probe
from hf_kd.metrics.neighbours import knn_predictions, prototype_predictions, tie_shares
from hf_kd.metrics.nonlinear_probes import _ridge, fit_mlp_probe, fit_rbf_probe
from hf_kd.metrics.scaling import principal_scales
from hf_kd.testing.probes import INVARIANCES, ProbeTester, noise, planted


@pytest.fixture(scope="module")
def digits():
    """Real images, 1,797 handwritten digits of 8 x 8 pixels, through a fixed random ReLU layer."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    features = np.maximum(images @ rng.normal(size=(64, 48)) / 20, 0).astype(np.float32)
    order = rng.permutation(len(labels))
    features, labels = torch.from_numpy(features[order]), torch.from_numpy(labels[order])
    return features[:1200], labels[:1200], features[1200:], labels[1200:]


def test_agrees_with_scikit_learn(digits):
    train, y, test, test_y = digits
    probe = fit_linear_probe(train, y, geometry="whitened")
    scale = principal_scales(train)["whitened"]
    # scikit-learn minimises sum CE + ||W||^2 / (2 C): ours times n with l2 = 1/n and C = 1
    other = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(scale(train).numpy(), y.numpy())
    ours = (probe.predict(test) == test_y).double().mean()
    theirs = other.score(scale(test).numpy(), test_y.numpy())
    assert abs(100 * ours - 100 * theirs) <= 0.2
    gap = torch.from_numpy(other.predict_log_proba(scale(test).numpy())) - probe.logits(test).log_softmax(dim=1)
    assert gap.abs().max() < 1e-2
    assert probe.convergence.converged
    assert probe.convergence.gradient_norm <= probe.convergence.tolerance == 1e-6


def test_gradient_norm_is_the_gradient_norm(digits):
    train, y, _, _ = digits
    probe = fit_linear_probe(train, y, geometry="whitened", tolerance=1e-4)
    scale = principal_scales(train)["whitened"]
    weight = torch.linalg.lstsq(scale.transform, probe.weight).solution.requires_grad_()
    bias = (probe.bias + scale.mean @ probe.weight).requires_grad_()
    loss = torch.nn.functional.cross_entropy(scale(train) @ weight + bias, y)
    (loss + probe.convergence.l2 / 2 * weight.square().sum()).backward()
    norm = torch.cat([weight.grad, bias.grad.unsqueeze(0)]).norm()
    assert float(norm) == pytest.approx(probe.convergence.gradient_norm, rel=1e-3, abs=1e-9)


def maps(d: int):
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    mask = (rng.uniform(size=(d, d)) > 0.02).astype(float)
    masked = rotation * mask
    return {
        "rotation": rotation,
        "scaling": 0.1 * np.eye(d),
        "per coordinate": np.diag(np.geomspace(0.01, 100, d)),
        "generic": rng.normal(size=(d, d)),
        "masked projection, as ESC-T's": masked @ masked.T,
    }


@pytest.mark.parametrize("name", list(maps(2)))
def test_converged_probe_is_invariant_to_invertible_maps(digits, name):
    train, y, test, test_y = digits
    matrix = torch.from_numpy(maps(train.shape[1])[name])
    expected = knowledge_retention(train, y, test, test_y, 3)
    moved = knowledge_retention(train.double() @ matrix + 0.5, y, test.double() @ matrix + 0.5, test_y, 3)
    assert dataclasses.astuple(moved.scores) == pytest.approx(dataclasses.astuple(expected.scores), abs=0.2)
    assert moved.convergence.loss == pytest.approx(expected.convergence.loss, rel=1e-3)


def test_shrinking_features_fools_the_paper_protocol_and_not_the_converged_one(digits):
    train, y, test, test_y = digits
    before, after = (
        knowledge_retention(s * train, y, s * test, test_y, 3, "paper", epochs=100).scores for s in (1.0, 0.1)
    )
    assert after.D_ft + after.D_rt < before.D_ft + before.D_rt - 30
    before, after = (knowledge_retention(s * train, y, s * test, test_y, 3).scores for s in (1.0, 0.1))
    assert dataclasses.astuple(after) == pytest.approx(dataclasses.astuple(before), abs=0.2)


def test_paper_probe_follows_plain_sgd(digits):
    train, y, _, _ = digits
    probe = fit_paper_probe(train, y, epochs=2, batch_size=100, seed=5)
    rng = torch.Generator().manual_seed(5)
    head = torch.nn.utils.skip_init(torch.nn.Linear, train.shape[1], 10)
    with torch.no_grad():
        std = (2 / (train.shape[1] + 10)) ** 0.5
        head.weight.copy_((torch.randn(train.shape[1], 10, generator=rng) * std).T)
        head.bias.zero_()
    optimiser = torch.optim.SGD(head.parameters(), lr=1e-3)
    for _ in range(2):
        for rows in torch.randperm(len(y), generator=rng).split(100):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(head(train[rows]), y[rows]).backward()
            optimiser.step()
    torch.testing.assert_close(probe.weight.float(), head.weight.detach().T, rtol=1e-4, atol=1e-5)
    assert not probe.convergence.converged
    assert probe.convergence.iterations == 24


def test_rounding_residue_is_dropped_and_not_amplified():
    train, y, test, _ = noise()
    forget, forget_test = (y == 0).float(), (y == 0).float()
    # a dead unit whose float32 residue gives the class away, and a constant one
    train, test = (
        torch.cat([x, (1e-8 * f).unsqueeze(1), torch.ones(len(x), 1)], dim=1)
        for x, f in ((train, forget), (test, forget_test))
    )
    result = knowledge_retention(train, y, test, y, 0)
    assert (result.convergence.rank, result.convergence.dimension) == (8, 10)
    assert result.scores.D_ft < 50
    shares = tie_shares(fit_mlp_probe(train, y, (32,), geometry="standardised").logits(test))
    assert shares[y == 0, 0].mean() < 0.5


def test_projection_costs_exactly_one_rank():
    train, y, test, test_y = planted(d=32)
    direction = torch.nn.functional.normalize(train[y == 0].mean(dim=0), dim=0)
    train, test = (x - torch.outer(x @ direction, direction) for x in (train, test))
    assert knowledge_retention(train, y, test, test_y, 0).convergence.rank == 31


@pytest.mark.parametrize("constant", [1.0, 0.1, 1e3, 1e5])
@pytest.mark.parametrize("nearly", [False, True], ids=["constant", "but for the last bit"])
def test_whitening_sees_nothing_in_what_does_not_vary(constant, nearly):
    train = planted()[0].float()
    units = torch.full((len(train), 2), constant)
    if nearly:
        units[::2] = torch.nextafter(units[::2], units[::2] + 1)
    plain, scale = principal_scales(train)["whitened"], principal_scales(torch.cat([train, units], dim=1))["whitened"]
    assert scale.rank == plain.rank == train.shape[1]
    jolted = torch.cat([train, units + 0.01], dim=1)
    assert float((scale(jolted) - scale(torch.cat([train, units], dim=1))).abs().max()) < 1e-3
    similar, wanted = scale(jolted) @ scale(jolted).T, plain(train) @ plain(train).T
    assert torch.allclose(similar, wanted, atol=2e-2), "up to a rotation"


@pytest.mark.parametrize("offset", [1.0, 1e3, 1e5])
def test_whitening_does_not_depend_on_an_offset(offset):
    train = planted()[0].double()
    plain, moved = (
        principal_scales(train)["whitened"](train),
        principal_scales(train + offset)["whitened"](train + offset),
    )
    assert moved.shape == plain.shape
    assert torch.allclose(moved @ moved.T, plain @ plain.T, atol=1e-6)


def test_whitened_features_are_white():
    train, *_ = planted(d=6)
    white = principal_scales(train)["whitened"](train)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(6).double(), rtol=0, atol=1e-9)


def test_sample_weights_count_as_repetition():
    train, y, _, _ = planted(strength=0.5)
    weights = torch.where(y == 0, 2.0, 1.0)
    scales = dict.fromkeys(("whitened", "principal"), principal_scales(train)["whitened"])
    weighted = fit_linear_probe(train, y, sample_weights=weights, scales=scales, l2=1e-3)
    rows = torch.cat([torch.arange(len(y)), torch.nonzero(y == 0).flatten()])
    repeated = fit_linear_probe(train[rows], y[rows], scales=scales, l2=1e-3)
    torch.testing.assert_close(weighted.weight, repeated.weight, rtol=1e-3, atol=1e-4)


def test_few_samples_a_direction_fall_back_on_the_stronger_geometry():
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 4
    spread = np.diag(np.geomspace(1, 0.01, 200))
    means = np.zeros((4, 200))
    means[:, :4] = 3 * np.eye(4)
    train, test = ((rng.normal(size=(240, 200)) + means[labels]) @ spread for _ in range(2))
    auto = knowledge_retention(train, labels, test, labels, 0)
    whitened = knowledge_retention(train, labels, test, labels, 0, geometry="whitened")
    assert auto.convergence.geometry == "principal"
    assert auto.scores.D_rt > whitened.scores.D_rt + 5


def test_labels_need_not_be_contiguous():
    train, y, test, test_y = planted()
    ids = torch.tensor([7, 1000, 12])
    probe = fit_linear_probe(train, ids[y])
    assert probe.classes.tolist() == [7, 12, 1000]
    assert (probe.predict(test) == ids[torch.as_tensor(test_y)]).double().mean() > 0.95


class TestLinear(ProbeTester):
    invariances = tuple(INVARIANCES)

    def scores(self, train, labels, test, seed):
        return fit_linear_probe(train, labels, seed=seed).logits(test)


class TestPaper(ProbeTester):
    def scores(self, train, labels, test, seed):
        return fit_paper_probe(train, labels, epochs=100, seed=seed).logits(test)


class TestSmallPerceptron(ProbeTester):
    invariances = ("shift", "scale")

    def scores(self, train, labels, test, seed):
        return fit_mlp_probe(train, labels, (64,), seed=seed).logits(test)


class TestLargePerceptron(ProbeTester):
    invariances = ("shift", "scale", "coordinate scales")

    def scores(self, train, labels, test, seed):
        return fit_mlp_probe(train, labels, (64, 64), geometry="standardised", seed=seed).logits(test)


class TestStandardisedRBF(ProbeTester):
    invariances = ("shift", "scale", "coordinate scales")

    def scores(self, train, labels, test, seed):
        return fit_rbf_probe(train, labels, 256, seed=seed).logits(test)


class TestWhitenedRBF(ProbeTester):
    invariances = ("shift", "scale")

    def scores(self, train, labels, test, seed):
        return fit_rbf_probe(train, labels, 256, geometry="whitened", seed=seed).logits(test)


class TestNearestByDistance(ProbeTester):
    invariances = ("shift", "scale", "rotation")

    def scores(self, train, labels, test, seed):
        return knn_predictions(train, labels, test, seed=seed)


class TestNearestByAngle(ProbeTester):
    invariances = ("scale", "rotation")

    def scores(self, train, labels, test, seed):
        return knn_predictions(train, labels, test, metric="cosine", seed=seed)


class TestPrototypesByDistance(ProbeTester):
    invariances = ("shift", "scale", "rotation")

    def scores(self, train, labels, test, seed):
        return prototype_predictions(train, labels, test, tuple(labels[:1].tolist()), 10, seed=seed)


class TestPrototypesByAngle(ProbeTester):
    invariances = ("scale", "rotation")

    def scores(self, train, labels, test, seed):
        return prototype_predictions(train, labels, test, tuple(labels[:1].tolist()), 10, "cosine", seed=seed)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_nearest_neighbours_agree_with_brute_force(metric):
    train, y, test, _ = planted(n=120, strength=0.5)
    shares = knn_predictions(train, y, test, k=5, metric=metric)
    if metric == "cosine":
        train, test = (torch.nn.functional.normalize(x, dim=1) for x in (train, test))
    nearest = torch.cdist(test, train).argsort(dim=1)[:, :5]
    votes = torch.nn.functional.one_hot(y[nearest], 3).sum(dim=1)
    torch.testing.assert_close(shares, tie_shares(votes.double()))


def test_exact_ties_are_broken_at_random_and_not_by_row_order():
    # every sample on one vector, forgotten ones first: row order would make them win every vote
    y = torch.tensor([0] * 100 + [1] * 200)
    train, test = torch.ones(300, 4), torch.ones(5, 4)
    shares = knn_predictions(train, y, test, k=20, draws=200)
    assert 0 < shares[0, 0] < 0.2
    reverse = knn_predictions(train.flip(0), y.flip(0), test, k=20, draws=200)
    torch.testing.assert_close(shares, reverse, rtol=0, atol=0.1)
    torch.testing.assert_close(prototype_predictions(train, y, test, (0,), 5), torch.full((5, 2), 0.5).double())
    assert knn_predictions(train, y, test, k=1, draws=400)[:, 0].mean() == pytest.approx(1 / 3, abs=0.05)


def test_malformed_input_is_refused_with_the_reason():
    train, y, test, test_y = planted(n=60)
    bad = train.clone()
    bad[17, 2] = float("nan")

    def refuse(match, *args, **settings):
        with pytest.raises(ValueError, match=match):
            knowledge_retention(*args, **settings)

    refuse("Row 17 of the training features", bad, y, test, test_y, 0)
    refuse("No test sample", train, y, test[1:2], test_y[1:2], 0)
    refuse("Every test sample", train, y, test[:1], test_y[:1], 0)
    refuse("at least two classes", train, torch.zeros_like(y), test, test_y, 0)
    refuse("too few", train[:3], y[:3], test, test_y, 0)
    refuse("one label for each", train, y[:-1], test, test_y, 0)
    refuse(r"expected \[n, d\]", train[0], y, test, test_y, 0)
    refuse("ragged", [[1.0, 2.0], [1.0]], [0, 1], test, test_y, 0)
    refuse("columns", train, y, test[:, :4], test_y, 0)
    refuse("integer class ids", train, y.double(), test, test_y, 0)
    refuse("class ids are >= 0", train, y - 1, test, test_y, 0)
    refuse("do not occur among the training labels", train, y, test, test_y + 1, [1])
    refuse("protocol", train, y, test, test_y, 0, "quick")
    refuse("above 0", train, y, test, test_y, 0, l2=0.0)
    refuse("do not vary", torch.ones_like(train), y, test, test_y, 0)


def test_overlap_is_warned_of_with_its_count():
    train, y, test, test_y = planted(n=60)
    test[:7] = train[:7]
    with pytest.warns(UserWarning, match="7 of 60 test rows"):
        result = knowledge_retention(train, y, test, test_y, 0)
    assert result.repeated_test_rows == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        knowledge_retention(train, y, test[7:], test_y[7:], 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_on_a_gpu_and_agrees_with_the_cpu():
    train, y, test, test_y = planted()
    here = knowledge_retention(train, y, test, test_y, 0)
    there = knowledge_retention(train.cuda(), y, test.cuda(), test_y, 0)
    assert dataclasses.astuple(there.scores) == pytest.approx(dataclasses.astuple(here.scores), abs=0.2)
    assert fit_linear_probe(train.cuda(), y).weight.is_cuda


def test_the_only_sample_of_a_class_is_fitted_on_and_not_held_out():
    targets = torch.tensor([0] * 10 + [1] * 10 + [2])
    features = torch.randn(21, 3, generator=torch.Generator().manual_seed(0))
    fitted = []

    def solve(name, rows):
        fitted.append(rows.tolist())
        return SimpleNamespace(weight=torch.zeros(3, 3), bias=torch.zeros(3))

    scales = dict.fromkeys(("whitened", "principal"), lambda x: x)
    for seed in range(5):
        _geometry_by_held_out_loss(solve, scales, features, targets, None, seed)
    assert all(20 in rows and len(rows) < 21 for rows in fitted)


@pytest.mark.parametrize("samples", [40, 90])
def test_ridge_regression_solves_its_normal_equations_with_fewer_samples_than_features_and_with_more(samples):
    x = torch.randn(samples, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(samples) % 3
    centred = (x - x.mean(dim=0)).double()
    wanted = torch.eye(3)[labels].double()
    gram, cross = centred.T @ centred / samples, centred.T @ (wanted - wanted.mean(dim=0)) / samples
    for ridge, weight in zip((1e-3, 1e-1), _ridge(x, labels, 3, (1e-3, 1e-1)), strict=True):
        left = gram @ weight[:-1].double() + ridge * gram.diagonal().mean() * weight[:-1].double()
        torch.testing.assert_close(left, cross, atol=1e-6, rtol=1e-5)
        predicted = torch.addmm(weight[-1], x, weight[:-1])
        torch.testing.assert_close(predicted.mean(dim=0).double(), wanted.mean(dim=0), atol=1e-6, rtol=0)
