"""Where to cut, by a scan or beside a reference. A scan that was killed: test_resume.py."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from hf_kd import unlearn
from hf_kd.data.samples import Samples
from hf_kd.errors import InvalidValueError
from hf_kd.methods.unlearning import cut_scan, regrow
from hf_kd.methods.unlearning.cut import Cut, choose_block, cut_behind, upper_part_stands_alone
from hf_kd.methods.unlearning.fresh import fresh_model
from hf_kd.methods.unlearning.regrow import Regrow
from hf_kd.methods.unlearning.task import Task
from hf_kd.testing.unlearning import loader, planted_images, trained_model
from tests.methods.unlearning.test_regrow import FAMILIES, FORGET, RETAINED, grown, measured, original, small_task

__all__ = ["original"]


def test_auto_tries_cuts_from_the_top_and_takes_the_last_that_it_tried():
    task = small_task("ViTForImageClassification")
    task.forget = Samples(torch.full((500,), 2), {"pixel_values": torch.randn(500, 3, 32, 32)})
    before = copy.deepcopy(task.model.state_dict())
    made = Regrow(keep="auto", scan_epochs=1, epochs=1, batch_size=6).run(task)
    first, *tried = made["scan"]
    assert (first["block"], first["blocks_kept"]) == ("none", 0)
    assert [cut["blocks_kept"] for cut in tried] == sorted({cut["blocks_kept"] for cut in tried}, reverse=True)
    assert made["block"] == tried[-1]["block"]
    kept = cut_behind(task.model, made["block"], task.two_images()).kept
    assert all(torch.equal(before[name], task.model.state_dict()[name]) for name in kept)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_as_many_images_as_are_asked_for_can_be_read_alike(share):
    """Also at 50 %, where chance moves a reading most."""
    noise = round(100 * math.sqrt(max(share * (1 - share), 0.25 / cut_scan.FEWEST) / cut_scan.FEWEST), 2)
    same = {"block": "", "blocks_kept": 1, "reading": 100 * share, "noise": noise, "retained": 80.0}
    assert cut_scan._excess(same, same) <= cut_scan.ALIKE


@pytest.mark.parametrize(
    ("keep", "said"), [("auto", "labels='teacher' and a share"), (0.33, "labels='teacher', as retain")]
)
def test_a_way_out_that_auto_does_not_take_comes_with_a_share(keep, said):
    told = str(Regrow(keep=keep).missing_retain())
    assert said in told
    assert ("--retain" in told) == (keep != "auto"), "which refuses it"


@pytest.mark.parametrize("soft", [False, True])
def test_no_cut_is_looked_for_among_images_that_may_be_foreign(soft):
    """A probe tells where pictures come from at any depth, so that no reading would fall."""
    with pytest.raises(InvalidValueError, match=r"keep='auto' .* share such as 0\.33 with labels='teacher'"):
        Regrow(keep="auto", labels="teacher", soft=soft)


def names_for_states(task, blocks, *sets):
    """In place of what is read somewhere, where that is."""
    return ((place, place) for place in (cut_scan.HEADS, *blocks))


def read_before_heads(task, forget, retain):
    return cut_scan.read_class(task, forget, retain, dict(cut_scan._states(task, [], forget, retain))[cut_scan.HEADS])


def test_all_are_trained_as_far_as_the_network_of_which_nothing_is_kept(monkeypatch):
    task = small_task("ResNetForImageClassification")
    task.forget = Samples(torch.full((500,), 2), {"pixel_values": torch.randn(500, 3, 32, 32)})
    names = task.find_blocks()
    assert len(names) == 3
    every, grown_at = set(task.model.state_dict()), []
    for readings, noise, told in (([70.0, 80.0, 71.0], 1.0, True), ([70.0, 80.0, 81.0], 1.0, False)):
        before_head = iter(readings)

        def read_class(task, forget, retain, at, before_head=before_head, noise=noise):
            return (next(before_head) if at == cut_scan.HEADS else 60.0), noise

        monkeypatch.setattr(cut_scan, "_states", names_for_states)
        monkeypatch.setattr(cut_scan, "read_class", read_class)
        grown_at.clear()
        grow = lambda cut, level: grown_at.append((cut.block, set(cut.new) == every, level)) or 90.0  # noqa: E731
        cut, tried, could_tell = cut_scan.scan(task, task.retain, grow, {})
        assert grown_at == [("none", True, math.inf), (names[1], False, 90.0), (names[0], False, 90.0)]
        assert (cut.block, could_tell) == (names[0], told)
        assert [one["reading"] for one in tried] == readings


def scanned_by(monkeypatch, readings, noise=1.0, retained=lambda depth: 90.0, behind=lambda depth, at: 60.0):
    """A scan of seven blocks whose readings by the number of blocks that are kept are given, before the head and at blocks
    behind the cut: where it cuts, what it tried, whether it could tell.
    """
    task = Task(nn.Linear(4, 2), Samples(torch.ones(600).long(), {"x": torch.zeros(600, 4)}), num_labels=2)
    names = [f"block{i}" for i in range(7)]
    task.blocks = lambda inputs, every: tuple(names)
    at = []
    monkeypatch.setattr(cut_scan, "choose_block", lambda task, block: Cut(block, None, tuple(names), (), (), ()))

    def read_class(task, forget, retain, place):
        return (readings(at[-1]) if place == cut_scan.HEADS else behind(at[-1], names.index(place) + 1)), noise

    monkeypatch.setattr(cut_scan, "_states", names_for_states)
    monkeypatch.setattr(cut_scan, "read_class", read_class)

    def grow(cut, level):
        at.append(names.index(cut.block) + 1 if cut.block != "none" else 0)
        return retained(at[-1])

    cut, tried, could_tell = cut_scan.scan(task, task.forget, grow, {})
    assert [one["blocks_kept"] for one in tried] == at
    for one in tried:
        assert list(one["above"]) == names[one["blocks_kept"] : -1], "the last is what stands before the head"
    return names.index(cut.block) + 1, at, could_tell


def test_a_scan_ends_where_the_class_is_read_no_better_than_where_nothing_is_kept(monkeypatch):
    assert scanned_by(monkeypatch, lambda depth: 70.0 + 5 * max(depth - 4, 0)) == (4, [0, 6, 5, 4], True)


@pytest.mark.parametrize(("points", "cut"), [(5.0, 2), (1.0, 5)])
def test_what_a_block_behind_the_cut_gives_away_is_read_too(monkeypatch, points, cut):
    """A network may tell the class lower down while its last features no longer do."""
    before_head = lambda depth: 70.0 + 5 * max(depth - 5, 0)  # noqa: E731
    found = scanned_by(monkeypatch, before_head, behind=lambda depth, at: 60.0 + points * (at == 6 and depth > 2))
    assert found == (cut, [0, *range(6, cut - 1, -1)], True)


def test_a_reading_at_a_lower_accuracy_is_no_reason_to_stop(monkeypatch):
    """A worse network is read less, so that one which did not get as far may seem not to know the class."""
    found = scanned_by(monkeypatch, lambda depth: 70.0, retained=lambda depth: 90.0 if depth < 3 else 80.0)
    assert found == (2, [0, 6, 5, 4, 3, 2], True)


@pytest.mark.parametrize(("noise", "excess"), [(10.0, 0.0), (2.5, 0.0), (1.5, 1.6)])
def test_a_difference_that_noise_would_hide_is_no_reason_to_stop(monkeypatch, noise, excess):
    """Of few images any two readings are within their noise: the first cut from the top would always be taken."""
    found = scanned_by(monkeypatch, lambda depth: 80.0 + excess * min(depth, 1), noise)
    assert found == (1, [0, 6, 5, 4, 3, 2, 1], False)


@pytest.mark.parametrize("reference", [False, True])
def test_images_too_few_to_tell_readings_apart_are_refused(reference):
    task = small_task("ResNetForImageClassification")
    task.forget = task.forget.subset(torch.arange(4).repeat(124))
    with pytest.raises(InvalidValueError, match=r"readings of 496 .*at least 500.* keep=0\.33"):
        if reference:
            cut_scan.where_profiles_part(task, task.retain, copy.deepcopy(task.model))
        else:
            cut_scan.scan(task, task.retain, lambda cut, level: 90.0, {})


@pytest.mark.parametrize("reference", [False, True])
def test_they_are_refused_before_retained_images_are_read(original, reference):
    read = []

    class Retained(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, at):
            read.append(at)
            return {"pixel_values": torch.zeros(3, 32, 32), "labels": 0}

    few = loader(*planted_images(FORGET, per_class=20))
    with pytest.raises(InvalidValueError, match="at least 500"):
        unlearn(original, few, "regrow", retain=torch.utils.data.DataLoader(Retained(), 20), progress=False, keep="auto",
                reference_model=original if reference else None)  # fmt: skip
    assert len(read) <= 20  # a first batch says what is in it


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_and_blocks_are_read_in_one_pass_as_each_alone(name):
    task = small_task(name)
    blocks, sets = task.find_blocks(), (task.forget, task.retain)
    passes = []
    with task.model.register_forward_hook(lambda *_: passes.append(1)):
        found = dict(cut_scan._states(task, blocks[:-1], *sets))
    assert len(passes) == 2, "one batch of each"
    assert list(found) == [cut_scan.HEADS, *blocks[:-1]]
    alone = {block: cut_scan._pooled(task, task.model, block, *sets) for block in blocks[:-1]}
    alone[cut_scan.HEADS] = torch.cat([torch.cat(task.head_inputs(some), dim=1) for some in sets])
    assert all(torch.equal(found[place], states) for place, states in alone.items())


def test_a_reading_is_of_held_out_images():
    """Noise in place of features gives no reading above the share of the class; a planted one gives all."""
    task = small_task("ViTForImageClassification")
    forget = Samples(torch.full((60,), 2), {"pixel_values": torch.randn(60, 3, 32, 32)})
    retain = Samples(torch.zeros(200, dtype=torch.long), {"pixel_values": torch.randn(200, 3, 32, 32)})
    noise, sd = read_before_heads(task, forget, retain)
    assert noise < 60
    assert sd > 0
    bright = Samples(forget.labels, {"pixel_values": torch.randn(60, 3, 32, 32) + 2})
    assert read_before_heads(task, bright, retain)[0] > 90


def test_what_any_head_is_fed_with_is_read_and_nothing_from_what_all_images_share():
    """DeiT's second head has a token of its own; of a layer that answers all images alike a scan is no reason to end."""
    task = small_task("DeiTForImageClassificationWithTeacher")
    forget = Samples(torch.full((60,), 2), {"pixel_values": torch.randn(60, 3, 32, 32) + 2})
    retain = Samples(torch.zeros(200, dtype=torch.long), {"pixel_values": torch.randn(200, 3, 32, 32)})
    for silent, told in (([0], True), ([1], True), ([0, 1], False)):
        fed = lambda module, args, output, silent=silent: output.index_fill(1, torch.tensor(silent), 0.0)  # noqa: E731
        with task.model.deit.layernorm.register_forward_hook(fed):
            reading, sd = read_before_heads(task, forget, retain)
        assert (reading > 90) == told
        assert sd > 0
    assert reading == 0.0
    with pytest.raises(InvalidValueError, match="not finite"):
        cut_scan.read_class(task, forget, retain, torch.full((260, 2), torch.inf))


