"""The commands of a receipt: as many words as were typed, and none that was not."""

from __future__ import annotations

import shlex

import pytest

from hf_kd.hub.receipt import commands_of


def command(**record) -> list[str]:
    return shlex.split(commands_of([{"method": "esc", "settings": {}, "n_forget": 9} | record], None)[0])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"classes": [2]}, {"LABEL": 1, "TEXT": 0}),
        ({"classes": [2, 3, 4]}, {"LABEL": 3, "TEXT": 0}),
        ({"classes": None, "dataset_classes": ["ann", "bob"]}, {"LABEL": 2, "TEXT": 0, "ann": 0}),
        ({"classes": None}, {"LABEL": 1, "TEXT": 0}),
        ({"n_texts": 2, "n_forget": 0}, {"LABEL": 0, "TEXT": 2, "DATASET": 0}),
        ({"n_texts": 2, "measured": [{"images_sorted_by": "labels"}]}, {"LABEL": 0, "TEXT": 2, "DATASET": 1}),
        ({"n_texts": 1, "measured": [{"images_sorted_by": "given apart"}]}, {"LABEL": 1, "TEXT": 1}),
        ({"n_texts": 1, "texts": ["tabby cat"]}, {"tabby cat": 1, "TEXT": 0, "--publish-texts": 1}),
    ],
)
def test_every_text_and_label_that_was_given_has_its_place(record, words):
    found = command(**record)
    assert {word: found.count(word) for word in words} == words


@pytest.mark.parametrize(
    ("retained", "sampled", "words"),
    [
        (48, None, []),
        (48, {"forget": {"drawn": 5, "of": 12, "seed": 0}}, ["--limit", "5", "--retain-limit", "48"]),
        (5, {"forget": {"drawn": 5, "of": 12, "seed": 0}}, ["--limit", "5"]),
        (None, {"forget": {"drawn": 5, "of": 12, "seed": 0}}, ["--limit", "5"]),
        (5, {"retain": {"drawn": 5, "of": 48, "seed": 0}}, ["--limit", "5"]),
        (20, {"retain": {"drawn": 20, "of": 48}}, ["--retain-limit", "20"]),
        (13, {"images": {"drawn": 20, "of": 48, "seed": 0}}, ["--limit", "20"]),
    ],
)
def test_a_limit_stands_there_where_it_drew_something(retained, sampled, words):
    found = command(n_retain=retained, sampled=sampled)
    assert found[found.index("esc") + 1 : -2] == words


def test_settings_are_those_that_were_chosen():
    assert "--option" not in command(settings={"p": 1.5, "k": None, "renorm": False})
    found = command(settings={"p": None, "k": 2, "renorm": True})
    assert [found[n + 1] for n, word in enumerate(found) if word == "--option"] == ["k=2", "renorm=true"]
    assert "threshold=null" in command(method="esc-t", settings={"threshold": None}), "None may be chosen too"
    assert "x=1" in command(method="of another package", settings={"x": 1})


def test_the_last_command_saves_what_was_saved_and_each_registers_a_class_of_ones_own():
    records = [{"method": "scrub", "settings": {}, "weights_before": "0"}, {"method": "esc", "settings": {}}]
    first, last = commands_of(records, None, own_class=True, saved_by=["--fold"])
    assert "--import FILE" in first
    assert "--import FILE" in last
    assert "--fold" not in first
    assert last.endswith("--fold --output erased")


@pytest.mark.parametrize("label", [None, "(erased)"])
def test_a_command_that_folds_says_nothing_of_labels_which_a_stock_checkpoint_keeps(label):
    """`erase` refuses both together, also where a later request followed on the fold."""
    masked = {"method": "esc", "settings": {}, "n_forget": 9, "masked": True, "erased_label": label}
    first, second = commands_of([masked, masked], None, folded=[True, False])
    assert "--fold" in first
    assert "--mask-head --fold" in first
    assert "label" not in first.partition("--mask-head")[2]
    assert ("--drop-label" if label is None else "--erased-label") in second
    last = commands_of([masked, masked], None, folded=[True, False], saved_by=["--fold"])[-1]
    assert "--mask-head --fold" in last, "what was dropped before the fold has its label again"
    apart = commands_of([masked, masked], None, saved_by=["--fold"])[-1]
    assert ("--drop-label" in apart) == (label is None), "what was dropped stays so"
