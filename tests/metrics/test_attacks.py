"""Every attack finds planted signal, finds nothing in noise, and is the same twice."""

import pytest
import torch

from hf_kd.errors import InvalidValueError
from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.attacks import ATTACKS, attack_names, run_attacks, views_needed
from hf_kd.metrics.neighbours import prototype_predictions
from hf_kd.metrics.similarity import repeated_vectors, share_changed
from hf_kd.testing.probes import INVARIANCES, AttackTester, planted

ONE_OF_A_KIND = [
    name
    for name in ATTACKS
    if not name.startswith(("few-shot-5", "few-shot-10", "relearn-1", "relearn-5", "at-5", "at-25", "views-2"))
]
"""Without those that are a function in this list with another number."""


class TestEveryAttack(AttackTester):
    @pytest.fixture(autouse=True, params=ONE_OF_A_KIND)
    def _of_the_registry(self, request):
        self.name = request.param
        self.views = views_needed(self.name)
        if self.name.startswith("groups"):
            self.samples = 5
        self.several = self.name != "norm"
        if self.name.startswith("at-"):
            self.tolerated = float(self.name.split("-")[1].rstrip("%"))
        for start, invariances in (
            (("linear", "weighted", "groups-of-5-linear", "views-3-linear"), tuple(INVARIANCES)),
            (("knn-l2", "few-shot"), ("scale", "rotation")),
            (("norm", "knn-cosine"), ("scale", "rotation")),
            (("mlp-small", "rbf-whitened"), ("shift", "scale")),
            (("relearn",), ("shift", "scale", "rotation")),
            (
                ("mlp-large", "rbf-standardised", "at-", "groups-of-5-mlp", "views-3-mlp"),
                ("shift", "scale", "coordinate scales"),
            ),
        ):
            if self.name.startswith(start):
                self.invariances = invariances

    def attack(self, data, seed):
        return ATTACKS[self.name].function(data, seed)


def test_every_attack_is_called_what_it_is_registered_as():
    data = AuditData.of(*planted(n=60), 0, *([[x, x] for x in planted(n=60)[::2]]))
    assert [attack.function(data, 0).name for attack in ATTACKS.values()] == list(ATTACKS)


@pytest.mark.parametrize("name", [name for name in ATTACKS if views_needed(name)])
def test_attacks_on_views_are_refused_where_there_are_fewer(name):
    train, y, test, test_y = planted(n=60)
    fewer = [[x] * (views_needed(name) - 1) for x in (train, test)]
    with pytest.raises(InvalidValueError, match="further views"):
        ATTACKS[name].function(AuditData.of(train, y, test, test_y, 0, *fewer), 0)


def test_numpy_input_gives_the_same_result():
    train, y, test, test_y = planted(n=300, strength=0.4)
    names = ["norm", "linear", "knn-l2"]
    results = run_attacks(train, y, test, test_y, 0, names)
    assert results == run_attacks(train.numpy(), y.numpy(), test.numpy(), test_y, [0], names)
    assert [result.name for result in results] == names


@pytest.mark.parametrize("absent", [1, 7])
@pytest.mark.parametrize("name", ["few-shot-1-l2", "few-shot-1-cosine", "linear", "rbf-standardised"])
def test_a_forgotten_class_without_a_training_sample_changes_no_attack(name, absent):
    """The column of another class is not drawn from few samples in its place."""
    train, y, test, test_y = planted(n=120, classes=4)
    ids = torch.tensor([0, 2, 4, 5])
    labelled = (train, ids[y], test, ids[torch.as_tensor(test_y)])
    assert run_attacks(*labelled, [0, absent], [name]) == run_attacks(*labelled, 0, [name])


def test_hits_are_of_images_and_not_of_groups():
    """Groups of two classes are as many as their images by chance, and stand in the order of the classes."""
    train, y, test, test_y = planted(n=400, classes=4)
    groups, images = run_attacks(train, y, test, test_y, [0, 2], ["groups-of-5-linear", "linear"])
    assert groups.hits is None
    assert images.hits.shape == (200,)


def test_a_prototype_needs_a_sample():
    x, y = torch.eye(4), torch.tensor([0, 0, 1, 1])
    with pytest.raises(InvalidValueError, match=r"classes \[3\]"):
        prototype_predictions(x, y, x, (0, 3), 1)


@pytest.mark.parametrize("sizes", [(2, 2), (2, 6), (4, 5), (12, 3), (7, 7)])
def test_relearning_takes_two_of_a_class_that_has_two(sizes):
    """And not one of them twice, which is refused as one sample a class."""
    y = torch.tensor([0] * sizes[0] + [1] * sizes[1])
    x = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(1)) + 4 * y[:, None]
    for seed in range(5):
        assert ATTACKS["relearn-1%"].function(AuditData.of(x, y, x, y, 0), seed).settings["samples"] == 4


def test_ties_on_a_shared_vector_are_not_broken_by_row_order():
    """Three classes of equal size on one vector: a third each, for every reader that compares distances."""
    train, y, test, test_y = planted(n=900, classes=4)
    for x, labels in ((train, y), (test, torch.as_tensor(test_y))):
        x[labels < 3] = 1.0
        x[labels == 3] += 5.0
    data = AuditData.of(train, y, test, test_y, 0)
    for name in ("knn-l2", "knn-cosine", "few-shot-5-l2", "few-shot-5-cosine"):
        assert ATTACKS[name].function(data, 0).recall_forget == pytest.approx(100 / 3, abs=12)


@pytest.mark.parametrize("seed", range(3))
def test_lengths_that_are_equal_but_for_rounding_are_equal(seed):
    """All forgotten images on one point: a threshold on its length has them all, however a processor rounds it."""
    train, y, test, test_y = (torch.as_tensor(part) for part in planted(n=400))
    noise = [
        1e-15 * torch.randn(400, 1, generator=torch.Generator().manual_seed(2 * seed + i)).double() for i in (0, 1)
    ]
    train, test = train.double(), test.double()
    train[y == 0] = test[test_y == 0] = 20 * train[0]
    result = ATTACKS["norm"].function(AuditData.of(train * (1 + noise[0]), y, test * (1 + noise[1]), test_y, 0), 0)
    assert result.recall_forget == 100


def test_cover_hides_from_single_readers_and_not_from_those_who_accept_false_alarms():
    """Forgotten samples share one vector with twice as many retained ones: the posterior there is 1 to 2."""
    train, y, test, _ = planted(n=480, classes=4)
    y = torch.where(y == 2, 1, y)
    for x in (train, test):
        x[y < 2] = 1.0
    hidden_from = ("linear", "mlp-small", "mlp-large", "rbf-standardised", "relearn-5%")
    results = {r.name: r for r in run_attacks(train, y, test, y, 0, [*hidden_from, "knn-l2", "weighted-3"])}
    for name in hidden_from:
        assert results[name].recall_forget < 5
    assert results["knn-l2"].recall_forget < 20
    assert results["weighted-3"].recall_forget > 95
    assert results["weighted-3"].false_alarms > 60
    assert max(result.advantage for result in results.values()) > 25


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
