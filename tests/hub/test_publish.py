"""Publishing and loading through a real client and a Hub on loopback: what arrives, what stays, what a failure leaves."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import httpx
from PIL import Image

from hf_kd import AuditOptions, ErasedModel
from hf_kd.audit.figures import FIGURES
from hf_kd.audit.report import RetentionReport
from hf_kd.data.read_files import with_files
from hf_kd.errors import PushError
from hf_kd.hub import publish
from hf_kd.hub.card import ALT
from hf_kd.hub.receipt import RECEIPT
from hf_kd.hub.upload import upload
from tests.conftest import image_processor, small_vit
from tests.helpers import processes
from tests.helpers.small import make_dataset
from tests.helpers.taught import taught
from tests.hub.conftest import OTHER, READER, WRITER

TOKEN = WRITER
QUICK = {"options": AuditOptions(attacks=["linear"], draws=1, shots=[1, 5]), "progress": False}

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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An erased model in `model`, its report, and a photo."""
    folder = tmp_path_factory.mktemp("made")
    model = ErasedModel.from_model(copy.deepcopy(small_vit()), image_processor())
    model.erase(make_dataset([2] * 20), k=2, progress=False)
    model.save_pretrained(folder / "model")
    splits = make_dataset([0, 1, 2, 3, 4] * 16), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)
    model.audit(*splits, **QUICK).to_json(folder / "report.json")
    Image.new("RGB", (20, 20), "red").save(folder / "photo.png")
    return folder


@pytest.fixture
def place(made, tmp_path):
    """The working folder of the clients: a copy of what was made."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def everything(hub) -> str:
    """All that the server received, without what clients are meant to send in the Authorization header."""
    stored = b" ".join(data for repo in hub.repos.values() for c in repo.commits.values() for f in c.files.values()
                       for data in (f.data,))  # fmt: skip
    sent = b" ".join(request.path.encode() + request.body for request in hub.log)
    return (stored + sent + b" ".join(hub.lfs.values())).decode("latin-1")


def test_push_load_push_again(hub, run_client, place):
    shell = ["--private", "--report", "report.json", "--commit-message", "from the shell", "--json"]
    pushed = json.loads(run_client(["push", "model", "ana/forgetful", *shell]).out)
    assert pushed["verified"]
    assert pushed["revision"] == "main"
    repo = hub.repo("ana/forgetful")
    assert repo.private
    assert pushed["commit"] == repo.refs["main"]
    assert len(repo.commits) == 2, "one commit after the initial one"
    assert repo.commits[repo.refs["main"]].title == "from the shell"
    files = hub.files("ana/forgetful")
    assert {"README.md", RECEIPT, "retention_report.json", "config.json", "model.safetensors", "preprocessor_config.json",
            "figures/label_efficiency.png"} <= set(files)  # fmt: skip
    assert "auto_map" not in json.loads(files["config.json"])
    assert "handler.py" not in files
    report = RetentionReport.from_json(files["retention_report.json"].decode())
    assert "cat" not in report.class_names.values(), "the others keep their names"
    assert not re.search(r"\bcat\b", files["retention_report.json"].decode())
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
    hub.write("ana/forgetful", "pytorch_model.bin", b"before erasing")
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
pr = model.push_to_hub("ana/forgetful", create_pr=True, show_class_names=True, datasets=["ana/pets"])
assert pr.pull_request.endswith("discussions/1") and pr.revision == "refs/pr/1" and pr.verified
assert ErasedModel.from_pretrained("ana/forgetful", revision="dev").is_erased
at_commit = ErasedModel.from_pretrained("ana/forgetful@dev")
assert at_commit.is_erased and at_commit.name_or_path == "ana/forgetful"
from hf_kd.model.verify import verify
assert verify("ana/forgetful@dev").ok
folded = model.push_to_hub("ana/folded", folded=True)
assert folded.verified
eager = ErasedModel.from_pretrained("model", attn_implementation="eager")
assert eager.push_to_hub("ana/eager").verified, "compared with the attention it has here"

from pathlib import Path
from hf_kd.hub import publish
from safetensors.torch import load_file, save_file
upload = publish.upload
def tampered(folder, *args, **kwargs):
    weights = load_file(Path(folder) / "model.safetensors")
    weights["inner.classifier.bias"] += 1e-3
    save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})
    return upload(folder, *args, **kwargs)
publish.upload = tampered
text = refused(lambda: model.push_to_hub("ana/tampered"))
assert text.startswith("NotVerifiedError: ana/tampered") and "other answers" in text, text
""")  # fmt: skip
    files = hub.files("ana/forgetful")
    assert not {"model-00001-of-00002.safetensors", "pytorch_model.bin"} & set(files)
    assert files["notes.txt"] == b"keep me"
    assert repo.commits[repo.refs["dev"]].title == "on a branch"
    assert "**its logits are erased, features are not.**" in hub.files("ana/folded")["README.md"].decode().lower()
    assert re.search(r"\bcat\b", hub.files("ana/forgetful", revision="dev")["README.md"].decode())

    stock = json.loads(hub.files("ana/folded")["config.json"])
    assert (stock["model_type"], stock["architectures"]) == ("vit", ["ViTForImageClassification"])
    assert "auto_map" not in stock
    assert not re.search(TOKEN, everything(hub))


