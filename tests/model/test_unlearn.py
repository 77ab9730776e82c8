"""All methods in situations where they could quietly do something else: half precision, two heads, frozen parameters, random
samples, images that do not fit in memory, several processes, an error in the middle."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_kd import ErasedModel, train_original, unlearn, unlearning_methods
from hf_kd.data.samples import Samples
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.methods.records import all_records, forgotten_classes
from hf_kd.methods.registry import make_unlearning_method
from hf_kd.methods.unlearning.random_label import union
from hf_kd.methods.unlearning.task import Task
from hf_kd.model.unlearn import _normalisation, fresh_model, make_task
from tests.conftest import image_processor
from tests.helpers import zoo
from tests.helpers.small import make_dataset
from tests.helpers.unlearning import own, task_of
from tests.methods.unlearning.test_unlearn import METHODS, TRAINED, options

TEACHER = "DeiTForImageClassificationWithTeacher"


@pytest.fixture
def task() -> Task:
    return task_of([2] * 16, [0, 1, 3, 4] * 5)


def run(task, name: str, **more) -> dict:
    settings = {key: value for key, value in options(name, **more).items() if key != "progress"}
    return make_unlearning_method(name, **settings).run(task)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def no_hooks(model) -> bool:
    return not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def bare(task) -> Task:
    """The task without the sites of the wrapper, so that hooks left behind are those of a method."""
    for module in task.model.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return task


@pytest.mark.parametrize("name", METHODS)
def test_weights_in_bfloat16_are_changed_as_finely_as_in_float32(name, task):
    """Afterwards they are what float32 gives, rounded once: small steps are not lost on the way."""
    single = copy.copy(task)
    task.model.to(torch.bfloat16)
    single.model = copy.deepcopy(task.model).float()
    for each in (task, single):
        each.fresh = lambda seed, init, model=each.model: fresh_model(model, seed, init)
        run(each, name)
    for key, tensor in task.model.state_dict().items():
        wanted = single.model.state_dict()[key]
        assert tensor.dtype == (torch.bfloat16 if wanted.is_floating_point() else wanted.dtype)
        assert torch.equal(tensor, wanted.to(tensor.dtype)), key


@pytest.fixture(scope="module")
def distilled() -> Task:
    """Of which each test gets a copy."""
    processor = image_processor()
    processor.size = {"height": 32, "width": 32}
    forget, retain = make_dataset([2] * 12 + [4] * 4), make_dataset([0, 1, 3] * 6, seed=3)
    return make_task(ErasedModel.from_model(zoo.build(TEACHER), processor), forget, retain, ReadOptions(progress=False))


@pytest.mark.parametrize("name", METHODS)
def test_both_heads_of_a_distilled_model_are_changed(name, distilled):
    model, task = zoo.built(TEACHER), own(distilled)
    names = {f"{head}.{kind}" for head in zoo.CASES[TEACHER].heads for kind in ("weight", "bias")}
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    run(task, name, **({"k": 2} if name in ("cf-k", "eu-k") else {}))
    assert {key: tensor.shape for key, tensor in task.model.state_dict().items()} == shapes
    moved = {key for key, tensor in task.model.state_dict().items() if not torch.equal(tensor, model.state_dict()[key])}
    assert moved & names >= {key for key in names if key.endswith("weight")}
    if name in ("lau", "head-surgery"):
        assert moved == names
    if name == "head-surgery":
        assert not bool(task.logits(next(task.retain.batches(8)).inputs).softmax(dim=1)[:, [2, 4]].any())


@pytest.mark.parametrize("name", METHODS)
def test_random_samples_of_every_class(name, resnet, processor):
    """D_f holds samples of all classes and so does D_r: no class is given up as a whole."""
    forget, retain = make_dataset([0, 1, 2, 3, 4] * 3), make_dataset([0, 1, 2, 3, 4] * 4, seed=3)
    if name in ("head-surgery", "regrow", "unsir"):
        with pytest.raises(ValueError, match="fewer than all"):
            unlearn(resnet, forget, name, retain=retain, processor=processor, **options(name))
        return
    changed = unlearn(resnet, forget, name, retain=retain, processor=processor, **options(name))
    assert forgotten_classes(ErasedModel.from_model(changed, processor)) == set()
    state = changed.state_dict()
    assert not all(torch.equal(tensor, state[key]) for key, tensor in resnet.state_dict().items())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    head = changed.classifier[1]
    assert (head.weight.norm(dim=1) > 0.1 * resnet.classifier[1].weight.norm(dim=1)).all() or name in (
        "retrain",
        "eu-k",
    )


@pytest.mark.parametrize(("retained", "classes"), [([0, 1, 4], (2, 3)), ([0, 1, 3, 4], (2,)), ([2, 3, 4], None)])
def test_a_class_that_retained_images_have_is_not_named_as_forgotten(retained, classes, resnet, processor):
    """Or a second request would leave all of its images out, and the card say that it is gone."""
    changed = unlearn(
        resnet, make_dataset([2, 3] * 6), "finetune", retain=make_dataset(retained * 5, seed=3), processor=processor
    )
    model = ErasedModel.from_model(changed, processor)
    assert all_records(model)[-1].classes == classes
    assert forgotten_classes(model) == set(classes or ())


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "bf16") for name in METHODS), ("finetune", "no"), ("ssd", "no")]
)  # in full precision a descent and a closed form: what is frozen is thawed for all methods alike
def test_frozen_parameters_make_no_difference_and_any_precision_gives_finite_float32_weights(
    name, precision, vit, processor
):
    forget, retain = make_dataset([2] * 16), make_dataset([0, 1, 3, 4] * 5, seed=3)
    frozen = copy.deepcopy(vit)
    frozen.vit.requires_grad_(False)
    asked = options(name, retain=retain, processor=processor, reading=ReadOptions(mixed_precision=precision))
    first, second = (unlearn(each, forget, name, **asked) for each in (vit, frozen))
    state = first.state_dict()
    assert all(torch.equal(tensor, second.state_dict()[key]) for key, tensor in state.items())
    assert all(tensor.dtype == torch.float32 and bool(torch.isfinite(tensor).all()) for tensor in state.values())
    assert not all(torch.equal(tensor, state[key]) for key, tensor in vit.state_dict().items())
    assert [p.requires_grad for p in second.parameters()] == [p.requires_grad for p in frozen.parameters()]


def test_float16_is_refused_before_images_are_read(vit, processor, monkeypatch):
    """Losses are not scaled, so gradients would be 0. What `accelerate launch` was told counts too."""
    monkeypatch.setattr(ImageReader, "samples", lambda *a: pytest.fail("images are read"))
    for reading, told in ((ReadOptions(mixed_precision="fp16"), "no"), (None, "fp16")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
        given = {"processor": processor, "reading": reading, "progress": False}
        for change in (
            lambda given=given: unlearn(vit, make_dataset([2] * 4), "finetune", retain=make_dataset([0, 1]), **given),
            lambda given=given: train_original(vit, make_dataset([0, 1, 2, 3, 4]), **given),
        ):
            with pytest.raises(ValueError, match="fp16' cannot be taken where weights are changed.* 'bf16'"):
                change()


def test_the_precision_that_accelerate_was_told_is_trained_in_and_recorded(vit, processor, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    changed = unlearn(vit, make_dataset([2] * 4), "delete", processor=processor, **options("delete"))
    assert changed.config.hf_kd_unlearned[-1]["dtype"] == "bf16"


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("retrain", "eu-k")])
def test_tied_parameters_stay_tied(name, task):
    convolutions = [m for m in task.model.modules() if isinstance(m, nn.Conv2d)]
    by_shape = {}
    for module in convolutions:
        by_shape.setdefault(module.weight.shape, []).append(module)
    first, second = next(found for found in by_shape.values() if len(found) > 1)[:2]
    second.weight = first.weight
    run(task, name)
    assert second.weight is first.weight
    assert bool(torch.isfinite(first.weight).all())


@pytest.mark.parametrize("name", METHODS)
def test_a_head_that_is_not_linear_is_refused_where_it_is_needed_and_no_hindrance_elsewhere(name, task):
    task.heads = ()
    if unlearning_methods()[name].needs_head:
        before = weights(task.model)
        with pytest.raises(ValueError, match="last Linear layer"):
            run(task, name)
        assert all(torch.equal(tensor, before[key]) for key, tensor in task.model.state_dict().items())
    else:
        run(task, name)


@pytest.mark.parametrize("name", ["amnesiac", "salun", "bad-teaching", "ssd", "unsir", "retrain", "kodge"])
def test_images_that_do_not_fit_in_memory_make_no_difference(name, resnet, processor):
    """They are decoded for each batch; that draws nothing from the generator that decides about orders."""
    found = []
    for cache_bytes in (1 << 20, 1):
        model = ErasedModel.from_model(copy.deepcopy(resnet), processor)
        data = [make_dataset([2] * 16), make_dataset([0, 1, 3, 4] * 5, seed=3)]
        task = make_task(model, *data, ReadOptions(progress=False))
        task.forget, task.retain = (
            Samples.read((r := ImageReader(model, part)).images, r.preprocessor, cache_bytes=cache_bytes)
            for part in data
        )
        assert (task.forget._cached is None) == (cache_bytes == 1)
        run(task, name, **({"epochs": 2} if name in TRAINED else {}))
        found.append(weights(task.model))
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


def test_a_union_reads_each_part_as_one_stream(task):
    """A reader is opened once for each part and epoch, not for every batch: with workers each costs their start."""
    opened = []

    def counted(samples):
        fetch = samples._cached["pixel_values"]

        def read(order):
            opened.append(len(order))
            yield from ({"pixel_values": fetch[rows]} for rows in order)

        return Samples(samples.labels, fetch=read)

    both = union(counted(task.forget), counted(task.retain))
    assert sum(len(batch) for batch in both.batches(4, torch.randperm(len(both)))) == 36
    assert len(opened) == 2


@pytest.mark.parametrize("name", METHODS)
def test_an_error_in_the_middle_leaves_no_hooks_flags_or_widened_heads(name, task, monkeypatch):
    bare(task).model.get_parameter(f"{task.heads[0]}.bias").requires_grad_(False)
    flags, head, logits, calls = (
        [p.requires_grad for p in task.model.parameters()],
        task.linear_heads(),
        task.logits,
        [],
    )

    def failing(inputs, *model):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("a disk went away")
        return logits(inputs, *model)

    state = torch.random.get_rng_state()
    monkeypatch.setattr(task, "logits", failing)
    if name == "head-surgery":  # reads no image
        run(task, name)
    elif name == "lau":
        monkeypatch.setattr(task, "linear_heads", lambda: head)
        calls.append(1)
    if name != "head-surgery":
        with pytest.raises(OSError, match="went away"):
            run(task, name)
    assert no_hooks(task.model)
    assert [p.requires_grad for p in task.model.parameters()] == flags
    assert task.linear_heads() == head
    assert head[0].out_features == 5
    assert not any(module.training for module in task.model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


class OneOf:
    """Process `process_index` of several, as far as shares go; what others have would be added by `reduce`."""

    is_main_process = False

    def __init__(self, process_index: int, num_processes: int):
        self.process_index, self.num_processes = process_index, num_processes


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("head-surgery", "lau", "regrow")])
def test_processes_agree_on_every_order(name, monkeypatch):
    """Their batches differ in size, so none may draw from the shared generator for a batch of its own."""
    orders = []
    for process in range(2):
        task = task_of([2] * 15, [0, 1, 3, 4] * 5 + [0])
        task.state = OneOf(process, 2)
        drawn, randperm = [], torch.randperm

        def spy(n, *more, drawn=drawn, randperm=randperm, **options):
            drawn.append(randperm(n, *more, **options).tolist())
            return torch.tensor(drawn[-1], dtype=torch.long)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "randperm", spy)
            run(task, name, **({"epochs": 2} if name in TRAINED else {"columns": 10_000} if name == "kodge" else {}))
        orders.append([order for order in drawn if len(order) in (15, 21, 36)])
    assert orders[0] == orders[1] != []


@pytest.mark.parametrize("name", METHODS)
def test_less_than_a_sample_for_each_process_is_refused(name, task):
    """All of them would leave such a batch out, and nothing would be forgotten without a word."""
    task.state = OneOf(0, 17)
    with pytest.raises(ValueError, match="at least 17, one for each process"):
        run(task, name)
    if name in TRAINED:
        task.state = OneOf(0, 2)
        with pytest.raises(ValueError, match="batch_size=1 is out of range"):
            run(task, name, batch_size=1)


def test_augmentation_is_optional_for_inputs_that_are_no_images(task):
    """The way out that the refusal names has to be one."""
    from hf_kd.methods.unlearning.retrain import augmented

    patches = {"pixel_values": torch.randn(2, 16, 192)}
    with pytest.raises(ValueError, match="augment='none'"):
        augmented(patches, "flip", torch.Generator())
    assert augmented(patches, "none", torch.Generator()) is patches


@pytest.mark.parametrize("name", ["retrain", "bad-teaching", "eu-k"])
def test_a_task_without_fresh_weights_is_refused_by_name(name, task):
    task.fresh = None
    with pytest.raises(ValueError, match=f"{name} needs a model with fresh weights"):
        run(task, name)


def test_fresh_weights_do_not_depend_on_the_precision_of_the_original(vit):
    single = fresh_model(vit, 0).state_dict()
    half = fresh_model(copy.deepcopy(vit).to(torch.bfloat16), 0).state_dict()
    assert all(torch.equal(tensor.to(torch.bfloat16), half[key]) for key, tensor in single.items())


@pytest.mark.parametrize(
    "option",
    [
        {"image_column": "img"},
        {"label_column": "y"},
        {"label_mapping": {0: 1}},
        {"mixed_precision": "bf16"},
        {"num_workers": 1},
    ],
)
def test_how_images_are_read_is_said_in_one_place(vit, processor, forget, option):
    (name,) = option
    with pytest.raises(TypeError, match=rf"reading=ReadOptions\({name}="):
        unlearn(vit, forget, "neggrad", processor=processor, progress=False, **option)
    with pytest.raises(TypeError, match=rf"reading=ReadOptions\({name}="):
        train_original(vit, forget, processor=processor, progress=False, **option)


def test_the_range_of_pixels_is_known_only_where_the_processor_makes_it_from_0_to_1(processor):
    mean, std = _normalisation(processor)
    assert mean.tolist() == std.tolist() == [0.5] * 3
    processor.image_mean = processor.image_std = 0.5
    assert [value.shape for value in _normalisation(processor)] == [(1,), (1,)]
    for setting, value in (("rescale_factor", 1 / 127.5), ("do_rescale", False), ("do_normalize", False)):
        other = copy.deepcopy(processor)
        setattr(other, setting, value)
        assert _normalisation(other) == (None, None)
