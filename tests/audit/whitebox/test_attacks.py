"""Every attack of the battery: it finds what is there, finds nothing in noise, and is the same twice."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_kd import ErasedModel
from hf_kd.audit.sections.weight_access import called
from hf_kd.audit.whitebox import probes, regrowing, removal
from hf_kd.audit.whitebox.answers import head_answers
from hf_kd.audit.whitebox.class_row import class_row_attack
from hf_kd.audit.whitebox.network import Images, Network, WhiteBoxData, recalibrated, with_rows
from hf_kd.audit.whitebox.probes import few_labels_attack, knn_attack, linear_attack, map_attack, mlp_attack
from hf_kd.audit.whitebox.reading import read_blocks
from hf_kd.audit.whitebox.regrowing import regrow_attack
from hf_kd.audit.whitebox.relearning import relearn
from hf_kd.data.masked_classes import silence_rows
from hf_kd.metrics.attack_data import AuditData
from hf_kd.testing.probes import INVARIANCES, AttackTester, planted
from tests.helpers.zoo import build, inputs

from .planted import network

PROBES = {
    "linear": linear_attack,
    "maps": map_attack,
    "mlp": mlp_attack,
    "k-nn": knn_attack,
    **{f"10 labels, {kind}": partial(few_labels_attack, labels=10, kind=kind) for kind in ("linear", "mlp", "k-nn")},
}


class TestProbes(AttackTester):
    @pytest.fixture(autouse=True, params=list(PROBES))
    def _each(self, request):
        self.name = request.param
        for names, invariances in (
            (("linear",), tuple(INVARIANCES)),
            (("maps", "10 labels, linear"), ("shift", "scale", "rotation")),
            (("mlp", "10 labels, mlp"), ("shift", "scale")),
            (("k-nn", "10 labels, k-nn"), ("scale", "rotation")),
        ):
            if self.name in names:
                self.invariances = invariances

    def attack(self, data, seed):
        return PROBES[self.name](data, seed)


class TestClassRow(AttackTester):
    several = False

    @pytest.fixture(autouse=True, params=["own row", "row made of 5 images"])
    def _each(self, request):
        self.forgets = request.param != "own row"

    def attack(self, data, seed):
        net, images = network(data, forgets=self.forgets)
        result = class_row_attack(net, images, seed)
        assert result.settings["row"] == ("made" if self.forgets else "own")
        return result


class TestRelearning(AttackTester):
    tolerated = 5.0

    def attack(self, data, seed):
        net, images = network(data, forgets=True)
        return relearn(net, images, 50, seed=seed, steps=(0, 20, 80), rates=(1e-3, 1e-1)).result()


class TestRegrowing(AttackTester):
    def attack(self, data, seed):
        return regrow_attack(*network(data, forgets=True), seed, epochs=6)


CHANGES = {
    "noise": lambda net, images, seed: removal.with_noise(net, 0.1, seed),
    "8 bits": lambda net, images, seed: removal.quantised(net, 8),
    "4 bits": lambda net, images, seed: removal.quantised(net, 4),
    "pruned": lambda net, images, seed: removal.pruned(net, 0.3),
    "fine-tuned": lambda net, images, seed: removal.fine_tuned(net, images, seed=seed, learning_rate=1e-3),
}


def stale(net):
    """With statistics in the last norm that no image gives."""
    made = net.copied()
    norm = made.model.blocks[2][1]
    norm.running_mean += 5 * norm.running_var.sqrt()
    return made


class TestRecalibration(AttackTester):
    tolerated = 5.0

    def attack(self, data, seed):
        net, images = network(data)
        return head_answers(recalibrated(stale(net), images.train.rows(slice(100))), images)


class TestNewHead(AttackTester):
    tolerated = 5.0

    def attack(self, data, seed):
        return next(removal.removal_attacks(*network(data, forgets=True), seed))


class TestRemoval(AttackTester):
    tolerated = 10.0

    @pytest.fixture(autouse=True, params=list(CHANGES))
    def _each(self, request):
        self.name = request.param

    def attack(self, data, seed):
        net, images = network(data)
        return head_answers(CHANGES[self.name](net, images, seed), images, self.name)


@pytest.fixture(scope="module")
def data():
    return AuditData.of(*planted(n=300), 0)


def test_a_class_that_was_silenced_gets_a_row_whatever_stands_around_the_linear_layer(data):
    plain, images = network(data, forgets=True)
    wrapped = plain.copied()
    wrapped.model.head = nn.Sequential(nn.Dropout(0.5), wrapped.model.head).eval()
    assert wrapped.column_of(data.forget[0]) is None
    opened, rows = [], images.shots(5, 0)
    for net in (plain, wrapped):
        made, row = with_rows(net, images, rows)
        assert row == "made"
        opened.append(made.class_logits(images.test, images.classes))
    assert torch.equal(*opened)


@pytest.mark.parametrize("name", ["LevitForImageClassification", "LevitForImageClassificationWithTeacher"])
def test_a_head_behind_batchnorm_shows_that_a_class_was_silenced(name):
    model = build(name)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 5]
    for head in heads:
        silence_rows(head, [2])
    net = Network.of(ErasedModel.from_model(model))
    assert [net.column_of(label) for label in range(5)] == [0, 1, None, 3, 4]


def test_stale_statistics_hide_a_class_and_recalibration_brings_it_back():
    net, images = network(AuditData.of(*planted(n=300), 1))
    assert head_answers(net, images).recall_forget > 90
    hidden = stale(net)
    assert head_answers(hidden, images).recall_forget < 50
    assert head_answers(recalibrated(hidden, images.train.rows(slice(100))), images).recall_forget > 90
    assert head_answers(hidden, images).recall_forget < 50, "the attack works on a copy"


def test_one_constant_finds_a_class_whose_logit_was_pushed_down(data):
    net, images = network(data)
    with torch.no_grad():
        net.model.head.bias[0] = -1e2
    assert head_answers(net, images).recall_forget == 0
    assert class_row_attack(net, images).recall_forget > 90


def test_removal_works_on_copies(data):
    net, images = network(data)
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    found = {result.name: result for result in removal.removal_attacks(net, images)}
    assert found["5 epochs on retained images"].accuracy_retain > 80
    assert found["new head from 5 images a class"].recall_forget > 90
    assert all(torch.equal(before[name], tensor) for name, tensor in net.model.state_dict().items())


def test_a_rare_class_is_among_the_images_of_every_attack_that_reads_some(data, monkeypatch):
    """All of its images lie behind the first ones: the attack would not know the class that it is tested on."""
    net, images = network(data)
    order = torch.cat(
        [torch.nonzero(images.train.labels != 0).flatten(), torch.nonzero(images.train.labels == 0)[:3, 0]]
    )
    last = replace(images, train=images.train.rows(order))
    monkeypatch.setattr(removal, "FINE_TUNED_ON", 100)
    monkeypatch.setattr(probes, "MAP_ROWS", (100, 60))
    assert next(iter(removal.removal_attacks(net, last))).recall_forget > 50
    net = replace(net, blocks=net.blocks[-1:])
    on_maps = [result for result, _ in probes.probe_attacks(net, last) if result.name == "linear on maps"]
    assert len(on_maps) == 1


def test_the_lower_part_is_kept_when_the_rest_is_drawn_anew(data, monkeypatch):
    net, images = network(data)
    net = recalibrated(net, images.train)
    seen, drawn = [], []
    fresh = net.fresh
    net = replace(net, fresh=lambda: drawn.append(torch.initial_seed()) or fresh())
    monkeypatch.setattr(regrowing, "head_answers", lambda made, *a: seen.append(made) or head_answers(made, *a))
    result = regrow_attack(net, images, epochs=1)
    assert result.settings["kept_to"] == "blocks.0"
    assert drawn[0] != 0, "a training with the same seed began with these weights"
    before, after = (n.model.state_dict() for n in (net, seen[0]))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in same if not name.endswith("num_batches_tracked")} == {
        name for name in before if name.startswith("blocks.0.") and not name.endswith("num_batches_tracked")
    }


def test_relearning_keeps_the_worst_rate_and_says_when_half_is_back(data):
    net, images = network(data, forgets=True)
    curve = relearn(net, images, 5, steps=(0, 10, 40), rates=(1e-6, 1e-2))
    assert curve.learning_rate == 1e-2 or curve.recall[0] > 50
    assert curve.row == "made"
    assert 0.5 < curve.area <= 1
    assert curve.steps_to_half is not None
    assert curve.steps == (0, 10, 40)


def test_a_class_that_was_silenced_is_asked_for_by_a_row_that_is_made(data):
    """The row that was silenced answers nothing whatever is done to the weights: 0 % of it says nothing of them."""
    found = list(removal.removal_attacks(*network(data, forgets=True)))[1:]
    assert len(found) == 6
    for result in found:
        assert result.settings["row"] == "made", result.name
        made = f"{result.name}, the class's row made anew from a few images"
        assert called(result) == made, "noise alone did not bring it back"
        assert result.auc > 75, result.name


def weights_of(net):
    return [weight.detach() for weight in net.model.parameters() if weight.ndim > 1]


def test_noise_is_a_share_of_the_spread_of_each_tensor(data):
    """A network that answers as before is read alike whether its weights were changed or not: so they are looked at."""
    net, _ = network(data)
    for before, after in zip(weights_of(net), weights_of(removal.with_noise(net, 0.2)), strict=True):
        assert 0.15 < float((after - before).std() / before.std()) < 0.25
    single = Network(nn.Linear(1, 1), ())
    assert torch.equal(removal.with_noise(single).model.weight, single.model.weight)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_weights_are_whole_steps_of_their_row(data, bits):
    net, _ = network(data)
    for before, after in zip(weights_of(net), weights_of(removal.quantised(net, bits)), strict=True):
        step = before.flatten(1).abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
        steps = after.flatten(1) / step
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert float(((after - before).flatten(1) / step).abs().max()) < 0.501
        assert not torch.equal(before, after)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_smallest_weights_are_pruned_and_no_others(data, share):
    net, _ = network(data)
    with torch.no_grad():
        net.model.head.weight.copy_(net.model.head.weight.sign())  # all are as small as the largest
    for before, after in zip(weights_of(net), weights_of(removal.pruned(net, share)), strict=True):
        gone = after == 0
        assert int(gone.sum()) == int(share * before.numel())
        assert torch.equal(after[~gone], before[~gone])
        assert float(before[gone].abs().max()) <= float(before[~gone].abs().min())


def test_fine_tuning_learns_the_retained_classes(data):
    net, images = network(data)
    with torch.no_grad():
        net.model.head.weight[1:] *= -1
    before, after = (head_answers(each, images) for each in (net, removal.fine_tuned(net, images, epochs=20)))
    assert before.accuracy_retain < 20
    assert after.accuracy_retain > 80


@pytest.mark.parametrize(
    ("name", "columns"),
    [("DeiTForImageClassificationWithTeacher", 2 * 32), ("LevitForImageClassificationWithTeacher", 32)],
)
def test_what_each_of_several_heads_is_fed_with_is_read_once(name, columns):
    """The former has a token for each of its heads, the latter one vector for both."""
    net = Network.of(ErasedModel.from_model(build(name)))
    images = Images(inputs(name, batch=6), torch.arange(6) % 3)
    fed = net.head_inputs(images)
    assert len(net.heads) == 2
    assert fed.shape == (6, columns)
    assert torch.equal(fed[:, :32], net.head_inputs(images, net.heads[0]))
    assert torch.equal(fed[:, -32:], net.head_inputs(images, net.heads[1]))
    read, _ = read_blocks(net, WhiteBoxData(images, images, (0,)))
    assert torch.equal(list(read.pooled.values())[-1], fed)


class SeveralHeads(nn.Module):
    """Fed with the features, with fewer of them, and with all of them cut off at 0."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, 2) for width in (3, 2, 3))

    def forward(self, pixel_values):
        fed = (pixel_values, pixel_values[:, :2], pixel_values.relu())
        return SimpleNamespace(logits=sum(head(x) for head, x in zip(self.heads, fed, strict=True)))


