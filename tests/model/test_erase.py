"""ErasedModel.erase: any forget set, one pass, and a model that stays itself but for the forgotten directions."""

from __future__ import annotations

import contextlib
import copy
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from hf_kd import ESC, ESCT, ErasedModel, ReadOptions, SecondMoment
from hf_kd.errors import InvalidValueError, LabelMismatchError, UnreadableImageError
from hf_kd.hub.document import document
from hf_kd.methods.registry import built_in_infos, method_info
from hf_kd.model.verify import verify
from tests.helpers.small import make_dataset, picture, randomise
from tests.helpers.zoo import build


def logits_of(model, pixels):
    with torch.no_grad():
        return model(pixel_values=pixels).logits


def test_what_passes_the_tap_has_no_part_in_the_removed_directions(model, processor, forget, pixels):
    erased = ErasedModel.from_model(model, processor)
    before = erased.pooled_features(pixels)
    erased.erase(forget, k=2, progress=False)
    after = erased.pooled_features(pixels)
    directions = erased.sites[0].eraser.directions
    assert float((after @ directions).abs().max()) < 1e-5 * float(before.norm(dim=1).max())
    assert torch.allclose(after, before - before @ directions @ directions.T, atol=1e-5)
    assert torch.equal(erased.pooled_features(pixels, stage="before"), before)


def test_the_directions_are_those_of_the_forget_features(model, processor, forget):
    erased = ErasedModel.from_model(model, processor)
    images = processor([image.convert("RGB") for image in forget["image"]], return_tensors="pt")["pixel_values"]
    h = erased.pooled_features(images)
    erased.erase(forget, k=3, reading=ReadOptions(batch_size=7), progress=False)
    u = SecondMoment.of(h).principal_directions()[0][:, :3]
    residual = u - erased.sites[0].eraser.directions.double() @ (erased.sites[0].eraser.directions.double().T @ u)
    assert float(torch.linalg.svdvals(residual)[0]) < 1e-6


def test_the_record_says_what_was_done_and_nothing_about_images(model, processor, forget):
    erased = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    (record,) = erased.erasures
    assert (record.method, record.k, record.n_forget, record.classes) == ("esc", 2, 20, (2,))
    assert record.settings == {"p": None, "k": 2, "center": False, "per_class": False, "renorm": False}
    assert 0 < record.energy_removed <= 1
    assert record.dtype == "float32"
    assert len(record.sha256[0]) == 64
    assert record.versions["torch"] == torch.__version__
    assert record.fit_seconds >= 0


def test_mode_buffers_and_weights_stay_as_they_were(resnet, processor, forget):
    resnet.train()
    resnet.resnet.encoder.eval()  # a mixed state has to come back as it was
    modes = {name: module.training for name, module in resnet.named_modules()}
    state = {name: value.clone() for name, value in resnet.state_dict().items()}
    ErasedModel.from_model(resnet, processor).erase(forget, k=1, progress=False)
    assert {name: module.training for name, module in resnet.named_modules()} == modes
    assert all(torch.equal(value, resnet.state_dict()[name]) for name, value in state.items()), "BatchNorm too"


def test_esc_t_leaves_no_forget_sample_right(model, processor, forget):
    erased = ErasedModel.from_model(model, processor)
    pixels = processor([image.convert("RGB") for image in forget["image"]], return_tensors="pt")["pixel_values"]
    winner = int(logits_of(model, pixels).argmax(dim=1).mode().values)
    erased.erase(make_dataset([winner] * 20), ESCT(lr=3.0, threshold=0.999), progress=False)
    assert erased.erasures[0].measured[0]["forget_hits_soft"] == 0
    assert erased.erasures[0].condition_number[0] is None or erased.erasures[0].condition_number[0] > 1


