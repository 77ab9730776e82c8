"""One contract, every vision architecture of transformers: what an erased model owes, whatever is inside.

Driven by the table in `zoo`. Nothing here trusts the tap search: features are recorded by plain hooks on the modules
the table names.
"""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoModelForImageClassification, logging

from hf_kd import ErasedModel
from hf_kd.data.masked_classes import MASKED_LOGIT
from hf_kd.errors import InvalidTypeError
from hf_kd.features.taps.find import find_taps
from hf_kd.features.taps.inputs import probe_inputs
from tests.helpers import zoo

K = 2
N_FORGET = 10

every_classifier = pytest.mark.parametrize("name", zoo.CLASSIFIERS)
every_embedder = pytest.mark.parametrize("name", zoo.EMBEDDERS)
every_model = pytest.mark.parametrize("name", zoo.CASES)


@pytest.fixture(autouse=True)
def quiet():
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def images(name: str, n: int = N_FORGET, seed: int = 1) -> dict[str, Tensor]:
    """A batch of the image side only."""
    return {key: value for key, value in zoo.inputs(name, n, seed).items() if key not in TEXT or is_image_gpt(name)}


TEXT = ("input_ids", "attention_mask")


def is_image_gpt(name: str) -> bool:
    return name.startswith("ImageGPT")


def loader(inputs: dict[str, Tensor], labels: Tensor | None = None, batch_size: int = 4) -> DataLoader:
    rows = inputs | ({} if labels is None else {"labels": labels})
    n = len(next(iter(rows.values())))
    return DataLoader([{key: value[i] for key, value in rows.items()} for i in range(n)], batch_size=batch_size)


def erased(name: str) -> ErasedModel:
    return copy.deepcopy(erased_once(name))


@functools.cache
def erased_once(name: str) -> ErasedModel:
    """Erased once, for tests that only read; others get a copy, which answers the same (`test_a_copy_answers_...`)."""
    return erase(zoo.build(name), name)


def erase(model: nn.Module, name: str) -> ErasedModel:
    return ErasedModel.from_model(model).erase(loader(images(name)), k=K, progress=False)


def head_inputs(model: nn.Module, name: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What each head named in the table takes in one forward, as [n, d]; by a plain hook, without anything of hf_kd."""
    inner = getattr(model, "inner", model)
    seen: dict[str, Tensor] = {}
    handles = []
    for head in zoo.CASES[name].heads:
        handles.append(inner.get_submodule(head).register_forward_pre_hook(
            lambda module, args, head=head: seen.__setitem__(head, args[0].detach().flatten(1).clone())
        ))  # fmt: skip
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return [seen[head] for head in zoo.CASES[name].heads]


def tower_output(model: nn.Module, name: str, inputs: dict[str, Tensor]) -> Tensor:
    """The tower's `pooler_output` in one forward of the whole model, as [n, d]."""
    inner = getattr(model, "inner", model)
    seen = []
    tower = inner.get_submodule(zoo.CASES[name].tower)
    handle = tower.register_forward_hook(lambda module, args, output: seen.append(output.pooler_output.flatten(1)))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0]


def directions_at_heads(model: ErasedModel) -> list[Tensor]:
    """U_k [d, k] for each head, in the order of the table."""
    of_head = {head: site.eraser.directions for site in model.sites for head in site.tap.heads}
    return [of_head[head] for head in zoo.CASES[type(model.inner).__name__].heads]


def share_along(features: Tensor, directions: Tensor, of: Tensor | None = None) -> float:
    """Largest component along the directions, relative to the largest entry of the features (or of others)."""
    return float((features @ directions).abs().max() / (features if of is None else of).abs().max())


def tensors(output) -> dict[str, Tensor]:
    return {key: value for key, value in output.items() if isinstance(value, Tensor)}


