"""Two processes change weights as one does: gradients, what closed forms sum up, and features that are read once.

Where a batch is cut in two, sums are taken in another order, so results are equal up to rounding and not bit for bit. That
holds where processes get equal parts of every batch; of an odd last batch, the samples in the smaller part count for more.
"""

from __future__ import annotations

import json

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForImageClassification

from hf_kd import train_original, unlearn
from tests.helpers.processes import in_two_processes
from tests.helpers.small import make_dataset
from tests.helpers.taught import taught

SCRIPT = """
import json, sys
import torch
from hf_kd.data import process_state
from datasets import load_from_disk
from hf_kd import ErasedModel, train_original, unlearn
from hf_kd.methods.unlearning import cut_scan, regrow
from hf_kd.methods.unlearning.resume import KeptTraining
from hf_kd.methods.unlearning.steps import GradientSteps

cut_scan.FEWEST, regrow.RECENT = 12, 16
folder, out, requests = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
class Killed(BaseException):
    pass

keep, show, train = KeptTraining.keep, GradientSteps.show, regrow.Regrow._train
epochs, last, phases = [], 0, [""]

def ends():
    epochs.append(1)
    if len(epochs) == last:
        raise Killed

def kept(self, *args):
    keep(self, *args)
    ends()

def shown(self, text):
    show(self, text)
    if phases[-1] == "grown":
        ends()

def trained(self, task, phase, *args):
    phases.append(phase.name)
    return train(self, task, phase, *args)

KeptTraining.keep, GradientSteps.show, regrow.Regrow._train = kept, shown, trained
state = process_state()
torch.set_num_threads(1)
forget, retain = (load_from_disk(f"{folder}/{name}") for name in ("forget", "retain"))
said = {}
for name, (method, options) in requests.items():
    model = ErasedModel.from_pretrained(f"{folder}/model")
    if method == "train-original":
        changed = train_original(model, retain, progress=False, **options)
        said[name] = changed.config.hf_kd_trained["measured"]
    else:
        if "checkpoint" in options:
            options["checkpoint"] = f"{out}/{name}.state"
        if options.pop("killed", False):
            epochs.clear()
            last = 2 if method == "regrow" else 1  # which has shown the second epoch before it is kept
            try:
                unlearn(model, forget, method, retain=retain, progress=False, **options)
            except Killed:
                last = 0
            assert not last, "it was killed"
        epochs.clear()
        phases.append("")
        changed = unlearn(model, forget, method, retain=retain, progress=False, **options)
        record = changed.config.hf_kd_unlearned[-1]
        said[name] = record["measured"][0] | {"n": record["n_forget"], "processes": record["processes"]}
        said[name]["epochs here"] = len(epochs)
    every = torch.cat([tensor.detach().double().flatten() for tensor in changed.state_dict().values()])
    parts = [torch.empty_like(every) for _ in range(state.num_processes)]
    torch.distributed.all_gather(parts, every)
    said[name]["same everywhere"] = all(torch.equal(part, every) for part in parts)
    if state.is_main_process:
        changed.save_pretrained(f"{out}/{name}")
state.wait_for_everyone()
if state.is_main_process:
    print(json.dumps(said))
state.destroy_process_group()
"""

REQUESTS = {
    "finetune": ("finetune", {"epochs": 2, "batch_size": 8, "lr": 0.02}),
    "delete": ("delete", {"epochs": 1, "batch_size": 8, "lr": 0.02}),
    "ssd": ("ssd", {"batch_size": 8, "selection": 1.5}),
    "kodge": ("kodge", {"batch_size": 8, "forget_samples": 12, "retain_samples": 20, "columns": 100000}),
    "fisher": ("fisher", {"samples": 8}),
    "lau": ("lau", {"epochs": 2, "batch_size": 8}),
    "original": ("train-original", {"recipe": "resnet18-cifar10", "epochs": 1, "batch_size": 8, "lr": 0.01,
                                    "augment": "none", "bn_mode": "eval"}),
}  # fmt: skip
"""Gradient descent on D_r and on D_f, closed forms, cached features, and the training of an original."""

