"""Where activations of the kept part lie, how much they may take, and when they are given back."""

from __future__ import annotations

import copy
import gc
import tempfile
import weakref
from types import SimpleNamespace

import psutil
import pytest
import torch

from hf_kd import unlearn
from hf_kd.data.samples import Samples
from hf_kd.methods.unlearning import activations
from hf_kd.methods.unlearning.activations import ThroughNetwork, source_of
from hf_kd.methods.unlearning.cut import choose_block, upper_part_stands_alone
from hf_kd.methods.unlearning.regrow import Regrow
from hf_kd.testing.unlearning import loader, planted_images, trained_model
from tests.methods.unlearning.test_regrow import small_task


def test_processes_share_the_memory_that_is_free(monkeypatch):
    """The stated share is that of all of them: four that look at once would otherwise take all there is."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8_000))
    size = {"count": 10, "values": 50, "dtype": torch.float16, "device": torch.device("cpu"), "place": "auto"}
    found = [activations._storage(**size, share=0.25, processes=n)[0] for n in (1, 2, 4)]
    assert found == ["memory", "memory", "disk"], "1,000 bytes each, 2,000 together"


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_activations_are_given_back_while_an_exception_is_still_held(place):
    """As a notebook holds the last one, with all that its frames refer to."""
    task = small_task("ViTForImageClassification")
    block = choose_block(task, 1 / 3).block
    try:
        with source_of(task, task.retain, block, "flip", place=place) as source:
            store = weakref.ref(source.store.untyped_storage())
            assert source.place == place
            raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        held = error
        gc.collect()
        assert store() is None
    assert held.__traceback__ is not None


def test_a_last_batch_of_one_sample_is_no_batch():
    """The normalisation of a map of one place cannot be trained on it."""
    task = small_task("ResNetForImageClassification")
    made = Regrow(epochs=1, batch_size=11, cache="none").run(task)
    assert (len(task.retain), made["steps"]) == (12, 1)


def test_images_in_half_precision_are_read_by_a_network_in_full():
    """As a loader gives them that was made for the model before it was changed, which is done in float32."""
    task = small_task("ResNetForImageClassification")
    block = choose_block(task, 1 / 3).block
    whole = {name: value.bfloat16().float() for name, value in task.retain._cached.items()}
    kept = []
    for inputs in (whole, {name: value.bfloat16() for name, value in whole.items()}):
        task.retain = Samples(task.retain.labels, inputs)
        with source_of(task, task.retain, block, "flip") as source:
            kept.append(source.store.clone())
    assert torch.equal(*kept)


@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
@pytest.mark.parametrize("method", ["regrow", "lau"])
def test_what_is_read_once_in_full_precision_is_given_to_weights_that_are_doubles(method, kind):
    forget, retain = (loader(*planted_images(classes)) for classes in ([2], [0, 1, 3, 4]))
    model = copy.deepcopy(trained_model(kind)).double()
    changed = unlearn(model, forget, method, retain=retain, epochs=1, progress=False)
    assert changed.dtype == torch.float64


@pytest.mark.parametrize("name", ["ResNetForImageClassification", "ViTForImageClassification"])
def test_the_precision_of_forward_passes_does_not_decide_whether_activations_are_kept(name):
    """In bf16 logits of some size are farther from those of a float32 lower part than rounding of the upper one is."""
    task = small_task(name)
    with torch.no_grad():
        largest = task.logits(task.two_images()).abs().max()
        for head in task.linear_heads():
            head.weight.mul_(5 / largest)
    task.mixed_precision = "bf16"
    assert upper_part_stands_alone(task, choose_block(task, 1 / 3).block)


def test_what_else_an_image_comes_with_goes_through_the_network():
    """Hidden states alone leave its mask out, and that of the first image would stand for all."""
    task = small_task("ViTForImageClassification")
    block = choose_block(task, 1 / 3).block
    assert upper_part_stands_alone(task, block)
    both = {**task.retain._cached, "bool_masked_pos": torch.zeros(len(task.retain), 1)}
    task.retain = Samples(task.retain.labels, both)
    assert not upper_part_stands_alone(task, block)


def test_a_disk_that_is_full_after_all_ends_no_process(monkeypatch, caplog):
    """Written through its mapping, a file without its blocks would end it by a signal."""
    task = small_task("ViTForImageClassification")
    monkeypatch.setattr(activations.os, "posix_fallocate", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    with source_of(task, task.retain, choose_block(task, 1 / 3).block, "flip", place="disk") as source:
        assert isinstance(source, ThroughNetwork)
    assert "full): images go through the kept part" in caplog.text


def test_a_folder_for_temporary_files_that_is_not_there_is_not_passed_over_in_silence(monkeypatch, caplog, tmp_path):
    for name, said in ((tmp_path, False), (tmp_path / "nowhere", True)):
        monkeypatch.setenv("TMPDIR", str(name))
        monkeypatch.setattr(tempfile, "tempdir", None)
        caplog.clear()
        where, store = activations._storage(2, 3, torch.float16, torch.device("cpu"), "disk", 1.0)
        assert (where, store.shape) == ("disk", (2, 3))
        assert (f"is {tempfile.gettempdir()} and not TMPDIR={str(name)!r}" in caplog.text) == said
