"""Membership attacks: planted membership is found, identical distributions are not, removed classes are handled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_kd.metrics.membership import loss_attack, sample_losses, separate
from hf_kd.metrics.membership_reference import rmia_attack, rmia_scores
from hf_kd.metrics.membership_share import EFFICACY_STATISTICS, member_rate, mia_efficacy, sample_statistics

CLASSES = 10


def outputs(n: int, seed: int, confidence: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose true class is raised by `confidence`: members of an overfitted model get more of it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    logits = torch.randn(n, CLASSES, generator=generator)
    logits[torch.arange(n), labels] += confidence
    return logits, labels


def test_loss_attack_finds_planted_membership_and_nothing_in_identical_distributions():
    unseen = outputs(1500, 1)
    found = loss_attack(*outputs(1500, 0, confidence=5.0), *unseen, draws=5)
    assert found.accuracy > 70
    assert found.auc > 75
    assert found.tpr > 5 * 100 * found.fpr
    assert found.leak == max(found.accuracy - 50, found.auc - 50)
    chance = loss_attack(*outputs(1500, 2), *unseen, draws=10)
    assert chance.accuracy == pytest.approx(50, abs=3)
    assert chance.auc == pytest.approx(50, abs=3)
    assert chance.leak < 3
    assert chance.accuracy_sd > 0
    assert chance.auc_sd > 0


def test_members_with_a_higher_loss_leak_as_much():
    found = loss_attack(*outputs(800, 0), *outputs(800, 1, confidence=5.0), draws=5)
    assert found.auc < 25
    assert found.auc_two_sided == 100 - found.auc
    assert found.leak > 25
    assert found.tpr_reversed > found.tpr


def test_removed_classes_have_a_finite_loss_and_look_alike():
    sides = []
    for seed in (0, 1):
        logits, labels = outputs(200, seed)
        logits[torch.arange(200), labels] = float("-inf")
        sides += [logits, labels]
        assert torch.equal(sample_losses(logits, labels), torch.full((200,), 100.0, dtype=torch.float64))
    chance = loss_attack(*sides, draws=3)
    assert (chance.accuracy, chance.auc, chance.tpr) == pytest.approx((50, 50, 1))


@pytest.mark.parametrize("make", [lambda x: x.half(), lambda x: x.bfloat16(), lambda x: x.numpy()])
def test_every_dtype_and_numpy(make):
    member, nonmember = outputs(300, 0, confidence=5.0), outputs(300, 1)
    expected = loss_attack(*member, *nonmember, draws=2)
    got = loss_attack(make(member[0]), member[1], make(nonmember[0]), nonmember[1].numpy(), draws=2)
    assert got.auc == pytest.approx(expected.auc, abs=0.1)


def test_deterministic_for_a_seed_and_leaves_global_generators_alone():
    sides = (*outputs(100, 0), *outputs(100, 1))
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert loss_attack(*sides, seed=3, draws=3) == loss_attack(*sides, seed=3, draws=3)
    assert loss_attack(*sides, seed=3, draws=3) != loss_attack(*sides, seed=4, draws=3)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


@pytest.mark.parametrize("attacker", ["logistic", "svc"])
def test_member_rate_compares_forgotten_with_retained_and_unseen(attacker):
    retain, test = outputs(1500, 0, confidence=6.0)[0], outputs(1500, 1)[0]
    like_retained = member_rate(retain, test, outputs(800, 2, confidence=6.0)[0], attacker=attacker)
    like_unseen = member_rate(retain, test, outputs(1500, 3)[0], attacker=attacker)
    assert like_retained.member_rate > 75
    assert like_retained.leak > 40
    assert like_unseen.leak < 4


def test_member_rate_has_no_leak_when_nothing_differs():
    for attacker in ("logistic", "svc"):
        nothing = member_rate(*(outputs(2000, seed)[0] for seed in (0, 1, 2)), attacker=attacker)
        assert nothing.leak < 3


def test_every_efficacy_attack_finds_planted_membership_and_nothing_else():
    retain, test = outputs(800, 0, confidence=7.0), outputs(800, 1, confidence=1.0)
    member = mia_efficacy(*retain, *test, *outputs(600, 2, confidence=7.0))
    unseen = mia_efficacy(*retain, *test, *outputs(600, 3, confidence=1.0))
    assert set(member) == set(EFFICACY_STATISTICS)
    for name in EFFICACY_STATISTICS:
        assert member[name].efficacy < 35, name
        assert member[name].leak > 25, name
        assert unseen[name].leak < 6, name
        assert unseen[name].efficacy == 100 - unseen[name].member_rate


def test_statistics_are_their_formulas():
    logits, labels = outputs(50, 0)
    got = sample_statistics(logits, labels)
    p = torch.softmax(logits.double(), 1)
    own = torch.nn.functional.one_hot(labels, CLASSES).bool()
    modified = -(1 - p[own]) * p[own].log() - torch.where(own, 0, p * (1 - p).log()).sum(1)
    assert got["modified_entropy"][:, 0] == pytest.approx(modified.numpy())
    assert got["entropy"][:, 0] == pytest.approx(-(p * p.log()).sum(1).numpy())
    assert got["confidence"][:, 0] == pytest.approx(p[own].numpy())


def test_modified_entropy_is_finite_and_exact_at_the_extremes():
    sure = torch.tensor([[60.0, 0.0, float("-inf")]], dtype=torch.float64)
    right, wrong, removed = (
        sample_statistics(sure, torch.tensor([label]))["modified_entropy"].item() for label in (0, 1, 2)
    )
    assert 0 <= right < 1e-20
    assert wrong == pytest.approx(120, rel=1e-6)  # -log p_1 - log(1 - p_0), 60 nats each
    assert removed == pytest.approx(160, rel=1e-6)  # -log p_2 clipped at 100


def reference_setting(leak: float, seed: int = 0, models: int = 4):
    """Images of different difficulty; the audited model adds `leak` to the true class of its members."""
    generator = torch.Generator().manual_seed(seed)

    def side(n: int, bonus: float):
        labels = torch.randint(CLASSES, (n,), generator=generator)
        base = torch.zeros(n, CLASSES)
        base[torch.arange(n), labels] = torch.randn(n, generator=generator) * 3
        noisy = [base + 0.3 * torch.randn(n, CLASSES, generator=generator) for _ in range(models + 1)]
        noisy[0][torch.arange(n), labels] += bonus
        return noisy[0], torch.stack(noisy[1:]), labels

    return side(600, leak), side(600, 0.0), side(800, 0.0)


def test_rmia_finds_what_the_loss_alone_does_not():
    forget, unseen, population = reference_setting(leak=2.0)
    found = rmia_attack(forget, unseen, population)
    population_attack = loss_attack(forget[0], forget[2], unseen[0], unseen[2], draws=3)
    assert found.auc > population_attack.auc
    assert found.tpr > 40 > 4 * population_attack.tpr
    assert rmia_attack(*reference_setting(leak=0.0)).leak < 3


def test_rmia_is_its_formula_and_takes_removed_classes():
    (logits, references, labels), _, (z_logits, z_references, z_labels) = reference_setting(leak=0.5)
    logits = logits.clone()
    logits[:300][torch.arange(300), labels[:300]] = float("-inf")

    def ratio(own, others, y):
        p, q = (torch.softmax(x.double(), -1)[..., torch.arange(len(y)), y] for x in (own, others))
        return p / ((1.3 * q.mean(0) + 0.7) / 2)

    x, z = ratio(logits, references, labels), ratio(z_logits, z_references, z_labels)
    expected = (x[:, None] / z[None, :] >= 2.0).double().mean(1)
    got = rmia_scores(logits, references, labels, z_logits, z_references, z_labels, gamma=2.0)
    assert got == pytest.approx(expected.numpy())
    assert (got[:300] == 0).all()


def test_separate_is_exact_at_its_rate_whatever_the_ties():
    assert separate([1.0] * 7, [1.0] * 500, fpr=0.03, draws=1).tpr == pytest.approx(3)
    perfect = separate([2.0, 3.0], [0.0, 1.0], draws=1)
    assert (perfect.auc, perfect.tpr, perfect.tpr_reversed) == (100, 100, 0)
    scores = np.arange(1000.0)
    assert separate(scores, scores, fpr=0.1, draws=1).tpr == pytest.approx(10)


def test_refusals_name_the_value_and_the_way_out():
    logits, labels = outputs(30, 0)
    with pytest.raises(ValueError, match=r"5 members.*needs at least 10"):
        loss_attack(logits[:5], labels[:5], logits, labels)
    with pytest.raises(ValueError, match=r"member labels reach 10.*0\.\.9"):
        loss_attack(logits, torch.full((30,), 10), logits, labels)
    with pytest.raises(ValueError, match=r"NaN or \+inf"):
        loss_attack(logits * math.nan, labels, logits, labels)
    with pytest.raises(ValueError, match="every logit is -inf"):
        loss_attack(torch.full_like(logits, -math.inf), labels, logits, labels)
    with pytest.raises(ValueError, match="'logistic', 'svc'"):
        member_rate(logits, logits, logits, attacker="forest")
    with pytest.raises(ValueError, match="fraction between 0 and 1"):
        separate([0.0], [0.0], fpr=1.0)
    with pytest.raises(ValueError, match=r"\[m, 30, 10\]"):
        rmia_scores(logits, logits[None, :5], labels, logits, logits[None], labels)
