"""The page of the demo: what it says, and, where gradio and a browser are, what it does."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from hf_kd import AuditOptions, ErasedModel
from hf_kd.audit import figures as figures_module
from hf_kd.audit.verdict import NOT_AUDITED, verdict
from hf_kd.cli.demo import page as page_module
from hf_kd.cli.demo import run as demo_module
from hf_kd.cli.demo.command import EXAMPLE
from hf_kd.hub.document import REPORT
from tests.cli.runner import hf_kd


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's folder and what the command told of it, on a third of the digits, audited with one attacker, few draws
    and the page's own figure alone."""
    every, folder = demo_module.digits, tmp_path_factory.mktemp("page") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "digits", lambda: [part.select(range(0, len(part), 3)) for part in every()])
        told = json.loads(hf_kd("demo", "--json", "--output", folder).stdout)
        few = AuditOptions(attacks=["linear"], draws=1, shots=[1, 5])
        patch.setattr(demo_module, "AuditOptions", lambda **settings: few)
        figure = Path(page_module.FIGURE).stem
        patch.setattr(figures_module, "FIGURES", {figure: figures_module.FIGURES[figure]})
        made = SimpleNamespace(folder=folder, examples=folder / EXAMPLE.parent, told=told)
        demo_module.audit_demo(made)
    return made


def test_the_command_tells_both_numbers_and_reloads(demo):
    assert demo.told["reloaded_equal"]
    rows = {row["method"]: row for row in demo.told["rows"]}
    assert rows["original"]["head"]["D_ft"] > 90
    assert rows["original"]["head"]["D_rt"] > 95
    for method in ("ESC", "ESC-T"):
        assert rows[method]["head"]["D_ft"] < 15
        assert rows[method]["head"]["D_rt"] > 90
        assert rows[method]["probe_converged"]
        assert rows[method]["converged_probe"]["D_ft"] > 80, "and nobody is misled"
    assert ErasedModel.from_pretrained(demo.folder).is_erased
    assert (demo.folder / EXAMPLE).is_file(), "by which the demo knows its own folder again"


def test_it_says_what_was_forgotten_and_what_the_audit_found(demo):
    model = ErasedModel.from_pretrained(demo.folder)
    named = page_module.forgotten(model, named=True)
    assert "three" in named
    assert "esc" in named
    assert "three" not in page_module.forgotten(model, named=False)
    report = page_module.RetentionReport.from_json(demo.folder / REPORT)
    words = page_module.judged(report).replace("\\", "")
    assert verdict(report).sentences[0][:40] in words
    assert page_module.judged(None).replace("\\", "") == NOT_AUDITED


def test_answers_are_those_of_the_model_for_pictures_of_any_kind(resnet, processor, forget):
    resnet.config.problem_type = "multi_label_classification"
    model = ErasedModel.from_model(resnet, processor).erase(forget, k=1, progress=False)
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    with torch.no_grad():
        inputs = processor([Image.new("RGB", (16, 16), "white")], return_tensors="pt")
        scores = model(**inputs).logits.sigmoid()[0]
    answers = page_module.answers(model, clear)[1]
    assert answers == pytest.approx({name: float(scores[i]) for i, name in model.config.id2label.items()})
    assert set(page_module.answers(model.bfloat16(), clear)[1]) == set(answers)


@pytest.mark.parametrize("label", ["three", "three, drei, trois"])
def test_three_images_are_offered_and_a_forgotten_one_is_the_first(demo, monkeypatch, label):
    model = ErasedModel.from_pretrained(demo.folder)
    monkeypatch.setattr(type(model), "class_names", model.class_names | {3: label})
    found = [path.name for path in page_module.offered(demo.examples, model)]
    assert found == ["3-three.png", "0-zero.png", "1-one.png"]


def test_the_figure_is_drawn_from_the_report_or_lies_with_the_model(demo, tmp_path):
    report = page_module.RetentionReport.from_json(demo.folder / REPORT)
    drawn = page_module.label_efficiency(demo.folder, report)
    assert drawn.name == "label_efficiency.png"
    assert list(drawn.parent.iterdir()) == [drawn], "no figure that is not shown"
    assert page_module.label_efficiency(demo.folder, None) == demo.folder / page_module.FIGURE
    assert page_module.label_efficiency(tmp_path, None) is None


def test_the_numbers_of_the_card_have_their_symbols_explained(demo):
    text = page_module.numbers(demo.folder).replace("\\", "")
    assert all(f"{symbol}: " in text for symbol in ("D_f", "D_ft", "D_rt", "Recall"))
    assert re.search(r"\| Accuracy of the head \(D_ft\) \| \d+ \|", text)
    assert "measures how large features are" in text, "whole, not cut"


@pytest.mark.slow
def test_in_a_browser(demo, tmp_path):
    """Upload an image, click on an example, read both answers; nothing complains in the console."""
    pytest.importorskip("gradio", reason="gradio pins pillow below what the rest is tested with")
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("there is no browser")
    blocks = page_module.page(demo.folder, demo.examples, show_class_names=True)
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    shot = os.environ.get("HF_KD_SCREENSHOT", str(tmp_path / "page.png"))
    try:
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            view = browser.new_page(viewport={"width": 1100, "height": 1500})
            complaints: list[str] = []
            view.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            view.on("pageerror", lambda error: complaints.append(str(error)))
            view.route(lambda url: not url.startswith(address), lambda route: route.abort())
            view.goto(address)
            Image.open(demo.examples / "7-seven.png").save(tmp_path / "seven.png")
            view.locator("input[type=file]").first.set_input_files(tmp_path / "seven.png")
            for answers in ("#before", "#after"):
                view.locator(answers).get_by_text("seven").first.wait_for(timeout=30_000)
            view.locator(".gallery-item, .gallery button, table.gallery td").first.click()
            view.locator("#before").get_by_text("three").first.wait_for(timeout=30_000)
            top = view.locator("#after .output-class, #after h2").first
            playwright.expect(top).not_to_have_text("three")
            assert view.get_by_text("Verdict:").count() == 1
            assert view.locator("#figure img").count() == 1
            view.wait_for_timeout(500)
            view.screenshot(path=shot, full_page=True)
            browser.close()
    finally:
        blocks.close()
    own = [text for text in complaints if "ERR_FAILED" not in text]  # what was asked of other machines, such as fonts
    assert own == []