def answers(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return tensors(model(**inputs))


def answer_name(name: str) -> str:
    return "last_hidden_state" if name.startswith("PPLCNet") else "logits"


def assert_bit_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def training_modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_the_table_holds_every_class_of_transformers():
    known = zoo.known_classes()
    assert known - set(zoo.NOT_BUILT) == set(zoo.CLASSIFIERS)
    assert len(zoo.CLASSIFIERS) >= 44


# The contract of the classifiers.


@every_classifier
def test_the_tap_is_where_the_table_says_and_its_features_are_what_the_heads_take(name):
    case, model = zoo.CASES[name], zoo.build(name)
    inputs = images(name)
    seen = head_inputs(model, name, inputs)
    wrapped = ErasedModel.from_model(model)
    features = wrapped.pooled_features(**inputs)
    search = wrapped.search
    assert tuple(head for tap in search.taps for head in tap.heads) == case.heads
    assert {tap.dim for tap in search.taps} == {case.dim}
    assert not search.note
    places = [place.module for tap in search.taps for place in tap.places if place.field == "pooler_output"]
    assert places == ([case.tower] if case.tower else [])
    assert case.labels == ("labels" in inspect.signature(model.forward).parameters)
    features = (features,) if isinstance(features, Tensor) else features
    of_head = {head: part for tap, part in zip(wrapped.taps, features, strict=True) for head in tap.heads}
    for head, taken in zip(zoo.CASES[name].heads, seen, strict=True):
        assert torch.equal(of_head[head], taken)
        assert float(taken.std(dim=0).mean()) > 1e-3, "random weights must give features that differ between images"


@every_classifier
def test_the_erased_directions_are_those_of_the_forget_features_and_no_head_sees_them(name):
    plain = zoo.built(name)
    forget, others = images(name), images(name, 6, seed=2)
    before = head_inputs(plain, name, forget)
    model = erased_once(name)
    for directions, features in zip(directions_at_heads(model), before, strict=True):
        u = torch.linalg.svd(features.double().T, full_matrices=False)[0][:, :K]
        cosines = torch.linalg.svdvals(u.T @ directions.double())
        assert float(cosines.min()) > 1 - 1e-6, "U_k spans the principal directions of what the head took"
        assert share_along(features, directions) > 1e-2, "there was something to remove"
    for inputs in (forget, others):
        taken = zip(head_inputs(model, name, inputs), head_inputs(plain, name, inputs), strict=True)
        for directions, (after, features) in zip(directions_at_heads(model), taken, strict=True):
            assert share_along(after, directions, of=features) < 1e-5
    key = answer_name(name)
    assert not torch.allclose(answers(model, forget)[key], answers(plain, forget)[key], rtol=1e-3)
    if zoo.CASES[name].tower:
        directions = directions_at_heads(model)[0]
        features = tower_output(plain, name, others)
        assert share_along(features, directions) > 1e-3
        assert share_along(tower_output(model, name, others), directions, of=features) < 1e-5


@every_classifier
def test_nothing_is_returned_that_goes_past_the_erasers(name):
    model, inputs = erased(name), images(name, 4)
    for site in model.sites:  # with every direction removed, nothing about the image may be left
        site.eraser.directions = torch.eye(site.tap.dim)
    with torch.no_grad():
        output = model(**inputs)
    for key, value in output.items():
        assert isinstance(value, Tensor), f"{key} cannot be looked into"
        assert torch.allclose(value, value[:1].expand_as(value), atol=1e-5 * float(value.abs().max())), key


@every_model
def test_saved_and_loaded_it_answers_bit_for_bit_the_same(name, tmp_path):
    model, inputs = erased_once(name), zoo.inputs(name, 4)
    model.save_pretrained(tmp_path)
    auto = AutoModelForImageClassification if zoo.CASES[name].heads else AutoModel
    loaded = auto.from_pretrained(tmp_path)  # calls ErasedModel.from_pretrained
    assert isinstance(loaded, ErasedModel)
    assert type(loaded.inner) is type(model.inner)
    assert_bit_equal(answers(loaded, inputs), answers(model, inputs))
    assert_bit_equal(dict(enumerate(pooled(loaded, name))), dict(enumerate(pooled(model, name))))
    assert loaded.erasures == model.erasures


def pooled(model: ErasedModel, name: str) -> tuple[Tensor, ...]:
    features = model.pooled_features(**images(name, 4))
    return (features,) if isinstance(features, Tensor) else features


@pytest.mark.parametrize("name", ["MobileNetV2ForImageClassification", "PoolFormerForImageClassification"])
def test_erased_after_loading_the_plain_checkpoint_it_reloads_bit_for_bit_too(name, tmp_path):
    plain, inputs = zoo.build(name), images(name, 4)
    plain.save_pretrained(tmp_path / "plain")
    for source in (
        ErasedModel.from_pretrained(tmp_path / "plain"),
        ErasedModel.from_model(type(plain).from_pretrained(tmp_path / "plain")),
    ):
        model = source.erase(loader(inputs), k=K, progress=False)
        model.save_pretrained(tmp_path / "erased")
        assert_bit_equal(answers(ErasedModel.from_pretrained(tmp_path / "erased"), inputs), answers(model, inputs))


@every_model
def test_a_copy_answers_the_same_and_lives_its_own_life(name):
    model, inputs = erased_once(name), zoo.inputs(name, 3)
    expected = answers(model, inputs)
    plain, clone = zoo.built(name), copy.deepcopy(model)
    assert_bit_equal(answers(clone, inputs), expected)
    assert_bit_equal(
        clone.inner.state_dict(), plain.state_dict()
    )  # erasing left float32 weights and buffers as they were
    clone.reset()
    clone.double()
    key = answer_name(name) if zoo.CASES[name].heads else next(iter(expected))
    double = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    assert torch.allclose(answers(clone, double)[key].float(), answers(plain, inputs)[key], rtol=1e-3, atol=1e-3)
    assert_bit_equal(answers(model, inputs), expected)
    assert model.is_erased
    assert not clone.is_erased


@every_classifier
def test_labels_give_the_loss_of_the_erased_logits(name):
    model, inputs = erased(name), images(name, 4)
    labels = torch.tensor([0, 1, 2, 3])
    if not zoo.CASES[name].labels:
        pytest.skip("the class takes no labels")
    output = model(**inputs, labels=labels)
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, labels), rtol=1e-5)
    output.loss.backward()
    grads = [parameter.grad for parameter in model.inner.parameters() if parameter.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)