def test_what_goes_wrong_leaves_the_repository_as_it_was(hub, run_client, place):
    run_client(["push", "model", "ana/m", "--private", "--no-verify"])
    before, commits = hub.repo("ana/m").refs["main"], len(hub.repo("ana/m").commits)
    again = ["push", "model", "ana/m", "--show-class-names"]  # another card

    hub.fail(r"POST /api/models/ana/m/commit", status=500)
    done = run_client(again, code=1)
    assert "500" in done.text
    assert "The repository is as it was" in done.text
    assert hub.repo("ana/m").refs["main"] == before
    assert len(hub.repo("ana/m").commits) == commits

    hub.lfs.clear()
    for repo in hub.repos.values():
        for commit in repo.commits.values():
            commit.files.pop("model.safetensors", None)
    hub.fail(r"POST /api/models/ana/m/commit", cut=100)
    done = run_client(again, code=1)
    message = " ".join(done.text.split())
    assert "PushError: ana/m: the connection failed" in message, message
    assert "has the new version or the old one; repeat the command" in message, "an answer was lost: nobody knows"
    assert "Traceback" not in message
    assert hub.repo("ana/m").refs["main"] == before
    hub.failures.clear()

    hub.lfs.clear()
    for pattern, reason in (
        (
            r"PUT /lfs/",
            "PushError: The Hub answered 418 for ana/m while ana/m was being written. The repository is as it was",
        ),
        (r"HEAD /ana/m/resolve/main/README.md", "answered 418 for ana/m while README.md was being read"),
    ):
        hub.fail(pattern, status=418)
        done = run_client(again, code=1)
        assert reason in " ".join(done.text.split()), done.text
        assert "Traceback" not in done.text
        assert hub.repo("ana/m").refs["main"] == before
    hub.failures.clear()

    hub.lfs.clear()
    hub.fail(r"PUT /lfs/", cut=100)
    hub.fail(r"PUT /lfs/", status=503)
    done = run_client([*again, "--json"])
    assert json.loads(done.out)["verified"], "a 503 and a cut are tried again, and the command can be repeated"
    assert len(hub.requests("PUT /lfs/")) >= 3
    assert TOKEN not in done.text

    processes.empty_hub_home()  # two pushes within a second are one commit, and what is cached is not asked for again
    hub.fail(r"(HEAD|GET) /ana/m/resolve/[0-9a-f]{40}/config.json", status=418, times=9)
    done = run_client(again, code=1)
    assert "NotVerifiedError: ana/m was published" in " ".join(done.text.split()), done.text
    assert "Traceback" not in done.text


