"""Two processes give the subspace and the saved model of one, and no sample counts twice."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from datasets import load_from_disk

from hf_kd import ErasedModel, ReadOptions
from tests.helpers.processes import in_two_processes, launch, launched
from tests.helpers.small import make_dataset
from tests.helpers.taught import taught


def loader_of(labels) -> torch.utils.data.DataLoader:
    images = torch.randn(len(labels), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    return torch.utils.data.DataLoader(rows, batch_size=4)


SCRIPT = """
import json, sys
import torch
from hf_kd.data import process_state
from datasets import load_from_disk
from hf_kd import ErasedModel, ReadOptions

model_dir, data_dir, out, method, form = sys.argv[1:6]
state = process_state()
torch.set_num_threads(1)
data = load_from_disk(data_dir)
if form == "stream":
    data = data.to_iterable_dataset(num_shards=3)
elif form == "loader":
    images = torch.randn(len(data), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.DataLoader(
        [{"pixel_values": x, "labels": y} for x, y in zip(images, data["label"])], batch_size=4
    )
model = ErasedModel.from_pretrained(model_dir)
options = {"esc": {"k": 2}, "esc-per-class": {"k": 1, "per_class": True}, "esc-t": {"lr": 3.0, "threshold": 0.999}}[method]
model.erase(data, method.removesuffix("-per-class"), reading=ReadOptions(batch_size=4), progress=False, **options)
model.save_pretrained(out, is_main_process=state.is_main_process)
state.wait_for_everyone()
if state.is_main_process:
    record = model.erasures[0]
    print(json.dumps({"n": record.n_forget, "processes": record.processes, "classes": record.classes}))
state.destroy_process_group()
"""


@pytest.fixture
def folders(vit, processor, tmp_path):
    vit.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    make_dataset([2] * 12 + [3] * 7).save_to_disk(tmp_path / "data")  # 19: not divisible by two processes
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


OPTIONS = {"esc": {"k": 2}, "esc-per-class": {"k": 1, "per_class": True}, "esc-t": {"lr": 3.0, "threshold": 0.999}}


@pytest.mark.parametrize(
    ("method", "form"), [("esc", "dataset"), ("esc", "stream"), ("esc-per-class", "loader"), ("esc-t", "dataset")]
)
def test_two_processes_save_the_model_of_one(folders, vit, processor, method, form):
    out = folders / "out"
    said = in_two_processes(folders / "script.py", folders / "model", folders / "data", out, method, form)
    assert said == {"n": 19, "processes": 2, "classes": [2, 3]}
    data = load_from_disk(folders / "data")
    if form == "loader":
        data = loader_of(data["label"])
    alone = ErasedModel.from_model(vit, processor)
    alone.erase(
        data, method.removesuffix("-per-class"), reading=ReadOptions(batch_size=4), progress=False, **OPTIONS[method]
    )
    together = ErasedModel.from_pretrained(out)
    one, two = alone.state_dict(), together.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one if name.startswith("inner."))
    if method == "esc-t":
        assert torch.allclose(one["sites.0.eraser.operator"], two["sites.0.eraser.operator"], atol=1e-5)
    else:
        a, b = (state["sites.0.eraser.directions"].double() for state in (one, two))
        assert float(torch.linalg.svdvals(a - b @ (b.T @ a))[0]) < 1e-5
    pixels = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(alone(pixels).logits, together(pixels).logits, atol=1e-5)


SEVERAL_PASSES = """
import json, sys
import torch
from hf_kd.data import process_state
from datasets import load_from_disk
from hf_kd import ErasedModel, ReadOptions
from tests.helpers.two_towers import NAMES, TEMPLATES, two_towers

model_dir, data_dir, retain_dir, out = sys.argv[1:5]
state = process_state()
torch.set_num_threads(1)
given = {"reading": ReadOptions(batch_size=4), "progress": False}
said = {}
words = {"texts": ["tabby cat"], "retain_texts": NAMES, "templates": TEMPLATES}
retained = {"retain": load_from_disk(retain_dir)}
for method, more in (("leace", retained), ("cover", {"m": 3}), ("oblique", retained | words)):
    clip = method == "oblique"
    model = ErasedModel.from_model(*two_towers("CLIPModel")) if clip else ErasedModel.from_pretrained(model_dir)
    model.erase(load_from_disk(data_dir), method, **given, **more)
    model.save_pretrained(f"{out}/{method}", is_main_process=state.is_main_process)
    said[method] = [model.erasures[0].n_forget, model.erasures[0].n_retain, model.erasures[0].processes]
state.wait_for_everyone()
if state.is_main_process:
    print(json.dumps(said))
state.destroy_process_group()
"""


def test_retained_images_and_further_views_are_read_by_two_processes_as_by_one(folders, vit, processor):
    taught(vit, processor).save_pretrained(folders / "model")
    make_dataset([0, 1, 2, 4] * 8 + [0], seed=3).filter(lambda row: row["label"] != 2).save_to_disk(folders / "retain")
    make_dataset([2] * 12 + [3] * 7).save_to_disk(folders / "both")
    (folders / "passes.py").write_text(SEVERAL_PASSES)
    said = in_two_processes(
        folders / "passes.py", folders / "model", folders / "both", folders / "retain", folders / "out"
    )
    assert said == {"leace": [19, 25, 2], "cover": [19, None, 2], "oblique": [19, 25, 2]}
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for method, more in (("leace", {"retain": load_from_disk(folders / "retain")}), ("cover", {"m": 3})):
        alone = ErasedModel.from_model(copy.deepcopy(vit), processor)
        alone.erase(load_from_disk(folders / "both"), method, reading=ReadOptions(batch_size=4), progress=False, **more)
        together = ErasedModel.from_pretrained(folders / "out" / method)
        one, two = alone.state_dict(), together.state_dict()
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.allclose(value, two[name], rtol=1e-4, atol=1e-4 * float(value.abs().max().clamp(max=1e4))), (
                name
            )
        with torch.no_grad():
            assert torch.allclose(alone(pixels).logits, together(pixels).logits, atol=1e-4)
        if method == "cover":
            assert together.config.masked == [2, 3]
            one, two = (model.erasures[0].measured[0] for model in (alone, together))
            for key in ("cover_classes", "shared_by", "shares", "moved_by_views", "share_of_forget_replaced"):
                assert one[key] == pytest.approx(two[key]), key


def test_a_process_without_any_sample_does_not_hang(folders):
    make_dataset([2] * 4).save_to_disk(folders / "few")  # one batch, so the second process gets none
    said = in_two_processes(
        folders / "script.py", folders / "model", folders / "few", folders / "out", "esc-per-class", "loader"
    )
    assert (said["n"], said["classes"]) == (4, [2])


def test_processes_are_told_what_accelerate_launch_tells_them(tmp_path):
    """So that what the other tests start stands for what users start."""
    asked = tmp_path / "told.py"
    asked.write_text("import json, os\nprint(json.dumps(dict(os.environ)))\n")
    for ours, theirs in zip(launched(), map(json.loads, launch(asked)), strict=True):
        assert ours.keys() <= theirs.keys()
        differing = {name for name, value in ours.items() if theirs[name] != value}
        assert differing <= {"MASTER_PORT"}, "each launch has a port of its own"


def test_the_command_line_runs_in_several_processes(folders):
    out = folders / "cli"
    arguments = ["--dataset", folders / "data", "--forget-labels", "cat", "--k", "1", "--output", out, "--json"]
    result = in_two_processes("-m", "hf_kd", "erase", folders / "model", *arguments)
    assert (result["erasure"]["n_forget"], result["erasure"]["processes"]) == (12, 2)
    assert ErasedModel.from_pretrained(out).is_erased
