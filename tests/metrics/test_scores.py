"""The paper's scores: formulas on its printed rows, and properties of the rest."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from hf_kd.metrics.scores import (
    ForgetRetainScores,
    area_under_roc,
    average_gap,
    forget_retain_accuracy,
    harmonic_mean,
    mean_and_sd,
    nearest_retained_classes,
    normalised_retention,
    per_class_accuracy,
    recall_at,
    recovery_ratio,
    scores_over_seeds,
)

# (forget accuracy, retain accuracy, HM) in percent. First the rows of the paper whose inputs are known to us, then rows
# measured on a CIFAR-10 ResNet-20 with inputs rounded to 0.1 (hence the wider tolerance).
PAPER_ROWS = [
    ("CIFAR-10 Retrain, train", 0.00, 96.93, 98.44, 0.02),
    ("CIFAR-10 Retrain, test", 0.00, 86.02, 92.48, 0.02),
    ("CIFAR-10 ESC, train", 9.46, 96.52, 93.43, 0.02),
    ("CIFAR-10 Original, train", 98.42, 98.29, 3.11, 0.02),
    ("CIFAR-10 Original, test", 85.90, 86.57, 24.25, 0.02),
    ("CIFAR-10 SalUn, train", 0.00, 98.86, 99.43, 0.02),
    ("CIFAR-10 ESC-T, train", 0.00, 97.23, 98.60, 0.02),
    ("CIFAR-100 Original, train", 96.66, 95.71, 6.45, 0.02),
    ("ResNet-20 ESC k=1", 8.5, 87.5, 89.46, 0.06),
    ("ResNet-20 ESC k=2", 11.8, 84.8, 86.4, 0.11),
    ("ResNet-20 ESC k=5", 1.0, 75.2, 85.5, 0.11),
    ("ResNet-20 mean difference", 0.0, 87.3, 93.23, 0.06),
]


@pytest.mark.parametrize(("row", "forget", "retain", "printed", "tolerance"), PAPER_ROWS)
def test_harmonic_mean_gives_the_printed_value(row, forget, retain, printed, tolerance):
    assert harmonic_mean(forget, retain) == pytest.approx(printed, abs=tolerance)


def test_harmonic_mean_edges():
    assert harmonic_mean(100, 0) == 0
    assert harmonic_mean(0, 100) == pytest.approx(100)
    assert harmonic_mean(100, 90) == 0
    with pytest.raises(ValueError, match="percent"):
        harmonic_mean(101, 50)


def test_harmonic_mean_lies_between_its_terms_and_is_concave():
    rng = np.random.default_rng(0)
    for forget, retain in rng.uniform(0, 100, (50, 2)):
        assert min(100 - forget, retain) - 1e-9 <= harmonic_mean(forget, retain) <= max(100 - forget, retain) + 1e-9
    runs = [ForgetRetainScores(a, 90, a, 80) for a in (0.0, 40.0)]
    assert scores_over_seeds(runs)["HM"].mean < harmonic_mean(20, 90)


def test_scores_are_micro_over_forget_classes():
    labels = torch.tensor([3] * 8 + [4] * 2 + [0] * 10)
    predictions = torch.tensor([3] * 8 + [0] * 2 + [0] * 5 + [1] * 5)
    assert forget_retain_accuracy(predictions, labels, [3, 4]) == (80.0, 50.0)
    scores = ForgetRetainScores.from_predictions(predictions, labels, predictions, labels, [3, 4])
    assert dataclasses.asdict(scores) == {"D_f": 80.0, "D_r": 50.0, "D_ft": 80.0, "D_rt": 50.0}
    assert pytest.approx(2 * 20 * 50 / 70) == scores.HM


def test_splits_without_forget_or_retain_samples_are_refused():
    with pytest.raises(ValueError, match="No given sample"):
        forget_retain_accuracy([0, 1], [0, 1], 7)
    with pytest.raises(ValueError, match="Every given sample"):
        forget_retain_accuracy([0, 1], [0, 1], [0, 1])
    with pytest.raises(ValueError, match="empty"):
        forget_retain_accuracy([0, 1], [0, 1], [])


def test_per_class_table_and_nearest_classes():
    labels, predictions = [0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 2, 0, 1, 1]
    table = per_class_accuracy(predictions, labels, 2)
    assert [(row.label, row.samples, row.accuracy, row.forgotten) for row in table] == [
        (0, 2, 50.0, False),
        (1, 2, 100.0, False),
        (2, 4, 25.0, True),
    ]
    nearest = nearest_retained_classes(predictions, labels, 2)
    assert [(row.label, row.share) for row in nearest] == [(1, 50.0), (0, 25.0)]
    assert len(nearest_retained_classes(predictions, labels, 2, most=1)) == 1


def test_ratios():
    assert recovery_ratio(80, 100) == 80
    assert normalised_retention(80, 82, 78) == pytest.approx(0.5)
    assert normalised_retention(41, 82) == pytest.approx(0.5)
    assert normalised_retention(10, 50, 50) is None
    with pytest.raises(ValueError, match="above 0"):
        recovery_ratio(80, 0)


def test_average_gap_is_zero_for_the_reference_and_symmetric():
    retrain = (95.58, 100.00, 95.23, 74.64)  # the paper's Table 5 reference: D_f, D_r, D_t, MIA
    other = (100.0, 100.0, 95.0, 70.0)
    assert average_gap(retrain, retrain) == 0
    assert average_gap(other, retrain) == average_gap(retrain, other) == pytest.approx((4.42 + 0.23 + 4.64) / 4)
    with pytest.raises(ValueError, match="as many"):
        average_gap(other, retrain[:3])


def test_mean_and_sd():
    assert mean_and_sd([5]).sd is None
    assert mean_and_sd([1, 3]).sd == pytest.approx(2**0.5)
    with pytest.raises(ValueError, match="at least one"):
        mean_and_sd([])


def scored(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 40 to 200 samples, some positive; with ties most of them are equal to others, or infinite."""
    rng = np.random.default_rng(seed)
    positive = rng.random(rng.integers(40, 200)) < 0.3
    positive[:2] = True, False
    score = rng.normal(size=len(positive)) + positive
    if ties:
        score = score.round()
        score[rng.random(len(score)) < 0.1] = rng.choice([-np.inf, np.inf])
    return score, positive