def test_the_noise_of_a_reading_is_that_of_the_images_that_were_asked():
    """Where all of 20 were recognised, whatever the number of others was."""
    task = Task(
        nn.Linear(4, 2), Samples(torch.ones(20).long(), {"x": torch.randn(20, 4) + 20}), num_labels=2, progress=False
    )
    for others in (40, 4000):
        retain = Samples(torch.zeros(others).long(), {"x": torch.randn(others, 4)})
        features = torch.cat([next(some.batches(10**6)).inputs["x"] for some in (task.forget, retain)])
        reading = cut_scan.read_class(task, task.forget, retain, features)
        assert reading == (100.0, 2.5)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_reference_of_another_depth_is_refused(depth):
    task = small_task("ViTForImageClassification")
    task.forget = task.forget.subset(torch.arange(4).repeat(125))
    config = copy.deepcopy(task.model.config)
    assert config.num_hidden_layers not in (1, 3)
    config.num_hidden_layers = depth
    with pytest.raises(InvalidValueError, match=f"with {depth} and .* cannot be compared"):
        cut_scan.where_profiles_part(task, task.retain, type(task.model)(config).eval())


def test_with_a_reference_the_cut_is_where_both_begin_to_differ(original):
    """A reference that is the model itself differs nowhere, and is no reference: the record says so."""
    many = loader(*planted_images(FORGET, per_class=500)), loader(*planted_images(RETAINED, per_class=30))

    def cut_by(reference):
        return unlearn(original, many[0], "regrow", retain=many[1], progress=False, keep="auto", epochs=1,
                       reference_model=reference)  # fmt: skip

    alike = cut_by(original)
    said = alike.config.hf_kd_unlearned[-1]["warnings"]
    assert [any(what in text for text in said) for what in ("do not part", "very weights")] == [True, True]
    untaught = cut_by(fresh_model(original, seed=3)).config.hf_kd_unlearned[-1]["warnings"]
    assert not any("very weights" in text for text in untaught)
    tried = measured(alike)["scan"]
    assert all(one["reading"] == one["reference"] for one in tried)
    assert measured(alike)["block"] == tried[0]["block"], "what cannot be told is cut deeper"
    with pytest.raises(ValueError, match="keep='auto'"):
        grown(original, reference_model=original)
    other = trained_model("transformer" if type(original).__name__.startswith("ResNet") else "convolutional")
    with pytest.raises(ValueError, match="cannot be compared"):
        cut_by(other)


