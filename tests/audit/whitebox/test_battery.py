"""The battery: its findings survive JSON, what has run does not run again, and a budget leaves out and says so."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from hf_kd.audit.sections.weight_access import left_out_notes
from hf_kd.audit.whitebox import battery
from hf_kd.audit.whitebox.answers import answers_by_batchnorm
from hf_kd.audit.whitebox.battery import run_battery
from hf_kd.audit.whitebox.findings import NetworkFindings
from hf_kd.audit.whitebox.probes import probe_attacks
from hf_kd.audit.whitebox.relearning import relearn
from hf_kd.errors import InvalidValueError
from hf_kd.metrics.attack_data import AttackResult, AuditData
from hf_kd.testing.probes import planted

from .planted import network


@pytest.fixture(scope="module")
def target():
    return network(AuditData.of(*planted(n=240), 0))


@pytest.fixture(scope="module")
def found(target):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(battery, "SHOTS", (5,))
        patch.setattr(battery, "STEPS", (0, 2))
        return run_battery({"net": target[0]}, target[1])["net"]


def test_findings_survive_json(found):
    again = NetworkFindings.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.probes == found.without_hits().probes
    assert again.best == found.best
    assert again.relearning == found.relearning
    assert again.level() == found.level()
    assert set(again.seconds) == {attack.name for attack in battery.ATTACKS}
    assert len(again.information) == 3
    assert len(next(iter(again.information.values()))) == 240


def test_every_block_is_read_by_every_probe(found):
    for block in found.blocks:
        names = {r.name for r in found.probes if r.settings["block"] == block}
        assert names == {"linear", "linear on maps", "mlp", "k-nn"}
    states = {r.settings["batchnorm"] for r in found.probes if r.name == "linear" and r.settings["labels"] == "all"}
    assert states == {"as it is", "10 images", "240 images"}


def test_what_has_run_does_not_run_again(target, found):
    before = dict(found.seconds)
    again = run_battery({"net": target[0]}, target[1], found={"net": found})["net"]
    assert again is found
    assert again.seconds == before


def test_a_budget_leaves_out_what_would_not_end_in_time(target):
    found = run_battery({"net": target[0]}, target[1], budget=1e-9)["net"]
    assert found.left_out == [attack.name for attack in battery.ATTACKS]
    assert found.best is None


def test_what_an_earlier_budget_left_out_is_not_said_twice_nor_after_it_ran(target):
    found = run_battery({"net": target[0]}, target[1], budget=1e-9)["net"]
    found = run_battery({"net": target[0]}, target[1], attacks=["answers"], found={"net": found})["net"]
    assert "answers" in found.seconds
    found = run_battery({"net": target[0]}, target[1], budget=1e-9, found={"net": found})["net"]
    assert found.left_out == [attack.name for attack in battery.ATTACKS if attack.name != "answers"]


class Clock:
    """Attacks that last as long as they are told, without waiting."""

    def __init__(self, patch, seconds):
        self.now, self.ran = 0.0, []
        patch.setattr(battery.time, "monotonic", lambda: self.now)
        attacks = [battery.Attack(name, self._run(name, cost)) for name, cost in seconds.items()]
        patch.setattr(battery, "ATTACKS", attacks)

    def _run(self, name, cost):
        def run(network, data, found, seed):
            self.now += cost
            self.ran.append(name)

        return run


@pytest.mark.parametrize("minutes", [0.1, 0.5, 1, 2, 5, 20])
def test_what_ran_on_one_network_ran_on_those_beside_it(target, monkeypatch, minutes):
    """Whatever the budget, and although the second attack lasts far longer than could be known."""
    clock = Clock(monkeypatch, {"answers": 5.0, "probes": 50.0, "removal": 60.0, "regrown": 300.0})
    networks = dict.fromkeys(("erased", "original", "reference", "reference 2"), target[0])
    shown = ("erased", "original", "reference")
    found = run_battery(networks, target[1], budget=minutes, together=shown)
    assert len({tuple(found[name].seconds) for name in shown}) == 1
    assert set(found["reference 2"].seconds) <= set(found["erased"].seconds)
    for own in found.values():
        assert [*own.seconds, *own.left_out] == ["answers", "probes", "removal", "regrown"]
    assert clock.ran.count("answers") >= 3


@pytest.mark.parametrize("minutes", [0.1, 0.5, 1, 2, 5])
def test_the_budget_that_is_named_lets_the_next_attack_begin(target, monkeypatch, caplog, minutes):
    costs = {"answers": 5.0, "probes": 50.0, "removal": 60.0, "regrown": 300.0}
    networks = dict.fromkeys(("erased", "original", "reference 2"), target[0])
    Clock(monkeypatch, costs)
    left = run_battery(networks, target[1], budget=minutes, together=("erased", "original"))["erased"].left_out
    (told,) = caplog.messages
    first, named = re.search(r"Here (\w+) begins from about budget=(\d+) on", told).groups()
    assert first == left[0]
    assert f"had no time for {', '.join(left)}." in told
    Clock(monkeypatch, costs)
    assert (
        first in run_battery(networks, target[1], budget=int(named), together=("erased", "original"))["erased"].seconds
    )


class Unlike(nn.Module):
    """A head that holds no Linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, rows):
        return nn.functional.linear(rows, self.weight, self.bias)