def test_what_heads_are_fed_with_does_not_hang_on_the_images_of_a_batch():
    """The last one has a single image, for which cutting off at 0 changes nothing."""
    features = torch.randn(65, 3, generator=torch.Generator().manual_seed(0))
    features[64] = features[64].abs()
    net = Network(SeveralHeads().eval(), (), ("heads.0", "heads.1", "heads.2"))
    fed = net.head_inputs(Images({"pixel_values": features}, torch.arange(65) % 2))
    assert torch.equal(fed, torch.cat([features, features[:, :2], features.relu()], dim=1))


@pytest.mark.parametrize("attack", ["relearning", "regrown"])
def test_what_a_trained_network_is_read_to_know_does_not_hang_on_its_last_batch(data, attack):
    """MobileNets and EfficientNets come with a momentum by which the last images alone made the running statistics."""
    found = []
    for momentum in (0.1, 0.999):
        net, images = network(data, forgets=True)
        net = recalibrated(net, images.train)
        for norm in net.norms:
            norm.momentum = momentum
        if attack == "regrown":
            found.append(regrow_attack(net, images, epochs=2))
        else:
            found.append(relearn(net, images, 5, steps=(0, 5, 10), rates=(1e-2,)))
    assert found[0] == found[1]


@pytest.mark.parametrize("attack", ["fine-tuned", "regrown"])
def test_a_last_batch_of_one_image_is_no_batch(data, attack):
    """BatchNorm cannot train on the only place of a single image, and the whole audit would end there."""
    net, images = network(data)
    small = Images({"pixel_values": images.train.inputs["pixel_values"][:, :, :1, :1]}, images.train.labels)
    if attack == "fine-tuned":
        rows = torch.nonzero(~images.train_forget).flatten()[:65]
        removal.fine_tuned(net, replace(images, train=small.rows(rows)), epochs=1)
    else:
        regrow_attack(net, replace(images, train=small.rows(slice(129))), epochs=1)


def test_relearning_says_how_many_images_there_were(data):
    net, images = network(data)
    curve = relearn(net, images, 10_000, steps=(0, 1), rates=(1e-3,))
    assert (curve.shots, curve.images) == (10_000, len(images.train))
