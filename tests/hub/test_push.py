"""Publishing and loading through a real client and a Hub on loopback: what arrives, what stays, what a failure leaves."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from hf_kd import ErasedModel
from hf_kd.audit import RetentionReport
from hf_kd.hub.receipt import RECEIPT

from ..conftest import make_dataset
from .conftest import OTHER, READER, WRITER

TOKEN = WRITER
QUICK = {"attacks": ["linear"], "draws": 1, "shots": [1, 5], "progress": False}

START = """
import json, sys
import torch
from hf_kd import ErasedModel
model = ErasedModel.from_pretrained("model")
def refused(call):
    try:
        call()
    except Exception as error:
        chain, seen = error, []
        while chain is not None:
            seen.append(f"{type(chain).__name__}: {chain}")
            chain = chain.__cause__ or chain.__context__
        return "\\n".join(seen)
    raise SystemExit("not refused")
"""


@pytest.fixture
def place(vit, processor, forget, tmp_path):
    """The working folder of the clients: an erased model in `model`, its report, and a photo."""
    model = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    model.save_pretrained(tmp_path / "model")
    splits = make_dataset([0, 1, 2, 3, 4] * 16), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)
    model.audit(*splits, **QUICK).to_json(tmp_path / "report.json")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "photo.png")
    return tmp_path


def everything(hub) -> str:
    """All that the server received, without what clients are meant to send in the Authorization header."""
    stored = b" ".join(data for repo in hub.repos.values() for c in repo.commits.values() for f in c.files.values()
                       for data in (f.data,))  # fmt: skip
    sent = b" ".join(request.path.encode() + request.body for request in hub.log)
    return (stored + sent + b" ".join(hub.lfs.values())).decode("latin-1")


def test_push_load_push_again(hub, run_client, place):
    done = run_client(START + """
import os
from hf_kd.audit import RetentionReport
os.environ["NOT_A_TOKEN"] = "1"
report = RetentionReport.from_json(open("report.json").read())
pushed = model.push_to_hub("ana/forgetful", private=True, report=report, datasets=["ana/pets"])
assert pushed.verified and pushed.revision == "main"
print(json.dumps(pushed.to_dict()))
""")  # fmt: skip
    pushed = json.loads(done.out)
    repo = hub.repo("ana/forgetful")
    assert repo.private
    assert pushed["commit"] == repo.refs["main"]
    assert len(repo.commits) == 2, "one commit after the initial one"
    files = hub.files("ana/forgetful")
    assert {"README.md", RECEIPT, "retention_report.json", "config.json", "model.safetensors", "preprocessor_config.json",
            "figures/label_efficiency.png"} <= set(files)  # fmt: skip
    assert "auto_map" not in json.loads(files["config.json"])
    report = RetentionReport.from_json(files["retention_report.json"].decode())
    assert report.class_names == {}
    card = files["README.md"].decode()
    assert not re.search(r"\bcat\b", card), "classes are named only when asked for"
    assert card.index("Converged linear probe") < card.index("Paper's probe")

    # a person edits the card, and shards of some earlier checkpoint lie around
    hub.write(
        "ana/forgetful",
        "README.md",
        card.replace("<!-- hf-kd: begin -->", "My own words.\n\n<!-- hf-kd: begin -->").encode(),
    )
    hub.write("ana/forgetful", "model-00001-of-00002.safetensors", b"old")
    hub.write("ana/forgetful", "notes.txt", b"keep me")
    hub.write("bob/base", "README.md", b"---\nlicense: cc0-1.0\n---\n")

    run_client(START + """
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification, pipeline
loaded = ErasedModel.from_pretrained("ana/forgetful")
x = torch.randn(4, 3, 16, 16)
assert torch.equal(loaded(pixel_values=x).logits, model(pixel_values=x).logits)
assert torch.equal(loaded.pooled_features(x), model.pooled_features(x))
auto = AutoModelForImageClassification.from_pretrained("ana/forgetful")
assert isinstance(auto, ErasedModel) and auto.is_erased
assert pipeline("image-classification", model="ana/forgetful")("photo.png")[0]["label"]
model.config.base_model = "bob/base"
pushed = model.push_to_hub("ana/forgetful")
card = ModelCard.load("ana/forgetful")
assert card.data.base_model == "bob/base" and card.data.license == "cc0-1.0"
assert card.data.library_name == "hf-kd" and "My own words." in card.text
assert card.text.count("<!-- hf-kd: begin -->") == 1
dev = model.push_to_hub("ana/forgetful", revision="dev", commit_message="on a branch", show_class_names=True)
assert dev.revision == "dev" and dev.verified
pr = model.push_to_hub("ana/forgetful", create_pr=True, show_class_names=True)
assert pr.pull_request.endswith("discussions/1") and pr.revision == "refs/pr/1" and pr.verified
assert ErasedModel.from_pretrained("ana/forgetful", revision="dev").is_erased
folded = model.push_to_hub("ana/folded", folded=True)
assert folded.verified
""")  # fmt: skip
    files = hub.files("ana/forgetful")
    assert "model-00001-of-00002.safetensors" not in files
    assert files["notes.txt"] == b"keep me"
    assert repo.commits[repo.refs["dev"]].title == "on a branch"
    assert "its **features are not**" in hub.files("ana/folded")["README.md"].decode().lower()
    assert re.search(r"\bcat\b", hub.files("ana/forgetful", revision="dev")["README.md"].decode())

    stock = run_client("""
import sys, torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("ana/folded").eval()
assert type(model).__name__ == "ViTForImageClassification" and not any(m.startswith("hf_kd") for m in sys.modules)
try:
    AutoModelForImageClassification.from_pretrained("ana/forgetful")
except ValueError as error:
    assert "hf_kd_erased" in str(error), error