def test_the_cut_lies_below_the_first_block_that_tells_more_than_the_reference(monkeypatch):
    task = small_task("ResNetForImageClassification")
    task.forget = Samples(torch.full((500,), 2), {"pixel_values": torch.randn(500, 3, 32, 32)})
    names = task.find_blocks()
    readings = iter([(50.0, 1.0), (50.0, 1.0), (70.0, 1.0), (69.0, 1.0), (90.0, 1.0), (70.0, 1.0)])
    monkeypatch.setattr(cut_scan, "read_class", lambda *args: next(readings))
    cut, tried, told = cut_scan.where_profiles_part(task, task.retain, copy.deepcopy(task.model))
    assert (cut.block, told) == (names[1], True)
    assert [(one["reading"], one["reference"]) for one in tried] == [(50.0, 50.0), (70.0, 69.0), (90.0, 70.0)]


def test_a_reference_in_half_precision_is_read_like_the_model():
    original = copy.deepcopy(trained_model("convolutional")).to(torch.bfloat16)
    forget, retain = loader(*planted_images(FORGET, per_class=500)), loader(*planted_images(RETAINED, per_class=12))
    changed = unlearn(original, forget, "regrow", retain=retain, progress=False, keep="auto", epochs=1,
                      reference_model=original)  # fmt: skip
    assert changed.dtype == torch.bfloat16
    assert all(one["reading"] == one["reference"] for one in measured(changed)["scan"])