@every_classifier
def test_folded_it_is_a_stock_model_with_the_erased_logits(name):
    model, inputs = erased_once(name), images(name, 4)
    stock = model.fold()
    assert type(stock) is type(model.inner)
    assert stock is not model.inner
    key = answer_name(name)
    logits = answers(model, inputs)[key]
    assert float((answers(stock, inputs)[key] - logits).abs().max()) <= 1e-5 * float(logits.abs().max())
    assert torch.equal(answers(model, inputs)[key], logits), "the model it was folded from stays as it was"


@every_model
def test_erasing_leaves_modes_and_buffers_as_they_were_and_erases_in_bfloat16_too(name):
    inner = zoo.build(name).bfloat16().train()
    inputs = {key: v.bfloat16() if v.is_floating_point() else v for key, v in images(name).items()}
    frozen = [module for module in inner.modules() if not list(module.children())][::3]
    for module in frozen:  # as a user who trains with some layers frozen has it
        module.eval()
    modes, state = training_modes(inner), {key: value.clone() for key, value in inner.state_dict().items()}
    model = ErasedModel.from_model(inner)
    model.erase(loader(inputs), k=K, progress=False)
    assert training_modes(inner) == modes
    assert_bit_equal(inner.state_dict(), state)
    model.eval()
    for site, features in zip(model.sites, pooled_in(model, inputs), strict=True):
        assert features.dtype == torch.bfloat16
        assert site.eraser.directions.dtype == torch.float32
        # what is left is the rounding of the result to bfloat16, 2^-9 of each entry
        assert share_along(features.float(), site.eraser.directions) < 2e-2


# Heads more than one, and ESC-T.


