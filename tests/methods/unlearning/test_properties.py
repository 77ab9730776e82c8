"""What each method must do, stated so that the mistakes of public implementations would fail."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_kd import ErasedModel, unlearn
from hf_kd.data.samples import Samples
from hf_kd.methods.registry import make_unlearning_method
from hf_kd.methods.unlearning.bad_teaching import BadTeaching
from hf_kd.methods.unlearning.boundary import nearest_labels, pixel_range
from hf_kd.methods.unlearning.fisher import fisher_information
from hf_kd.methods.unlearning.kodge import LayerInputs, editable, projection_of
from hf_kd.methods.unlearning.lau import attacked
from hf_kd.methods.unlearning.random_label import random_labels, union
from hf_kd.methods.unlearning.retrain import augmented
from hf_kd.methods.unlearning.salun import saliency_mask
from hf_kd.methods.unlearning.ssd import dampening, importances
from hf_kd.methods.unlearning.task import Task, other_answers, parameters_from, soft_divergence
from hf_kd.model.unlearn import fresh_model
from tests.helpers.small import make_dataset, randomise
from tests.helpers.unlearning import task_of


@pytest.fixture
def task() -> Task:
    return task_of([2] * 12 + [4] * 4, [0, 1, 3] * 6)


def test_random_labels_are_never_the_own_and_never_forgotten():
    labels = torch.tensor([2, 4] * 500)
    allowed = torch.tensor([0, 1, 3])
    drawn = random_labels(labels, allowed)
    assert set(drawn.tolist()) == {0, 1, 3}
    every = torch.arange(5)  # random samples: all classes stay
    drawn = random_labels(labels, every)
    assert not bool((drawn == labels).any())
    counts = torch.bincount(drawn[labels == 2], minlength=5)
    assert counts[2] == 0
    assert (counts[[0, 1, 3, 4]] > 60).all()
    with pytest.raises(ValueError, match="one more class"):
        random_labels(torch.tensor([1]), torch.tensor([1]))


def test_salun_leaves_masked_weights_exactly_unchanged(task):
    method = make_unlearning_method("salun", epochs=3, batch_size=8, ratio=0.3, weight_decay=0.1, momentum=0.9, lr=0.05)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    torch.manual_seed(0)
    masks = saliency_mask(task, 0.3, 8)
    measured = method.run(task)
    for mask, (name, parameter) in zip(masks, task.model.named_parameters(), strict=True):
        assert torch.equal(parameter[~mask], before[name][~mask]), name
    moved = sum(int((p != before[n]).sum()) for n, p in task.model.named_parameters())
    assert moved > 0
    assert measured["share_that_may_move"] == pytest.approx(0.3, abs=0.01)


def test_the_saliency_mask_sums_before_it_takes_absolute_values(task):
    chosen = saliency_mask(task, 0.5, 4)
    loss = sum(
        F.cross_entropy(task.logits(b.inputs), b.labels) for b in task.forget.batches(4)
    )  # fmt: skip
    gradients = torch.autograd.grad(loss, list(task.model.parameters()), allow_unused=True)
    flat = torch.cat([g.abs().flatten() if g is not None else torch.zeros(p.numel())
                      for g, p in zip(gradients, task.model.parameters(), strict=True)])  # fmt: skip
    mask = torch.cat([m.flatten() for m in chosen])
    assert flat[mask].min() >= flat[~mask].max() - 1e-6


def test_fisher_information_is_of_single_samples_and_of_the_models_own_answer():
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    x = torch.randn(5, 3)

    class Shell(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = model

        def forward(self, pixel_values):
            return type("Output", (), {"logits": self.head(pixel_values)})

    from hf_kd.data.samples import Samples
    from hf_kd.methods.unlearning.task import Task

    samples = Samples(torch.zeros(5, dtype=torch.long), {"pixel_values": x})
    task = Task(Shell(), samples, samples, num_labels=4)
    found = fisher_information(task, samples)
    # closed form for a linear softmax model: sum_y p_y (1[c = y] - p_c)^2 x_j^2 = p_c (1 - p_c) x_j^2
    p = model(x).softmax(dim=1).detach()
    expected = torch.einsum("nc,nj->cj", p * (1 - p), x**2) / 5
    assert torch.allclose(found[0], expected, atol=1e-6)
    assert torch.allclose(found[1], (p * (1 - p)).mean(dim=0), atol=1e-6)


def test_fisher_noise_resets_only_the_forgotten_rows_and_caps_its_variance(task):
    method = make_unlearning_method("fisher", alpha=0.0, samples=4)
    before = copy.deepcopy(task.model)
    method.run(task)
    head = task.heads[0]
    moved = (task.model.get_submodule(head).weight != before.get_submodule(head).weight).any(dim=1)
    assert moved.tolist() == [False, False, True, False, True]
    for name, parameter in task.model.named_parameters():
        if not name.startswith(head):
            assert torch.equal(parameter, before.get_parameter(name)), "alpha = 0: no noise"
    method = make_unlearning_method("fisher", alpha=1e-6)
    assert float(method.variance(torch.zeros(3, 2), is_last=False).max()) == pytest.approx(1e-3)
    assert float(method.variance(torch.zeros(3), is_last=False).max()) == pytest.approx(1e-2)
    assert float(method.variance(torch.zeros(3, 2), is_last=True).max()) == pytest.approx(1e-3)


def test_boundary_targets_are_never_the_own_and_never_a_forgotten_class(task):
    targets = nearest_labels(task, bound=0.1, batch_size=5)
    assert not bool((targets == task.forget.labels).any())
    assert not bool(torch.isin(targets, task.forget_classes).any())
    tiny = nearest_labels(task, bound=1e-6, batch_size=5)  # the attack goes nowhere: the best class that is left
    logits = torch.cat([task.logits(b.inputs) for b in task.forget.batches(5)])
    logits[:, task.forget_classes] = -float("inf")
    assert torch.equal(tiny, logits.argmax(dim=1))


def test_boundary_steps_are_in_pixels_and_stay_images(task):
    pixels = next(task.forget.batches(4)).inputs["pixel_values"]
    scale, lowest, highest = pixel_range(task, pixels)  # mean = std = 0.5
    assert torch.allclose(scale.flatten(), torch.full((3,), 2.0))
    assert torch.allclose(lowest.flatten(), torch.full((3,), -1.0))
    assert torch.allclose(highest.flatten(), torch.full((3,), 1.0))


def test_boundary_expand_drops_its_shadow_class(task):
    shape = task.linear_heads()[0].weight.shape
    head = task.linear_heads()[0]
    make_unlearning_method("boundary-expand", epochs=1, lr=0.01).run(task)
    assert task.linear_heads()[0] is head
    assert head.weight.shape == shape
    assert task.logits(next(task.forget.batches(2)).inputs).shape == (2, 5)


def test_other_answers_keep_their_proportions_and_are_never_the_label():
    logits = torch.randn(6, 5)
    labels = torch.tensor([2, 4, 2, 4, 2, 2])
    masked = other_answers(logits, torch.tensor([0, 1, 3]), labels).softmax(dim=1)
    assert float(masked[:, [2, 4]].sum()) == 0
    rest = logits[:, [0, 1, 3]].softmax(dim=1)
    assert torch.allclose(masked[:, [0, 1, 3]], rest), "the others keep their proportions"
    every = other_answers(logits, torch.arange(5), labels).softmax(dim=1)  # random samples: only the label's own
    assert float(every[torch.arange(6), labels].sum()) == 0
    assert (every.sum(dim=1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("forget", "retain", "earlier", "kept"),
    [
        ([2], None, [4], [0, 1, 3]),
        ([2], [0, 1, 3], [4], [0, 1, 3]),
        ([0, 1, 2, 3], None, [4], [0, 1, 2, 3]),  # random samples of all that is left
        ([2], None, [0, 1, 2, 3, 4], [0, 1, 3, 4]),  # nothing else is left
        ([2], None, [0, 1, 3, 4], [0, 1, 3, 4]),
        ([2], None, [2, 9], [0, 1, 3, 4]),  # once more; a record of another head
    ],
)
def test_classes_that_an_earlier_request_forgot_are_not_kept(forget, retain, earlier, kept):
    samples = [None if labels is None else Samples(torch.tensor(labels)) for labels in (forget, retain)]
    assert Task(nn.Identity(), *samples, num_labels=5, forgotten_before=earlier).kept_classes.tolist() == kept


def test_divergences_sum_over_classes_and_know_their_direction():
    teacher, student = torch.randn(7, 100), torch.randn(7, 100)
    p, q = teacher.softmax(dim=1), student.softmax(dim=1)
    assert torch.allclose(soft_divergence(teacher, student), (p * (p / q).log()).sum(dim=1).mean(), atol=1e-5)
    assert float(soft_divergence(teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-6)


def test_ssd_dampens_only_what_matters_more_for_the_forget_set():
    forget, every = torch.tensor([0.0, 1.0, 20.0, 5.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 0.0, 0.05])
    factor = dampening(forget, every, selection=10.0, strength=1.0)
    assert torch.allclose(factor, torch.tensor([1.0, 1.0, 0.05, 0.0, 0.05])), "0/0 stays as it is"
    assert float(dampening(forget, every, 10.0, 100.0).max()) == 1.0, "never amplifies"


def test_ssd_importances_depend_on_the_batch_as_the_paper_defines_them(task):
    torch.manual_seed(0)
    together = importances(task, task.forget, 16, label_free=False)
    loss = F.cross_entropy(task.logits(next(task.forget.batches(16)).inputs), task.forget.labels)
    expected = torch.autograd.grad(loss, list(task.model.parameters()), allow_unused=True)
    for found, gradient in zip(together, expected, strict=True):
        if gradient is not None:
            assert torch.allclose(found, gradient**2, atol=1e-6)


def test_kodge_projections_weigh_directions_between_nothing_and_everything():
    x = torch.randn(50, 6, dtype=torch.float64) @ torch.diag(torch.tensor([5, 3, 2, 1, 0.1, 0.0], dtype=torch.float64))
    gram = x.T @ x
    by_energy = projection_of(gram, 1.0)
    assert float(by_energy.trace()) == pytest.approx(1.0)
    sharp = torch.linalg.eigvalsh(projection_of(gram, 1e9))
    assert float(sharp.max()) <= 1 + 1e-9
    assert int((sharp > 0.99).sum()) == 5, "every direction in use, and none that is not"


def test_kodge_reads_what_a_convolution_multiplies():
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 8, 8)
    with LayerInputs({"conv": conv}, 10_000) as inputs:
        out = conv(x)
    patches = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 27)
    product = patches @ conv.weight.reshape(4, -1).T + conv.bias
    assert torch.allclose(product, out.permute(0, 2, 3, 1).reshape(-1, 4), atol=1e-5)
    assert torch.allclose(inputs.grams["conv"], (patches.T @ patches).double(), atol=1e-4)
    assert not editable(nn.Conv2d(4, 4, 3, groups=4))


def test_kodge_on_the_last_layer_leaves_the_others_alone(task):
    before = copy.deepcopy(task.model)
    make_unlearning_method("kodge", last_layer_only=True).run(task)
    changed = {n for n, p in task.model.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed == {f"{task.heads[0]}.weight"}


def test_lau_and_head_surgery_leave_the_features_alone(resnet, processor, pixels):
    forget = make_dataset([2] * 16)
    features = ErasedModel.from_model(copy.deepcopy(resnet), processor).pooled_features(pixels)
    for name in ("lau", "head-surgery"):
        changed = unlearn(resnet, forget, name, processor=processor, progress=False)
        assert torch.equal(ErasedModel.from_model(changed, processor).pooled_features(pixels), features), name


def test_lau_attack_stays_in_its_box_and_above_zero_behind_a_relu():
    head, features = nn.Linear(8, 4), torch.rand(10, 8)
    labels = head(features).argmax(dim=1)
    moved = attacked(head, features, labels, bound=0.3, step=0.2, steps=5)
    assert float((moved - features).abs().max()) <= 0.3 + 1e-6
    assert float(moved.min()) >= 0
    before, after = (F.cross_entropy(head(z), labels) for z in (features, moved))
    assert after > before
    assert float(attacked(head, features - 0.5, labels, 0.3, 0.2, 5).min()) < 0, "signed features are not clamped"


def test_head_surgery_never_answers_the_class(vit, processor, pixels):
    changed = unlearn(vit, make_dataset([2] * 4), "head-surgery", processor=processor, progress=False)
    answer = changed(pixels).logits
    answer = answer.detach()
    assert float(answer.softmax(dim=1)[:, 2].max()) == 0
    rest = [0, 1, 3, 4]
    assert torch.equal(answer[:, rest], vit(pixels).logits[:, rest])


def test_last_layers_counts_in_order_of_registration(resnet):
    layers, names = parameters_from(resnet, 1)
    assert layers == ["classifier.1"]
    assert names == ["classifier.1.weight", "classifier.1.bias"]
    layers, names = parameters_from(resnet, 2)
    assert layers[-1] == "classifier.1"
    assert len(names) > 2
    with pytest.raises(ValueError, match="out of range"):
        parameters_from(resnet, 1000)


def test_cf_and_eu_leave_earlier_layers_exactly_unchanged(resnet, processor):
    forget, retain = make_dataset([2] * 8), make_dataset([0, 1, 3, 4] * 4, seed=2)
    _, trained = parameters_from(resnet, 2)
    for name in ("cf-k", "eu-k"):
        changed = unlearn(resnet, forget, name, retain=retain, processor=processor, k=2, epochs=1, progress=False)
        for key, parameter in changed.named_parameters():
            same = torch.equal(parameter, resnet.get_parameter(key))
            assert same == (key not in trained), (name, key)


def test_bad_teaching_learns_each_sample_from_its_own_teacher(task, monkeypatch):
    """With one teacher's weights equal to the student's, its samples give no gradient."""
    start = copy.deepcopy(task.model.state_dict())
    task.fresh = lambda seed, init: copy.deepcopy(task.model)  # both teachers are the student: nothing to learn
    BadTeaching(lr=0.1, retain_share=1.0, optimizer="sgd").run(task)
    assert all(torch.allclose(t, start[n], atol=1e-6) for n, t in task.model.state_dict().items())
    task.fresh = lambda seed, init: randomise(copy.deepcopy(task.model), 9)
    BadTeaching(lr=0.1, retain_share=1.0, optimizer="sgd").run(task)
    assert not all(torch.allclose(t, start[n], atol=1e-6) for n, t in task.model.state_dict().items())


def test_union_keeps_every_sample_with_its_label(task):
    both = union(task.forget.relabelled(torch.full((16,), 3)), task.retain)
    batches = list(both.batches(7, torch.randperm(len(both))))
    assert sum(len(b) for b in batches) == len(both) == 34
    labels = torch.cat([b.labels for b in batches])
    assert torch.equal(labels.sort().values, torch.cat([torch.full((16,), 3), task.retain.labels]).sort().values)
    pixels = torch.cat([b.inputs["pixel_values"] for b in batches])
    every = torch.cat([task.forget._cached["pixel_values"], task.retain._cached["pixel_values"]])
    assert sorted(pixels.flatten(1).sum(1).tolist()) == sorted(every.flatten(1).sum(1).tolist())
    order = torch.randperm(34)
    own = torch.cat([b.inputs["pixel_values"] for b in both.batches(7, order)])
    assert torch.equal(own, every[order]), "in the order that was asked for, as the labels are"
    assert torch.equal(next(both.subset(order[:5]).batches(5)).inputs["pixel_values"], every[order[:5]])


def test_scrub_rewinds_to_a_checkpoint_and_guards_the_first(task):
    measured = make_unlearning_method("scrub", epochs=3, max_epochs=3, lr=0.05, rewind=True, batch_size=8).run(task)
    assert 1 <= measured["rewound_to_epoch"] <= 3
    assert 0 <= measured["held_out_error"] <= 100
    assert len(task.forget) == 16, "what was held back is there again"


def test_scrub_obeys_on_the_retained_and_disobeys_on_the_forgotten(task):
    torch.manual_seed(0)
    with torch.no_grad():  # a student that is not its teacher any more: at the start both divergences have no gradient
        teacher = task.frozen_copy()
        for parameter in task.linear_heads()[0].parameters():
            parameter += torch.randn(parameter.shape)

    def divergences():
        with torch.no_grad():
            return [
                float(soft_divergence(task.logits(b.inputs, teacher), task.logits(b.inputs)))
                for samples in (task.forget, task.retain)
                for b in samples.batches(64)
            ]

    forget, retain = divergences()
    task.frozen_copy = lambda: teacher
    settings = {"epochs": 8, "max_epochs": 7, "lr": 0.02, "gamma": 0.0, "alpha": 1.0, "batch_size": 9}
    make_unlearning_method("scrub", forget_batch_size=16, temperature=1.0, **settings).run(task)
    after = divergences()
    assert after[0] / after[1] > forget / retain
    assert after[1] < retain


def test_l1_penalty_fades_to_nothing():
    method = make_unlearning_method("l1-sparse", epochs=10, alpha=1.0, free_epochs=2)
    strengths = [method.strength(e) for e in range(10)]
    assert strengths[0] == 1.0
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[8:] == [0.0, 0.0]


def test_l1_sparse_makes_weights_smaller(task):
    before = sum(float(p.detach().abs().sum()) for p in task.model.parameters())
    make_unlearning_method("l1-sparse", epochs=2, alpha=0.1, batch_size=9).run(task)
    assert sum(float(p.detach().abs().sum()) for p in task.model.parameters()) < 0.95 * before


def test_neggrad_stops_once_everything_is_forgotten_and_caps_each_sample(task):
    measured = make_unlearning_method("neggrad", epochs=50, lr=0.1, batch_size=16).run(task)
    assert measured["epochs_run"] < 50
    assert task.accuracy(task.forget) == 0
    assert measured["last_loss"] >= -2 * math.log(5) - 1e-6


def test_neggrad_plus_weighs_both_losses(task):
    only_retain = make_unlearning_method("neggrad+", alpha=1.0, epochs=1, batch_size=8)
    before = task.accuracy(task.forget)
    only_retain.run(task)
    first = sum(float(F.cross_entropy(task.logits(b.inputs), b.labels)) for b in task.forget.batches(16))
    make_unlearning_method("neggrad+", alpha=0.5, epochs=2, batch_size=8, lr=0.02).run(task)
    second = sum(float(F.cross_entropy(task.logits(b.inputs), b.labels)) for b in task.forget.batches(16))
    assert second > first
    assert before >= task.accuracy(task.forget)


def test_unsir_never_looks_at_the_forget_images(task, monkeypatch):
    labels = task.forget.labels
    monkeypatch.setattr(task.forget, "batches", lambda *a, **k: pytest.fail("UNSIR needs no image of D_f"))
    settings = {"noise_images": 8, "noise_steps": 4, "noise_repeats": 1, "per_class": 6, "batch_size": 9}
    measured = make_unlearning_method("unsir", **settings).run(task)
    assert measured["noise_images"] == 8 * len(labels.unique()), "whole batches of noise"


def test_unsir_noise_goes_down_its_objective(task):
    """-CE + 0.1 mean ||N||^2, the published one: on small images its second term is the larger by far."""

    def objective(noise):
        with torch.no_grad():
            wrong = F.cross_entropy(task.logits({"pixel_values": noise}), classes)
        return float(-wrong + 0.1 * noise.flatten(1).square().sum(dim=1).mean())

    found = []
    for steps in (1, 10, 40):
        torch.manual_seed(0)
        samples = make_unlearning_method("unsir", noise_images=16, noise_steps=steps)._noise(task, task.retain)
        classes, noise = samples.labels, next(samples.batches(32)).inputs["pixel_values"]
        found.append(objective(noise))
    assert found == sorted(found, reverse=True)
    assert noise.shape == (32, 3, 16, 16)
    assert classes.tolist() == [2] * 16 + [4] * 16


def test_retrain_starts_from_fresh_weights_and_augments_without_inventing_pixels(task, resnet):
    other = fresh_model(resnet, 0)
    assert not torch.equal(other.classifier[1].weight, resnet.classifier[1].weight)
    assert torch.equal(other.classifier[1].weight, fresh_model(resnet, 0).classifier[1].weight)
    assert not torch.equal(other.classifier[1].weight, fresh_model(resnet, 1).classifier[1].weight)
    pixels = torch.randn(6, 3, 16, 16)
    draws = torch.Generator().manual_seed(0)
    flipped = augmented({"pixel_values": pixels}, "flip", draws)["pixel_values"]
    for image, original in zip(flipped, pixels, strict=True):
        assert torch.equal(image, original) or torch.equal(image, original.flip(-1))
    moved = augmented({"pixel_values": pixels}, "flip-crop", draws)["pixel_values"]
    assert moved.shape == pixels.shape
    assert set(moved[0].flatten().tolist()) <= set(pixels[0].flatten().tolist())
    assert not torch.equal(moved, flipped)


def test_bn_mode_decides_about_the_statistics(resnet, processor):
    forget = make_dataset([2] * 16)
    before = {n: b.clone() for n, b in resnet.named_buffers() if "running" in n}
    for mode, same in (("eval", True), ("freeze", True), ("train", False)):
        changed = unlearn(resnet, forget, "delete", processor=processor, epochs=1, bn_mode=mode, progress=False)
        found = dict(changed.named_buffers())
        assert all(torch.equal(found[n], b) for n, b in before.items()) == same, mode


def test_a_setting_that_could_have_no_effect_is_refused():
    with pytest.raises(ValueError, match=r"decay_epochs=\(8,\).*within its 5 epochs"):
        make_unlearning_method("finetune", epochs=5, decay_epochs=(8,))
    assert make_unlearning_method("scrub", epochs=1).epochs == 1, "its own default lies beyond, and was not asked for"
    with pytest.raises(ValueError, match="lr is constant"):
        make_unlearning_method("lau", schedule="cosine")
