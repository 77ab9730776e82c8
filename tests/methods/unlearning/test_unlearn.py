"""What `unlearn` does whatever the method: losses that are not finite, records that add up, refusals, samples, schedules."""

from __future__ import annotations

import math

import pytest
import torch

from hf_kd import ErasedModel, unlearn, unlearning_methods
from hf_kd.audit.whitebox.network import answer
from hf_kd.methods.registry import make_unlearning_method
from hf_kd.methods.unlearning import random_label
from hf_kd.methods.unlearning.steps import GradientSteps
from hf_kd.methods.unlearning.training import TrainedMethod
from tests.helpers import zoo
from tests.helpers.small import NAMES, make_dataset

QUICK = {
    "retrain": {"epochs": 1},
    "neggrad": {"epochs": 2, "lr": 0.01},
    "random-label": {"epochs": 1},
    "delete": {"epochs": 1},
    "eu-k": {"epochs": 1, "k": 2},
    "cf-k": {"epochs": 1, "k": 2},
    "lau": {"epochs": 2},
    "fisher": {"samples": 6},
    "kodge": {"forget_samples": 12, "retain_samples": 12},
    "unsir": {"noise_images": 8, "noise_steps": 3, "noise_repeats": 2, "per_class": 5},
    "regrow": {"epochs": 1, "batch_size": 16},
    "damp": {"samples": 16},
    "layer-resets": {"layers": 1, "cycles": 1},
    "scrub": {"epochs": 2, "max_epochs": 1},
}
"""Settings that make a method quick; every trained one also gets small batches and one epoch where nothing says more."""

METHODS = list(unlearning_methods())


def options(name: str, **more) -> dict:
    quick = QUICK.get(name, {})
    if issubclass(unlearning_methods()[name], TrainedMethod):
        quick = {"epochs": 1, "batch_size": 16} | quick
    return {"progress": False} | quick | more


@pytest.fixture(scope="module")
def forget():
    return make_dataset([2] * 16)


@pytest.fixture(scope="module")
def retain():
    return make_dataset([0, 1, 3, 4] * 8, seed=5)


TRAINED = [name for name in METHODS if issubclass(unlearning_methods()[name], TrainedMethod)]


# LAU trains the last layer on fixed features: whatever the step, softmax saturates and its gradients are zero
@pytest.mark.parametrize("name", [name for name in TRAINED if name != "lau"])
def test_a_loss_that_is_not_finite_ends_in_the_last_good_weights(name, resnet, processor, forget, retain, caplog):
    wild = options(name, lr=1e30) | ({"repair_lr": 1e30} if name == "unsir" else {})
    wild |= {"epochs": 4, "batch_size": 4} | ({"clip_norm": 1e30} if name == "neggrad" else {})
    try:
        changed = unlearn(resnet, forget, name, retain=retain, processor=processor, **wild)
    except ValueError as refused:  # the last good weights are those it began with
        if "changed nothing: the loss became" not in str(refused):
            raise
        return
    stopped = changed.config.hf_kd_unlearned[-1]["measured"][0].get("stopped")
    assert all(torch.isfinite(tensor).all() for tensor in changed.state_dict().values())
    assert stopped is not None
    assert "the loss became" in stopped


def test_batch_norm_is_in_eval_mode_unless_weights_are_fresh():
    modes = {name: make_unlearning_method(name).bn_mode for name in METHODS}
    assert {name for name, mode in modes.items() if mode == "train"} == {
        "regrow",
        "retrain",
        "eu-k",
        "layer-resets",
        "noise-distill",
    }
    assert set(modes.values()) == {"eval", "train"}


def test_requests_add_up_in_the_record(vit, processor, forget):
    once = unlearn(vit, forget, "head-surgery", processor=processor, progress=False)
    twice = unlearn(once, make_dataset([4] * 4), "head-surgery", processor=processor, progress=False)
    assert [record["classes"] for record in twice.config.hf_kd_unlearned] == [(2,), (4,)]
    assert len(once.config.hf_kd_unlearned) == 1


@pytest.mark.parametrize("first", ["unlearn", "fold"])
def test_what_a_request_forgot_is_no_wrong_label_of_the_next(first, vit, processor, forget, monkeypatch):
    erased = make_dataset([4] * 16, seed=3)
    if first == "unlearn":
        changed = unlearn(vit, erased, "neggrad", processor=processor, allow_unrecognised=True, **options("neggrad"))
    else:
        changed = ErasedModel.from_model(vit, processor).erase(erased, progress=False).fold()
    allowed = []
    drawn = random_label.random_labels
    monkeypatch.setattr(random_label, "random_labels", lambda y, a: allowed.append(a.tolist()) or drawn(y, a))
    unlearn(changed, forget, "random-label", processor=processor, allow_unrecognised=True, **options("random-label"))
    assert allowed == [[0, 1, 3]]