@pytest.mark.parametrize("name", [name for name, case in zoo.CLASSIFIERS.items() if len(case.heads) == 2])
def test_two_heads_are_both_erased(name):
    model, plain, inputs = erased(name), zoo.build(name), images(name, 4)
    for site in model.sites:
        site.eraser.directions = torch.eye(site.tap.dim)
    for before, after in zip(head_inputs(plain, name, inputs), head_inputs(model, name, inputs), strict=True):
        assert float(before.abs().max()) > 0.1
        assert float(after.abs().max()) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "ViTForImageClassification",
        "ResNetForImageClassification",
        "PerceiverForImageClassificationLearned",
        "LevitForImageClassification",
        "LevitForImageClassificationWithTeacher",
        "DeiTForImageClassificationWithTeacher",
        "SwiftFormerForImageClassification",
    ],
)
def test_esc_t_makes_the_model_as_wrong_as_it_measured(name):
    plain, pool = zoo.build(name), images(name, 40)
    balance(plain, answers(plain, pool)["logits"])
    predicted = answers(plain, pool)["logits"].argmax(dim=1)
    target = easiest_to_forget(plain, predicted)
    forget = {key: value[predicted == target] for key, value in pool.items()}
    labels = torch.full((int((predicted == target).sum()),), target)
    model = ErasedModel.from_model(plain)
    model.erase(loader(forget, labels), method="esc-t", lr=1.0, progress=False)
    for measured in model.erasures[0].measured:
        assert measured["forget_hits_before"] == 100.0
        assert measured["forget_hits_hard"] < 100.0
        hits = float((answers(model, forget)["logits"].argmax(dim=1) == labels).float().mean())
        assert measured["forget_hits_hard"] == pytest.approx(100 * hits, abs=1e-3)
    assert len(model.erasures[0].measured) == len(model.sites)


# Cover, and the answers it masks, under the contract of ESC.


def covered(name: str, plain: nn.Module | None = None, **options) -> tuple[ErasedModel, int]:
    """A model that has covered the class its head answers most often, and that class."""
    plain, inputs = plain or zoo.build(name), images(name)
    key = answer_name(name)
    balance(plain, answers(plain, inputs)[key])
    forgotten = int(answers(plain, inputs)[key].argmax(dim=1).mode().values)
    model = ErasedModel.from_model(plain)
    labels = torch.full((N_FORGET,), forgotten)
    return model.erase(loader(inputs, labels), method="cover", progress=False, **options), forgotten


SHALLOW = {
    "ViTForImageClassification": {"num_hidden_layers": 1},
    "ResNetForImageClassification": {"hidden_sizes": [24], "depths": [1]},
    "DeiTForImageClassificationWithTeacher": {"num_hidden_layers": 1},
}
"""For compilers, which take long for each layer: an eraser at an input, at a map in a field of an output, at two sites."""

ONE_OF_EACH_HEAD = [
    *(
        f"{name}ForImageClassification"
        for name in (
            "ViT",
            "ResNet",
            "PPLCNet",
            "ImageGPT",
            "Siglip2",
            "TextNet",
            "Levit",
            "SwiftFormer",
            "MobileNetV2",
        )
    ),
    *("LevitForImageClassificationWithTeacher", "DeiTForImageClassificationWithTeacher"),
    "PerceiverForImageClassificationLearned",
]
"""What a cover decides, and what files, copies, the loss and `reset` do with it, depends on the heads and on what is read
for them alone; that the heads of all others are found, and their Linear layers, the table and folding show."""


@pytest.mark.parametrize("name", ONE_OF_EACH_HEAD)
def test_cover_keeps_the_contract(name, tmp_path):
    model, forgotten = covered(name)
    inputs, key = images(name, N_FORGET), answer_name(name)
    erasers = [site.eraser for site in model.sites]
    assert all(len(eraser.cover) == 2 and forgotten not in eraser.cover for eraser in erasers)
    acted = False
    for site, before, after in zip(
        model.sites, pooled_in(model, inputs, "before"), pooled_in(model, inputs), strict=True
    ):
        hit = site.eraser.decide(before)[1]
        assert torch.equal(after[~hit], before[~hit])
        assert len(after[hit].unique(dim=0)) <= 2
        acted |= bool(hit.any())
    assert acted
    output = answers(model, inputs)
    assert (output[key][:, forgotten] == MASKED_LOGIT).all()
    assert (output[key].softmax(dim=1)[:, forgotten] == 0).all()
    assert torch.isfinite(output[key]).all()
    model.save_pretrained(tmp_path)
    for other in (ErasedModel.from_pretrained(tmp_path), copy.deepcopy(model)):
        assert_bit_equal(answers(other, inputs), output)
        assert other.erasures == model.erasures
    if zoo.CASES[name].labels:
        labels = torch.arange(N_FORGET) % zoo.NUM_LABELS
        result = model(**inputs, labels=labels)
        assert torch.allclose(result.loss, F.cross_entropy(result.logits, labels), rtol=1e-5)
    with pytest.raises(ValueError, match="'cover' is not linear"):
        model.fold()
    model.reset()
    assert not torch.equal(answers(model, inputs)[key], output[key])


