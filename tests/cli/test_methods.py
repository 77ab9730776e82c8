"""`hf-kd methods`."""

from __future__ import annotations

import json

import pytest

from hf_kd import available_methods, unlearning_methods
from hf_kd.errors import InvalidValueError
from hf_kd.methods.registry import make_method, make_unlearning_method, method_infos
from hf_kd.methods.unlearning.base import COUNTS
from tests.cli.runner import hf_kd


def test_methods_lists_every_one_with_its_needs_and_source():
    rows = {row["method"]: row for row in json.loads(hf_kd("methods", "--json").stdout)}
    assert set(rows) == {*available_methods(), *unlearning_methods(), "oblique"}
    for name, method in unlearning_methods().items():
        assert (rows[name]["acts on"], rows[name]["needs"]) == ("weights", method.needs)
        assert rows[name]["source"] == method.source
    assert rows["esc"]["needs"] == "D_f"
    assert all(row["about"] for row in rows.values())
    shown = hf_kd("methods").stdout
    assert all(name in shown for name in rows)
    of_features, of_weights, by_name = shown.split("Acting on")[1:]
    assert "hf-kd erase --method NAME" in of_features
    assert "hf-kd unlearn --method NAME" in of_weights
    assert "hf-kd erase --text TEXT --method NAME" in by_name
    assert [" esc-t " in part.replace("\n", " ") for part in (of_features, of_weights, by_name)] == [True, False, False]
    assert "D_r: those that stay" in shown


def test_the_method_by_name_is_shown_with_its_settings_and_refused_for_images_alone():
    text = hf_kd("methods", "oblique").stdout
    assert "hf-kd erase --text TEXT --method oblique" in text
    assert all(f"{name} = " in text for name in ("variance", "k", "ridge", "push"))
    with pytest.raises(InvalidValueError, match="forgets by name"):
        make_method("oblique")


def test_a_setting_whose_flag_is_another_option_is_told_by_option_alone():
    """`erase --batch-size` is that of the reading: typed for esc-t's own it would do something else."""
    lines = hf_kd("methods", "esc-t").stdout.splitlines()
    only = [line.strip() for line in lines if "only as" in line]
    assert only == ["batch_size = 64 (only as --option batch_size=VALUE)"]
    assert "only as" not in hf_kd("methods", "regrow").stdout
    assert "only as" not in hf_kd("methods", "oblique").stdout


def test_one_method_with_its_hyper_parameters():
    text = hf_kd("methods", "scrub").stdout
    assert "alpha = 0.001" in text
    assert json.loads(hf_kd("methods", "esc-t", "--json").stdout)["settings"]["threshold"] == 0.7
    assert "Did you mean 'scrub'" in hf_kd("methods", "skrub", code=1).stderr


@pytest.mark.parametrize("info", method_infos(), ids=lambda info: info.name)
def test_every_method_is_told_and_takes_the_least_of_each_number(info):
    """A default that follows another setting follows it down: `--epochs 1` alone is a request, whatever else there is."""
    shown = " ".join(hf_kd("methods", info.name).stdout.split())
    assert info.name in shown
    assert " ".join(info.when.split())[:30] in shown
    assert info.when, "when to take it"
    make = make_method if info.kind == "eraser" else make_unlearning_method
    for option in info.options:
        if option.name in COUNTS:
            assert make(info.name, **{option.name: 1}).settings()[option.name] == 1
