"""A run that was killed goes on where it was and ends as one that was not; what belongs to another run is refused."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import ViTConfig, ViTForImageClassification

from hf_kd import ReadOptions, unlearn
from hf_kd.data.progress import Bar
from hf_kd.data.samples import Samples
from hf_kd.errors import DivergedError, InvalidValueError, OutputError
from hf_kd.methods.unlearning import cut_scan, regrow, resume, task
from hf_kd.methods.unlearning.cut_scan import scan
from hf_kd.methods.unlearning.regrow import Regrow
from hf_kd.methods.unlearning.resume import KeptTraining, save_progress
from hf_kd.model.unlearn import _checkpoint_folder
from hf_kd.testing.unlearning import CLASSES, SIDE, loader, planted_images
from tests.methods.unlearning.test_regrow import FORGET, RETAINED, equal, measured, small_task

ROOT = Path(__file__).resolve().parents[3]

READINGS = [4, 1, 2, 3]
"""Of the class in a scan of four blocks: where nothing is kept, and above three, two and one of them."""
SCAN = {"keep": "auto", "scan_epochs": 1, "epochs": 1, "batch_size": 16, "augment": "flip-crop", "crops": 1}

RETRAIN = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "progress": False, "allow_unrecognised": True}

BF16 = ReadOptions(mixed_precision="bf16", progress=False)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def original():
    """Four blocks, so three cuts; it need not know anything."""
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ViTConfig(num_labels=CLASSES, image_size=SIDE, patch_size=4, **shape)
        return ViTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def data():
    return loader(*planted_images(FORGET, per_class=24)), loader(*planted_images(RETAINED, per_class=6))


@pytest.fixture(scope="module")
def whole_scan(original, data):
    """A run that tried every cut and was never killed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cut_scan, "FEWEST", 20)
        patched.setattr(cut_scan, "_reads_no_more", lambda tried: False)
        return scanned(original, data)


@pytest.fixture(scope="module")
def whole_training(original, data):
    return unlearn(original, data[0], "retrain", retain=data[1], **RETRAIN)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """What readings are worth is asked in test_cut_scan.py."""
    monkeypatch.setattr(cut_scan, "FEWEST", 20)


def scanned(model, data, **settings):
    options = SCAN | {"reading": ReadOptions(progress=False)} | settings
    return unlearn(model, data[0], "regrow", retain=data[1], allow_unrecognised=True, **options)


def dies_at(monkeypatch, module, name, call):
    """The function `name` of a module raises when it is called for the so-manieth time; returns what it was asked."""
    real, calls = getattr(module, name), []

    def function(*args):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return real(*args)

    monkeypatch.setattr(module, name, function)
    return calls


@pytest.fixture
def always_read(monkeypatch):
    """The class is read at every cut, so that each is tried."""
    monkeypatch.setattr(cut_scan, "_reads_no_more", lambda tried: False)


@pytest.mark.usefixtures("always_read")
@pytest.mark.parametrize(("call", "done"), [(1, 0), (4, 0), (5, 1), (7, 2)])
def test_a_scan_that_was_killed_goes_on_behind_the_last_cut_it_tried(
    original, data, whole_scan, tmp_path, monkeypatch, call, done
):
    assert [1 + len(row["above"]) for row in measured(whole_scan)["scan"]] == READINGS
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dies_at(patched, cut_scan, "read_class", call)
        scanned(original, data, checkpoint=tmp_path)
    with monkeypatch.context() as patched:
        tried = dies_at(patched, cut_scan, "read_class", 0)
        resumed = scanned(original, data, checkpoint=tmp_path)
        assert len(tried) == sum(READINGS[done:])
        again = scanned(original, data, checkpoint=tmp_path)
        assert len(tried) == sum(READINGS[done:]), "asked once more, nothing is tried again"
    for other in (resumed, again):
        assert equal(whole_scan, other), "bit for bit as in one run"
        seconds = {"activation_seconds"}
        assert {k: v for k, v in measured(other).items() if k not in seconds} == {
            k: v for k, v in measured(whole_scan).items() if k not in seconds
        }