@pytest.mark.parametrize("name", SHALLOW)  # features that are a vector, a map, and two heads
@pytest.mark.usefixtures("fresh_compiler")
def test_cover_is_compiled_and_exported(name):
    model, _ = covered(name, zoo.build(name, **SHALLOW[name]))
    inputs = images(name, 3)
    expected = answers(model, inputs)["logits"]
    with torch.no_grad():  # captured only: what a backend makes of the same layers is seen with ESC
        logits = torch.compile(model, fullgraph=True, backend="eager")(**inputs).logits
        program = torch.export.export(model, (), dict(inputs), strict=False)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.allclose(program.module()(**inputs).logits, expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in zoo.CLASSIFIERS.items() if len(case.heads) == 2])
def test_every_logit_of_two_heads_is_masked_or_dropped(name):
    for label in ("(erased)", None):
        model, forgotten = covered(name, erased_label=label)
        for key, value in answers(model, images(name, 3)).items():
            assert value.shape == (3, zoo.NUM_LABELS - (label is None)), key
            assert label is None or (value[:, forgotten] == MASKED_LOGIT).all(), key


@pytest.mark.parametrize("name", ["PPLCNetForImageClassification", "ViTForImageClassification"])
def test_dropped_classes_leave_no_column_whatever_the_answer_is_called(name):
    model, _ = covered(name, erased_label=None)
    assert answers(model, images(name, 3))[answer_name(name)].shape == (3, zoo.NUM_LABELS - 1)


def easiest_to_forget(model: nn.Module, predicted: Tensor) -> int:
    """Of the classes predicted three times or more, the one with the lowest logit when no feature is left."""
    case = zoo.CASES[type(model).__name__]
    shape = (1, 1, case.dim) if "Perceiver" in case.name else (1, case.dim)
    with torch.no_grad():
        logits = sum(model.get_submodule(head)(torch.zeros(shape)).flatten() for head in case.heads)
    often = predicted.bincount(minlength=zoo.NUM_LABELS) >= 3
    return int(logits.where(often, torch.inf).argmin())


def balance(model: nn.Module, logits: Tensor) -> None:
    """Shift and scale the heads so that predictions come from the features and none is certain.

    The random biases would drown the features of a random model, and ascent on the cross entropy starts nowhere from
    predictions that are certain in float32: their gradient is zero.
    """
    for head in zoo.CASES[type(model).__name__].heads:
        linear = next(m for m in model.get_submodule(head).modules() if isinstance(m, nn.Linear))
        with torch.no_grad():
            if linear.bias is not None:
                linear.bias.sub_(logits.mean(dim=0)).div_(logits.std())
            linear.weight.div_(logits.std())


# Compiled and exported.


@pytest.mark.parametrize("name", SHALLOW)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_and_exported_it_gives_the_erased_answers(name):
    model, inputs = erase(zoo.build(name, **SHALLOW[name]), name), images(name, 2)
    expected = answers(model, inputs)["logits"]
    with torch.no_grad():
        logits = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).logits
    assert torch.allclose(logits, expected, atol=1e-5)
    if len(model.sites) == 1:  # captured at every batch size by test_onnx_export.py and, of stages, by test_graph.py
        return
    with torch.no_grad():
        program = torch.export.export(model, (), dict(inputs), strict=False)
        logits = program.module()(**inputs).logits
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "method"), [("LevitForImageClassification", "esc"), ("SwiftFormerForImageClassification", "cover")]
)
def test_a_tap_of_several_places_is_exported_and_answers_the_same_afterwards(name, method):
    """An input and a field of an output, with what LeViT caches in eval mode; and two heads that a cover masks."""
    model, inputs = erased(name) if method == "esc" else covered(name)[0], images(name, 2)
    expected = answers(model, inputs)
    with torch.no_grad():
        logits = torch.export.export(model, (), dict(inputs), strict=False).module()(**inputs).logits
    assert torch.allclose(logits, expected["logits"], atol=1e-5)
    assert_bit_equal(answers(model, inputs), expected)


# Faults of the plain models: what fails here fails without us, and is marked so that it is noticed when it is mended.


