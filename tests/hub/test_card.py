"""The card: what it says first, what it keeps, and that nothing from outside gets out of its place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_kd.audit import Score, Section
from hf_kd.data.text import escape_markdown
from hf_kd.errors import InvalidValueError
from hf_kd.hub.card import BEGIN, END, CardValues, render, template
from hf_kd.hub.card_results import results_table
from hf_kd.hub.receipt import commands_of
from hf_kd.hub.wording import METHODS, Request
from tests.helpers.audited import audited
from tests.metrics.planted import planted

ROOT = Path(__file__).resolve().parents[2]

NASTY = [
    "a\nb\n---\nlicense: evil\n---\n# c",
    "[x](javascript:alert(1))",
    "<script>alert(1)</script>",
    "| a | b |",
    "`code` ```fence```",
    "{{ 7 * 7 }} {% for x in y %}",
    "!!python/object/apply:os.system [id]",
    "&anchor *anchor",
    f"{END} out {BEGIN}",
    "x" * 5000,
    "![img](http://evil/x.png) https://evil.example",
    "**bold** _it_ ~~no~~ # head",
]


def values(names=("tench",), report=None, **others) -> CardValues:
    request = Request(150, len(names), tuple(names), "esc", {"p": 1.5, "k": None}, 19, 0.79, None)
    defaults = {"architecture": "ViTForImageClassification", "taps": ("input of classifier",), "dimension": 1280,
                "repo_id": "ana/forgetful", "base_model": "bob/base", "license": "mit",
                "versions": {"hf-kd": "0.1.0"}}  # fmt: skip
    return CardValues((request,), report=report, **defaults | others)


@pytest.fixture(scope="module")
def report():
    return audited(planted(n=300), class_names={0: NASTY[0], 1: NASTY[2], 2: NASTY[3]})


def test_metadata_is_plain_and_forget_and_retain_stay_apart(report):
    text = render(values(report=report, datasets=("ana/pets",)))
    data = yaml.safe_load(text.split("---")[1])
    assert data["library_name"] == "hf-kd"
    assert data["base_model"] == "bob/base"
    assert data["base_model_relation"] == "finetune"
    assert data["license"] == "mit"
    assert data["datasets"] == ["ana/pets"]
    results = ModelCard(text).data.eval_results
    splits = {result.dataset_split for result in results}
    assert splits == {"test[forget]", "test[retain]"}
    by_name = {result.metric_name: result.metric_value for result in results}
    converged = report.score("converged", "D_ft").value
    assert by_name["Knowledge Retention, converged probe (D_ft)"] == pytest.approx(converged, abs=0.01)
    assert all(type(value) is float for value in by_name.values())
    folded = yaml.safe_load(render(values(folded=True)).split("---")[1])
    assert folded["library_name"] == "transformers"
    assert "hf-kd" in folded["tags"]


def test_the_verdict_comes_first_then_strongest_and_converged_and_the_papers_after_few_labels(report):
    text = render(values(report=report)).split(BEGIN)[1]
    order = [
        "the head answers",
        "**Strongest attack",
        "**Converged linear probe, forgotten",
        "Recall from 1 labelled",
        "Paper's probe",
        "own head",
        "Membership",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "Not audited" not in text
    assert "Not audited" in render(values())


@pytest.mark.parametrize("attacked", [False, True])
def test_who_publishes_weights_reads_in_the_card_s_table_what_they_give(report, attacked):
    found = (Score("F", 61.0, "chance", "strongest attack"), Score("false_alarms", 7.0, "none", "strongest attack"))
    section = Section("weight_access", "What a downloader finds", found)
    context = {"weights": {"best": {"erased": 61.0, "name": "mlp at layer.3"}}}
    given = replace(report, sections=(*report.sections, section), context=context) if attacked else report
    rows = [line for line in results_table(given).splitlines() if "downloader" in line or "bare network" in line]
    assert len(rows) == 2 * attacked
    if attacked:
        assert "mlp at layer.3" in rows[0]
        assert [row.split(" | ")[1] for row in rows] == ["61.0", "7.0"]


def test_where_weights_were_changed_the_table_names_them_so(report):
    changed = replace(report, context={"changes": [{"method": "regrow"}], "erasures": []})
    assert "erased" not in results_table(changed).replace("eraser", "")


NO_ERASER = "There is no eraser to take away"
HELD = {
    "erased": ([], {}, ["The weights are the original's"], [NO_ERASER]),
    "folded": ([], {"folded": True}, ["Below its head the weights are the original's"], ["leave the eraser out"]),
    "scrub": (["scrub"], {}, ["starting from the original's"], [NO_ERASER]),
    "regrow": (["regrow"], {}, [NO_ERASER, "retained images alone. The lower part is the original's."], []),
    "released": ([("regrow", {"release": 1})], {}, [NO_ERASER, "it was trained too"], ["part is the original's"]),
    "soft": ([("regrow", {"soft": True})], {}, ["which tell of what"], ["images alone. The lower"]),
    "second": (["scrub", "regrow"], {}, [NO_ERASER, "as the request before left it"], ["part is the original's"]),
    "retrain": (["retrain"], {}, ["the network was trained anew"], []),
    "from another": ([("retrain", {"init": "x"})], {}, ["starting from another checkpoint"], ["trained anew"]),
    "regrown, erased": (["regrow", None], {}, ["then an eraser was put in", "leave out"], [NO_ERASER]),
    "regrown, folded": (["regrow", None], {"folded": True}, ["folded into its head"], [NO_ERASER, "leave out"]),
    "regrown, trained": (["regrow"], {"since": "trained"}, ["starting from the original's"], [NO_ERASER]),
}


@pytest.mark.parametrize("kind", HELD)
def test_the_headline_says_what_a_downloader_holds(kind):
    done, given, told, untold = HELD[kind]
    pairs = [one if isinstance(one, tuple) else (one, {}) for one in done or [None]]
    requests = tuple(
        replace(values().requests[0], **({"method": method, "source": "D_r", "settings": settings} if method else {}))
        for method, settings in pairs
    )
    text = render(replace(values(**given), requests=requests)).split(BEGIN)[1].split("\n\n")[1]
    assert all(words in text for words in told)
    assert not any(words in text for words in untold)


@pytest.mark.parametrize("kind", ["eraser", "folded", "changed", "alone"])
def test_of_a_class_of_the_users_own_every_way_to_use_it_registers_it_first(kind):
    """Whoever loads such a model without that gets an error, with hf_kd or without."""
    request = replace(values().requests[0], **({"method": "scrub", "source": "a paper"} if kind == "changed" else {}))
    given = {"folded": kind == "folded", "eraser_only": kind == "alone", "architecture": "MyNet"}
    told = {own: render(replace(values(own_class=own, **given), requests=(request,))) for own in (False, True)}
    code = told[True].split("```python\n")[1].split("```")[0]
    assert code.startswith("import MODULE  # your file or package that registers MyNet\n")
    assert "--import FILE` checks them" in told[True]
    assert "FILE is the Python file that registers `MyNet`" in told[True]
    assert ("it loads without hf_kd, where `MyNet` is registered" in told[True]) == (kind in ("folded", "changed"))
    for word in ("MODULE", "FILE", "--import", "registered"):
        assert word not in told[False]


def test_a_card_says_what_a_method_read_of_forgotten_and_of_retained_images():
    def told(**given):
        request = Request(40, 1, None, given.pop("method", "scrub"), {}, 0, None, None, **given)
        text = render(replace(values(), requests=(request,))).split(BEGIN)[1]
        return text.split("## What is still known")[0], next(
            line for line in text.splitlines() if line.startswith("- ")
        )

    alone = "with 1,000 retained images alone; the 40 forgotten ones were not trained on"
    assert all(alone in part for part in told(source="ours", needs="D_r", retained=1000, method="regrow"))
    scanned = told(source="ours", needs="D_r", retained=1000, measured=({"scan": []},))
    assert all(f"{alone}, but chose where to cut" in part for part in scanned)
    first, line = told(source="ours", needs="D_f and D_r", retained=60)
    assert "with 40 images and 60 retained ones." in first
    assert "40 images, method `scrub` (default settings) with 60 images of other classes;" in line
    first, line = told(source="ours", needs="D_f")
    assert "with 40 images." in first
    assert "other classes" not in line
    assert "from 40 images and 60 retained ones and" in told(method="leace", needs="D_f and D_r", retained=60)[0]


def test_names_are_told_only_when_given():
    text = render(values(names=()))
    assert "tench" not in text
    assert "tench" in render(values())


@pytest.mark.parametrize("source", [None, "used D_f; a paper"], ids=["eraser", "weights"])
def test_what_was_noticed_stands_beside_the_request(source):
    noticed = ("Accuracy on retained images fell from 90.0 to 40.0 %.", NASTY[0])
    request = Request(9, 1, None, "esc", {}, 2, None, None, source=source, warnings=noticed)
    text = render(replace(values(), requests=(request,)))
    line = next(line for line in text.splitlines() if line.startswith("- ") and "9 images" in line)
    assert line.count("**Warning:**") == 2
    assert escape_markdown(noticed[0], 300) in line
    assert "Warning" not in render(values())


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_a_label_is_text_and_nothing_else(name, report):
    text = render(values(names=(name, "plain"), report=report))
    assert text.count(BEGIN) == text.count(END) == 1
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert "<script" not in text
    assert "](javascript" not in text
    assert "49" not in text.replace("4949", "") or "{{" not in name
    assert "](http://evil" not in text
    line = next(line for line in text.splitlines() if line.startswith("- ") and "plain" in line)
    assert "150 images" in line, "one request is one line"
    assert len(line) < 600
    body = text.split("## What is still known")[1].split("## What was asked")[0]
    tables = [line for line in body.splitlines() if line.startswith("| class")]
    assert len({line.replace("\\|", "").count("|") for line in tables}) <= 1, "no name adds a cell"


def test_methods_are_described_by_what_was_done():
    def card(method, rank=2, condition=None, **more):
        request = Request(9, 1, None, method, more.pop("settings", {}), rank, None, condition, **more)
        return " ".join(render(replace(values(), requests=(request,))).split("## How to use it")[0].split())

    assert "ESC removes" in card("esc")
    assert "length back" not in card("esc")
    assert "length back" in card("esc", settings={"renorm": True})
    for method in ("esc-t", "retained-span", "leace", "mean-difference", "mean-projection", "prototype-orthogonal"):
        assert METHODS[method] in card(method)
        assert "ESC removes" not in card(method)
    assert "with 40 images of other classes" in card("leace", retained=40)
    assert "`mine` is a method of another package" in card("mine")
    many = card("mine", rank=0)
    assert "sends many inputs to one point" in many
    assert "no direction removed" not in many
    assert "no direction removed entirely" in card("esc-t", rank=0, condition=3.0)
    assert "1 direction removed," in card("esc", rank=1)
    for measured in ({}, {"guard_margin": 1.5}):
        facts = {
            "cover_classes": [4, 1],
            "share_of_forget_replaced": 0.931,
            "share_of_inputs_expected": 0.283,
        } | measured
        told = card("cover", rank=0, measured=(facts,), cover_names={1: NASTY[2]})
        assert "cover classes 4, 1 (&lt;script&gt;" in told
        assert "93.1% of the forgotten images were replaced, and with classes of equal size 28.3% of inputs" in told
        assert ("differ by 1.50 or less" in told) == bool(measured)
        assert ("no guard" in told) != bool(measured)
    assert "masked" not in card("cover", masked=False)
    folded = render(
        replace(values(), folded=True, requests=(Request(9, 1, None, "esc", {}, 2, None, None, masked=True),))
    )
    assert "never answered, and its label stays in the configuration" in folded
    both = ({"cover_classes": [4], "share_of_forget_replaced": 0.9, "share_of_inputs_expected": 0.2},) * 2
    assert "at tap 2: cover class 4;" in card("cover", rank=0, measured=both)
    told = card("cover", masked=True, erased_label=NASTY[2])
    assert "never answered, and labelled \u201c&lt;script" in told


def test_class_means_do_not_flood_card_and_command():
    means = {3: [0.5] * 2000}
    request = Request(9, 1, None, "cover", {"prototypes": means}, 0, None, None)
    assert "prototypes of 1 classes" in render(replace(values(), requests=(request,)))
    record = {"method": "cover", "settings": {"prototypes": means, "m": 2, "guard": "auto"}}
    (command,) = commands_of([record], None)
    assert "--option prototypes=PROTOTYPES" in command


def test_plain_text_renders_as_itself():
    markdown = pytest.importorskip("markdown_it")
    for name in NASTY[:-3]:
        html = markdown.MarkdownIt("commonmark").enable("table").render(f"- {escape_markdown(name)}")
        for tag in ("<script", "<a ", "<img", "<code", "<strong", "<em", "<h1", "<table", "<hr"):
            assert tag not in html, (name, html)


def test_a_persons_readme_keeps_its_text_and_metadata(report):
    mine = "---\nlicense: apache-2.0\nfoo-bar: 1\ntags:\n- mine\nlibrary_name: old\n---\n# Mine\n\nhello\n"
    first = render(values(), mine)
    data = yaml.safe_load(first.split("---")[1])
    assert data["license"] == "apache-2.0"
    assert data["foo-bar"] == 1
    assert data["tags"][0] == "mine"
    assert data["library_name"] == "hf-kd"
    assert "# Mine\n\nhello" in first
    assert render(values(), first) == first, "twice is once"
    edited = first.replace(BEGIN, f"above\n\n{BEGIN}").replace(END, f"{END}\n\nbelow")
    again = render(values(report=report), edited)
    assert again.index("above") < again.index(BEGIN) < again.index(END) < again.rindex("below")
    assert "Not audited" not in again
    assert render(values(report=report), again) == again


@pytest.mark.parametrize("broken", [f"x {BEGIN} y", f"x {END} y", f"{END} x {BEGIN}", f"{BEGIN}a{END}{BEGIN}b{END}"])
def test_broken_markers_lose_no_text(broken):
    text = render(values(), broken)
    assert text.count(BEGIN) == text.count(END) == 1
    for word in broken.replace(BEGIN, " ").replace(END, " ").split():
        assert word in text
    assert render(values(), text) == text


def test_results_of_others_stay(report):
    theirs = ModelCard(render(values(report=report)))
    theirs.data.eval_results[0].dataset_split = "validation"
    again = ModelCard(render(values(report=report), str(theirs)))
    assert "validation" in {result.dataset_split for result in again.data.eval_results}
    assert len(again.data.eval_results) == 7


@pytest.mark.parametrize("metadata", [": [", "- a", "words"])
def test_unreadable_metadata_is_refused_not_overwritten(metadata):
    with pytest.raises(InvalidValueError, match="metadata of the README"):
        render(values(), f"---\n{metadata}\n---\ntext")


def test_the_template_reads_well_unfilled_and_makes_no_claims():
    from jinja2 import Environment

    text = Environment().from_string(template()).render()
    assert "{{" not in text
    assert "{%" not in text
    assert "## What this is not" in text


def test_the_wheel_carries_the_template(tmp_path):
    pytest.importorskip("setuptools", "77", reason="nothing else can build a wheel here")
    source = tmp_path / "source"  # building writes beside the source, which other tests read meanwhile
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert wheel.read("hf_kd/hub/model_card_template.md").decode() == template()
