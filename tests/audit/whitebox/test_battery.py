"""The battery: its findings survive JSON, what has run does not run again, and a budget leaves out and says so."""

from __future__ import annotations

import json

import pytest

from hf_kd.audit.whitebox import battery
from hf_kd.audit.whitebox.battery import run_battery
from hf_kd.audit.whitebox.findings import NetworkFindings
from hf_kd.metrics.attack_data import AuditData
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
    assert states == {"as it is", "10 images", "2,000 images"}


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