def own_head(net):
    """Somebody put a head of their own on the network."""
    made = net.copied()
    made.model.head = Unlike(made.model.head)
    return made


def test_a_network_that_an_attack_cannot_be_asked_of_does_not_end_the_battery(target, monkeypatch):
    monkeypatch.setattr(battery, "SHOTS", (5,))
    monkeypatch.setattr(battery, "STEPS", (0, 2))
    net, images = target
    networks = {
        "erased": net,
        "original": own_head(net),
        "reference": replace(own_head(net), columns={1: 0, 2: 1}),  # never had a row for class 0
        "reference 2": replace(net, blocks=()),
    }
    found = run_battery(networks, images, attacks=["answers", "regrown", "relearning"])
    assert {name: set(own.impossible) for name, own in found.items()} == {
        "erased": set(),
        "original": set(),
        "reference": {"regrown", "relearning"},
        "reference 2": {"regrown"},
    }
    assert found["original"].regrown.accuracy_retain > 50
    assert "no row for 1 of 3" in found["reference"].impossible["relearning"]
    assert [own.class_row.settings["row"] for own in found.values()] == ["own", "own", "none", "own"]
    again = NetworkFindings.from_dict(json.loads(json.dumps(found["reference"].to_dict())))
    assert again.impossible == found["reference"].impossible
    with pytest.raises(InvalidValueError, match="no row"):
        relearn(networks["reference"], images, 5)


def test_of_a_network_without_a_head_it_is_said_what_cannot_be_asked(target):
    """An attack that is not there would read as one that found nothing."""
    net, images = target
    bare = replace(net, heads=(), blocks=net.blocks[-1:])
    found = run_battery({"erased": bare}, images)["erased"]
    assert set(found.seconds) == {"probes"}
    assert set(found.impossible) == {"answers", "removal", "regrown", "relearning"}
    assert all("no classification head" in reason for reason in found.impossible.values())
    (told,) = left_out_notes({"erased": found})
    assert told.startswith("Left out: answers of this model, removal of this model")


def test_rows_are_named_by_what_was_used_and_none_repeats_another(small):
    found, images = small
    assert images.class_sizes[1] == 30, "the case below is about fewer than 50 labels"
    assert [result.name for result in found.answers] == [
        "head as it is",
        "head, BatchNorm from 10 images",
        f"head, BatchNorm from {len(images.train)} images",
    ]
    assert {result.settings["labels"] for result in found.probes} == {"all", "10"}
    assert [curve.shots for curve in found.relearning] == [5, 30]


def test_a_number_of_labels_that_some_classes_lack_is_said_as_a_range(target):
    made, images = target
    rows = torch.cat(
        [torch.nonzero(images.train.labels == 0).flatten()[:7], torch.nonzero(images.train.labels).flatten()]
    )
    fewer = replace(images, train=images.train.rows(rows))
    few = [
        result
        for result, _ in probe_attacks(replace(made, blocks=made.blocks[-1:]), fewer)
        if result.settings["labels"] == "10"
    ]
    assert {result.settings["of_each_class"] for result in few} == {"7 to 10"}


@pytest.fixture(scope="module")
def small(target):
    made, images = target
    labels = images.train.labels
    rows = torch.cat([torch.nonzero(labels == label).flatten()[:30] for label in images.classes.tolist()])
    images = replace(images, train=images.train.rows(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(battery, "SHOTS", (5, 50, 500))
        patch.setattr(battery, "STEPS", (0, 2))
        made = replace(made, blocks=made.blocks[-1:])
        return run_battery({"net": made}, images, attacks=["answers", "probes", "relearning"])["net"], images


def test_a_head_with_more_answers_than_the_classes_that_are_read_says_so_in_the_name_of_its_rows(target):
    made, images = target
    rows = images.train.labels != images.classes[-1]
    tests = images.test.labels != images.classes[-1]
    fewer = replace(images, train=images.train.rows(rows), test=images.test.rows(tests))
    among = f", among {len(images.classes) - 1} classes"
    assert all(result.name.endswith(among) for result in answers_by_batchnorm(made, fewer))
    assert not any("among" in result.name for result in answers_by_batchnorm(made, images))


def test_the_strongest_attack_is_by_recall_minus_false_alarms():
    flags_all = AttackResult("flags everybody", 100.0, 0.0, 100.0)
    good = AttackResult("good", 80.0, 95.0, 2.0)
    assert NetworkFindings(answers=[flags_all, good]).strongest_attack == good
    assert NetworkFindings().strongest_attack is None
