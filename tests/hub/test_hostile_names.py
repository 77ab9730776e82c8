"""Names of labels and modules come from outside: at no exit do they become more than names."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import markdown_it
import pytest
import torch
from huggingface_hub import ModelCard
from rich.console import Console

from hf_kd import AuditOptions, ErasedModel
from hf_kd.cli._tables import show_record
from hf_kd.cli.demo.page import _by_label
from hf_kd.cli.inspect import show as show_model
from hf_kd.data.text import LONGEST, escape_markdown, one_line
from hf_kd.hub.card import BEGIN, END
from hf_kd.hub.document import document
from tests.helpers.hostile import HOSTILE
from tests.helpers.small import make_dataset

PLAIN = "Xplainx"


def erased_with(model, processor, name):
    """A model whose class 2 is called `name`, and has been erased."""
    names = [f"c{c}" if c != 2 else name for c in range(5)]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: c for c, name in enumerate(names)}
    return ErasedModel.from_model(model, processor).erase(make_dataset([2] * 20, names=names), k=2, progress=False)


def structure(text: str) -> list[tuple[str, str]]:
    """What a renderer makes of Markdown, without its text: headings, tables, fences, HTML, links."""
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(re.sub(r"\A---.*?\n---\n", "", text, flags=re.DOTALL))
    flat = [part for token in tokens for part in (token, *(token.children or ()))]
    return [(token.type, token.tag) for token in flat if token.type not in ("text", "text_special", "softbreak")]


@pytest.fixture
def plain_card(vit, processor, tmp_path):
    erased = erased_with(vit, processor, PLAIN)
    document(erased, saved(erased, tmp_path / "p"), show_class_names=True)
    erased.reset()
    return (tmp_path / "p" / "README.md").read_text()


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def test_a_card_has_the_same_structure_whatever_a_class_is_called(vit, processor, plain_card, tmp_path):
    for number, name in enumerate(HOSTILE):
        erased = erased_with(vit, processor, name)
        folder = saved(erased, tmp_path / str(number))
        for _ in range(2):  # a second time it reads what it wrote
            document(erased, folder, show_class_names=True)
            text = (folder / "README.md").read_text()
            assert structure(text) == structure(plain_card), name
            assert (text.count(BEGIN), text.count(END)) == (1, 1)
            assert all(c.isprintable() or c == "\n" for c in text)
            assert list(ModelCard(text).data.to_dict()) == list(ModelCard(plain_card).data.to_dict())
        assert escape_markdown(name) in text
        assert ErasedModel.from_pretrained(folder).class_names[2] == name, "JSON keeps the name as it is"
        assert json.loads((folder / "config.json").read_text())["id2label"]["2"] == name
        erased.reset()


def test_so_has_the_card_of_an_eraser_on_its_own(vit, processor, tmp_path):
    expected = None
    for number, name in enumerate([PLAIN, *HOSTILE]):
        erased = erased_with(vit, processor, name)
        folder = tmp_path / str(number)
        erased.save_eraser(folder)
        document(erased, folder, show_class_names=True)
        text = (folder / "README.md").read_text()
        expected = expected or structure(text)
        assert structure(text) == expected, name
        assert (text.count(BEGIN), text.count(END)) == (1, 1)
        assert all(c.isprintable() or c == "\n" for c in text)
        assert escape_markdown(name) in text
        erased.reset()


@pytest.mark.parametrize("name", HOSTILE)
def test_the_terminal_shows_names_and_obeys_none(vit, processor, name):
    record = erased_with(vit, processor, name).erasures[0].to_dict()
    record |= {"taps": (name,), "method": name, "masked": True, "erased_label": name}
    out = io.StringIO()
    show_record(Console(file=out, width=20_000, force_terminal=False, highlight=False), record, {2: name})
    text = out.getvalue()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.count(one_line(name)) >= 4


@pytest.mark.parametrize("name", HOSTILE)
def test_inspect_shows_names_and_obeys_none(name):
    change = {"method": name, "classes": [2], "read_from": "20 images"}
    tap = {"place": name, "d": 32, "heads": [name]}
    facts = {
        "class": "C",
        "model": name,
        "taps": [tap],
        "num_labels": 5,
        "withheld": [name],
        "erasures": [],
        "folded": [],
    }
    out = io.StringIO()
    console = Console(file=out, width=20_000, force_terminal=False, highlight=False)
    show_model(console, facts | {"changes": [change], "masked": {"classes": []}}, {2: name})
    text = out.getvalue()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.count(one_line(name)) >= 5  # and once shortened, as in a verdict


def test_labels_of_the_demo_are_one_line_and_none_hides_another():
    scores = torch.linspace(0, 1, 5)
    for name in HOSTILE:
        labels = _by_label(scores, dict.fromkeys(range(5), name))
        assert len(labels) == 5
        assert all(label.isprintable() and len(label) <= LONGEST + 4 for label in labels)


def test_a_report_has_the_same_structure_whatever_a_class_is_called(vit, processor, tmp_path):
    splits = make_dataset([0, 1, 2, 3, 4] * 16), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)
    erased = ErasedModel.from_model(vit, processor).erase(make_dataset([2] * 20), k=2, progress=False)
    options = AuditOptions(attacks=["linear"], draws=1, shots=[1, 5])
    report = erased.audit(*splits, options=options, progress=False)

    def named(name: str):
        return replace(report, class_names=dict.fromkeys(range(5), name))

    expected = structure(named(PLAIN).to_markdown(1))
    for name in HOSTILE:
        text = named(name).to_markdown(1)
        assert structure(text) == expected, name
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "<!--" not in text
    everything = named("$x^2$ $\\frac{1}{0} \x1b[31m $ <b>|")
    assert everything.figures(tmp_path), "matplotlib draws it, and does not take it for mathematics"