def test_a_push_of_somebody_else_in_between_is_not_mixed_in(hub, run_client, place):
    hub.write("ana/m", "generation_config.json", b"{}")
    run_client(START + """
from huggingface_hub import HfApi
from hf_kd.hub import publish
upload = publish.upload
def later(*args, **kwargs):
    for name in ("generation_config.json", "special_tokens_map.json"):
        HfApi().upload_file(path_or_fileobj=b'{"of": "another"}', path_in_repo=name, repo_id="ana/m")
    publish.upload = upload
    return upload(*args, **kwargs)
publish.upload = later
text = refused(lambda: model.push_to_hub("ana/m"))
assert text.startswith("PushError: Somebody else wrote to ana/m") and "Push again" in text, text
assert HfApi().list_repo_files("ana/m") == ["generation_config.json", "special_tokens_map.json"]
assert model.push_to_hub("ana/m").verified
publish.upload = later
assert model.push_to_hub("ana/m", create_pr=True, show_class_names=True).verified, "it overwrites nothing"
""")  # fmt: skip
    receipt = json.loads(hub.files("ana/m")[RECEIPT])["files"]
    assert {"generation_config.json", "special_tokens_map.json"} <= set(receipt)
    assert "Everything matches the receipt" in " ".join(run_client(["verify", "ana/m"]).out.split())


def test_a_licence_of_the_base_that_cannot_be_read_is_said(hub, run_client, place):
    hub.write("bob/cardless", "config.json", b"{}")
    hub.write("bob/stated", "README.md", b"---\nlicense: mit\n---\n")
    hub.write("bob/silent", "README.md", b"# A model\n")
    hub.write("bob/broken", "README.md", b"---\nlicense: mit\n---\n")
    hub.fail("bob/broken/resolve", status=418, times=9)
    done = run_client("""
from hf_kd.hub.publish import base_license
assert base_license("bob/stated") == "mit"
for name in ("cardless", "silent", "broken", "gone"):
    assert base_license(f"bob/{name}") is None
""")
    assert re.findall(r"licence of (\S+) could not be read", done.err) == ["bob/broken", "bob/gone"]
    assert "`license: ...`" in done.err


def test_what_stays_in_the_repository_is_a_persons_and_what_changes_answers_is_in_the_receipt(hub, run_client, place):
    there = {
        "README.md": b"---\nlicense: mit\n---\n\n# Mine\n\n![teaser](figures/teaser.png)\n",
        "figures/teaser.png": b"mine",
        "model-zoo/model.safetensors": b"mine, in a folder that is called like weights",
        "special_tokens_map.json": b"{}",
        "generation_config.json": b"{}",
        "figures/recovery.png": b"of an earlier audit",
        "retention_report.json": b"of an earlier audit",
        "processor_config.json": json.dumps({"image_processor": {"size": {"height": 9, "width": 9}}}).encode(),
        "pytorch_model.bin": b"of an earlier model",
    }
    for name, data in there.items():
        hub.write("ana/m", name, data)
    (place / "model" / "README.md").write_text("# From the folder")
    done = run_client(["push", "model", "ana/m"])
    assert "has a text of its own, which is kept" in " ".join(done.err.split())
    files = hub.files("ana/m")
    kept = ["figures/teaser.png", "model-zoo/model.safetensors", "special_tokens_map.json", "generation_config.json"]
    assert {name: files.get(name) for name in kept} == {name: there[name] for name in kept}
    assert not set(list(there)[5:]) & set(files)
    assert {"special_tokens_map.json", "generation_config.json"} <= set(json.loads(files[RECEIPT])["files"])
    card = files["README.md"].decode()
    assert "# Mine" in card
    assert "# From the folder" not in card
    assert "Everything matches the receipt" in " ".join(run_client(["verify", "ana/m"]).out.split())

    hub.write("ana/web", "README.md", b"---\nlicense: mit\n---")  # as a form of the Hub makes it, or a person
    hub.write("ana/web", "model.safetensors", b"of an earlier model")
    run_client(["push", "model", "ana/web", "--no-verify"])
    run_client(["push", "model", "ana/new", "--no-verify"])
    assert not hub.requests(r"GET /ana/web/resolve/.*safetensors"), "what is overwritten is not downloaded"
    for name in ("ana/web", "ana/new"):
        card = hub.files(name)["README.md"].decode()
        assert "# From the folder" in card
        assert ("license: mit" in card) == (name == "ana/web")

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        hub.write("ana/lora", name, b'{"base_model_name_or_path": "bob/base"}')
    before = hub.repo("ana/lora").refs["main"]
    refused = " ".join(run_client(["push", "model", "ana/lora"], code=1).err.split())
    assert "ana/lora holds an adapter (adapter_config.json, adapter_model.safetensors)" in refused
    assert hub.repo("ana/lora").refs["main"] == before


