"""The Spaces: the metric loads by its id through `evaluate`, and the demo page answers a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest
import yaml

from hf_kd import ErasedModel
from hf_kd.hub.spaces.build import demo_space
from tests.helpers.processes import LONG, free_port
from tests.helpers.small import picture
from tests.hub.conftest import ROOT


def test_the_metric_space_loads_by_its_id(hub, run_client):
    if not find_spec("evaluate"):
        pytest.skip("evaluate is not installed")
    run_client(["publish-metric", "ana/knowledge_retention"])
    files = hub.files("ana/knowledge_retention", "space")
    assert hub.repo("ana/knowledge_retention", "space").sdk == "gradio"
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert {"evaluate", "metric"} <= set(front["tags"])
    load = """
import evaluate, numpy as np
metric = evaluate.load("ana/knowledge_retention")
rng = np.random.default_rng(0)
labels = np.arange(300) % 3
features = np.eye(3)[labels] + 0.1 * rng.normal(size=(300, 3))
print(metric.compute(features=features, labels=labels, split=[0] * 200 + [1] * 100, forget_labels=[1])["D_ft"])
"""
    done = run_client(load)
    assert float(done.out.split()[-1]) > 95
    run_client(["publish-metric", "ana/kr2"])
    files = hub.files("ana/kr2", "space")
    assert b"from kr2 import" in files["app.py"]
    assert "kr2.py" in files


def test_a_name_that_is_refused_makes_no_space(hub, run_client):
    assert "Python name" in run_client(["publish-metric", "ana/knowledge-retention"], code=1).text
    assert "no repository id" in run_client(["publish-demo", "ana/a model", "--space", "ana/demo"], code=1).text
    assert not hub.repos


def test_the_demo_space_is_about_its_model_and_nothing_else(hub, run_client, tmp_path):
    run_client(["publish-demo", "ana/forgetful"])
    files = hub.files("ana/forgetful-demo", "space")
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert front["models"] == ["ana/forgetful"]
    assert json.loads(files["demo.json"])["model"] == "ana/forgetful"
    assert b"forgetful" not in files["app.py"], "names are data, not source"
    with pytest.raises(ValueError, match="no repository id"):
        demo_space('x"); import os; os.system("id', tmp_path)


@pytest.fixture
def page_at(vit, processor, forget, tmp_path):
    """The page of an erased model on loopback: its address; the photo beside it."""
    if not find_spec("gradio"):
        pytest.skip("gradio is not installed: pip install 'hf-kd[ui]'")
    ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False).save_pretrained(tmp_path / "model")
    picture(2, 1, size=(64, 64)).save(tmp_path / "photo.png")
    port = free_port()
    command = [sys.executable, "-m", "hf_kd", "demo", "--ui", "--model", "model", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(2 * LONG):
            time.sleep(0.5)
            if server.poll() is not None:
                raise AssertionError(server.stdout.read().decode()[-3000:])
            try:
                urllib.request.urlopen(address, timeout=2).read()
                break
            except OSError:
                continue
        yield address
    finally:
        server.terminate()
        server.wait(LONG)


def test_the_page_shows_both_answers_and_the_cards_numbers(page_at, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(page_at, verbose=False)
    before, after = client.predict(handle_file(str(tmp_path / "photo.png")), api_name="/compare")
    model = ErasedModel.from_pretrained(tmp_path / "model")
    names = set(model.config.id2label.values())
    for answer in (before, after):
        assert {entry["label"] for entry in answer["confidences"]} <= names
    assert before != after
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed; the page was driven through its API only")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
             "--window-size=1100,900", "--virtual-time-budget=15000"]  # fmt: skip
    shot = tmp_path / "page.png"
    subprocess.run([chromium, *flags, f"--screenshot={shot}", page_at], capture_output=True, timeout=LONG, check=True)
    assert shot.stat().st_size > 10_000
    dom = subprocess.run([chromium, *flags, "--dump-dom", page_at], capture_output=True, text=True, timeout=LONG).stdout
    assert "What does it still answer?" in dom
    assert "Original" in dom
    assert re.search("Not audited", dom)
    assert ROOT.name