@pytest.mark.parametrize("form", ["dataset", "stream", "images", "pairs", "dicts", "loader"])
def test_every_form_of_forget_set_gives_the_same_eraser(vit, processor, forget, form):
    images, labels = list(forget["image"]), list(forget["label"])
    batch = processor(images, return_tensors="pt")["pixel_values"]
    forms = {
        "dataset": forget,
        "stream": forget.to_iterable_dataset(num_shards=2),
        "images": images,
        "pairs": list(zip(images, labels, strict=True)),
        "dicts": [{"image": i, "label": y} for i, y in zip(images, labels, strict=True)],
        "loader": DataLoader(
            [{"pixel_values": x, "labels": y} for x, y in zip(batch, labels, strict=True)], batch_size=6
        ),
    }
    reference = ErasedModel.from_model(copy.deepcopy(vit), processor).erase(forget, k=2, progress=False)
    erased = ErasedModel.from_model(vit, None if form == "loader" else processor)
    erased.erase(forms[form], k=2, progress=False)
    a, b = (m.sites[0].eraser.directions for m in (erased, reference))
    assert torch.allclose(a, b, atol=1e-5)
    assert erased.erasures[0].n_forget == 20
    assert erased.erasures[0].classes == (None if form == "images" else (2,))


@pytest.mark.parametrize("form", ["stream", "loader"])
def test_texts_that_are_no_labels_of_the_model_are_no_hindrance_where_none_is_needed(vit, processor, caplog, form):
    rows = [{"image": picture(2, row), "label": "fox"} for row in range(6)]
    pixels = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    batches = DataLoader([{"pixel_values": one, "labels": "fox"} for one in pixels], batch_size=3)
    data = batches if form == "loader" else IterableDataset.from_generator(lambda: iter(rows))
    erased = ErasedModel.from_model(vit, processor).erase(data, k=2, progress=False)
    assert (erased.erasures[0].n_forget, erased.erasures[0].classes) == (6, None)
    assert sum("have no label that it knows" in text for text in caplog.messages) == 1
    with pytest.raises(InvalidValueError, match="'fox', and the labels are"):
        erased.reset().erase(data, "esc-t", progress=False)


@pytest.mark.parametrize("method", ["leace", "mean-difference"])
def test_a_second_request_does_not_retain_what_the_first_was_to_forget(vit, processor, caplog, method):
    first, second = make_dataset([2] * 20), make_dataset([3] * 20, seed=1)
    others, all_of_them = make_dataset([0, 1, 4] * 8, seed=2), make_dataset([0, 1, 4] * 8 + [2] * 6, seed=2)
    models = [ErasedModel.from_model(copy.deepcopy(vit), processor) for _ in range(2)]
    for model, retain in zip(models, (others, all_of_them), strict=True):
        model.erase(first, k=1, progress=False).erase(second, method, retain=retain, progress=False)
    assert [model.erasures[1].n_retain for model in models] == [24, 24]
    own, other = (model.sites[0].eraser.state_dict() for model in models)
    assert all(torch.allclose(own[name], other[name], atol=1e-4) for name in own)
    assert sum("6 retained images are of classes that an earlier request" in text for text in caplog.messages) == 1
    with pytest.raises(ValueError, match="No retained image is left: 20 retained images are of classes"):
        models[0].erase(make_dataset([0] * 20), method, retain=first, progress=False)


def test_odd_images_go_through(vit, processor):
    images = [
        picture(1, i, size=size, mode=mode)
        for i, (size, mode) in enumerate(
            [
                ((16, 16), "RGB"),
                ((40, 23), "L"),
                ((9, 31), "RGBA"),
                ((64, 64), "P"),
                ((20, 20), "CMYK"),
                ((30, 10), "1"),
            ]
        )
    ]
    erased = ErasedModel.from_model(vit, processor).erase(images, k=1, progress=False)
    assert erased.erasures[0].n_forget == 6


def test_any_callable_may_be_the_processor(vit, forget):
    def to_tensor(image):
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(16, 16, 3).permute(2, 0, 1) / 255

    erased = ErasedModel.from_model(vit, to_tensor).erase(forget, k=1, progress=False)
    assert erased.erasures[0].n_forget == 20