@pytest.mark.parametrize("name", ["finetune", "regrow"])
def test_retained_images_of_a_class_that_an_earlier_request_forgot_are_left_out(
    vit, processor, forget, retain, caplog, name
):
    """Also by a method that reads no labels of retained images, as far as the data set has them."""
    given = {"processor": processor, "allow_unrecognised": True}
    settings = options(name) | ({"labels": "teacher", "keep": 0.5} if name == "regrow" else {})
    once = unlearn(vit, make_dataset([4] * 16, seed=3), "neggrad", **given, **options("neggrad"))
    again = unlearn(once, forget, name, retain=retain, **given, **settings)
    record = again.config.hf_kd_unlearned[-1]
    (said,) = [w for w in record["warnings"] if "were left out" in w]
    assert said.startswith("8 retained images")
    assert said in caplog.text
    assert record["n_retain"] == 24
    rest = make_dataset([0, 1, 3] * 8, seed=5)
    other = unlearn(once, forget, name, retain=rest, **given, **settings)
    assert not any("were left out" in w for w in other.config.hf_kd_unlearned[-1]["warnings"])
    with pytest.raises(ValueError, match="No retained image is left: 8 retained images"):
        unlearn(once, forget, name, retain=make_dataset([4] * 8), **given, **settings)


def test_a_wrapped_model_stays_wrapped_and_an_erased_one_is_refused(vit, processor, forget):
    model = ErasedModel.from_model(vit, processor)
    model.find_taps()
    changed = unlearn(model, forget, "head-surgery", progress=False)
    assert model.sites[0]._handles
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in changed.modules())
    model.erase(forget, progress=False)
    for given in (model, model.inner):
        with pytest.raises(ValueError, match="carries an eraser"):
            unlearn(given, forget, "head-surgery", processor=processor, progress=False)


def test_refusals_say_what_is_possible(vit, processor, forget, retain):
    with pytest.raises(ValueError, match="Available: amnesiac"):
        unlearn(vit, forget, "forget-me", processor=processor)
    with pytest.raises(ValueError, match=r"fits an eraser.*\.erase\(images, 'leace'"):
        unlearn(vit, forget, "leace", processor=processor)
    with pytest.raises(ValueError, match=r"changes weights.*hf_kd\.unlearn"):
        ErasedModel.from_model(vit, processor).erase(forget, "delete")
    with pytest.raises(TypeError, match="It takes"):
        unlearn(vit, forget, "scrub", retain=retain, processor=processor, strength=3)
    with pytest.raises(ValueError, match="bn_mode"):
        unlearn(vit, forget, "delete", processor=processor, bn_mode="off")
    with pytest.raises(ValueError, match="lr=0"):
        unlearn(vit, forget, "delete", processor=processor, lr=0)
    with pytest.raises(ValueError, match="labels"):
        unlearn(vit, forget.remove_columns("label"), "delete", processor=processor)
    with pytest.raises(ValueError, match="no classification head"):
        from transformers import ViTModel

        unlearn(ViTModel(vit.config), forget, "delete", processor=processor)
    embedding = ErasedModel.from_model(ViTModel(vit.config), processor)
    with pytest.raises(ValueError, match="needs a classification head"):
        embedding.erase(forget, "cover")  # before its labels are looked at


def test_samples_that_do_not_fit_in_memory_give_the_same_batches(vit, processor, forget):
    from hf_kd.data.samples import Samples
    from hf_kd.features.reader import ImageReader, ReadOptions
    from hf_kd.model.unlearn import make_task

    model = ErasedModel.from_model(vit, processor)
    whole = make_task(model, forget, None, ReadOptions()).forget
    reader = ImageReader(model, forget)
    small = Samples.read(reader.images, reader.preprocessor, cache_bytes=1)
    assert small._cached is None
    order = torch.randperm(16)
    for a, b in zip(whole.batches(5, order), small.batches(5, order), strict=True):
        assert torch.equal(a.inputs["pixel_values"], b.inputs["pixel_values"])
        assert torch.equal(a.labels, b.labels)
    parts = [list(whole.batches(6, order, part=i, parts=2)) for i in range(2)]
    seen = sorted(torch.cat([b.inputs["pixel_values"].flatten(1)[:, 0] for part in parts for b in part]).tolist())
    assert seen == sorted(whole._cached["pixel_values"].flatten(1)[:, 0].tolist())