@pytest.mark.usefixtures("always_read")
@pytest.mark.parametrize("stage", ["scan", "training"])
def test_what_was_kept_of_another_run_is_refused(original, data, tmp_path, monkeypatch, stage):
    """Whatever of it is another: the same labels in the same order, and networks of the same shape, are not enough."""
    with monkeypatch.context() as patched, pytest.raises(Killed):
        if stage == "scan":
            dies_at(patched, cut_scan, "read_class", READINGS[0] + 1)
        else:
            dies_at(patched, regrow, "mean_statistics", 5)
        scanned(original, data, checkpoint=tmp_path)
    assert (tmp_path / "scan.json").is_file()
    assert (tmp_path / "grown").is_dir() == (stage == "training")
    if stage == "training":
        (tmp_path / "scan.json").unlink()
    model = copy.deepcopy(original)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    forget, retain = data
    others_of_it = loader(*planted_images(FORGET, per_class=24, seed=1))
    retained = planted_images(RETAINED, per_class=6)
    others = {
        "model": lambda: scanned(model, data, checkpoint=tmp_path),
        "lr=0.0001, and there None": lambda: scanned(original, data, checkpoint=tmp_path, lr=1e-4),
        "crops=2, and there 1": lambda: scanned(original, data, checkpoint=tmp_path, crops=2),
        "cache='none', and there 'auto'": lambda: scanned(original, data, checkpoint=tmp_path, cache="none"),
        "forget": lambda: scanned(original, (others_of_it, retain), checkpoint=tmp_path),
        "precision": lambda: scanned(original, data, checkpoint=tmp_path, reading=BF16),
        "to train on": lambda: scanned(original, (forget, loader(retained[0].flip(-1), retained[1])), checkpoint=tmp_path),
    }  # fmt: skip
    for name, run in others.items():
        with pytest.raises(ValueError, match=f"another run.*{name}"):
            run()