def test_requests_compose_to_the_union(model, processor, forget, pixels):
    erased = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    first = erased.sites[0].eraser.directions.clone()
    erased.erase(make_dataset([0] * 20, seed=5), k=3, progress=False)
    both = erased.sites[0].eraser.directions
    assert both.shape[1] == 5
    assert torch.allclose(both.T @ both, torch.eye(5), atol=1e-5)
    assert float((erased.pooled_features(pixels) @ first).abs().max()) < 1e-4, "the first request stays erased"
    assert [record.classes for record in erased.erasures] == [(2,), (0,)]
    erased.erase(make_dataset([1] * 20, seed=6), k=1, renorm=True, progress=False)
    assert len(erased.erasures) == 3


def test_per_class_keeps_k_directions_for_each(vit, processor):
    data = make_dataset([0] * 10 + [3] * 30)
    erased = ErasedModel.from_model(vit, processor).erase(data, ESC(k=2, per_class=True), progress=False)
    assert erased.sites[0].eraser.rank_removed == 4


def test_reset_gives_the_original_answers_back(model, processor, forget, pixels):
    original = logits_of(model, pixels)
    erased = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    assert not torch.allclose(logits_of(erased, pixels), original, atol=1e-3)
    erased.reset()
    assert torch.equal(logits_of(erased, pixels), original)
    assert erased.erasures == ()
    with pytest.raises(ValueError, match="nothing has been erased"):
        erased.reset()
    again = ErasedModel.from_model(erased.erase(forget, k=1, progress=False).fold(), processor)
    with pytest.raises(ValueError, match="folded into the weights"):
        again.reset()


def test_after_reset_the_base_is_named_where_the_weights_are_still_its_own(vit, processor, forget):
    erased = ErasedModel.from_model(vit, processor)
    erased.config.base_model = "ana/base"
    assert erased.erase(forget, k=2, progress=False).reset().config.base_model == "ana/base"
    erased.erase(forget, k=2, progress=False).train()
    with torch.no_grad():
        next(erased.inner.parameters()).add_(1)
    assert erased.eval().reset().config.base_model is None


def test_fold_gives_a_stock_model_with_the_same_logits(model, processor, forget, pixels):
    kind = type(model)
    erased = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    answers = logits_of(erased, pixels)
    stock = erased.fold()
    assert type(stock) is kind
    assert torch.allclose(logits_of(stock, pixels), answers, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in stock.modules())
    assert stock.config.hf_kd_folded[0]["method"] == "esc"
    assert torch.equal(logits_of(erased, pixels), answers), "the erased model still stands"


def test_a_copy_has_erasers_of_its_own(model, processor, forget, pixels):
    erased = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    answers = logits_of(erased, pixels)
    clone = copy.deepcopy(erased)
    assert torch.equal(logits_of(clone, pixels), answers)
    clone.reset()
    assert torch.equal(logits_of(erased, pixels), answers)
    assert not torch.equal(logits_of(clone, pixels), answers)


def test_cast_to_bfloat16_keeps_erasing(model, processor, forget, pixels):
    erased = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    directions = erased.sites[0].eraser.directions.clone()
    erased.to(torch.bfloat16)
    assert torch.equal(erased.sites[0].eraser.directions, directions)
    features = erased.pooled_features(pixels)
    assert features.dtype == torch.bfloat16
    before = erased.pooled_features(pixels, stage="before").float()
    left = (features.float() @ directions).abs().max() / (before @ directions).abs().max()
    assert float(left) < 0.02


