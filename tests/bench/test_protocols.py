"""Which images each protocol forgets, which it keeps, and what it asks about them."""

from __future__ import annotations

import hashlib

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image

from hf_kd.bench.build import forget_rows
from hf_kd.bench.config import experiments
from hf_kd.bench.protocols import make_problem, split_identities
from tests.helpers.small import picture

FIVE = dict(enumerate(["ape", "bee", "cat", "dog", "elk"]))


def problem_of(experiment, id2label=FIVE):
    return make_problem(experiment, id2label)


def test_classes_are_forgotten_by_name(one):
    problem = problem_of(one(protocol={"kind": "class", "forget": ["cat", "ape"]}))
    assert len(problem.stages) == 1
    assert set(problem.train_labels[problem.forget_rows(0)].tolist()) == {0, 2}
    assert int(problem.forget_train(0).sum()) == 24
    assert problem.forget_classes(0) == [0, 2]
    assert int(problem.forget_test(0).sum()) == 20
    assert problem.names[2] == "cat"


def numbered(folder, classes, each=4):
    names = [f"c{i}" for i in range(classes)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    folder.mkdir()
    for number, split in enumerate(("train", "test")):
        labels = list(range(classes)) * each
        images = [picture(label % 5, number * 1000 + i, size=(8, 8)) for i, label in enumerate(labels)]
        Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(folder / f"{split}.parquet")
    return dict(enumerate(names))


def test_by_default_a_tenth_of_the_classes_those_whose_id_ends_in_4(tmp_path):
    names = numbered(tmp_path / "many", 20)
    content = {"model": "m", "dataset": "many", "protocol": "class", "methods": ["original"]}
    (experiment,) = experiments(content, tmp_path)
    assert problem_of(experiment, names).forget_classes(0) == [4, 14]
    few = numbered(tmp_path / "few", 4)
    (experiment,) = experiments(content | {"dataset": "few"}, tmp_path)
    with pytest.raises(ValueError, match="No class id ends in 4"):
        problem_of(experiment, few)


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ({"kind": "class", "forget": ["zebra"]}, "zebra"),
        ({"kind": "class", "forget": ["ape", "bee", "cat", "dog", "elk"]}, "nothing would be left"),
        ({"kind": "random", "share": 1.5}, "between 0 and 1"),
        ({"kind": "random", "share": 0.001}, "leaves 0 to forget"),
        ({"kind": "subclass", "forget": ["tabby"], "fine_column": "breed"}, "no column 'breed'"),
        ({"kind": "subclass", "forget": ["poodle"], "fine_column": "fine"}, "poodle"),
        ({"kind": "subclass", "forget": None, "fine_column": "fine"}, "give at least one name"),
        ({"kind": "identities", "forget": ["ape"], "train_images": 11, "test_images": 2}, "0 of 5 people have 13"),
        ({"kind": "identities", "forget": ["ape"], "train_images": 6, "test_images": 2, "people": 9}, "9 are wanted"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(one, protocol, said):
    with pytest.raises(ValueError, match=said):
        problem_of(one(protocol=protocol))


def test_random_samples_are_drawn_by_a_seed_and_by_default_from_every_class(one):
    problem = problem_of(one(protocol={"kind": "random", "share": 0.25, "seed": 1}))
    rows = problem.forget_rows(0)
    assert problem.train_labels[rows].bincount().tolist() == [3] * 5
    assert problem.forget_test(0) is None, "no test image is forgotten"
    again = problem_of(one(protocol={"kind": "random", "share": 0.25, "seed": 1}))
    assert torch.equal(again.forget_rows(0), rows)
    other = problem_of(one(protocol={"kind": "random", "share": 0.25, "seed": 2}))
    assert not torch.equal(other.forget_rows(0), rows)
    anywhere = problem_of(one(protocol={"kind": "random", "share": 0.25, "seed": 1, "stratified": False}))
    assert len(anywhere.forget_rows(0)) == 15
    assert anywhere.train_labels[anywhere.forget_rows(0)].bincount(minlength=5).tolist() != [3] * 5


def test_incremental_requests_come_one_class_after_another(one):
    problem = problem_of(one(protocol={"kind": "incremental", "forget": ["dog", "ape", "cat"]}))
    assert problem.classes == ((3,), (0,), (2,))
    for stage, so_far in enumerate(([3], [0, 3], [0, 2, 3])):
        assert problem.forget_classes(stage) == so_far
        assert set(problem.train_labels[problem.stages[stage]].tolist()) == set(problem.classes[stage])
        assert set(problem.train_labels[problem.forget_rows(stage)].tolist()) == set(so_far)
        assert not set(problem.images_to_keep(stage, None)["label"]) & set(so_far)


def test_a_fine_class_is_forgotten_inside_its_class_and_its_siblings_are_watched(one):
    problem = problem_of(one(protocol={"kind": "subclass", "forget": ["tabby"], "fine_column": "fine"}))
    assert set(problem.train.select(problem.forget_rows(0).tolist())["fine"]) == {3}
    assert set(problem.train_labels[problem.forget_rows(0)].tolist()) == {2}, "the model calls them cats"
    assert problem.probe_test.tolist() == problem.test["fine"], "probes read the fine labels"
    siblings = problem.test.select(torch.nonzero(problem.groups["siblings"]).flatten().tolist())
    assert set(siblings["fine"]) == {2}
    assert set(siblings["label"]) == {2}
    assert not bool((problem.groups["siblings"] & problem.forget_test(0)).any())


def test_a_limit_keeps_every_class_and_every_fine_class(one):
    problem = problem_of(one(protocol={"kind": "subclass", "forget": ["wolf"], "fine_column": "fine"}, limit=20))
    assert len(problem.train) == len(problem.test) == 20
    assert set(problem.train["fine"]) == {0, 1, 2, 3}


def test_a_limit_is_never_exceeded(tmp_path):
    """Two of each class used to be taken whatever the limit was: 200 images of 100 classes below "at most 20"."""
    names = numbered(tmp_path / "many", 20)
    content = {"model": "m", "dataset": "many", "protocol": "class", "methods": ["original"]}
    for limit in (40, 47):
        (experiment,) = experiments(content | {"limit": limit}, tmp_path)
        problem = problem_of(experiment, names)
        for labels in (problem.train_labels, problem.test_labels):
            assert len(labels) == limit
            assert int(labels.bincount().min()) >= 2
    (experiment,) = experiments(content | {"limit": 39}, tmp_path)
    with pytest.raises(ValueError, match="limit=39 is less than 2 images of each of the 20 classes; give at least 40"):
        problem_of(experiment, names)


def test_kept_images_are_never_forgotten_ones(one):
    for protocol in (
        {"kind": "class", "forget": ["cat"]},
        {"kind": "random", "share": 0.3},
        {"kind": "subclass", "forget": ["tabby"], "fine_column": "fine"},
    ):
        problem = problem_of(one(protocol=protocol))
        numbered = problem.train.add_column("row", list(range(len(problem.train))))
        problem.train = numbered
        forgotten = set(problem.forget_rows(0).tolist())
        assert set(problem.stages[0].tolist()) == forgotten
        assert set(problem.images_to_keep(0, None)["row"]) == set(range(len(numbered))) - forgotten
        few = problem.images_to_keep(0, 7)["row"]
        assert len(few) == 7
        assert not set(few) & forgotten
        assert few == problem.images_to_keep(0, 7)["row"]


def test_a_method_may_see_only_some_forget_images(one):
    problem = problem_of(one(protocol={"kind": "incremental", "forget": ["dog", "ape"]}))
    seen = forget_rows(problem, [1], 5, seed=0)
    assert len(seen) == 5
    assert set(seen.tolist()) <= set(problem.stages[1].tolist())
    assert torch.equal(seen, forget_rows(problem, [1], 5, seed=0))
    assert not torch.equal(seen, forget_rows(problem, [1], 5, seed=1))
    both = forget_rows(problem, [0, 1], 5, seed=0)
    assert set(seen.tolist()) < set(both.tolist()), "all at once sees the images that one after another does"
    assert len(both) == 10
    assert torch.equal(forget_rows(problem, [0, 1], 99, seed=0), problem.forget_rows(1))


def people(counts, copies=()):
    """Person i has counts[i] images; `copies` are (person, image) that are filed once more, under the next person."""
    labels = [person for person, count in enumerate(counts) for _ in range(count)]
    images = [picture(label % 5, i, size=(8, 8)) for i, label in enumerate(labels)]
    for person, image in copies:
        images.append(images[sum(counts[:person]) + image])
        labels.append((person + 1) % len(counts))
    features = Features({"image": Image(), "label": ClassLabel(names=[f"p{i}" for i in range(len(counts))])})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def digests(data):
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in data["image"]]


def test_identities_are_split_without_the_published_leakage():
    data = people([9, 9, 4, 9], copies=[(0, 0), (0, 1), (0, 0)])
    protocol = {"train_images": 5, "test_images": 3, "seed": 0}
    train, test = split_identities(data, {}, protocol)
    seen = digests(train), digests(test)
    assert all(len(set(part)) == len(part) for part in seen), "nothing twice, whoever it is filed under"
    assert not set(seen[0]) & set(seen[1]), "no test image was trained on"
    assert train.features["label"].names == ["p0", "p1", "p3"], "p2 has too few, and is no label any more"
    assert torch.tensor(train["label"]).bincount().tolist() == [5, 5, 5]
    assert torch.tensor(test["label"]).bincount().tolist() == [3, 3, 3]
    again = split_identities(data, {}, protocol)
    assert digests(again[0]) == seen[0]
    other = split_identities(data, {}, protocol | {"seed": 1})
    assert digests(other[0]) != seen[0]
    fewer, _ = split_identities(data, {}, protocol | {"people": 2})
    assert len(set(fewer["label"])) == 2


def test_copies_do_not_count_as_images_of_their_own():
    data = people([8, 8], copies=[(1, i) for i in range(8)])  # 16 files of p0, 8 of them p1's
    with pytest.raises(ValueError, match="0 of 2 people have 9 different images"):
        split_identities(data, {}, {"train_images": 6, "test_images": 3})


def test_forgetting_a_person_of_a_folder(one):
    experiment = one(protocol={"kind": "identities", "forget": ["bee"], "train_images": 7, "test_images": 3})
    problem = problem_of(experiment)
    assert (len(problem.train), len(problem.test)) == (35, 15)
    assert problem.forget_classes(0) == [1]
    assert int(problem.forget_train(0).sum()) == 7