@pytest.mark.parametrize("name", [name for name, case in zoo.CASES.items() if "deepcopy" in case.faults])
def test_copies_after_a_forward_with_gradients(name):
    plain, model, inputs = zoo.build(name), erased(name).train().eval(), images(name, 2)
    plain(**inputs)
    model(**inputs)
    try:
        copy.deepcopy(plain)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            copy.deepcopy(model)
        assert_fold_still_works(model, inputs)
        pytest.xfail(zoo.CASES[name].faults["deepcopy"])
    assert_bit_equal(answers(copy.deepcopy(model), inputs), answers(model, inputs))


def assert_fold_still_works(model: ErasedModel, inputs: dict[str, Tensor]) -> None:
    logits = answers(model, inputs)["logits"]
    assert torch.allclose(answers(model.fold(), inputs)["logits"], logits, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, case in zoo.CASES.items() if "cast" in case.faults])
def test_cast_after_a_forward(name):
    plain, model, inputs = zoo.build(name), erased(name), images(name, 2)
    half = {key: value.bfloat16() for key, value in inputs.items()}
    answers(plain, inputs)
    try:
        answers(plain.bfloat16(), half)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            answers(model.bfloat16(), half)
        pytest.xfail(zoo.CASES[name].faults["cast"])
    answers(model.bfloat16(), half)


def pooled_in(model: ErasedModel, inputs: dict[str, Tensor], stage: str = "after") -> tuple[Tensor, ...]:
    features = model.pooled_features(stage=stage, **inputs)
    return (features,) if isinstance(features, Tensor) else features


@pytest.mark.parametrize("name", ["LevitForImageClassification"])
def test_erasing_while_training_leaves_no_stale_caches(name):
    model, inputs = ErasedModel.from_model(zoo.build(name).train()), images(name, 2)
    model.erase(loader(images(name)), k=K, progress=False)
    with torch.no_grad():
        for key, parameter in model.inner.named_parameters():
            if "attention_biases" in key:
                parameter.add_(torch.linspace(-3, 3, parameter.numel()).view_as(parameter))
    fresh = zoo.build(name)
    fresh.load_state_dict(model.inner.state_dict())
    other = ErasedModel.from_model(fresh).eval()
    assert torch.equal(pooled_in(model.eval(), inputs)[0], model.sites[0].eraser(pooled_in(other, inputs)[0]))


# Embedding models: ESC works, their pooled outputs are their answer.

TWO_TOWERS = [name for name, case in zoo.EMBEDDERS.items() if case.is_text_image]


def embeddings(model: nn.Module, name: str, n: int = 6) -> dict[str, Tensor]:
    """Everything a model returns that is a pooled embedding of the images."""
    inputs, side = zoo.inputs(name, n, seed=3), images(name, n, seed=3)
    with torch.no_grad():
        output = model(**inputs)
        found = {key: output[key] for key in ("pooler_output", "image_embeds") if output.get(key) is not None}
        if name in TWO_TOWERS:
            found["vision_model_output"] = output.vision_model_output.pooler_output
            found["get_image_features"] = model.get_image_features(**side).pooler_output
    return found


@every_embedder
def test_the_tap_of_an_embedding_model_carries_its_embedding(name):
    model = zoo.build(name)
    search = find_taps(model, probe_inputs(model))
    assert len(search.taps) == 1
    assert search.taps[0].dim == zoo.CASES[name].dim
    assert not search.taps[0].heads
    expected = embeddings(model, name)
    wrapped = ErasedModel.from_model(model)
    features = wrapped.pooled_features(**images(name, 6, seed=3))
    key = "get_image_features" if name in TWO_TOWERS else next(iter(expected))
    assert torch.equal(features, expected[key])


@every_embedder
def test_every_pooled_embedding_is_erased(name):
    model, plain = erased(name), zoo.build(name)
    directions = model.sites[0].eraser.directions
    found = embeddings(model, name)
    assert found.keys() == embeddings(plain, name).keys()
    for key, value in found.items():
        assert share_along(value, directions) < 2e-5, key
        assert share_along(embeddings(plain, name)[key], directions) > 1e-2, key