def test_mixed_precision_of_the_pass(vit, processor, forget):
    plain = ErasedModel.from_model(copy.deepcopy(vit), processor).erase(forget, k=1, progress=False)
    mixed = ErasedModel.from_model(vit, processor).erase(
        forget, k=1, reading=ReadOptions(mixed_precision="bf16"), progress=False
    )
    cosine = float((plain.sites[0].eraser.directions * mixed.sites[0].eraser.directions).sum())
    assert cosine > 0.999
    with pytest.raises(ValueError, match="mixed_precision='fp8'"):
        ErasedModel.from_model(vit_copy(vit), processor).erase(forget, reading=ReadOptions(mixed_precision="fp8"))


def vit_copy(vit):
    """The stock model again, without the sites of the ErasedModel around it."""
    clone = type(vit)(vit.config)
    clone.load_state_dict(vit.state_dict())
    return clone


# What is refused, and that nothing is lost by it.


def unreadable(row: int) -> Dataset:
    from datasets import Image

    data = make_dataset([2] * 6).cast_column("image", Image(decode=False))
    rows = [dict(r) for r in data]
    rows[row]["image"] = {"bytes": b"not an image", "path": None}
    return Dataset.from_list(rows, features=data.features).cast_column("image", Image())


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (lambda: make_dataset([2] * 3).select([]), {}, ValueError, "empty"),
        (lambda: [], {}, ValueError, "empty"),
        (lambda: Dataset.from_dict({"text": ["a"]}), {}, ValueError, "no images"),
        (lambda: unreadable(4), {"k": 1}, UnreadableImageError, "row 4"),
        (lambda: make_dataset([2] * 20), {"p": 0}, ValueError, "p=0"),
        (lambda: make_dataset([2] * 20), {"k": 999}, ValueError, "k has to be below"),
        (lambda: make_dataset([2] * 3), {"k": 5}, ValueError, "3 forget samples"),
        (lambda: make_dataset([0, 1, 2, 3, 4] * 8), {"k": 1}, ValueError, "all 5 classes"),
        (lambda: make_dataset([2] * 20), {"strength": 3}, TypeError, "no option strength"),
        (lambda: make_dataset([2] * 20), {"method": "esq"}, ValueError, "Unknown method 'esq'"),
        (lambda: make_dataset([2] * 20), {"reading": ReadOptions(image_column="img")}, ValueError, "'img'"),
        (
            lambda: make_dataset([2] * 20),
            {"image_column": "img"},
            TypeError,
            r"reading=ReadOptions\(image_column='img'\)",
        ),
        (
            lambda: make_dataset([2] * 20, names=["v", "w", "x", "y", "z"]),
            {"method": "esc-t"},
            LabelMismatchError,
            "mapping",
        ),
        (lambda: list(make_dataset([2] * 20)["image"]), {"method": "esc-t"}, ValueError, "needs the labels"),
        (lambda: [(picture(2, i), 7) for i in range(9)], {"method": "esc-t"}, ValueError, "Label 7"),
    ],
)
def test_bad_requests_are_refused_and_change_nothing(vit, processor, pixels, data, options, error, message):
    erased = ErasedModel.from_model(vit, processor).erase(make_dataset([1] * 20, seed=3), k=1, progress=False)
    answers = logits_of(erased, pixels)
    with pytest.raises(error, match=message):
        erased.erase(data(), progress=False, **options)
    assert torch.equal(logits_of(erased, pixels), answers)
    assert len(erased.erasures) == 1
    assert not erased.training


def test_labels_that_do_not_match_do_not_matter_to_esc(vit, processor):
    data = make_dataset([2] * 20, names=["v", "w", "x", "y", "z"])
    erased = ErasedModel.from_model(copy.deepcopy(vit), processor).erase(data, k=1, progress=False)
    assert erased.erasures[0].classes is None
    told = ErasedModel.from_model(vit, processor)
    told.erase(data, ESCT(lr=3.0, threshold=0.999), reading=ReadOptions(label_mapping={"x": "cat"}), progress=False)
    assert told.erasures[0].classes == (2,)


