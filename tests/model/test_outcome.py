"""A record is made of what happened: nothing changed, or other classes than the labels say, is refused or said."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from transformers import ViTForImageClassification

from hf_kd import ErasedModel, ReadOptions, unlearn
from hf_kd.data.labels import LabelMapping
from hf_kd.errors import LabelMismatchError
from hf_kd.features.heads import class_scores
from hf_kd.model.outcome import (
    SAMPLE,
    SAMPLE_OF_CLASS,
    Witness,
    accuracy_warnings,
    changed_features,
    check_recognised,
    refuse_other_heads,
    refuse_unchanged,
)
from tests.helpers.small import NAMES, make_dataset, picture

PAIRS_OF_CATS = [(picture(2, i), 0) for i in range(20)]  # 0 is "ape" in the model
SAME_IDS = LabelMapping({n: n for n in range(5)}, {}, "same ids")


def recognised(found: dict, **more) -> list[str]:
    return check_recognised(Counter(found), dict(enumerate(NAMES)), SAME_IDS, **more)


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        ({(0, 2): 20}, False),
        ({(0, 2): 97, (0, 0): 3}, False),  # 3 %
        ({(0, 2): 80, (0, 0): 20}, True),  # the model knows the class badly
        ({(0, 1): 8, (0, 2): 8, (0, 0): 8, (0, 3): 8}, True),
        ({(0, 2): 1}, True),  # one image proves nothing
        ({(0, 2): 9}, True),
        ({(0, 2): 10}, False),
        ({(0, 0): 30, (1, 2): 30}, False),  # one of two classes
        ({(0, 1): 4, (1, 2): 4, (2, 0): 4}, False),  # few of each, and all of them wrong
        ({(0, 0): 4, (1, 2): 4, (2, 0): 4}, True),
        ({(-1, 2): 40, (0, 0): 3}, True),  # unlabelled images are not asked about
    ],
)
def test_a_class_counts_as_known_unless_hardly_any_image_is_answered_as_it(found, passes):
    if passes:
        recognised(found)
    else:
        with pytest.raises(LabelMismatchError, match="allow_unrecognised=True"):
            recognised(found)
        assert recognised(found, refuse=False), "and where it is allowed it is said"
    assert recognised(found, earlier=[0, 1, 2]) == [], "classes that weights were changed for are not asked about"


def test_the_refusal_names_both_classes_and_the_mapping():
    mapping = LabelMapping({0: 0}, {0: "goldfish"}, "mapping")
    with pytest.raises(LabelMismatchError) as refused:
        check_recognised(Counter({(0, 2): 24}), dict(enumerate(NAMES)), mapping)
    for part in ("0 ('goldfish')", "'ape' (0)", "24 as 'cat' (2)", "label_mapping={'goldfish': 2}"):
        assert part in str(refused.value)


def test_a_warning_names_no_class():
    (said,) = recognised({(0, 2): 24}, refuse=False)
    assert not any(name in said for name in NAMES)


@pytest.mark.parametrize("method", ["esc-t", "cover", "retained-span"])
def test_ids_of_another_numbering_are_refused_where_labels_are_used(vit, processor, pixels, method):
    model = ErasedModel.from_model(vit, processor)
    with pytest.raises(LabelMismatchError, match=r"'ape' \(0\).*'cat' \(2\)"):
        model.erase(PAIRS_OF_CATS, method, progress=False)
    assert not model.is_erased
    assert model.erasures == ()


def test_where_only_the_record_uses_labels_it_says_so(vit, processor):
    model = ErasedModel.from_model(vit, processor).erase(PAIRS_OF_CATS, k=1, progress=False)
    (warning,) = model.erasures[0].warnings
    assert "labelled as class 0, 0 were answered as it beforehand, and 20 as class 2" in warning
    told = ErasedModel.from_model(_clean(model), processor)
    told.erase(PAIRS_OF_CATS, k=1, reading=ReadOptions(label_mapping={0: "cat"}), progress=False)
    assert told.erasures[0].warnings == ()
    assert told.erasures[0].classes == (2,)


def _clean(model: ErasedModel) -> ViTForImageClassification:
    clone = ViTForImageClassification(model.inner.config)
    clone.load_state_dict(model.inner.state_dict())
    return clone.eval()


def test_a_mask_on_an_id_that_may_not_be_the_models_is_refused(vit, processor):
    with pytest.raises(LabelMismatchError, match="taken for the model's ids"):
        ErasedModel.from_model(vit, processor).erase(PAIRS_OF_CATS, k=1, mask_head=True, progress=False)


def test_weights_are_not_changed_for_labels_that_the_model_contradicts(vit, processor):
    with pytest.raises(LabelMismatchError, match=r"'ape' \(0\).*'cat' \(2\)"):
        unlearn(vit, PAIRS_OF_CATS, "neggrad", processor=processor, epochs=1, progress=False)
    changed = unlearn(
        vit, PAIRS_OF_CATS, "neggrad", processor=processor, epochs=1, progress=False, allow_unrecognised=True
    )
    assert "answered" in changed.config.hf_kd_unlearned[0]["warnings"][0]


@pytest.mark.parametrize("labels", [[None] * 20, [2] * 19 + [None], [-1] * 20])
def test_every_image_needs_a_label_where_labels_are_used(vit, processor, labels):
    data = Dataset.from_dict(
        {"image": [picture(2, i) for i in range(20)], "label": labels},
        features=Features({"image": Image(), "label": Value("int64")}),
    )
    with pytest.raises(ValueError, match="label for every image"):
        ErasedModel.from_model(vit, processor).erase(data, "esc-t", progress=False)


def test_an_eraser_that_changes_nothing_is_refused(vit, processor, forget, pixels):
    model = ErasedModel.from_model(vit, processor)
    with pytest.raises(ValueError, match="changed nothing"):
        model.erase(forget, "esc-t", epochs=1, lr=1e-6, progress=False)
    assert model.erasures == ()
    with pytest.raises(ValueError, match="changed nothing"):
        unlearn(_clean(model), forget, "neggrad", processor=processor, lr=1e-30, epochs=1, progress=False)
    with pytest.raises(ValueError, match="nothing to train against"):
        refuse_unchanged("esc-t", False, {"forget_hits_before": 0.0})


def test_change_is_relative_and_of_any_tap():
    still, moved = torch.ones(3, 2), torch.ones(3, 2)
    moved[0, 0] = 2
    assert changed_features([still], [still]) == 0
    assert changed_features([still, 1e3 * still], [still, 1e3 * moved]) == changed_features([still], [moved]) > 0.1


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("names", [["score"], NAMES])
def test_heads_that_choose_no_class_are_refused_where_the_head_is_asked(vit, processor, forget, problem, names):
    config = copy.deepcopy(vit.config)
    config.id2label, config.label2id = dict(enumerate(names)), {name: n for n, name in enumerate(names)}
    config.problem_type = problem
    data = Dataset.from_dict({"image": forget["image"][:], "label": [0] * len(forget)})
    other = ViTForImageClassification(config)
    for call in (
        lambda: ErasedModel.from_model(copy.deepcopy(other), processor).erase(data, "esc-t", progress=False),
        lambda: unlearn(other, data, "neggrad", processor=processor, epochs=1, progress=False),
    ):
        with pytest.raises(ValueError, match=f"problem_type '{problem}'"):
            call()
    erased = ErasedModel.from_model(other, processor)
    with pytest.raises(ValueError, match="^mask_head=True .*Leave mask_head out"):
        erased.erase(data, k=1, mask_head=True, progress=False)
    erased.erase(data, k=1, progress=False)
    assert erased.erasures[0].classes == (None if len(names) == 1 else (0,))


def test_what_a_head_is_made_for_is_what_the_error_says_to_set(vit, processor):
    vit.config.problem_type = "multi_label_classification"
    model = ErasedModel.from_model(vit, processor)
    with pytest.raises(ValueError, match=r'config\.json\): "problem_type": "single_label_classification"'):
        refuse_other_heads(model, "esc-t")
    model.config.problem_type = "single_label_classification"
    refuse_other_heads(model, "esc-t")
    assert float(class_scores(model, torch.zeros(1, 5)).sum()) == pytest.approx(1), "whoever asks is told the same"
    cats = make_dataset([2] * 8)
    folded = copy.deepcopy(model).erase(cats, k=1, progress=False).fold()
    changed = unlearn(model, cats, "head-surgery", progress=False)
    assert {made.config.problem_type for made in (folded, changed)} == {"single_label_classification"}, "so too after"
    assert vit.config.problem_type == "multi_label_classification", "of the model that was given nothing changes"
    later = ErasedModel.from_model(copy.deepcopy(vit), processor)
    later.config.problem_type = None  # transformers writes into the model inside what labels of floats are taken for
    with pytest.raises(ValueError, match="several labels an image"):
        refuse_other_heads(later, "esc-t")


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_images_of_a_head_that_chooses_no_class_are_not_called_unknown_for_its_largest_output(vit, processor, problem):
    """Beside a label that is surer of all images the forgotten one is given too, and a regression gives none."""
    vit.config.problem_type = problem
    with torch.no_grad():
        vit.classifier.weight[[0, 2]] = 0.0
        vit.classifier.bias[:] = torch.tensor([9.0, 0, 3.0, 0, 0])
    model = ErasedModel.from_model(vit, processor).erase(make_dataset([2] * 20), k=1, progress=False)
    assert model.erasures[0].warnings == ()


def test_what_got_worse_is_said():
    labels = torch.tensor([0] * 10)
    right, wrong = labels.clone(), labels + 1
    half = torch.where(torch.arange(10) < 5, right, wrong)
    assert "more often than before: 100.0 %, not 50.0 %" in accuracy_warnings((labels, half, right), None)[0]
    assert "fell from 100.0 to 50.0 %" in accuracy_warnings(None, (labels, right, half))[0]
    assert accuracy_warnings((labels, right, wrong), (labels, right, right)) == []
    assert accuracy_warnings((labels - 1, right, right), None) == [], "unknown labels say nothing"


def test_whose_ids_labels_are_can_be_said(vit, processor):
    told = ErasedModel.from_model(copy.deepcopy(vit), processor)
    told.erase(PAIRS_OF_CATS, k=1, reading=ReadOptions(labels=["cat", "dog"]), progress=False)
    assert told.erasures[0].classes == (2,)
    unknown = ErasedModel.from_model(copy.deepcopy(vit), processor)
    unknown.erase(PAIRS_OF_CATS, k=1, reading=ReadOptions(labels="dataset"), progress=False)
    assert unknown.erasures[0].classes is None
    with pytest.raises(LabelMismatchError, match="the data set's own"):
        unknown.erase(PAIRS_OF_CATS, "cover", reading=ReadOptions(labels="dataset"), progress=False)
    with pytest.raises(ValueError, match="labels='data'"):
        ReadOptions(labels="data")


def test_a_model_whose_labels_count_from_one_is_not_wrapped(vit, processor):
    vit.config.id2label, vit.config.label2id = {1: "cat", 2: "dog"}, {"cat": 1, "dog": 2}
    with pytest.raises(LabelMismatchError, match="it has no 2"):
        ErasedModel.from_model(vit, processor)


@pytest.mark.parametrize(("classes", "each"), [(10, SAMPLE_OF_CLASS), (200, SAMPLE // 200)])
@pytest.mark.parametrize("order", ["by class", "mixed"])
def test_images_that_are_asked_about_again_are_of_all_classes_whatever_order_they_come_in(classes, each, order):
    """Of the first 64 classes alone, a class beyond them could be lost without a word."""
    labels = torch.arange(classes).repeat_interleave(SAMPLE_OF_CLASS + 6)
    if order == "mixed":
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    seen = Witness(classes=classes)
    for part in labels.split(333):
        seen.see([part[:, None].float()], [part[:, None].float()], part)
    seen.gather(1)
    found = seen.labels.bincount(minlength=classes)
    assert found.tolist() == [each] * classes
    assert torch.equal(seen.features[0].flatten().long(), seen.labels)
