"""A concept forgotten by its name: both towers, records, saving, folding, the pipeline."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoModel, AutoModelForZeroShotImageClassification, pipeline

from hf_kd import ErasedModel
from hf_kd.data.paths import ERASER_CONFIG
from hf_kd.errors import InvalidTypeError, InvalidValueError
from hf_kd.features.text_reader import TextReader
from hf_kd.methods.concepts import ConceptMethod
from hf_kd.model.concept import ReadConcept
from hf_kd.model.verify import verify
from tests.helpers import zoo
from tests.helpers.two_towers import NAMES, OTHERS, TEMPLATES, TWO_TOWERS, other_towers, processor, two_towers

WORDS = {"retain_texts": NAMES, "templates": TEMPLATES}


def pictures(count: int = 6) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), dtype=np.uint8)
    return [Image.fromarray(p) for p in pixels]


@pytest.fixture
def clip() -> ErasedModel:
    return ErasedModel.from_model(*two_towers("CLIPModel"))


def text_inputs(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in zoo.inputs(name).items() if key in ("input_ids", "attention_mask")}


def test_texts_are_read_together_as_each_alone_in_the_order_they_were_given(monkeypatch):
    """Whatever shares a batch and is padded to its longest."""
    model = ErasedModel.from_model(*two_towers("CLIPModel"))
    model.find_text_tap()
    texts = ["this is a photo of the tabby cat", "cat", "a photo of a ship", "dog", "the tree of a house"]
    reader = TextReader(model, progress=False)
    monkeypatch.setattr("hf_kd.features.text_reader.BATCH", 2)
    alone = torch.cat([reader.read([text]) for text in texts])
    assert torch.allclose(reader.read(texts), alone, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_both_towers_are_erased_and_come_back_bit_equal_from_a_folder(name, tmp_path):
    model = ErasedModel.from_model(*two_towers(name))
    inputs = zoo.inputs(name)
    before = model(**inputs)
    model.erase(texts=["tabby cat", "cat"], **WORDS)
    after = model(**inputs)
    assert not torch.equal(before.image_embeds, after.image_embeds)
    assert not torch.equal(before.text_embeds, after.text_embeds)
    assert after.text_model_output.get("last_hidden_state") is None
    texts = model.get_text_features(**text_inputs(name))
    assert set(texts.keys()) == {"pooler_output"}
    assert torch.allclose(torch.nn.functional.normalize(texts.pooler_output), after.text_embeds, atol=1e-6)
    model.save_pretrained(tmp_path)
    again = ErasedModel.from_pretrained(tmp_path)
    auto = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path)
    features = AutoModel.from_pretrained(tmp_path).get_text_features(**text_inputs(name)).pooler_output
    assert torch.equal(features, again.get_text_features(**text_inputs(name)).pooler_output)
    for loaded in (again, auto):
        assert torch.equal(loaded(**inputs).logits_per_image, after.logits_per_image)
    assert verify(tmp_path, texts=["cat", "Tabby cat"]).ok
    assert not verify(tmp_path, texts=["dog"]).ok


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_of_two_towers_forget_by_name_too(name, tmp_path):
    model = ErasedModel.from_model(*other_towers(name))
    model.erase(texts=["cat"], **WORDS)
    texts = model.whole_processor.tokenizer(["a cat", "a dog"], padding=True, return_tensors="pt")
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), **{k: texts[k] for k in ("input_ids", "attention_mask")}}
    expected = model(**inputs)
    assert all("hidden_state" not in key for key in expected.text_model_output)
    model.save_pretrained(tmp_path)
    again = ErasedModel.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits_per_image, expected.logits_per_image)


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_the_zero_shot_pipeline_takes_a_saved_folder_and_answers_as_the_model(name, tmp_path):
    inner, processor = two_towers(name)
    image = pictures(1)[0]
    inner.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    plain = pipeline("zero-shot-image-classification", model=str(tmp_path / "plain"))
    model = ErasedModel.from_pretrained(tmp_path / "plain").erase(texts=["cat"], **WORDS)
    model.save_pretrained(tmp_path / "erased")
    erased = pipeline("zero-shot-image-classification", model=str(tmp_path / "erased"))
    labels = {"candidate_labels": ["cat", "dog", "ship"]}
    before, after = ({a["label"]: a["score"] for a in pipe(image, **labels)} for pipe in (plain, erased))
    assert before.keys() == after.keys()
    assert before != after
    erased.model.reset()
    unerased = {a["label"]: a["score"] for a in erased(image, **labels)}
    assert unerased == pytest.approx(before, abs=1e-6)  # the same prompts, padding and scores


@pytest.mark.parametrize("name", ["CLIPModel", "MetaClip2Model"])
def test_folding_into_both_projections_gives_a_stock_model_of_the_same_answers(name, tmp_path):
    model = ErasedModel.from_model(*two_towers(name)).erase(texts=["cat"], **WORDS)
    inputs = zoo.inputs(name)
    stock = model.fold()
    stock.save_pretrained(tmp_path)
    found = type(stock).from_pretrained(tmp_path)(**inputs)
    assert torch.allclose(found.logits_per_image, model(**inputs).logits_per_image, atol=1e-4)
    assert torch.allclose(found.text_embeds, model(**inputs).text_embeds, atol=1e-5)


def test_siglip_has_no_projection_to_fold_into():
    model = ErasedModel.from_model(*two_towers("SiglipModel")).erase(texts=["cat"], **WORDS)
    with pytest.raises(InvalidValueError, match="no weight to fold"):
        model.fold()


def test_no_image_has_anything_left_of_what_the_original_text_tower_says_of_the_name(clip):
    """Scores against the concept do not depend on the image, against retained names they are those from before."""
    clip.erase(texts=["cat"], retain_texts=NAMES[:6], templates=["{}"], k=1, push=0.0, ridge=1e-6)
    original = ErasedModel.from_model(*two_towers("CLIPModel"))
    pixels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    before, after = (m.get_image_features(pixel_values=pixels).pooler_output.detach() for m in (original, clip))
    texts = original.whole_processor.tokenizer(["cat", *NAMES[:6]], padding=True, return_tensors="pt")
    rows = torch.nn.functional.normalize(original.get_text_features(**texts).pooler_output.detach(), dim=1)
    mean = rows[1:].mean(dim=0)
    was, now = before @ (rows - mean).T, after @ (rows - mean).T
    assert float(now[:, 0].abs().max()) < 1e-3 * float(was[:, 0].abs().max())
    assert torch.allclose(now[:, 1:], was[:, 1:], atol=1e-2 * float(was.abs().max()))


def test_words_stand_nowhere_unless_they_are_published(clip, tmp_path):
    clip.erase(texts=["tabby cat", "kitten"], **WORDS).save_pretrained(tmp_path)
    written = "".join((tmp_path / name).read_text() for name in ("config.json", "erasures.json", "README.md"))
    assert "tabby" not in written
    assert "kitten" not in written
    assert json.loads((tmp_path / "erasures.json").read_text())["erasures"][0]["n_texts"] == 2
    assert "zero-shot-image-classification" in written
    clip.reset().erase(texts=["kitten"], publish_texts=True, **WORDS).save_pretrained(tmp_path)
    for name in ("config.json", "erasures.json", "README.md"):
        assert "kitten" in (tmp_path / name).read_text()


def test_images_come_before_after_and_together_with_texts(clip, tmp_path):
    images = pictures(12)
    clip.erase(images[:4], k=1, progress=False)
    clip.erase(texts=["cat"], **WORDS)
    clip.erase(
        images[:6], texts=["dog"], retain=images[6:], retain_texts=NAMES[1:], templates=TEMPLATES, progress=False
    )
    clip.erase(images[8:], k=1, progress=False)
    assert [record.n_texts for record in clip.erasures] == [None, 1, 1, None]
    assert (clip.erasures[2].n_forget, clip.erasures[2].n_retain) == (6, 6)
    inputs = zoo.inputs("CLIPModel")
    expected = clip(**inputs).logits_per_image
    clip.save_pretrained(tmp_path)
    assert torch.equal(ErasedModel.from_pretrained(tmp_path)(**inputs).logits_per_image, expected)
    assert torch.allclose(clip.fold()(**inputs).logits_per_image, expected, atol=1e-4)
    assert verify(tmp_path).ok


def test_unlabelled_images_are_told_apart_by_what_the_model_answers(clip):
    clip.erase(pictures(24), texts=["cat", "kitten"], **WORDS, progress=False)
    record = clip.erasures[0]
    assert record.n_forget + (record.n_retain or 0) == 24
    assert record.measured[0]["images_sorted_by"] == "zero-shot answers"


def labelled(labels: list[int]) -> Dataset:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["Cats", "tabby_cat", "dog"])})
    return Dataset.from_dict({"image": pictures(len(labels)), "label": labels}, features=features)


def test_labels_decide_where_one_is_called_as_a_text_and_only_the_unlabelled_are_answered(clip, monkeypatch):
    monkeypatch.setattr(ReadConcept, "classify", lambda self, rows: torch.zeros(len(rows), dtype=torch.bool))
    clip.erase(labelled([1] * 5 + [2] * 4), texts=["tabby cat"], **WORDS, progress=False)
    clip.erase(labelled([1, 1, -1, -1, -1, 2]), texts=["tabby cat"], **WORDS, progress=False)
    assert [(r.n_forget, r.n_retain, r.measured[0]["images_sorted_by"]) for r in clip.erasures] == [
        (5, 4, "labels"),
        (2, 4, "labels and zero-shot answers"),
    ]


def test_answers_that_keep_more_images_than_they_forget_are_warned_of(clip, monkeypatch, caplog):
    monkeypatch.setattr(ReadConcept, "classify", lambda self, rows: torch.arange(len(rows)) < 2)
    clip.erase(labelled([0] * 9), texts=["kitten"], **WORDS, progress=False)
    assert "2 of 9" in caplog.text
    assert "retain=" in caplog.text
    assert any("2 of 9" in text for text in clip.erasures[0].warnings)
    caplog.clear()
    clip.reset().erase(pictures(9), texts=["kitten"], retain=pictures(3), **WORDS, progress=False)
    assert "zero-shot" not in caplog.text


@pytest.mark.parametrize(
    ("labels", "concept", "said"),
    [
        ([0] * 4 + [1] * 8, 4, ""),
        ([0] * 12, 12, "All 12 images are of the concept"),
        ([1] * 12, 0, "None of the 12 images has a label"),
    ],
)
def test_labels_called_like_a_text_say_which_images_show_the_concept(clip, labels, concept, said, caplog):
    names = ["Tabby_Cat, Felis catus", "dog"]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    images = Dataset.from_dict({"image": pictures(12), "label": labels}, features=features)
    clip.erase(images, texts=["felis catus"], **WORDS, progress=False)
    record = clip.erasures[0]
    assert (record.n_forget, record.n_retain) == (concept, 12 - concept)
    assert [said in text for text in record.warnings if "images" in text] == [True] * bool(said), record.warnings
    assert said in caplog.text


def test_most_images_taken_for_other_things_is_said(clip, monkeypatch, caplog):
    monkeypatch.setattr(ReadConcept, "classify", lambda self, rows: torch.arange(len(rows)) < 2)
    clip.erase(pictures(12), texts=["cat"], **WORDS, progress=False)
    assert "takes 2 of 12 images for the concept" in caplog.text
    assert "--forget-labels" in caplog.text


def test_esc_removes_the_same_directions_on_both_towers(clip):
    clip.erase(texts=["cat"], method="esc", k=2, **WORDS)
    images, texts = clip.sites[0].eraser, clip.text_sites[0].eraser
    assert torch.equal(images.directions, texts.directions)
    assert images.directions.shape == (24, 2)


def test_reset_gives_both_towers_back(clip):
    inputs = zoo.inputs("CLIPModel")
    before = clip(**inputs).logits_per_image
    clip.erase(texts=["cat"], **WORDS).reset()
    assert torch.equal(clip(**inputs).logits_per_image, before)
    assert clip.config.text_tower is None


def test_what_is_close_and_not_named_is_told_before_anything_changes(clip, caplog):
    near = clip.near_texts(["cat"], retain_texts=["tabby cat", *NAMES], templates=TEMPLATES)
    assert not clip.is_erased
    assert "tabby cat" in [entry.name for entry in near]
    assert not next(entry for entry in near if entry.name == "tabby cat").protected
    clip.erase(texts=["cat"], retain_texts=["tabby cat", *NAMES], templates=TEMPLATES)
    assert "tabby cat" in caplog.text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"texts": []}, "holds no name"),
        ({"texts": "cat"}, "has to be a list"),
        ({"texts": ["cat"], "templates": ["a photo"]}, "once, where the name goes"),
        ({"texts": ["cat"], "retain_texts": ["cat", "cats"]}, "retained"),
        ({"texts": ["cat"], "method": "leace"}, "forgotten by"),
        ({"texts": ["cat"], "variance": 2.0}, "variance"),
        ({"texts": ["cat"], "rank": 2}, "no setting"),
        ({"texts": ["cat"], "method": ConceptMethod("esc"), "rank": 2}, "no setting"),
        ({"texts": ["cat"], "mask_head": True}, "mask_head=True: with texts nothing is asked of a head"),
        ({"texts": ["cat"], "erased_label": None}, "erased_label=None: with"),
        (
            {"texts": ["cat"], "whole_classes": False, "allow_unrecognised": True},
            "whole_classes=False, allow_unrecognised=True",
        ),
        ({"texts": ["cat"], "retain": [1]}, "give both"),
        ({}, "Nothing to forget"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_leaves_the_model_as_it_was(clip, given, text):
    if given.get("texts") == []:
        given = given | {"forget": pictures(2)}
    with pytest.raises((InvalidValueError, InvalidTypeError), match=text):
        clip.erase(**given)
    assert not clip.is_erased


def test_a_model_without_a_text_tower_is_refused():
    model = ErasedModel.from_model(zoo.build("ViTForImageClassification"))
    with pytest.raises(InvalidTypeError, match="no text tower"):
        model.erase(texts=["cat"])


@pytest.mark.parametrize(
    ("edit", "why"),
    [("no eraser", "has no eraser of the text tower"), ("other digest", "others than those that were saved")],
)
def test_a_folder_whose_text_tower_is_not_as_recorded_does_not_load(clip, tmp_path, edit, why):
    clip.erase(texts=["cat"], **WORDS).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if edit == "no eraser":
        config["text_tower"] = None
    else:
        config["text_tower"]["sha256"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidValueError, match=why):
        ErasedModel.from_pretrained(tmp_path)


def edited(folder, change) -> None:
    """What config.json, of a model or of an eraser on its own, says of the text tower."""
    path = next(path for path in (folder / "config.json", folder / ERASER_CONFIG) if path.exists())
    config = json.loads(path.read_text())
    change(config["text_tower"])
    path.write_text(json.dumps(config))


@pytest.fixture(params=["whole", "eraser alone"])
def as_wide(request, tmp_path):
    """A folder, and how to load it, of a model whose text tower is as wide before its projection as behind it."""
    text = zoo.CASES["CLIPModel"].config["text_config"] | {"max_position_embeddings": 64, "hidden_size": 24}
    model = ErasedModel.from_model(zoo.build("CLIPModel", 0, text_config=text), processor("CLIPModel"))
    model.save_pretrained(tmp_path / "base")
    model.erase(texts=["cat"], **WORDS)
    if request.param == "whole":
        model.save_pretrained(tmp_path / "m")
        return tmp_path / "m", lambda: ErasedModel.from_pretrained(tmp_path / "m")
    model.save_eraser(tmp_path / "m")
    return tmp_path / "m", lambda: ErasedModel.from_pretrained(tmp_path / "base", eraser=tmp_path / "m")


def test_texts_are_answered_behind_the_eraser_whatever_a_folder_says_of_where_it_stands(as_wide):
    folder, load = as_wide
    known = load()
    edited(folder, lambda tower: tower.update(withheld=[]))  # as for a field that a later transformers returns
    found = load()
    assert set(found.config.text_tower["withheld"]) == set(known.config.text_tower["withheld"])
    assert set(found.get_text_features(**text_inputs("CLIPModel")).keys()) == {"pooler_output"}
    edited(folder, lambda tower: tower["tap"].update(places=[{"module": "text_projection", "side": "input"}]))
    with pytest.raises(InvalidValueError, match="not what CLIPModel returns as text_embeds"):
        load()
    edited(folder, lambda tower: tower.update(withheld=5))
    with pytest.raises(InvalidValueError, match="no names of fields"):
        load()


def test_a_text_tower_that_was_reset_and_erased_again_withholds_what_it_did(clip, tmp_path):
    clip.erase(texts=["cat"], **WORDS).save_pretrained(tmp_path)
    again = ErasedModel.from_pretrained(tmp_path)
    again.reset().erase(texts=["kitten"], **WORDS).save_pretrained(tmp_path)
    for model in (again, ErasedModel.from_pretrained(tmp_path)):
        assert model.config.text_tower["withheld"] == clip.config.text_tower["withheld"]
        assert set(model.get_text_features(**text_inputs("CLIPModel")).keys()) == {"pooler_output"}


def test_an_eraser_of_the_text_tower_with_other_values_is_neither_taken_nor_saved(clip, tmp_path):
    plain = copy.deepcopy(clip)
    esc = {"method": "esc", "k": 1, "templates": TEMPLATES}
    clip.erase(texts=["cat"], retain_texts=NAMES, **esc)
    other = copy.deepcopy(clip).reset().erase(texts=["dog"], retain_texts=NAMES[1:], **esc).state_dict()
    texts = {name: value for name, value in other.items() if not name.startswith("sites.")}
    with pytest.raises(InvalidValueError, match="no such eraser"):
        plain.load_state_dict(texts, strict=False)
    with pytest.raises(InvalidValueError, match="other values"):
        clip.load_state_dict(texts, strict=False)
    clip.text_sites[0].eraser.directions.neg_()
    with pytest.raises(InvalidValueError, match="of the text tower are others"):
        clip.save_pretrained(tmp_path)
