"""Regrow: what is kept stays bit for bit, the rest has seen nothing, and the forgotten classes are never answered."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import IterableDataset
from torch import nn

from hf_kd import unlearn
from hf_kd.data.samples import Samples
from hf_kd.features.reader import ReadOptions
from hf_kd.methods.unlearning import activations, regrow
from hf_kd.methods.unlearning.cut import choose_block, cut_behind, hidden_at, take_over, upper_part
from hf_kd.methods.unlearning.regrow import Regrow
from hf_kd.methods.unlearning.steps import agreed_mean
from hf_kd.methods.unlearning.task import Task
from hf_kd.methods.unlearning.training import one_cycle
from hf_kd.model.erased_model import ErasedModel
from hf_kd.model.unlearn import fresh_model, make_task
from hf_kd.testing.unlearning import CLASSES, loader, planted_images, trained_model
from tests.helpers import processes, zoo
from tests.helpers.small import NAMES, make_dataset, picture

FORGET, RETAINED = [2], [0, 1, 3, 4]
QUICK = {"epochs": 2, "batch_size": 16}

FAMILIES = [
    "ResNetForImageClassification", "MobileNetV2ForImageClassification", "ConvNextForImageClassification",
    "ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher",
    "SwinForImageClassification", "Dinov2ForImageClassification", "RegNetForImageClassification",
    "EfficientNetForImageClassification", "LevitForImageClassification",
]  # fmt: skip


def grown(model, **settings):
    forget, retain = loader(*planted_images(FORGET)), loader(*planted_images(RETAINED))
    checkpoint = settings.pop("checkpoint", None)
    retain = settings.pop("retain", retain)
    options = QUICK | settings
    return unlearn(model, forget, "regrow", retain=retain, progress=False, checkpoint=checkpoint, **options)


def measured(model) -> dict:
    return model.config.hf_kd_unlearned[-1]["measured"][0]


def equal(one, other) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(params=["convolutional", "transformer"])
def original(request):
    return trained_model(request.param)


def small_task(name: str) -> Task:
    """A task around a random model of a family, whose weights are large enough to tell things apart."""
    model = ErasedModel.from_model(zoo.build(name))
    inputs = zoo.inputs(name, batch=12)["pixel_values"]

    def rows(labels):
        return loader(inputs[: len(labels)], torch.tensor(labels))

    return make_task(model, rows([2] * 4), rows([0, 1, 3, 4] * 3), ReadOptions(progress=False))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_the_lower_part_and_grow_the_rest(name):
    task = small_task(name)
    before = copy.deepcopy(task.model.state_dict())
    made = Regrow(epochs=1, batch_size=6).run(task)
    after = task.model.state_dict()
    cut = cut_behind(task.model, made["block"], task.two_images())
    assert set(cut.kept) | set(cut.new) == set(after)
    assert not set(cut.kept) & set(cut.new)
    assert all(torch.equal(before[key], after[key]) for key in cut.kept), "the kept part is as it was"
    matrices = [key for key in cut.new if after[key].ndim > 1 and after[key].is_floating_point()]
    assert matrices
    assert not any(torch.equal(before[key], after[key]) for key in matrices), "all matrices above it are new"
    assert made["activations"] == "memory", "the part above runs on its own"
    assert all(f"{head}.weight" in cut.new for head in task.heads)
    with torch.no_grad():
        answers = task.logits(task.two_images())
    assert float(answers[:, 2].max()) < -1e3


def test_what_lies_above_has_seen_nothing_before_it_is_trained(original):
    """The weights drawn are those of the class's own initialisation, statistics included, whatever the original's were."""
    model = copy.deepcopy(original)
    images = {"pixel_values": planted_images([0, 1], per_class=1)[0]}
    fresh = fresh_model(original, seed=7)
    blocks = [name for name, _ in model.named_modules() if name.endswith(("stages.0", "layers.0", "layer.0"))]
    cut = cut_behind(model, blocks[0], images)
    take_over(model, fresh, cut.new)
    state, drawn = model.state_dict(), fresh.state_dict()
    assert all(torch.equal(state[name], drawn[name]) for name in cut.new)
    assert all(torch.equal(state[name], original.state_dict()[name]) for name in cut.kept)


def test_the_upper_part_alone_answers_as_the_whole_does():
    for name in FAMILIES:
        task = small_task(name)
        block = choose_block(task, 1 / 3).block
        inputs = next(task.retain.batches(5)).inputs
        with torch.no_grad(), task.mode("eval"), upper_part(task, block) as above:
            alone = above(hidden_at(task.model, block, inputs))
        with torch.no_grad(), task.mode("eval"):
            whole = task.logits(inputs)
        assert torch.allclose(alone, whole, atol=1e-4), name


def test_forgotten_classes_are_never_answered(original):
    for classes in ([2], [1, 3]):
        rest = [c for c in range(CLASSES) if c not in classes]
        changed = unlearn(
            original,
            loader(*planted_images(classes)),
            "regrow",
            retain=loader(*planted_images(rest)),
            progress=False,
            **QUICK,
        )
        with torch.no_grad():
            answers = changed(pixel_values=10 * torch.randn(64, 3, 16, 16)).logits.argmax(dim=1)
        assert not bool(torch.isin(answers, torch.tensor(classes)).any())


def test_a_share_is_rounded_to_the_end_of_a_stage_one_block_away():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Conv2d(3 if i == 0 else 4, 4, 3, 2 if i in (3, 6) else 1, 1) for i in range(9)
            )
            self.head = nn.Linear(4, 3)

        def forward(self, pixel_values):
            for layer in self.layers:
                pixel_values = layer(pixel_values)
            return type("Output", (), {"logits": self.head(pixel_values.mean(dim=(2, 3)))})

    samples = Samples(torch.tensor([0, 1]), {"pixel_values": torch.randn(2, 3, 16, 16)})
    task = Task(
        Net(), samples, samples, num_labels=3, blocks=lambda inputs, every: tuple(f"layers.{i}" for i in range(9))
    )
    found = {keep: choose_block(task, keep).block for keep in (0.01, 1 / 3, 0.45, 0.5, 0.99, "layers.7")}
    assert found == {0.01: "layers.0", 1 / 3: "layers.2", 0.45: "layers.2", 0.5: "layers.4", 0.99: "layers.7",
                     "layers.7": "layers.7"}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"augment": "flip-crop", "crops": 2}, {"augment": "none"}])
def test_a_cache_on_disk_gives_what_one_in_memory_gives(original, settings):
    there, here = (grown(original, cache=place, **settings) for place in ("disk", "memory"))
    assert (measured(there)["activations"], measured(here)["activations"]) == ("disk", "memory")
    assert equal(there, here)


def test_activations_that_are_not_kept_give_almost_the_same():
    """Halves against float32, and no mirror: the same images in the same order."""
    model = trained_model("transformer")
    kept, through = (grown(model, cache=place, augment="none", epochs=1) for place in ("memory", "none"))
    assert measured(through)["activations"] == "none"
    x = planted_images(RETAINED, seed=3)[0]
    with torch.no_grad():
        assert torch.allclose(kept(x).logits, through(x).logits, atol=0.2)


def test_activations_beyond_halves_are_kept_as_bfloat16(monkeypatch):
    model = trained_model("convolutional")
    real = activations.hidden_at
    monkeypatch.setattr(activations, "hidden_at", lambda *args: real(*args) + 1e6)
    grown(model, epochs=1)


@pytest.mark.parametrize(("original", "release"), [("convolutional", 2), ("transformer", 0)], indirect=["original"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(original, tmp_path, monkeypatch, release):
    settings = {"epochs": 3, "release": release}
    whole = grown(original, **settings)
    saves = []

    class Killed(BaseException):
        pass

    def dies(*args):
        real(*args)
        saves.append(1)
        if len(saves) == (4 if release else 2):
            raise Killed

    real = regrow.save_progress
    monkeypatch.setattr(regrow, "save_progress", dies)
    with pytest.raises(Killed):
        grown(original, checkpoint=tmp_path, **settings)
    monkeypatch.setattr(regrow, "save_progress", real)
    resumed = grown(original, checkpoint=tmp_path, **settings)
    assert equal(whole, resumed)
    assert measured(whole)["retained_accuracy"] == measured(resumed)["retained_accuracy"]
    again = grown(original, checkpoint=tmp_path, **settings)
    assert equal(whole, again), "and asked once more, it is done"
    with pytest.raises(ValueError, match="another run"):
        grown(original, checkpoint=tmp_path, **settings | {"seed": 1})
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        grown(original, checkpoint=tmp_path, **settings)


@pytest.mark.slow
def test_the_file_of_activations_is_gone_with_its_process(tmp_path):
    """Also where it is killed: the file never has a name."""
    code = (
        "import os, signal, torch; from hf_kd.methods.unlearning.activations import _storage;"
        "where, store = _storage(8, 4, torch.float16, torch.device('cpu'), 'disk', 0.5); store.fill_(1);"
        "assert where == 'disk' and float(store.sum()) == 32; os.kill(os.getpid(), signal.SIGKILL)"
    )
    (ended,) = processes.run(["-c", code], environments=[processes.surroundings(TMPDIR=str(tmp_path))])
    assert ended.code == -9, ended.err
    assert list(tmp_path.iterdir()) == []


def test_unlabelled_images_get_the_labels_of_the_model_as_it_was(original):
    images = planted_images(RETAINED)[0]
    rows = [{"pixel_values": image} for image in images]
    unlabelled = torch.utils.data.DataLoader(rows, batch_size=16, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"labels of its images.*labels='teacher'"):
        grown(original, retain=unlabelled)
    changed = grown(original, retain=unlabelled, labels="teacher", epochs=8)
    with torch.no_grad():
        same = changed(images).logits.argmax(dim=1) == original(images).logits.argmax(dim=1)
    assert float(same.float().mean()) > 0.8


def test_soft_labels_say_what_they_leak(original):
    changed = grown(original, labels="teacher", soft=True)
    assert any("do without soft=True" in text for text in changed.config.hf_kd_unlearned[-1]["warnings"])
    with pytest.raises(ValueError, match="labels='teacher'"):
        Regrow(soft=True)


def test_release_moves_the_kept_part_too(original):
    changed = grown(original, release=1)
    name = next(name for name, p in original.named_parameters() if p.ndim > 1)
    assert not torch.equal(original.state_dict()[name], changed.state_dict()[name])
    assert measured(changed)["epochs_run"] == 3


def test_refusals(original, resnet):
    with pytest.raises(ValueError, match=r"forget set alone"):
        unlearn(original, loader(*planted_images(FORGET)), "regrow", progress=False)
    with pytest.raises(ValueError, match="Its blocks are"):
        grown(original, keep="nowhere")
    for method in ("regrow", "eu-k"):
        with pytest.raises(ValueError, match="Its blocks are"):  # where no image could be read
            unlearn(original, None, method, retain=[], keep="nowhere")
    with pytest.raises(ValueError, match="fewer than all"):
        unlearn(original, loader(*planted_images([0, 1, 2, 3, 4])), "regrow", retain=loader(*planted_images([0])),
                progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="cannot be resumed"):
        unlearn(original, loader(*planted_images(FORGET)), "delete", progress=False, checkpoint="x")
    for wrong in (
        {"keep": 1.0},
        {"keep": 0},
        {"keep": [1]},
        {"seed": 2**64},
        {"crops": 1},
        {"cache": "cloud"},
        {"labels": "none"},
    ):
        with pytest.raises(ValueError, match=f"regrow: {next(iter(wrong))}"):
            Regrow(**wrong)
    assert Regrow(keep="0.5").keep == 0.5, "as a command line gives it"


def test_the_learning_rate_rises_and_falls():
    torch_one = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0), 1.0, total_steps=1000, pct_start=0.2, cycle_momentum=False
    )
    for step in range(0, 1000, 50):
        torch_one.last_epoch = step
        assert one_cycle(step / 1000) == pytest.approx(torch_one.get_lr()[0], abs=0.01)


def test_retained_images_of_a_forgotten_class_are_refused(original):
    """The network would be trained on what it has to forget, against an answer that it cannot give."""
    for labels in ("data", "teacher"):
        with pytest.raises(ValueError, match="16 of 80 retained images"):
            grown(original, retain=loader(*planted_images([0, 1, 2, 3, 4])), labels=labels)


@pytest.mark.parametrize("names", [["2", "x", "cat"], None], ids=["by name", "by id"])
def test_a_forgotten_class_is_found_among_images_whose_labels_are_not_needed(vit, processor, names):
    data = make_dataset([0, 1, 2, 2], names=names or NAMES)
    rows = data if names else [(row["image"], row["label"]) for row in data]
    given = {"retain": rows, "labels": "teacher", "processor": processor, "allow_unrecognised": True, "progress": False}
    with pytest.raises(ValueError, match="2 of 4 retained images"):
        unlearn(vit, make_dataset([2] * 4), "regrow", keep="vit.layers.0", **given)


def streamed(texts: list[str]) -> IterableDataset:
    """Images in a stream, whose labels are texts."""
    rows = [{"image": picture(row, 0), "label": text} for row, text in enumerate(texts)]
    return IterableDataset.from_generator(lambda: iter(rows))


def test_texts_in_a_stream_need_not_be_labels_of_the_model_where_none_is_needed(vit, processor):
    given = {"labels": "teacher", "processor": processor, "allow_unrecognised": True, "progress": False, "epochs": 1}
    forget = make_dataset([2] * 4)
    changed = unlearn(vit, forget, "regrow", retain=streamed(["fox", "gnu", "hen"] * 4), keep="vit.layers.0", **given)
    assert changed.config.hf_kd_unlearned[-1]["n_retain"] == 12
    for called in ("cat", "CAT", "cat, Felis catus"):
        with pytest.raises(ValueError, match="1 of 3 retained images"):
            unlearn(vit, forget, "regrow", retain=streamed(["fox", called, "hen"]), keep="vit.layers.0", **given)
    with pytest.raises(ValueError, match="'fox', and the labels are"):
        unlearn(vit, forget, "finetune", retain=streamed(["fox", "gnu"]), processor=processor, progress=False)


def test_unlabelled_images_that_the_model_took_for_what_is_forgotten_are_counted(original):
    images = planted_images([0, 1, 2, 3, 4])[0]
    unlabelled = torch.utils.data.DataLoader([{"pixel_values": image} for image in images], batch_size=16)
    with torch.no_grad():
        taken = int((original(images).logits.argmax(dim=1) == 2).sum())
    warnings = grown(original, retain=unlabelled, labels="teacher", epochs=1).config.hf_kd_unlearned[-1]["warnings"]
    assert taken > 10
    assert any(f"Of 80 retained images the model as it was took {taken} for what is forgotten" in w for w in warnings)


def test_the_optimizer_follows_the_part_that_is_trained():
    """BatchNorm in a stem that is kept says nothing about the blocks above it."""
    task = small_task("ViTForImageClassification")
    task.model.vit.embeddings.dropout = nn.BatchNorm1d(task.model.vit.embeddings.position_embeddings.shape[1])
    cut = choose_block(task, 1 / 3)
    assert "vit.embeddings.dropout" in cut.modules
    optimizer, lr = Regrow()._optimizer(task, cut, list(task.model.parameters()))
    assert (type(optimizer).__name__, lr) == ("AdamW", 1e-3)
    task = small_task("ResNetForImageClassification")
    optimizer, lr = Regrow()._optimizer(task, choose_block(task, 1 / 3), list(task.model.parameters()))
    assert (type(optimizer).__name__, lr) == ("SGD", 0.1)


@pytest.mark.parametrize("bn_mode", ["eval", "freeze"])
def test_statistics_are_those_that_the_weights_were_trained_with(bn_mode):
    task = small_task("ResNetForImageClassification")
    made = Regrow(bn_mode=bn_mode, epochs=1, batch_size=6).run(task)
    above = cut_behind(task.model, made["block"], task.two_images()).new
    state = task.model.state_dict()
    assert all(bool((state[name] == 0).all()) for name in above if name.endswith("running_mean"))


def test_a_mean_over_processes_that_agree_is_what_they_agree_on():
    """So the statistics of the kept part stay bit for bit, also with three of them."""
    own = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert not torch.equal((own + own + own) / 3, own)
    assert torch.equal(agreed_mean(own.expand(3, -1)), own)
    mean = agreed_mean(torch.stack([own, own + 1]))
    assert torch.allclose(mean, own + 0.5, atol=1e-6)


def test_classes_of_earlier_requests_stay_unanswered(original):
    """The head is drawn anew; what was taken from it before is not to come back as a row of chance."""
    first = grown(original, epochs=12)
    second = unlearn(
        first,
        loader(*planted_images([1])),
        "regrow",
        retain=loader(*planted_images([0, 3, 4])),
        progress=False,
        **QUICK | {"epochs": 12},
    )
    assert not second.config.hf_kd_unlearned[-1]["warnings"]
    with torch.no_grad():
        logits = second(pixel_values=10 * torch.randn(64, 3, 16, 16)).logits
    assert float(logits[:, [1, 2]].max()) < -1e3
    given = loader(*planted_images([0, 2, 3, 4]))
    same = unlearn(first, loader(*planted_images([1])), "regrow", retain=given, progress=False, **QUICK)
    assert any("were left out" in text for text in same.config.hf_kd_unlearned[-1]["warnings"])
    images, _ = planted_images([2], seed=4)
    with torch.no_grad():
        assert float(same(images).logits[:, 2].max()) < -1e3, "also where images of it are given"


def test_classes_without_a_retained_image_are_said_to_be_lost(original):
    changed = grown(original, retain=loader(*planted_images([0, 1])))
    assert any("2 of the 4 classes that stay" in text for text in changed.config.hf_kd_unlearned[-1]["warnings"])
