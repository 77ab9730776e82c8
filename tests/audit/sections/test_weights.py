"""Moved weights: the section names what moved, and an original that is another network is told."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_kd import AuditOptions, ErasedModel, Retrained, unlearn
from hf_kd.audit import RetentionReport
from hf_kd.audit.sections.weights import of_other_weights, weights_section
from hf_kd.metrics.weights import weight_distance
from hf_kd.model.train import train_original
from tests.helpers.audited import LEAST, audited
from tests.helpers.small import NAMES, make_dataset, randomise
from tests.helpers.taught import taught


def test_weights_section_names_what_moved():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    before = {name.replace("1.", "classifier."): value.clone() for name, value in model.state_dict().items()}
    same = weights_section(weight_distance(before, before))
    assert any("No weight differs" in note for note in same.notes)
    after = {name: value.clone() for name, value in before.items()}
    after["classifier.weight"] += 1
    section = weights_section(weight_distance(before, after))
    rows = {score.group: score.value for score in section.scores if score.name == "mean_abs"}
    assert rows["other"] == 0
    assert rows["classifier.weight"] == pytest.approx(1)
    assert "0.weight" not in rows
    report = audited(**LEAST, extra_sections=[section])
    assert "Weights moved" in report.to_markdown()
    assert RetentionReport.from_json(report.to_json()) == report


@pytest.fixture
def chain(vit, processor):
    """A network, what a request made of it, and what another made of that."""
    networks = [ErasedModel.from_model(taught(vit, processor), processor)]
    for label in (2, 3):
        forget = make_dataset([label] * 12)
        changed = unlearn(networks[-1], forget, "head-surgery", progress=False)
        networks.append(ErasedModel.from_model(changed, processor))
    return networks


def test_every_network_that_a_request_found_is_an_original(chain):
    first, second, third = chain
    assert not of_other_weights(first, third)
    assert not of_other_weights(second, third)
    assert not of_other_weights(copy.deepcopy(first), second)
    (told,) = of_other_weights(third, second)
    assert "USER/NAME@REVISION" in told
    assert of_other_weights(third, third), "the changed network itself"
    erased = copy.deepcopy(second).erase(make_dataset([4] * 12), k=1, progress=False, allow_unrecognised=True)
    assert not of_other_weights(first, erased)
    assert not of_other_weights(second, erased), "what the eraser was fitted on"


def test_nothing_is_said_where_nothing_can_be_told(chain):
    first, second, third = chain
    assert not of_other_weights(copy.deepcopy(third).to(torch.bfloat16), second), "in another precision all differ"
    assert not of_other_weights(third, first), "changed by nobody, as far as records say"
    second.config.inner.hf_kd_unlearned[0].pop("weights_before")
    assert not of_other_weights(third, second), "a record without a digest"


def test_a_reference_that_was_taught_the_class_by_its_own_records_is_said_to_be_none(vit, processor):
    """One trained without another class, or made to forget this one, has seen it; a retraining has not, however it began."""
    splits = make_dataset([0, 1, 2, 3, 4] * 8), make_dataset([0, 1, 2, 3, 4] * 8, seed=9)
    model, options = ErasedModel.from_model(vit, processor), AuditOptions(attacks=["linear"], draws=1, shots=[1])
    quick = {"progress": False, "epochs": 1, "batch_size": 16, "lr": 1e-3}

    def other(seed):
        return randomise(copy.deepcopy(vit), seed)

    def trained(without):
        return train_original(other(1), splits[0], "resnet18-cifar10", processor=processor, without=without, **quick)

    def changed(original, method, lost):
        rest = make_dataset([label for label in range(5) if NAMES[label] != lost] * 8)
        lost_images = make_dataset([NAMES.index(lost)] * 8)
        return unlearn(
            original, lost_images, method, retain=rest, processor=processor, allow_unrecognised=True, **quick
        )

    every = trained([])
    references = {
        "nothing is known of": (other(2), False),
        "all classes": (every, True),
        "all but another": (trained(["dog"]), True),
        "all but this one": (trained(["cat", "dog"]), False),
        "made to forget it": (changed(other(3), "regrow", "cat"), True),
        "retrained without it": (changed(every, "retrain", "cat"), False),
        "retrained without another": (changed(every, "retrain", "dog"), True),
        "another forgotten after that": (changed(changed(every, "retrain", "cat"), "regrow", "dog"), False),
    }
    said = {}
    for name, (reference, _) in references.items():
        report = model.audit(*splits, "cat", reference=Retrained(reference), options=options, progress=False)
        said[name] = any("by the records" in text for text in report.context["warnings"])
    assert said == {name: seen for name, (_, seen) in references.items()}
    several = Retrained([every, references["all but this one"][0]])
    warnings = model.audit(*splits, 2, reference=several, options=options, progress=False).context["warnings"]
    assert any(text.startswith("1 of 2 references were") for text in warnings)