def test_a_model_that_cannot_be_saved_makes_no_repository(monkeypatch):
    model = ErasedModel.from_model(taught(copy.deepcopy(small_vit()), image_processor()), image_processor())
    model.erase(make_dataset([3] * 40), "cover", progress=False)
    monkeypatch.setattr(publish, "check_target", lambda *_: None)
    monkeypatch.setattr(publish, "prepare", lambda *_, **__: pytest.fail("a repository was made"))
    with pytest.raises(ValueError, match="fold"):
        model.push_to_hub("ana/m", folded=True)


def test_every_figure_that_a_report_draws_is_described_in_the_card():
    assert set(ALT) == {*FIGURES, "cut_scan"}


def test_a_transfer_that_breaks_off_is_explained_and_changes_nothing(monkeypatch, tmp_path):
    def breaks(*args, **kwargs):
        try:
            raise httpx.ReadError("peer closed")
        except httpx.ReadError as error:
            raise RuntimeError("Error while uploading") from error

    monkeypatch.setattr(HfApi, "upload_folder", breaks)
    with pytest.raises(PushError, match="connection failed .ReadError.*The repository is as it was"):
        upload(tmp_path, "ana/m", message="x", token="hf_nothing")
    monkeypatch.setattr(HfApi, "upload_folder", lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        upload(tmp_path, "ana/m", message="x", token="hf_nothing")


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("mine")
    for number, target in enumerate(("../secret", tmp_path, "/etc", "../nothing")):
        folder = tmp_path / str(number)
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "link").symlink_to(target if str(target).startswith("/") else f"../{target}")
        with pytest.raises(ValueError, match="sub/link is a link that leads out"):
            upload(folder, "ana/m", message="x", token="hf_nothing")


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
    hub.write("ana/public", "notes.txt", b"public")
    hub.write("ana/files", "model-00001-of-00002.safetensors", b"old")
    run_client(START + """
from pathlib import Path
from hf_kd.hub.upload import fetch, upload
assert "is public, and private was asked for" in refused(lambda: model.push_to_hub("ana/public", private=True))
other = model.push_to_hub("ana/m", create_pr=True, token="hf_other_token")
assert other.pull_request and other.verified
folder = Path("files")
for name in ("a.txt", "sub/b.txt", ".git/config", "sub/.git/config", ".cache/x/y", "x.tmp", "sub/x.tmp", "x.lock"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("t")
(folder / "inside.txt").symlink_to("a.txt")
upload(folder, "ana/files", message="files", gone=["model-00001-of-00002.safetensors", "a.txt"])
assert fetch("ana/files", "a.txt") == b"t" and fetch("ana/files", "nothing") is None
""")  # fmt: skip
    assert set(hub.files("ana/files")) == {"a.txt", "sub/b.txt", "inside.txt"}
    assert hub.files("ana/public") == {"notes.txt": b"public"}
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
        assert token not in done.err
        assert token not in everything(hub)
    assert "500" in done.out