def test_a_reference_without_a_head_is_refused_as_of_another_class(monkeypatch):
    monkeypatch.setattr(cut_scan, "FEWEST", 12)
    model = trained_model("transformer")
    with pytest.raises(InvalidValueError, match="one of the same class and depth"):
        grown(model, keep="auto", reference_model=model.vit)


@pytest.mark.parametrize("reference", ["user/name", 0])
def test_a_reference_that_is_no_model_is_refused(reference):
    with pytest.raises(TypeError, match=r"reference_model is .*from_pretrained"):
        grown(trained_model("transformer"), keep="auto", reference_model=reference)


def test_a_reference_that_takes_other_images_is_refused(monkeypatch):
    monkeypatch.setattr(cut_scan, "FEWEST", 12)
    model = trained_model("transformer")
    config = copy.deepcopy(model.config)
    config.image_size = 2 * config.image_size
    with pytest.raises(InvalidValueError, match=r"reference_model \(ViT.* does not take the images.*doesn't match"):
        grown(model, keep="auto", reference_model=type(model)(config))


def test_memory_that_runs_out_is_said_as_such(monkeypatch):
    """A reference is not said to take other images, nor the part above a cut to need them."""
    monkeypatch.setattr(cut_scan, "FEWEST", 12)
    model = trained_model("transformer")
    reference = copy.deepcopy(model)
    reference.register_forward_pre_hook(lambda *_: torch.empty(2**48))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        grown(model, keep="auto", reference_model=reference)
    task, passed = small_task("ViTForImageClassification"), []

    def runs_out(*_):  # when the part above a cut is run on its own, behind the whole network
        passed.append(1)
        torch.empty(2**48 if len(passed) == 2 else 1)

    task.model.get_submodule(task.find_blocks()[-1]).register_forward_pre_hook(runs_out)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        upper_part_stands_alone(task, task.find_blocks()[0])


def test_a_network_is_tried_until_it_answers_as_much(monkeypatch):
    """Told by the last batches, at the highest rate; the deepest for all of its epochs."""
    monkeypatch.setattr(regrow, "RECENT", 8)
    rates = []
    step = regrow.GradientSteps.step
    monkeypatch.setattr(
        regrow.GradientSteps,
        "step",
        lambda self, loss: rates.append(self.optimizer.param_groups[0]["lr"]) or step(self, loss),
    )
    for level, steps in ((math.inf, 9), (0.0, 2)):
        rates.clear()
        task = small_task("ResNetForImageClassification")  # 12 retained images
        cut = choose_block(task, task.find_blocks()[0])
        method = Regrow(keep="auto", scan_epochs=3, batch_size=4, lr=0.01)
        answered = method._tried(task, task.retain, task.retain.labels, cut, level)
        assert 0 <= answered <= 100
        assert len(rates) == steps
        assert rates == sorted(rates), "it does not fall"
        assert set(rates[2:]) <= {0.01}
