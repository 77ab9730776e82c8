"""Records: one line on a screen, in a notebook and in a log, whatever they hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from rich.console import Console

from hf_kd.data.text import escape_markdown
from hf_kd.methods.records import Erasure, WeightChange

RECORD = Erasure(
    method="esc", settings={"p": 1.5}, taps=("input of classifier",), n_forget=1200, classes=(2,),
    measured=({"energy_removed": 0.934},), rank_removed=(2,), condition_number=(None,), sha256=("0" * 64,),
    dtype="float32", feature_seconds=1.0, fit_seconds=0.1,
)  # fmt: skip


def test_a_record_says_what_was_done_in_one_line():
    expected = (
        "class 2 forgotten by esc from 1,200 images; k = 2 at input of classifier, 93.4 % of the energy of D_f removed"
    )
    assert repr(RECORD) == f"<Erasure: {expected}>"
    assert RECORD._repr_markdown_() == f"**Erasure**: {escape_markdown(expected, 300)}"
    assert "<b>" not in replace(RECORD, method="<b>x")._repr_markdown_()
    console = Console(width=200)
    with console.capture() as shown:
        console.print(replace(RECORD, method="a[b]"))
    assert "a[b] from 1,200 images" in shown.get(), "what stands in brackets is no markup"
    assert replace(RECORD, classes=None).summary.startswith("samples forgotten by esc")
    assert replace(RECORD, classes=(1, 2, 3, 4)).summary.startswith("4 classes forgotten")
    assert "energy" not in replace(RECORD, measured=({},)).summary


def test_what_was_read_of_the_images_that_were_given_is_what_is_said():
    values = RECORD.to_dict() | {"method": "kodge", "needs": "D_f and D_r", "n_retain": 80}
    change = WeightChange.from_dict(values | {"measured": ({"n_forget": 10, "n_retain": 20},)})
    assert change.read_from == "10 images and 20 retained ones"
    assert (change.n_forget, change.n_retain) == (1200, 80), "what was given"
    assert WeightChange.from_dict(values | {"measured": ({},)}).read_from == "1,200 images and 80 retained ones"


def test_a_change_of_weights_names_no_tap():
    values = RECORD.to_dict() | {"method": "scrub", "taps": (), "measured": (), "rank_removed": (), "n_retain": 80}
    change = WeightChange.from_dict(values | {"base_model": "bob/base"})
    assert repr(change) == (
        "<WeightChange: class 2 forgotten by scrub from 1,200 images and 80 retained ones; weights of bob/base changed>"
    )


def test_what_was_measured_and_is_no_finite_number_costs_no_receipt():
    measured = {"last_loss": math.nan, "scan": [{"reading": math.inf, "block": "a"}], "pair": (1.5, -math.inf), "k": 2}
    told = replace(RECORD, measured=(measured,)).to_dict()
    json.dumps(told, allow_nan=False)
    assert told["measured"] == (
        {"last_loss": None, "scan": [{"reading": None, "block": "a"}], "pair": (1.5, None), "k": 2},
    )
    assert Erasure.from_dict(told).to_dict() == told