KEPT = {"batch_size": 8, "epochs": 2, "checkpoint": "in the folder of the results"}
AUTO = KEPT | {"keep": "auto", "scan_epochs": 1}
SHARED_ALIKE = {"regrow": ("regrow", KEPT), "regrow, auto": ("regrow", AUTO), "retrain": ("retrain", KEPT)}
"""Each process keeps the activations of its own images, so batches are other ones than those of one process; and each takes
statistics of BatchNorm of its own images alone."""

RESUMED = {f"{name}, killed": (method, own | {"killed": True}) for name, (method, own) in SHARED_ALIKE.items()}

RELATIVE = 2e-3
"""Of the whole change: gradient steps amplify rounding, closed forms do not."""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder that two processes left, and what they said; of the 12 and 20 samples each gets half of every batch."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    from tests.helpers.small import labelled, randomise

    folder = tmp_path_factory.mktemp("processes")
    config = labelled(ResNetConfig, embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic")
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    taught(randomise(ResNetForImageClassification(config)), processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    make_dataset([2] * 12).save_to_disk(folder / "forget")
    make_dataset([0, 1, 3, 4] * 5, seed=5).save_to_disk(folder / "retain")
    (folder / "script.py").write_text(SCRIPT)
    said = in_two_processes(folder / "script.py", folder, folder / "out", json.dumps(REQUESTS | SHARED_ALIKE | RESUMED))
    return folder, said


@pytest.mark.parametrize("name", list(REQUESTS))
def test_two_processes_give_what_one_gives(together, name):
    from transformers import AutoImageProcessor

    folder, said = together
    method, options = REQUESTS[name]
    first = AutoModelForImageClassification.from_pretrained(folder / "model")
    given = {"processor": AutoImageProcessor.from_pretrained(folder / "model", use_fast=False), "progress": False}
    retain = load_from_disk(folder / "retain")
    if method == "train-original":
        alone = train_original(first, retain, **given, **options)
        start = None
    else:
        alone = unlearn(first, load_from_disk(folder / "forget"), method, retain=retain, **given, **options)
        start = first.state_dict()
        assert said[name]["n"] == 12
        assert said[name]["processes"] == 2
    assert said[name]["same everywhere"], "every process ends with the same weights"
    both = AutoModelForImageClassification.from_pretrained(folder / "out" / name).state_dict()
    one = alone.state_dict()
    assert one.keys() == both.keys()
    moved = difference = 0.0
    for key, value in one.items():
        if value.is_floating_point():
            moved += float((value - (start[key] if start else 0)).double().square().sum())
            difference += float((value - both[key]).double().square().sum())
    assert moved > 0
    assert difference**0.5 <= RELATIVE * moved**0.5
    pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other = AutoModelForImageClassification.from_pretrained(folder / "out" / name)
        assert torch.allclose(alone(pixels).logits, other(pixels).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", list(SHARED_ALIKE))
def test_processes_with_images_of_their_own_end_with_one_network(together, name):
    _, said = together
    assert said[name]["same everywhere"]
    assert said[name]["steps"] == 2 * 3, "20 retained images: 10 for each process, 4 a step"


@pytest.mark.parametrize("name", list(SHARED_ALIKE))
def test_processes_that_were_killed_after_an_epoch_end_as_those_that_were_not(together, name):
    folder, said = together
    assert said[f"{name}, killed"]["same everywhere"]
    assert (said[name]["epochs here"], said[f"{name}, killed"]["epochs here"]) == (2, 1)
    whole, resumed = (
        AutoModelForImageClassification.from_pretrained(folder / "out" / each).state_dict()
        for each in (name, f"{name}, killed")
    )
    assert any("running_var" in key for key in whole)
    assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())