MALICIOUS = {
    "auto_map": "loaded ErasedModel True",
    "inner_class": "refused ValueError",
    "no_such_class": "refused ValueError",
    "index": "refused",
    "header": "refused OSError",
    "pickle": "refused OSError",
    "attention": "loaded ErasedModel True",
    "nested": "refused ValueError",
    "tap": "refused ValueError",
    "eraser": "refused ValueError",
    "record": "refused ValueError",
    "list": "refused ValueError",
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
    if what == "pickle":
        files.pop("model.safetensors")
        files["pytorch_model.bin"] = b"cos\nsystem\n(S'touch owned'\ntR."
    if what == "attention":
        config["attn_implementation"] = config["inner"]["attn_implementation"] = "eve/kernel"
    if what == "nested":
        config["inner"] = config | {}
    if what == "tap":
        config["taps"][0]["places"][0]["module"] = "__class__"
    if what == "eraser":
        config["erasers"][0]["name"] = "os.system"
    if what == "record":
        config["erasures"] = [{"method": "esc"}]
    if what == "list":
        config = [config]
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
            kind = "ValueError" if isinstance(error, ValueError) else "OSError"
            print(name, "refused", kind, str(error).replace("\\n", " "))
""",
        token=None,
    )
    assert not list(place.rglob("owned*"))
    assert not hub.requests("kernel|evil"), "code is not even asked for"
    for what, expected in MALICIOUS.items():
        assert done.out.count(f"{what} {expected}") == 2, done.out


@pytest.mark.parametrize("named", [False, True])
def test_the_data_sets_names_are_published_only_where_names_are_asked_for(vit, processor, monkeypatch, named):
    erased = ErasedModel.from_model(vit, processor)
    images = make_dataset([0, 2] * 10, names=("fox", "gnu", "walrus")).select(range(20))
    erased.erase(with_files(images, Path("/pets"), ["/pets/anna.parquet"]), k=2, progress=False)
    seen = {}

    def upload(folder, repo_id, **options):
        seen.update({path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md")})
        return publish.Published(repo_id, "https://example.org", "0" * 40, "main")

    for name, stand_in in (
        ("check_target", lambda *_: None),
        ("prepare", lambda repo_id, **_: repo_id),
        ("files_in", lambda *_, **__: (set(), None)),
        ("upload", upload),
    ):
        monkeypatch.setattr(publish, name, stand_in)
    publish.push(erased, "ana/forgetful", verify=False, show_class_names=named)
    assert [name for name, text in sorted(seen.items()) if "walrus" in text] == (
        ["README.md", "config.json", "erasures.json"] if named else []
    )
    assert [name for name, text in sorted(seen.items()) if "anna.parquet" in text] == (
        ["config.json", "erasures.json"] if named else []
    )
    assert erased.erasures[0].dataset_classes == ("fox", "walrus")
    assert erased.erasures[0].files == {"forget": {"count": 1, "names": ["anna.parquet"]}}


def test_no_handler_is_published_for_a_class_that_an_endpoint_cannot_load(vit, processor):
    erased = ErasedModel.from_model(vit, processor).erase(make_dataset([2] * 20), k=2, progress=False)
    vit.__class__ = type("Mine", (type(vit),), {"__module__": "my_file"})
    with pytest.raises(ValueError, match="Mine is no class of transformers.*write a handler.py that imports your file"):
        publish.push(erased, "ana/forgetful", handler=True)


def test_push_says_before_anything_is_sent_that_the_eraser_can_be_taken_away(place, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise PushError("no Hub here")

    monkeypatch.setattr(publish, "prepare", refuse)
    with pytest.raises(PushError):
        ErasedModel.from_pretrained(place / "model").push_to_hub("ana/forgetful")
    assert "has the original again" in caplog.text
    assert "'regrow'" in caplog.text
    model = ErasedModel.from_pretrained(place / "model")
    for folded, changes, told in (
        (False, [{"method": "regrow"}], "were changed"),
        (True, [], "folded in erases logits"),
    ):
        caplog.clear()
        record = model.erasures[0].to_dict()
        model.inner.config.hf_kd_unlearned = [record | change for change in changes]
        with pytest.raises(PushError):
            model.push_to_hub("ana/forgetful", folded=folded)
        assert told in caplog.text
        assert "has the original again" not in caplog.text


def test_a_handler_is_published_only_when_asked_for_and_never_over_a_persons_own(hub, run_client, place):
    run_client(["push", "model", "ana/served", "--private", "--handler"])
    files = hub.files("ana/served")
    assert files["requirements.txt"] == b"hf-kd\n"
    names: dict[str, object] = {}
    exec(files["handler.py"].decode(), names)  # as an endpoint does
    assert names["EndpointHandler"].__module__ == "hf_kd.model.endpoint"
    run_client(["push", "model", "ana/served", "--private", "--handler", "--no-verify"])  # its own file is no obstacle

    hub.write("ana/served", "handler.py", b"print('mine')\n")
    before = hub.repo("ana/served").refs["main"]
    done = run_client(["push", "model", "ana/served", "--handler"], code=1)
    assert "has a handler.py of its own" in " ".join(done.err.split())
    done = run_client(["push", "model", "ana/served", "--handler", "--folded"], code=1)
    assert "are not erased" in " ".join(done.err.split())
    assert hub.repo("ana/served").refs["main"] == before
    run_client(["push", "model", "ana/served", "--no-verify"])
    assert hub.files("ana/served")["handler.py"] == b"print('mine')\n", "a person's file stays"
