"""Every attack finds planted signal, finds nothing in noise, and is the same twice."""

import dataclasses

import pytest
import torch

from hf_kd.metrics.attack_data import AttackResult, AuditData
from hf_kd.metrics.attacks import ATTACKS, attack_names, run_attacks, strongest
from hf_kd.metrics.similarity import repeated_vectors, share_changed
from tests.metrics.planted import noise, planted


def audit_data(sample, forget=0):
    train, y, test, test_y = sample
    rng = torch.Generator().manual_seed(0)
    views = [[x + 0.5 * torch.randn(x.shape, generator=rng) for _ in range(2)] for x in (train, test)]
    return AuditData.of(train, y, test, test_y, forget, *views)


@pytest.fixture(scope="module")
def signal():
    return audit_data(planted(n=600))


@pytest.fixture(scope="module")
def blank():
    return audit_data(noise(n=600))


@pytest.mark.parametrize("name", list(ATTACKS))
def test_finds_planted_signal(signal, name):
    result = ATTACKS[name].function(signal, 0)
    assert result.name == name
    stated = result.settings.get("stated_false_alarms", 0)
    assert result.advantage > 90 - stated
    assert result.accuracy_retain > 90 - stated
    assert result.auc is None or result.auc > 95


@pytest.mark.parametrize("name", list(ATTACKS))
def test_finds_nothing_in_noise(blank, name):
    result = ATTACKS[name].function(blank, 0)
    slack = 2 if name.startswith("groups") else 1  # groups of 5: a fifth of the samples
    assert abs(result.advantage) < 15 * slack
    assert result.auc is None or abs(result.auc - 50) < 10 * slack


def test_the_same_twice_and_without_touching_the_global_generator():
    train, y, test, test_y = planted(n=300, strength=0.4)
    state = torch.random.get_rng_state()
    first, second = (run_attacks(train, y, test, test_y, 0, "full", seed=3) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.random.get_rng_state())
    assert [result.name for result in first] == list(attack_names("full"))
    plain = dataclasses.asdict(first[0])
    assert all(isinstance(plain[key], float) for key in ("recall_forget", "accuracy_retain", "false_alarms"))


def test_numpy_input_gives_the_same_result():
    train, y, test, test_y = planted(n=300, strength=0.4)
    names = ["linear", "knn-l2", "norm"]
    assert run_attacks(train, y, test, test_y, 0, names) == run_attacks(
        train.numpy(), y.numpy(), test.numpy(), test_y, [0], names
    )


def test_several_forgotten_classes():
    train, y, test, test_y = planted(classes=4)
    for result in run_attacks(train, y, test, test_y, [0, 2], ["linear", "few-shot-5-l2", "linear-binary"]):
        assert result.advantage > 90


def test_ties_on_a_shared_vector_are_not_broken_by_row_order():
    """Three classes of equal size on one vector: a third each, for every reader that compares distances."""
    train, y, test, test_y = planted(n=900, classes=4)
    for x, labels in ((train, y), (test, torch.as_tensor(test_y))):
        x[labels < 3] = 1.0
        x[labels == 3] += 5.0
    data = AuditData.of(train, y, test, test_y, 0)
    for name in ("knn-l2", "knn-cosine", "few-shot-5-l2", "few-shot-5-cosine"):
        assert ATTACKS[name].function(data, 0).recall_forget == pytest.approx(100 / 3, abs=12)


def test_cover_hides_from_single_readers_and_not_from_those_who_accept_false_alarms():
    """Forgotten samples share one vector with twice as many retained ones: the posterior there is 1 to 2."""
    train, y, test, _ = planted(n=1200, classes=4)
    y = torch.where(y == 2, 1, y)
    for x in (train, test):
        x[y < 2] = 1.0
    results = {r.name: r for r in run_attacks(train, y, test, y, 0, "full")}
    for name in ("linear", "mlp-small", "mlp-large", "rbf-standardised", "relearn-5%"):
        assert results[name].recall_forget < 5
    assert results["knn-l2"].recall_forget < 20
    assert results["weighted-3"].recall_forget > 95
    assert results["weighted-3"].false_alarms > 60
    assert strongest(list(results.values())).by_advantage.advantage > 25


def test_full_runs_the_views_attacks_that_there_are_views_for():
    for views, expected in ((0, set()), (1, {2}), (2, {2, 3})):
        names = [name for name in attack_names("full", views) if name.startswith("views-")]
        assert {int(name.split("-")[1]) for name in names} == expected


def test_unknown_names_and_missing_views_are_refused():
    train, y, test, test_y = planted(n=60)
    with pytest.raises(ValueError, match="telepathy"):
        run_attacks(train, y, test, test_y, 0, ["telepathy"])
    with pytest.raises(ValueError, match="further view"):
        run_attacks(train, y, test, test_y, 0, ["views-2-linear"])
    with pytest.raises(ValueError, match="give both"):
        run_attacks(train, y, test, test_y, 0, "full", train_views=[train], test_views=[])
    with pytest.raises(ValueError, match="a row for each image"):
        run_attacks(train, y, test, test_y, 0, "full", train_views=[train[1:]], test_views=[test])


def test_strongest_names_the_rule():
    flags_all = AttackResult("flags everybody", 100.0, 0.0, 100.0)
    good = AttackResult("good", 80.0, 95.0, 2.0)
    worst = strongest([flags_all, good])
    assert (worst.by_advantage, worst.by_recall) == (good, flags_all)
    assert "minus false alarms" in worst.rule
    with pytest.raises(ValueError, match="at least one"):
        strongest([])


def test_changed_and_repeated_rows_are_counted():
    before = torch.arange(20.0).view(10, 2)
    after = before.clone()
    after[:4] = 7.0
    assert share_changed(before, after) == 40
    assert share_changed(before, before + 1e-9, tolerance=1e-6) == 0
    counts = repeated_vectors(after)
    assert (counts.rows, counts.distinct, counts.repeated, counts.share, counts.largest) == (10, 7, 1, 40.0, 4)
    assert repeated_vectors(before.bfloat16()).repeated == 0
    with pytest.raises(ValueError, match="same samples"):
        share_changed(before, after[1:])