@every_embedder
def test_calls_past_the_wrapper_are_erased_as_well(name):
    """The eraser stands on a module, whoever calls it."""
    model, directions = erased(name), erased(name).sites[0].eraser.directions
    expected = embeddings(model, name)
    for key, value in embeddings(model.inner, name).items():
        assert torch.equal(value, expected[key]), key
    call = model.inner.get_image_features if name in TWO_TOWERS else model.inner
    try:
        with torch.no_grad():
            given = call(**images(name, 4), return_dict=False)
    except InvalidTypeError:  # a tuple has no field to erase
        assert any(place.field for place in model.taps[0].places)
        return
    pooled = [value for value in (given if isinstance(given, tuple) else (given,)) if value.ndim == 2]
    assert pooled
    for value in pooled:
        assert share_along(value, directions) < 2e-5


@pytest.mark.parametrize("name", [name for name, case in zoo.CLASSIFIERS.items() if case.tower])
def test_a_tower_that_is_called_by_itself_gives_erased_features(name):
    model = erased(name)
    towers = [place.module for tap in model.taps for place in tap.places if place.field == "pooler_output"]
    for tower in towers:
        pooled = model.inner.get_submodule(tower)(**images(name, 4)).pooler_output.detach()
        assert share_along(pooled.flatten(1), model.sites[0].eraser.directions) < 2e-5


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_a_replaced_module_is_erased_whatever_is_called_first(name):
    model, plain = erased(name), zoo.build(name)
    path = model.taps[0].places[0].module
    setattr(model.inner, path, copy.deepcopy(plain.get_submodule(path)))
    with torch.no_grad():
        found = model.get_image_features(**images(name, 4)).pooler_output
    assert share_along(found, model.sites[0].eraser.directions) < 2e-5


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_similarities_are_those_of_the_erased_embeddings(name):
    model, plain, inputs = erased(name), zoo.build(name), zoo.inputs(name, 4)
    with torch.no_grad():
        output, before = model(**inputs), plain(**inputs)
    assert torch.equal(output.text_embeds, before.text_embeds), "texts are not forgotten"
    bias = getattr(model.inner, "logit_bias", torch.zeros(()))
    expected = output.image_embeds @ output.text_embeds.T * model.inner.logit_scale.exp() + bias
    assert torch.allclose(output.logits_per_image, expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(output.logits_per_text, expected.T, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(output.logits_per_image, before.logits_per_image, rtol=1e-2)


@every_embedder
def test_hidden_states_come_back_only_when_asked_for(name):
    model, inputs = erased(name), zoo.inputs(name, 2)

    def last_hidden_state(**options) -> Tensor | None:
        with torch.no_grad():
            output = model(**inputs, **options)
        return (output.vision_model_output if name in TWO_TOWERS else output).get("last_hidden_state")

    assert last_hidden_state() is None
    if name in TWO_TOWERS:
        assert model.get_image_features(**images(name, 2)).get("last_hidden_state") is None
    assert last_hidden_state(output_hidden_states=True) is not None


@every_embedder
def test_a_tuple_holds_no_more_than_the_structured_output(name):
    model, inputs = erased(name), images(name, 2)
    call = model.get_image_features if name in TWO_TOWERS else model
    with torch.no_grad():
        structured, plain = call(**inputs), call(**inputs, return_dict=False)
    assert isinstance(plain, tuple)
    assert all(torch.equal(one, other) for one, other in zip(structured.to_tuple(), plain, strict=True))


@pytest.mark.parametrize("name", ["ViTModel", "CLIPModel"])
def test_esc_t_needs_a_head_and_says_so(name):
    model = ErasedModel.from_model(zoo.build(name))
    with pytest.raises(ValueError, match=r"needs a classification head.*method='esc'"):
        model.erase(loader(images(name), torch.zeros(N_FORGET, dtype=torch.long)), method="esc-t", progress=False)
    assert not model.is_erased


@every_embedder
def test_folding_an_embedding_model_is_exact_or_refused(name):
    model = erased(name)
    if name in ("CLIPVisionModelWithProjection", "CLIPModel", "MetaClip2Model"):  # a Linear makes the embedding
        for key, value in embeddings(model.fold(), name).items():
            assert torch.allclose(value, embeddings(model, name)[key], atol=1e-5), key
    else:
        with pytest.raises(ValueError, match="no weight to fold"):
            model.fold()
