"""Labels match for certain or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_kd.data.labels import check_class_ids, counterparts, match_labels, resolve_forget_labels
from hf_kd.errors import LabelMismatchError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
MODEL = {0: "background", 1: "tench, Tinca tinca", 2: "Golf-Ball", 3: "crane", 4: "crane, machine", 5: "dog"}


def test_each_comparison_in_turn():
    mapping = match_labels(["dog", "BACKGROUND", "Tench", "golf_ball", "crane"], MODEL)
    assert mapping.to_model == {0: 5, 1: 0, 2: 1, 3: 2, 4: 3}  # "crane" is the label that is exactly so called
    assert mapping.how == "names"
    assert mapping(torch.tensor([4, -1, 0, 0])).tolist() == [3, -1, 5, 5]


def test_any_order_of_the_model_s_own_names_is_recovered():
    order = torch.randperm(len(MODEL)).tolist()
    assert match_labels([MODEL[i] for i in order], MODEL).to_model == dict(enumerate(order))


def test_keys_of_a_config_read_from_json_are_strings():
    assert match_labels(["dog"], {"0": "cat", "1": "dog"}).to_model == {0: 1}


def test_missing_ambiguous_and_doubled_names_are_listed_with_the_way_out():
    with pytest.raises(
        LabelMismatchError, match=r"Not in the model: 'wolf'.*label_mapping=\{'wolf': 'MODEL_LABEL', \.\.\.\}"
    ):
        match_labels(["dog", "wolf"], MODEL)
    with pytest.raises(
        LabelMismatchError, match=r"Ambiguous: 'Crane' \(could be 3: 'crane, bird', 4: 'crane, machine'\)"
    ):
        match_labels(["Crane"], {3: "crane, bird", 4: "crane, machine"})
    with pytest.raises(LabelMismatchError, match=r"Same label: 'dog' and 'Dog' \(both 'dog'\)"):
        match_labels(["dog", "Dog"], MODEL)


@pytest.mark.parametrize("mapping", [{"wolf": 5}, {1: 5}, {"wolf": "dog"}, {1: "dog"}])
def test_a_mapping_overrules(mapping):
    result = match_labels(["tench", "wolf"], MODEL, mapping)
    assert result.to_model == {0: 1, 1: 5}
    assert result.how == "mapping"


def test_what_a_mapping_leaves_out_fails_only_if_it_occurs():
    result = match_labels(["wolf", "fox"], MODEL, {"wolf": 5})
    assert result(torch.tensor([0, 0])).tolist() == [5, 5]
    with pytest.raises(LabelMismatchError, match=r"Label 1 \('fox'\)"):
        result(torch.tensor([0, 1]))


@pytest.mark.parametrize("mapping", [{"bear": 0}, {"wolf": 99}, {"wolf": "bear"}, {7: 0}])
def test_a_mapping_is_checked_on_both_sides(mapping):
    with pytest.raises(LabelMismatchError):
        match_labels(["wolf"], MODEL, mapping)


def test_plain_integers_are_the_model_s_ids_within_range():
    mapping = match_labels(None, MODEL)
    assert mapping(torch.tensor([5, 0, -1])).tolist() == [5, 0, -1]
    with pytest.raises(LabelMismatchError, match=r"Label 6 of the data .* 0 to 5"):
        mapping(torch.tensor([0, 6]))
    assert match_labels(None, MODEL, {9: 5})(torch.tensor([9, 1])).tolist() == [5, 1]


def test_a_model_without_names_is_taken_to_use_the_same_order(caplog):
    unnamed = {i: f"LABEL_{i}" for i in range(3)}
    assert match_labels(["a", "b", "c"], unnamed).to_model == {0: 0, 1: 1, 2: 2}
    assert "in the same order" in caplog.text
    with pytest.raises(LabelMismatchError):
        match_labels(["a", "b"], unnamed)


def test_a_name_that_transformers_made_up_is_the_class_of_this_name():
    unnamed = {n: f"LABEL_{n}" for n in range(11)}
    folders = sorted(unnamed.values())  # LABEL_0, LABEL_1, LABEL_10, LABEL_2, ...
    found = match_labels(folders, unnamed)
    assert (found.how, [unnamed[found.to_model[place]] for place in range(11)]) == ("names", folders)
    with pytest.raises(LabelMismatchError, match="Not in the model: 'cat'"):
        match_labels([*folders[:-1], "cat"], unnamed)


def test_tens_of_thousands_of_names_are_matched():
    names = [f"synset {n}" for n in range(21_841)]
    assert match_labels(names[::-1], dict(enumerate(names))).to_model[0] == 21_840
    with pytest.raises(LabelMismatchError, match="'synset 0' and 'Synset 0'"):
        match_labels([*names, "Synset 0"], dict(enumerate(names)))


def test_requested_labels():
    assert resolve_forget_labels(["tench", "3", 5, "DOG", "golf ball"], MODEL) == [1, 3, 5, 2]
    assert resolve_forget_labels(["zero", "1", "3"], ["zero", "3", "1"]) == [0, 2, 1]  # a name before a number
    assert resolve_forget_labels("dog", MODEL) == [5]
    assert resolve_forget_labels([2, "7"], None) == [2, 7]
    assert resolve_forget_labels(2.0, MODEL) == resolve_forget_labels(np.int64(2), MODEL) == [2]


@pytest.mark.parametrize(
    ("wanted", "names", "message"),
    [
        (["tensh"], MODEL, "Did you mean 'tench, Tinca tinca'"),
        (["golf bal"], MODEL, "Did you mean 'Golf-Ball'"),
        (["zebra"], MODEL, "There are, for example, "),
        ([6], MODEL, "ids are 0 to 5.*or a name. There are, for example, 'background'"),
        (["-1"], None, "count from 0"),
        (["cat"], None, "no label names"),
        (["x"], ["x, 1", "X, 2"], r"is ambiguous.*0 .*1 "),
        ([], MODEL, "No label to forget"),
        ([2.5], MODEL, "No label is called 2.5"),
        ([None], MODEL, "No label is called None"),
        (float("inf"), None, "inf: there are no label names"),
    ],
)
def test_requested_labels_that_do_not_exist(wanted, names, message):
    with pytest.raises(LabelMismatchError, match=message):
        resolve_forget_labels(wanted, names)


@pytest.mark.parametrize("model", ["mobilenet_v2_1.0_224", "mobilenet_v1_0.25_128"])
def test_imagenette_names_match_a_real_model(model):
    config, data = SHARED / "weights" / model / "config.json", SHARED / "data" / "imagenette" / "test.parquet"
    if not (config.exists() and data.exists()):
        pytest.skip("needs imagenette and the MobileNets in the shared folder beside the repository")
    from datasets import Dataset

    names = Dataset.from_parquet(str(data)).features["label"].names
    id2label = json.loads(config.read_text())["id2label"]
    found = match_labels(names, id2label).to_model
    assert list(found.values()) == [1, 218, 483, 492, 498, 567, 570, 572, 575, 702]  # ImageNet's ids, after background
    assert resolve_forget_labels(["tench", "gas_pump"], id2label) == [1, 572]


@pytest.mark.parametrize(
    "model",
    [
        {n: f"LABEL_{n}" for n in range(11)},
        dict(enumerate("abcdefghijk")),
        {n: str(n) for n in range(11)},
    ],
)
def test_a_name_that_is_a_number_is_that_id(model):
    folders = sorted(str(n) for n in range(11))  # '0', '1', '10', '2', ...
    mapping = match_labels(folders, model)
    assert mapping.to_model == {place: int(name) for place, name in enumerate(folders)}
    with pytest.raises(LabelMismatchError, match="'11'"):
        match_labels([*folders, "11"], model)


def test_a_name_of_the_model_wins_over_the_number():
    assert match_labels(["1", "0"], {0: "1", 1: "0"}).to_model == {0: 0, 1: 1}


def test_whose_ids_they_are_can_be_said():
    labels = {0: "background", 1: "cat"}
    assert match_labels(None, labels).to_model == {0: 0, 1: 1}
    with pytest.raises(LabelMismatchError, match="data set's own"):
        match_labels(None, labels, own_ids=True)
    assert match_labels(None, labels, {7: "cat"}, own_ids=True).to_model == {7: 1}


@pytest.mark.parametrize("ids", [[1, 2], [0, 2], [0, 1, 3], [-1, 0]])
def test_ids_that_a_head_does_not_have_are_named(ids):
    with pytest.raises(LabelMismatchError, match="Number them from 0"):
        check_class_ids({n: str(n) for n in ids})
    check_class_ids(dict(enumerate("abc")))
    check_class_ids({"1": "b", "0": "a"})


def test_classes_of_one_name_stand_for_those_of_that_name_in_their_order():
    names = {134: "crane", 200: "tench", 517: "crane", 600: "deer"}
    other = {0: "tench", 1: "crane", 2: "crane"}
    assert counterparts(names, other) == {134: 1, 200: 0, 517: 2}
    assert counterparts(names, {0: "tench", 1: "crane", 2: "crane", 3: "crane"}) == {200: 0}
