"""Moved weights: the section names what moved, and an original that is another network is told."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_kd import ErasedModel, unlearn
from hf_kd.audit import RetentionReport
from hf_kd.audit.sections.weights import of_other_weights, weights_section
from hf_kd.metrics.weights import weight_distance
from tests.helpers.audited import LEAST, audited
from tests.helpers.small import make_dataset
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