def test_features_that_are_not_finite_name_the_row(vit, processor):
    images = torch.randn(8, 3, 16, 16)
    images[5] = float("nan")
    loader = DataLoader([{"pixel_values": image} for image in images], batch_size=3)
    with pytest.raises(ValueError, match="row 5"):
        ErasedModel.from_model(vit, processor).erase(loader, k=1, progress=False)


def test_images_without_a_processor_say_how_to_give_one(vit, forget):
    with pytest.raises(ValueError, match="processor=..."):
        ErasedModel.from_model(vit).erase(forget, k=1)


def test_what_cannot_be_wrapped(vit, processor, forget):
    from transformers import BertConfig, BertForSequenceClassification

    erased = ErasedModel.from_model(vit, processor).erase(forget, k=1, progress=False)
    with pytest.raises(TypeError, match="ErasedModel already"):
        ErasedModel.from_model(erased)
    with pytest.raises(ValueError, match="stands inside an ErasedModel"):
        ErasedModel.from_model(vit)
    text = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    with pytest.raises(TypeError, match="vision model"):
        ErasedModel.from_model(BertForSequenceClassification(text))
    with pytest.raises(TypeError, match="PreTrainedModel"):
        ErasedModel.from_model(torch.nn.Linear(3, 3))


def test_a_model_whose_head_cannot_be_found_lists_candidates(processor, forget):
    from transformers import ViTMSNConfig, ViTMSNModel

    config = ViTMSNConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    erased = ErasedModel.from_model(randomise(ViTMSNModel(config)), processor)
    with pytest.raises(ValueError, match="tap='path.to.module'"):
        erased.erase(forget, k=1, progress=False)


def test_labels_that_the_model_does_not_have_are_told_and_kept_by_the_data_sets_names(vit, processor, tmp_path, caplog):
    data = make_dataset([0, 2] * 10, names=("fox", "gnu", "walrus"))
    erased = ErasedModel.from_model(vit, processor).erase(data, k=2, progress=False)
    told = [record.message for record in caplog.records if record.levelname == "WARNING" and "'fox'" in record.message]
    assert len(told) == 1
    assert "label_mapping" in told[0]
    erased.save_pretrained(tmp_path)
    (record,) = ErasedModel.from_pretrained(tmp_path).erasures
    assert record.classes is None
    assert record.dataset_classes == ("fox", "walrus")
    assert not any("walrus" in (tmp_path / name).read_text() for name in ("README.md", "erasures.json"))
    document(erased, tmp_path, show_class_names=True)
    assert "walrus" in (tmp_path / "erasures.json").read_text()
    assert verify(tmp_path).ok


def test_labels_that_the_model_has_are_kept_by_its_ids_alone(vit, processor, forget):
    (record,) = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False).erasures
    assert (record.classes, record.dataset_classes) == ((2,), None)


def test_the_page_of_embedding_models_says_which_methods_work_on_them(processor):
    """A model without a head, and people that its configuration does not name."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "embedding_models.md").read_text(encoding="utf-8")
    works, refused = re.findall(r"^- (`esc.*?)\n(?=- )", page, flags=re.M | re.S)
    named = [set(re.findall(r"`([a-z-]+)`", text)) for text in (works, refused)]
    assert named[0] | named[1] == {info.name for info in built_in_infos("eraser")}
    larger = type(processor)(size={"height": 32, "width": 32})
    people = make_dataset([0] * 20, names=("ada", "bo", "cleo"))
    others = make_dataset([1, 2] * 10, seed=1, names=("ada", "bo", "cleo"))

    def done(data) -> set[str]:
        found = set()
        for name in named[0] | named[1]:
            model = ErasedModel.from_model(build("ViTModel"), larger)
            retain = {"retain": others} if method_info(name).needs_retain else {}
            with contextlib.suppress(InvalidValueError, LabelMismatchError):
                model.erase(data, name, **retain, progress=False)
                found.add(name)
        return found

    assert done(people) == named[0]
    assert done(people.remove_columns("label")) == {"esc"}
