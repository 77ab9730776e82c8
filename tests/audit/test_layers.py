"""The layer profile finds what is planted in a layer, chance in noise, and is the tap's own Knowledge Retention there."""

from __future__ import annotations

import torch

from hf_kd.audit import knowledge_retention
from hf_kd.audit.layers import layers

from .planted import noise, planted


def test_planted_layers_are_read_and_blind_ones_are_not():
    train, train_y, test, test_y = planted(n=300)
    blind, _, blind_test, _ = noise(n=300)
    section = layers(
        {"blind": blind[: len(train)], "knowing": train},
        train_y,
        {"blind": blind_test[: len(test)], "knowing": test},
        test_y,
        0,
    )
    found = {(score.group, score.name): score for score in section.scores}
    assert found["knowing", "D_ft"].value > 95
    assert found["blind", "D_ft"].value < 60
    assert [score.settings["depth"] for score in section.scores] == [0, 0, 1, 1]
    assert all(score.value == score.original for score in section.scores), "nothing is erased below the tap"


def test_the_tap_in_the_profile_is_the_tap_of_the_report():
    train, train_y, test, test_y = planted(n=300)
    erased = [torch.cat([torch.zeros(len(x), 1), x[:, 1:]], dim=1) for x in (train, test)]
    tap = ({"original": train, "erased": erased[0]}, {"original": test, "erased": erased[1]})
    score = layers({}, train_y, {}, test_y, 0, tap).scores[0]
    for features, value in (((train, test), score.original), (erased, score.value)):
        converged = knowledge_retention(features[0], train_y, features[1], test_y, 0)
        assert abs(converged.scores.D_ft - value) < 1
    assert layers({}, train_y, {}, test_y, 0, tap).scores == layers({}, train_y, {}, test_y, 0, tap).scores
