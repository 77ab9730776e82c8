"""Other data sets in a bench: transfer, classes the model never saw, and the strongest attackers of a table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hf_kd.bench.config import Measures
from hf_kd.bench.lines import lines
from hf_kd.bench.measure import Features, _change
from hf_kd.bench.other_data import OtherData, open_other, unseen_classes
from hf_kd.bench.protocols import Problem
from hf_kd.bench.run import bench
from hf_kd.bench.tables import markdown
from tests.helpers.small import make_dataset


@pytest.fixture
def other(tmp_path):
    """A data set of three classes of its own, images of 20 pixels, on disk."""
    folder = tmp_path / "other"
    folder.mkdir()
    for seed, split in enumerate(("train", "test")):
        data = make_dataset([0, 1, 2] * 8, 40 + seed, names=["x", "y", "z"])
        data.to_parquet(folder / f"{split}.parquet")
    return folder


def test_another_data_set_is_cut_down_and_resized_as_asked(other):
    whole = open_other({"name": str(other)})
    assert len(whole["train"]) == 24
    part = open_other({"name": str(other), "classes": ["x", "z"], "resize": 9, "limit": 8})
    for split in ("train", "test"):
        assert set(part[split]["label"]) == {0, 2}
        assert len(part[split]) == 8
        assert all(image.size == (9, 9) for image in part[split]["image"])
    with pytest.raises(ValueError, match="'w'"):
        open_other({"name": str(other), "classes": ["w"]})


def problem_of(labels: torch.Tensor) -> Problem:
    rows = torch.nonzero(labels == 1).flatten()
    return Problem("class", None, None, labels, labels, (rows,), ((1,),), labels, labels)


def test_a_never_seen_class_stands_where_the_forgotten_one_stood():
    """Control both ways: classes far from everything are found by every probe, ones that lie on a retained class by
    none, and what was forgotten is not looked at."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(60)
    means = 8 * torch.eye(4, 6)
    own = means[labels] + torch.randn(240, 6, generator=generator)
    own[labels == 1] = float("nan")  # reading it would show
    measures = Measures(attacks=("linear", "views-2-linear"))
    found = {}
    for name, place in (("far", torch.tensor([0, 0, 0, 0, 9.0, 9.0])), ("inside", means[2])):
        unseen = place + torch.randn(20, 6, generator=generator)
        other = OtherData(((unseen,), torch.full((20,), 7)), ((unseen,), torch.full((20,), 7)))
        found[name] = unseen_classes(Features((own,), (own,)), problem_of(labels), 0, measures, other, seed=0)
    assert found["far"]["KR D_ft"] == 100
    assert found["inside"]["KR D_ft"] < 50
    assert found["far"]["attacks"]["linear"]["recall"] == 100
    assert set(found["far"]["attacks"]) == {"linear"}, "unseen classes have no further views"
    assert found["far"]["unseen classes"] == 1


def test_cells_with_transfer_and_unseen_classes_in_a_table(one, other, tmp_path):
    experiment = one(
        methods=["original", "unseen", {"method": "esc", "k": 1}, {"method": "finetune", "epochs": 1}],
        measure={
            "attacks": ["linear", "norm"],
            "membership": False,
            "transfer": {"name": str(other)},
            "unseen": {"name": str(other), "classes": ["x", "y"]},
        },
    )
    store = bench([experiment], tmp_path / "out", progress=False)
    by_label = {line.label: line for line in lines(experiment, store)}
    assert all(not line.failed for line in by_label.values()), [line.failed for line in by_label.values()]
    for label in ("original", "esc (k=1)", "finetune (epochs=1)"):
        assert 0 <= by_label[label].values("transfer")[0] <= 100
    assert by_label["unseen"].values("unseen classes") == [2]
    assert not by_label["unseen"].values("D_ft"), "it has no head of its own"
    worst, named = (
        by_label["esc (k=1)"].values("worst/advantage")[0],
        by_label["esc (k=1)"].values("worst class/advantage"),
    )
    assert worst >= named[0], "allowing false alarms adds attackers"
    text = markdown(experiment, store)
    assert "unseen" in text
    assert "another data set" in text
    other_settings = one(methods=["original"], measure={"transfer": {"name": str(other), "limit": 6}})
    assert len(bench([other_settings], tmp_path / "out", progress=False).records) == 5, (
        "another measure is another cell"
    )


def test_the_row_needs_its_data_set(one):
    with pytest.raises(ValueError, match="unseen"):
        one(methods=["unseen"])
    with pytest.raises(ValueError, match="takes"):
        one(methods=["original"], measure={"transfer": {"name": "x", "size": 3}})


def test_shares_of_replaced_features_are_told_where_some_stay_as_they_were():
    labels = torch.tensor([0, 0, 1, 1])
    before = torch.arange(8.0).reshape(4, 2)
    inner = object()
    model, first = SimpleNamespace(inner=inner), SimpleNamespace(inner=inner)
    shares = []
    for rows in ([2, 3, 0], [0, 1, 2, 3], []):
        after = before.clone()
        after[rows] += 1
        found = _change(model, after, (first, Features((before,), (before,))), problem_of(labels), labels == 1)
        shares.append((found.get("replaced D_ft"), found.get("replaced D_rt")))
    assert shares == [(100, 50), (None, None), (None, None)]


def test_what_changed_is_read_from_all_retained_images_in_whatever_order_they_stand():
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(500)  # as of folders
    before = torch.nn.functional.one_hot(labels).float() + 0.1 * torch.randn(5_000, 10, generator=draws)
    after = before.clone()
    after[labels == 8] = torch.randn(500, 10, generator=draws)  # the last retained class is spoilt
    inner, found = object(), []
    model = SimpleNamespace(inner=inner)
    for rows in (torch.arange(5_000), torch.randperm(5_000, generator=draws)):
        original = (model, Features((before[rows],), (before[rows],)))
        own = _change(model, after[rows], original, problem_of(labels[rows]), labels[rows] == 9)
        found.append([own["CKA"], own["cosine"]])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert max(found[0]) < 0.95