def test_learning_rate_schedules():
    steps = make_unlearning_method("finetune", epochs=10, decay_epochs=(3, 5), decay=0.1)
    assert [round(steps.lr_factor(e), 6) for e in (0, 1.9, 2, 4)] == [1, 1, 0.1, 0.01]
    cosine = make_unlearning_method("finetune", epochs=10, schedule="cosine", warmup=1)
    assert cosine.lr_factor(0.5) == 0.5
    assert math.isclose(cosine.lr_factor(1), 1)
    assert math.isclose(cosine.lr_factor(10), 0, abs_tol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 3, "schedule": "cosine", "warmup": 0.7},
        {"epochs": 4, "decay_epochs": (2, 4), "decay": 0.3},
        {"epochs": 2, "warmup": 1.5, "decay_epochs": (2,)},
    ],
    ids=str,
)
def test_each_step_is_taken_at_the_lr_of_its_schedule(vit, processor, forget, retain, monkeypatch, settings):
    seen, step = [], GradientSteps.step

    def noted(self, *args):
        seen.append([group["lr"] for group in self.optimizer.param_groups])
        return step(self, *args)

    monkeypatch.setattr(GradientSteps, "step", noted)
    given = {"retain": retain, "processor": processor, "progress": False, "batch_size": 13, **settings}
    unlearn(vit, forget, "retrain", lr=0.02, head_lr=0.3, augment="none", **given)
    method = make_unlearning_method("retrain", lr=0.02, **settings)
    factors = [method.lr_factor(epoch + number / 3) for epoch in range(method.epochs) for number in range(3)]
    assert seen == [[0.02 * factor, 0.3 * factor] for factor in factors], "to the last digit"


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("cola", {"epochs": 4, "schedule": "steps", "decay_epochs": (3,)}, [1, 1] + 2 * [1] * 2 + 2 * [0.1] * 2),
        (
            "unsir",
            {"epochs": 2, "decay_epochs": (2,), "repair_lr": 2e-4, **QUICK["unsir"]},
            3 * [1] + 3 * [0.1] + 2 * [2],
        ),
        ("scrub", {"epochs": 2, "max_epochs": 1, "warmup": 1}, [1e-3, 1 / 3, 2 / 3, 1, 1]),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_each_phase_has_the_schedule_of_the_settings(
    vit, processor, forget, retain, monkeypatch, name, settings, expected
):
    """The decays lie within the epochs that were asked for, if not within those of every phase."""
    seen, step = [], GradientSteps.step

    def noted(self, *args):
        seen.append(self.optimizer.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(GradientSteps, "step", noted)
    unlearn(vit, forget, name, retain=retain, processor=processor, progress=False, batch_size=16, lr=1e-4, **settings)
    assert seen == pytest.approx([1e-4 * factor for factor in expected])


def test_defaults_that_depend_on_another_option_follow_it():
    assert [make_unlearning_method("scrub", epochs=e).max_epochs for e in (1, 2, 3, 9)] == [1, 2, 2, 2]
    with pytest.raises(ValueError, match="max_epochs=2 is out of range"):
        make_unlearning_method("scrub", epochs=1, max_epochs=2)


@pytest.mark.parametrize("name", [name for name in METHODS if "epochs" in make_unlearning_method(name).settings()])
def test_one_epoch_is_enough_for_every_method(name):
    assert make_unlearning_method(name, epochs=1).epochs == 1


def test_a_classifier_that_calls_its_logits_otherwise_is_changed_and_attacked_like_others(processor):
    """PPLCNet's stand in a field with the name of a hidden state."""
    model = zoo.build("PPLCNetForImageClassification")
    model.config.id2label, model.config.label2id = dict(enumerate(NAMES)), {name: n for n, name in enumerate(NAMES)}
    processor.size = {"height": 32, "width": 32}
    retain = make_dataset([0, 1, 3, 4] * 3)
    for method in ("regrow", "neggrad"):
        changed = unlearn(
            model, make_dataset([2] * 6), method, retain=retain, processor=processor, progress=False,
            allow_unrecognised=True, batch_size=4, epochs=1,
        )  # fmt: skip
        inputs = zoo.inputs("PPLCNetForImageClassification", batch=3)
        assert answer(changed, inputs).shape == (3, len(NAMES))


@pytest.mark.parametrize("method", ["random-label", "scrub", "ssd"])
def test_what_a_network_caches_in_eval_mode_is_not_gone_back_through_twice(processor, method):
    """LeViT keeps its attention biases, with their graph and as the weights made them, until it is trained."""
    levit = zoo.build("LevitForImageClassification")
    levit.config.id2label, levit.config.label2id = dict(enumerate(NAMES)), {name: n for n, name in enumerate(NAMES)}
    processor.size = {"height": 32, "width": 32}
    settings = {} if method == "ssd" else {"epochs": 1}
    changed = unlearn(
        levit, make_dataset([2] * 6), method, retain=make_dataset([0, 1, 3, 4] * 3), processor=processor, progress=False,
        allow_unrecognised=True, batch_size=4, **settings,
    )  # fmt: skip
    before, after = levit.state_dict(), changed.state_dict()
    moved = [name for name in before if "attention_biases" in name and not torch.equal(before[name], after[name])]
    assert moved, "and every step asks for their gradient"