else:
    raise SystemExit("loaded without hf_kd")
""")
    assert "trust_remote_code" not in stock.text
    assert not re.search(TOKEN, everything(hub))


def test_what_goes_wrong_leaves_the_repository_as_it_was(hub, run_client, place):
    run_client(["push", "model", "ana/m", "--private"])
    before, commits = hub.repo("ana/m").refs["main"], len(hub.repo("ana/m").commits)
    config = json.loads((place / "model" / "config.json").read_text())
    config["id2label"]["0"] = "changed"
    (place / "model" / "config.json").write_text(json.dumps(config))

    hub.fail(r"POST /api/models/ana/m/commit", status=500)
    done = run_client(["push", "model", "ana/m"], code=1)
    assert "500" in done.text
    assert "The repository is as it was" in done.text
    assert hub.repo("ana/m").refs["main"] == before
    assert len(hub.repo("ana/m").commits) == commits

    hub.lfs.clear()
    for repo in hub.repos.values():
        for commit in repo.commits.values():
            commit.files.pop("model.safetensors", None)
    hub.fail(r"PUT /lfs/", cut=100, times=50)
    done = run_client(["push", "model", "ana/m"], code=1)
    assert "connection" in done.text
    assert hub.repo("ana/m").refs["main"] == before
    hub.failures.clear()

    hub.fail(r"PUT /lfs/", status=503)
    done = run_client(["push", "model", "ana/m", "--json"])
    assert json.loads(done.out)["verified"], "a 503 is tried again, and the command can be repeated"
    assert len(hub.requests("PUT /lfs/")) >= 2
    assert TOKEN not in done.text


def test_who_may_not_is_told_why(hub, run_client, place):
    hub.write("ana/m", "README.md", b"hello")
    reasons = {
        None: "no token",
        "hf_wrong_token": "does not accept the token",
        READER: "may not write",
        OTHER: "may not write",
    }
    source = "".join(f"print(refused(lambda: model.push_to_hub('ana/m', token={token!r})), '#')\n" for token in reasons)
    done = run_client(START + source, token=None)
    for (token, reason), text in zip(reasons.items(), done.out.split("#"), strict=False):
        assert reason in text, text
        assert token is None or token not in done.text
    for environment, reason in (
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is on"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "connection failed"),
    ):
        done = run_client(["push", "model", "ana/m"], code=1, **environment)
        assert reason in done.text, done.text
        assert "Traceback" not in done.text
    done = run_client(["push", "model", "../ana/m"], code=1)
    assert "no repository id" in done.text
    assert hub.files("ana/m") == {"README.md": b"hello"}


def test_no_token_in_errors_or_logs_even_when_given_as_an_argument(hub, run_client, place):
    hub.fail(r"POST /api/models/ana/m/commit", status=500)
    done = run_client(START + """
import logging
logging.basicConfig(level=logging.DEBUG)
from huggingface_hub.utils import logging as hub_logging
hub_logging.set_verbosity_debug()
print(refused(lambda: model.push_to_hub("ana/m", token="hf_other_token")))
print(refused(lambda: model.push_to_hub("ana/m", token="hf_writer_token")))
print(refused(lambda: model.push_to_hub("ana/m", token="hf_secret_that_nobody_knows")))
""", token=None)  # fmt: skip
    for token in (WRITER, OTHER, "hf_secret_that_nobody_knows"):
        assert token not in done.out
        assert token not in "\n".join(line for line in done.err.splitlines() if "uthorization" not in line)
        assert token not in everything(hub)
    assert "500" in done.out


MALICIOUS = {
    "auto_map": "loaded ErasedModel True",
    "inner_class": "refused ValueError",
    "no_such_class": "refused ValueError",
    "index": "refused",
    "header": "refused OSError",
}


def malicious(what: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of an erased model with something in them that a loader should not fall for."""
    files = dict(files)
    config = json.loads(files["config.json"])
    if what == "auto_map":
        config["auto_map"] = {"AutoModelForImageClassification": "evil.Model", "AutoConfig": "evil.Config"}
        files["evil.py"] = (
            b"import pathlib; pathlib.Path('owned').write_text('x')\nclass Model: pass\nclass Config: pass\n"
        )
    if what == "inner_class":
        config["inner_class"] = "Trainer"
    if what == "no_such_class":
        config["inner_class"] = "os.system"
    if what == "index":
        files["model-00001-of-00001.safetensors"] = files.pop("model.safetensors")
        outside = {"inner.classifier.weight": "../../../../owned.safetensors"}
        files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": outside}).encode()
    if what == "header":
        files["model.safetensors"] = (1 << 62).to_bytes(8, "little") + b"{}"
    return files | {"config.json": json.dumps(config).encode()}


def test_malicious_repositories_run_nothing_and_write_nothing(hub, run_client, place):
    files = {path.name: path.read_bytes() for path in (place / "model").iterdir() if path.is_file()}
    for what in MALICIOUS:
        for name, data in malicious(what, files).items():
            hub.write(f"eve/{what}", name, data)
    done = run_client(
        f"NAMES = {list(MALICIOUS)}"
        + """
from hf_kd import ErasedModel
from transformers import AutoModelForImageClassification
for name in NAMES:
    for cls in (ErasedModel, AutoModelForImageClassification):
        try:
            model = cls.from_pretrained(f"eve/{name}")
            print(name, "loaded", type(model).__name__, model.is_erased)
        except (ValueError, OSError) as error:
            print(name, "refused", type(error).__name__, str(error).replace("\\n", " "))
""",
        token=None,
    )
    assert not list(place.rglob("owned*"))
    for what, expected in MALICIOUS.items():
        assert done.out.count(f"{what} {expected}") == 2, done.out