@pytest.mark.parametrize("ties", [False, True])
def test_area_under_roc_is_the_share_of_pairs_in_order(ties):
    for seed in range(50):
        score, positive = scored(seed, ties)
        wins = np.sign(np.subtract.outer(np.clip(score[positive], -99, 99), np.clip(score[~positive], -99, 99)))
        assert area_under_roc(score, positive) == pytest.approx(100 * float((wins + 1).mean()) / 2, abs=1e-10)


@pytest.mark.parametrize("ties", [False, True])
def test_recall_at_a_rate_accepts_exactly_that_share_of_the_negatives(ties):
    """The threshold is on a negative; scores equal to it are accepted with the probability that makes the rate exact."""
    for seed in range(50):
        score, positive = scored(seed, ties)
        negatives = np.sort(score[~positive])[::-1]
        for rate in (0.013, 0.1, 0.5, 0.77):
            threshold = negatives[int(rate * len(negatives))]
            tied = (rate * len(negatives) - np.sum(negatives > threshold)) / np.sum(negatives == threshold)
            accepted = np.where(score == threshold, tied, score > threshold)
            assert accepted[~positive].mean() == pytest.approx(rate)
            assert recall_at(score, positive, rate) == pytest.approx(100 * accepted[positive].mean(), abs=1e-10)


def test_recall_counts_samples_by_their_weights():
    score, positive = scored(0, ties=True)
    weights = 1 + np.arange(len(score)) % 3
    repeated = np.repeat(np.arange(len(score)), weights)
    assert recall_at(score, positive, 0.1, weights) == pytest.approx(
        recall_at(score[repeated], positive[repeated], 0.1)
    )


@pytest.mark.parametrize("read", [area_under_roc, partial(recall_at, rate=0.1)])
def test_scores_that_are_no_numbers_have_no_place_in_an_order_and_infinite_ones_have(read):
    with pytest.raises(ValueError, match="1 of 3 values are NaN"):
        read([3.0, float("nan"), 1.0], [True, False, False])
    infinite = read(torch.tensor([float("inf"), 2.0, float("-inf")]), [True, True, False])
    assert infinite == read([3.0, 2.0, 1.0], [True, True, False])


@pytest.mark.parametrize("positive", [[True, True, True], [False, False, False], [True, False]])
def test_a_curve_of_other_shapes_or_of_one_kind_alone_is_refused(positive):
    for read in (area_under_roc, partial(recall_at, rate=0.1)):
        with pytest.raises(ValueError, match="samples of both kinds"):
            read([3.0, 2.0, 1.0], positive)