@pytest.mark.usefixtures("always_read")
def test_where_activations_are_kept_is_no_other_run(original, data, whole_scan, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dies_at(patched, regrow, "mean_statistics", 5)
        scanned(original, data, checkpoint=tmp_path, cache="memory")
    assert (tmp_path / "grown").is_dir()
    resumed = scanned(original, data, checkpoint=tmp_path, cache="disk", cache_share=0.5)
    assert measured(resumed)["activations"] == "disk"
    assert equal(whole_scan, resumed), "bit for bit as in one run"


@pytest.mark.usefixtures("always_read")
@pytest.mark.parametrize(
    "older",
    [lambda rows: rows[1:3], lambda rows: [{k: v for k, v in row.items() if k != "above"} for row in rows]],
    ids=["without a row of nothing kept", "read before the head alone"],
)
def test_a_scan_that_an_older_version_kept_begins_anew(
    original, data, whole_scan, tmp_path, monkeypatch, caplog, older
):
    """Else its first cut would be taken for the level of all others, or a block for one that tells nothing."""
    scanned(original, data, checkpoint=tmp_path)
    file = tmp_path / "scan.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"tried": older(about["tried"])}))
    with monkeypatch.context() as patched:
        tried = dies_at(patched, cut_scan, "read_class", 0)
        again = scanned(original, data, checkpoint=tmp_path)
    assert len(tried) == sum(READINGS)
    assert "begins anew" in caplog.text
    assert measured(again)["scan"] == measured(whole_scan)["scan"]


def test_a_retraining_on_other_images_with_the_same_labels_is_refused(original, data, tmp_path):
    options = {"epochs": 1, "batch_size": 16, "lr": 1e-3, "progress": False, "allow_unrecognised": True}
    unlearn(original, data[0], "retrain", retain=data[1], checkpoint=tmp_path, **options)
    images, labels = planted_images(RETAINED, per_class=6)
    with pytest.raises(ValueError, match=r"another run \(other images to train on\)"):
        unlearn(original, data[0], "retrain", retain=loader(images.flip(-1), labels), checkpoint=tmp_path, **options)


def test_a_set_is_known_again_by_all_labels_and_as_many_images_as_is_said():
    labels, images = torch.arange(100) % 7, torch.randn(100, 3)
    known = resume._digest_of(Samples(labels, {"pixel_values": images}))

    def noticed(row, of):
        changed = {"labels": labels.clone(), "images": images.clone()}
        changed[of][row] += 1
        return resume._digest_of(Samples(changed["labels"], {"pixel_values": changed["images"]})) != known

    assert all(noticed(row, "labels") for row in range(100))
    assert noticed([0, 1], "labels")
    seen = [row for row in range(100) if noticed(row, "images")]
    assert len(seen) == resume.LOOKED_AT
    assert (seen[0], seen[-1]) == (0, 99)
    for told in (ROOT / "docs" / "regrow.md").read_text(), unlearn.__doc__:
        assert f"{resume.LOOKED_AT} images of each" in told


@pytest.mark.parametrize("kept_on", ["cpu", "cuda"])
@pytest.mark.parametrize("form", [dict, list], ids=["by name", "in order"])
def test_a_training_goes_on_on_another_kind_of_device(
    original, data, whole_training, tmp_path, monkeypatch, caplog, kept_on, form
):
    """There is one generator more on a GPU, which no CPU can take over; a file of either kind is gone on with."""
    own = KeptTraining._generators

    def with_a_gpus(self):
        names = own(self)
        return {"cpu": names.pop("cpu"), "cuda": torch.Generator(), **names}

    def written(*given):
        *before, about = given
        generators = about["generators"]
        save_progress(*before, about | {"generators": generators if form is dict else list(generators.values())})
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(resume, "save_progress", written)
        if kept_on == "cuda":
            patched.setattr(KeptTraining, "_generators", with_a_gpus)
        unlearn(original, data[0], "retrain", retain=data[1], checkpoint=tmp_path, **RETRAIN)
    if kept_on == "cpu":
        monkeypatch.setattr(KeptTraining, "_generators", with_a_gpus)
    done = unlearn(original, data[0], "retrain", retain=data[1], checkpoint=tmp_path, **RETRAIN)
    assert equal(done, whole_training)
    assert "another kind of device" in caplog.text
    assert any("another kind of device" in text for text in done.config.hf_kd_unlearned[-1]["warnings"])


def test_a_damaged_scan_is_said_to_be_one(original, data, tmp_path):
    (tmp_path / "scan.json").write_text('{"tried": [')
    with pytest.raises(ValueError, match="damaged"):
        scanned(original, data, checkpoint=tmp_path)


def test_a_resumed_training_says_what_the_whole_of_it_took(original, data, tmp_path, monkeypatch):
    settings = {"keep": 1 / 3, "epochs": 3}
    whole = measured(scanned(original, data, **settings))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dies_at(patched, regrow, "mean_statistics", 1)
        scanned(original, data, checkpoint=tmp_path, **settings)
    done = measured(scanned(original, data, checkpoint=tmp_path, **settings))
    assert (done["steps"], done["last_loss"]) == (whole["steps"], whole["last_loss"])
    assert done["steps"] == 3 * math.ceil(24 / 16)


@pytest.mark.parametrize("method", ["regrow", "scan", "retrain"])
def test_the_seconds_of_a_resumed_training_are_those_of_all_calls_up_to_what_was_kept(
    original, data, tmp_path, monkeypatch, method
):
    clock = itertools.count(0, 1000)  # that goes on by so much each time it is looked at
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    grown = {"keep": 1 / 3, "epochs": 2, "batch_size": 16}
    settings, *saved = {
        "regrow": (grown, regrow, "save_progress"),
        "scan": (SCAN, cut_scan, "save_scan"),
        "retrain": (RETRAIN, resume, "save_progress"),
    }[method]
    asked = settings | {"progress": False, "allow_unrecognised": True, "checkpoint": tmp_path}

    def run():
        name = "retrain" if method == "retrain" else "regrow"
        return unlearn(original, data[0], name, retain=data[1], **asked).config.hf_kd_unlearned[-1]

    with monkeypatch.context() as patched, pytest.raises(Killed):
        dies_at(patched, *saved, 2)
        run()
    (file,) = tmp_path.rglob("scan.json" if method == "scan" else resume.FILE)
    if method == "scan":
        kept = json.loads(file.read_text())["seconds"]
    else:
        with safe_open(file, "pt") as opened:
            kept = json.loads(opened.metadata()["about"])["seconds"]
    begun = next(clock)
    seconds = run()["fit_seconds"]
    assert kept > 0
    assert kept < seconds <= kept + next(clock) - begun
    assert run()["fit_seconds"] > kept, "also where nothing is left to do"


@pytest.mark.parametrize("method", ["regrow", "retrain"])
def test_the_bar_of_a_resumed_training_counts_the_whole_of_it(original, data, tmp_path, monkeypatch, method):
    """From the epochs that were kept on: nobody who looks at it is to think that it begins anew, or is empty."""
    settings = {"regrow": {"keep": 1 / 3, "epochs": 2, "batch_size": 16}, "retrain": RETRAIN}[method]
    bars = {"begun": [], "ended": []}

    class Seen(Bar):
        def __init__(self, total, what, *given, **named):
            super().__init__(total, what, *given, **named)
            self.ours = what.startswith(method) and total is not None
            bars["begun"] += [(self._done, total)] * self.ours

        def close(self):
            bars["ended"] += [(self._done, self._total)] * self.ours
            super().close()

    def run():
        given = {"reading": ReadOptions(progress=False)} if method == "regrow" else {}
        options = settings | given | {"allow_unrecognised": True, "checkpoint": tmp_path}
        return unlearn(original, data[0], method, retain=data[1], **options)

    saved = {"regrow": (regrow, "save_progress"), "retrain": (resume, "save_progress")}[method]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dies_at(patched, *saved, 2)
        run()
    monkeypatch.setattr(task, "Bar", Seen)
    for _ in range(2):  # from an epoch on, and where all was done
        run()
    steps = math.ceil(24 / 16)
    assert bars["begun"] == [(steps, 2 * steps), (2 * steps, 2 * steps)]
    assert set(bars["ended"]) == {(2 * steps, 2 * steps)}


def test_a_scan_that_diverges_leaves_the_network_as_it_was():
    task = small_task("ResNetForImageClassification")
    task.forget = task.forget.subset(torch.arange(4).repeat(10))
    before = copy.deepcopy(task.model.state_dict())

    def grow(cut, level):
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.zero_()
        raise DivergedError("the loss became nan")

    with pytest.raises(DivergedError):
        scan(task, task.retain, grow, {})
    assert all(torch.equal(before[name], tensor) for name, tensor in task.model.state_dict().items())


def test_a_state_that_cannot_be_written_is_an_error_that_says_so(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    save_progress(tmp_path, model, model.state_dict(), optimizer, {"epoch": 1})
    before = (tmp_path / resume.FILE).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(resume, "save_file", lambda *args, **more: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OutputError, match=r"training\.safetensors .*No space left.*as it was"):
            save_progress(tmp_path, model, model.state_dict(), optimizer, {"epoch": 2})
    assert (tmp_path / resume.FILE).read_bytes() == before
    (tmp_path / f"{resume.FILE}.1.unfinished").write_bytes(b"of a run that was killed")
    (tmp_path / f"{resume.FILE}.backup").write_bytes(before)
    save_progress(tmp_path, model, model.state_dict(), optimizer, {"epoch": 2})
    assert {path.name for path in tmp_path.iterdir()} == {resume.FILE, f"{resume.FILE}.backup"}, "a person's stays"


@pytest.mark.parametrize(
    ("folder", "said"),
    [("", "names no folder"), ("~nosuchuser/x", "home folder"), (3, "checkpoint is 3"), ("{file}/x", "is a file")],
)
def test_a_folder_that_cannot_be_is_refused_before_anything_is_read(original, tmp_path, folder, said):
    (tmp_path / "file").touch()
    place = folder.format(file=tmp_path / "file") if isinstance(folder, str) else folder
    with pytest.raises((ValueError, TypeError), match=said):
        unlearn(original, None, "regrow", retain=[], checkpoint=place)


def test_a_folder_behind_a_closed_one_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(0)
    root = os.getuid() == 0
    if root:  # who may go everywhere
        os.setresuid(65534, 65534, 0)
    try:
        with pytest.raises(InvalidValueError, match="cannot be written to"):
            _checkpoint_folder(tmp_path / "closed" / "in", Regrow())
    finally:
        if root:
            os.setresuid(0, 0, 0)
