"""The layer profile finds what is planted in a layer, chance in noise, and is the tap's own Knowledge Retention there."""

from __future__ import annotations

import torch

from hf_kd.audit.sections.layers import layer_profile_section
from hf_kd.metrics.knowledge_retention import knowledge_retention
from tests.metrics.planted import noise, planted


def test_planted_layers_are_read_and_blind_ones_are_not():
    train, train_y, test, test_y = planted(n=300)
    blind, _, blind_test, _ = noise(n=300)
    own, own_test = {"blind": blind, "knowing": train}, {"blind": blind_test, "knowing": test}
    section = layer_profile_section(
        {"erased": own, "original": own}, train_y, {"erased": own_test, "original": own_test}, test_y, 0
    )
    found = {(score.group, score.name): score for score in section.scores}
    assert found["knowing", "D_ft"].value > 95
    assert found["knowing", "advantage"].value > 95
    assert abs(found["blind", "D_ft"].value - 100 / 3) < 20
    assert abs(found["blind", "advantage"].value) < 15
    assert [score.settings["depth"] for score in section.scores] == [0, 0, 0, 1, 1, 1]
    assert all(score.value == score.original for score in section.scores), "nothing is erased below the tap"


def test_layers_of_changed_weights_stand_beside_those_of_the_original_or_alone():
    train, train_y, test, test_y = planted(n=300)
    blind, _, blind_test, _ = noise(n=300)
    changed, changed_test = {"layer": blind}, {"layer": blind_test}
    first, first_test = {"layer": train}, {"layer": test}
    given = layer_profile_section(
        {"erased": changed, "original": first}, train_y, {"erased": changed_test, "original": first_test}, test_y, 0
    )
    own = layer_profile_section({"erased": first}, train_y, {"erased": first_test}, test_y, 0)
    assert [score.original for score in given.scores] == [score.value for score in own.scores]
    assert given.scores[0].value != given.scores[0].original
    alone = layer_profile_section({"erased": changed}, train_y, {"erased": changed_test}, test_y, 0)
    assert [score.value for score in alone.scores] == [score.value for score in given.scores]
    assert all(score.original is None for score in alone.scores)
    for section in (given, alone):
        assert not any("as it was" in note for note in section.notes)


def test_a_probe_that_answers_the_forgotten_class_to_everything_has_no_advantage():
    blind, labels, blind_test, _ = noise(n=900)
    labels = (labels != 0).long() * (torch.arange(900) % 30 == 1)  # 30 of 900 are not forgotten
    test_labels = torch.arange(900) % 2
    section = layer_profile_section(
        {"erased": {"blind": blind}}, labels, {"erased": {"blind": blind_test}}, test_labels, 0
    )
    recall, retained, advantage = section.scores
    assert recall.value > 99
    assert retained.value < 1
    assert abs(advantage.value) < 1


def test_the_tap_in_the_profile_is_the_tap_of_the_report():
    train, train_y, test, test_y = planted(n=300)
    erased = [torch.cat([torch.zeros(len(x), 1), x[:, 1:]], dim=1) for x in (train, test)]
    tap = ({"original": train, "erased": erased[0]}, {"original": test, "erased": erased[1]})
    scores = layer_profile_section({"erased": {}}, train_y, {"erased": {}}, test_y, 0, tap).scores
    for features, version in (((train, test), "original"), (erased, "value")):
        converged = knowledge_retention(features[0], train_y, features[1], test_y, 0)
        assert getattr(scores[0], version) == converged.scores.D_ft
        assert getattr(scores[1], version) == converged.scores.D_rt
    assert (
        layer_profile_section({"erased": {}}, train_y, {"erased": {}}, test_y, 0, tap).scores
        == layer_profile_section({"erased": {}}, train_y, {"erased": {}}, test_y, 0, tap).scores
    )
