"""An eraser on its own beside its base is the model that a full save would be, and stands on no other base."""

from __future__ import annotations

import copy
import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification

from hf_kd import ErasedModel
from hf_kd.data.paths import ERASER_CONFIG
from hf_kd.errors import CheckpointError, HfKdError, InvalidValueError, MissingFileError
from hf_kd.hub.files import ERASER_WEIGHTS, RECEIPT
from hf_kd.hub.receipt import read_receipt
from hf_kd.model.stored_eraser import read_eraser
from hf_kd.model.verify import verify
from tests.conftest import image_processor, small_vit
from tests.helpers import zoo
from tests.helpers.small import make_dataset
from tests.helpers.two_towers import two_towers
from tests.model.test_architectures import erased
from tests.model.test_concept import WORDS, text_inputs
from tests.model.test_erase import logits_of
from tests.model.test_saving import edit_config
from tests.model.test_saving_killed import content, left_over, states

KILOBYTES = 100_000
STATE = ("taps", "erasers", "eraser_sha256", "leaking", "erasures", "masked", "dropped", "weights_erased", "text_tower")
CAT, ELK = make_dataset([2] * 20), make_dataset([4] * 20, seed=5)
OTHERS, NO_ELKS = (make_dataset([*labels] * 8, seed=3) for labels in ((0, 1, 3, 4), (0, 1, 2, 3)))

REQUESTS = {
    "esc": {"k": 2},
    "renorm": {"k": 2, "renorm": True},
    "labelled": {"k": 2, "mask_head": True},
    "dropped": {"k": 2, "mask_head": True, "erased_label": None},
    "esc-t": {"method": "esc-t", "lr": 3.0, "threshold": 0.999},
    "leace": {"method": "leace", "retain": OTHERS},
    "oblique": {"method": "prototype-orthogonal", "retain": OTHERS, "remap": True},
    "cover": {"method": "cover"},
    "retained-span": {"method": "retained-span", "retain": OTHERS},
}


def saved_base(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A base and an eraser of it, of which each test gets a copy."""
    folder = tmp_path_factory.mktemp("stored")
    base = saved_base(small_vit(), image_processor(), folder / "base")
    ErasedModel.from_pretrained(base).erase(CAT, k=2, progress=False).save_eraser(folder / "eraser")
    return folder


@pytest.fixture
def vit_base(once, tmp_path):
    return shutil.copytree(once / "base", tmp_path / "base")


@pytest.fixture
def eraser(once, vit_base, tmp_path):
    return shutil.copytree(once / "eraser", tmp_path / "eraser")


def state(model):
    return {name: getattr(model.config, name) for name in STATE} | {"labels": model.config.id2label}


# every kind at the input of a head, and one of each that stands elsewhere in a model, too: in a field, as a mask, as a map
@pytest.mark.parametrize(
    ("inner", "kind"),
    [*(("vit", kind) for kind in REQUESTS), *(("resnet", k) for k in ("dropped", "oblique", "cover"))],
)
def test_on_its_base_it_is_the_model_of_a_full_save(request, processor, pixels, tmp_path, inner, kind):
    base = saved_base(request.getfixturevalue(inner), processor, tmp_path / "base")
    model = ErasedModel.from_pretrained(base).erase(CAT, progress=False, **REQUESTS[kind])
    model.save_pretrained(tmp_path / "full")
    model.save_eraser(tmp_path / "eraser")
    whole = ErasedModel.from_pretrained(tmp_path / "full")
    found = ErasedModel.from_pretrained(base, eraser=tmp_path / "eraser")
    assert torch.equal(logits_of(found, pixels), logits_of(whole, pixels))
    assert torch.equal(found.pooled_features(pixels), whole.pooled_features(pixels))
    assert found.erasures == whole.erasures
    assert state(found) == state(whole)
    assert not found.training
    assert found.processor.to_dict() == whole.processor.to_dict()

    files = {path.name: path.stat().st_size for path in (tmp_path / "eraser").iterdir()}
    assert set(files) == {ERASER_CONFIG, ERASER_WEIGHTS, RECEIPT, "README.md", "preprocessor_config.json"}
    assert sum(files.values()) < KILOBYTES
    stored = "".join(path.read_text("latin-1") for path in (tmp_path / "eraser").iterdir())
    assert str(tmp_path) not in stored, "no path of this machine"

    found.save_pretrained(tmp_path / "again")
    again = ErasedModel.from_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(again, pixels), logits_of(whole, pixels))
    assert verify(tmp_path / "again").ok
    result = verify(tmp_path / "eraser", base=str(base))
    assert result.ok, [check for check in result.checks if not check.ok]


@pytest.mark.parametrize("name", ["LevitForImageClassificationWithTeacher", "Dinov2ForImageClassification", "ViTModel"])
def test_other_families_with_two_taps_and_without_a_head(name, tmp_path):
    model = erased(name)
    model.inner.save_pretrained(tmp_path / "base")
    model.save_eraser(tmp_path / "eraser")
    found = ErasedModel.from_pretrained(tmp_path / "base", eraser=tmp_path / "eraser")
    inputs = zoo.inputs(name, 2, 3)
    with torch.no_grad():
        ours, theirs = model.eval()(**inputs), found(**inputs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[field], theirs[field]) for field in ours if isinstance(ours[field], torch.Tensor))


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
@pytest.mark.parametrize("method", ["oblique", "esc"])
def test_a_concept_forgotten_by_name_on_both_towers(name, method, tmp_path):
    base = saved_base(*two_towers(name), tmp_path / "base")
    model = ErasedModel.from_pretrained(base).erase(texts=["tabby cat", "cat"], method=method, **WORDS)
    model.save_pretrained(tmp_path / "full")
    model.save_eraser(tmp_path / "eraser")
    whole = ErasedModel.from_pretrained(tmp_path / "full")
    found = ErasedModel.from_pretrained(base, eraser=tmp_path / "eraser")
    inputs = {**text_inputs(name), "pixel_values": torch.randn(3, 3, 32, 32)}
    ours, theirs = found(**inputs), whole(**inputs)
    for field in ("logits_per_image", "image_embeds", "text_embeds"):
        assert torch.equal(ours[field], theirs[field])
    assert torch.equal(
        found.get_text_features(**text_inputs(name)).pooler_output,
        whole.get_text_features(**text_inputs(name)).pooler_output,
    )
    assert state(found) == state(whole)
    assert found.whole_processor.tokenizer.get_vocab() == whole.whole_processor.tokenizer.get_vocab()
    assert not list((tmp_path / "eraser").glob("*token*")), "a tokenizer is the base's"
    assert sum(path.stat().st_size for path in (tmp_path / "eraser").iterdir()) < KILOBYTES
    assert "cat" not in (tmp_path / "eraser" / ERASER_CONFIG).read_text().replace("class", ""), (
        "words are published on demand"
    )
    assert verify(tmp_path / "eraser", base=str(base), texts=["cat", "tabby cat"]).ok


# Several


def test_two_requests_make_one_eraser_whose_chain_of_digests_holds(vit_base, pixels, tmp_path):
    model = ErasedModel.from_pretrained(vit_base).erase(CAT, k=2, mask_head=True, progress=False)
    model.erase(ELK, k=1, progress=False)
    model.save_eraser(tmp_path / "eraser")
    found = ErasedModel.from_pretrained(vit_base, eraser=tmp_path / "eraser")
    assert torch.equal(logits_of(found, pixels), logits_of(model, pixels))
    receipt = read_receipt(tmp_path / "eraser" / RECEIPT)
    assert receipt["eraser_only"]
    assert receipt["weights"]["before"] == receipt["weights"]["after"] == found.config.weights_erased
    assert receipt["weights"]["since"] == "unchanged"
    assert [line.endswith("--eraser-only --output erased") for line in receipt["commands"]] == [False, True]
    result = verify(tmp_path / "eraser", [CAT, ELK], base=str(vit_base))
    assert result.ok, [check for check in result.checks if not check.ok]
    assert result.checks[-1].found == "the erasers are equal bit for bit"
    assert not verify(tmp_path / "eraser", [ELK, CAT], base=str(vit_base)).ok


@pytest.fixture
def two(vit_base, tmp_path):
    first = ErasedModel.from_pretrained(vit_base).erase(CAT, k=2, mask_head=True, progress=False)
    second = ErasedModel.from_pretrained(vit_base).erase(ELK, "leace", retain=NO_ELKS, mask_head=True, progress=False)
    for name, model in (("first", first), ("second", second)):
        model.save_eraser(tmp_path / name)
    return first, second, tmp_path / "first", tmp_path / "second"


def test_erasers_that_know_nothing_of_each_other_compose_in_their_order(two, vit_base, pixels, tmp_path, caplog):
    first, second, one, other = two
    found = ErasedModel.from_pretrained(vit_base, eraser=[one, other])
    assert "comes behind another one" in caplog.text
    steps = ErasedModel.from_pretrained(vit_base).load_eraser(one).load_eraser(other)
    assert torch.equal(logits_of(found, pixels), logits_of(steps, pixels))
    reverse = ErasedModel.from_pretrained(vit_base, eraser=[other, one])
    assert not torch.equal(found.pooled_features(pixels), reverse.pooled_features(pixels))
    features = first.pooled_features(pixels, stage="before")
    expected = second.sites[0].eraser(first.sites[0].eraser(features))
    assert torch.equal(found.pooled_features(pixels), expected)
    assert found.erasures == (*first.erasures, *second.erasures)
    assert found.config.masked == [2, 4]
    assert [found.config.id2label[c] for c in (2, 4)] == ["(erased)", "(erased) 2"]
    found.save_pretrained(tmp_path / "full")
    assert torch.equal(logits_of(ErasedModel.from_pretrained(tmp_path / "full"), pixels), logits_of(found, pixels))
    found.save_eraser(tmp_path / "both")
    both = ErasedModel.from_pretrained(vit_base, eraser=tmp_path / "both")
    assert torch.equal(logits_of(both, pixels), logits_of(found, pixels))
    found.reset()
    assert torch.equal(logits_of(found, pixels), logits_of(ErasedModel.from_pretrained(vit_base), pixels))


def test_projections_compose_to_their_union_whatever_the_order(vit_base, pixels, tmp_path, caplog):
    for name, images in (("a", CAT), ("b", ELK)):
        ErasedModel.from_pretrained(vit_base).erase(images, k=2, progress=False).save_eraser(tmp_path / name)
    found, reverse = (
        ErasedModel.from_pretrained(vit_base, eraser=[tmp_path / name for name in order]) for order in ("ab", "ba")
    )
    assert found.sites[0].eraser.rank_removed == 4
    assert torch.allclose(found.sites[0].eraser.matrix(), reverse.sites[0].eraser.matrix(), atol=1e-6)
    assert "comes behind another one" not in caplog.text


def test_a_request_does_not_act_twice_and_a_refusal_leaves_the_model_as_it_was(two, vit_base, pixels):
    *_, one, other = two
    model = ErasedModel.from_pretrained(vit_base, eraser=other)
    before, told = logits_of(model, pixels), copy.deepcopy(state(model))
    with pytest.raises(InvalidValueError, match="already: it would act twice"):
        model.load_eraser(other)
    with pytest.raises(InvalidValueError, match="act twice"):
        ErasedModel.from_pretrained(vit_base, eraser=[one, one])
    assert torch.equal(logits_of(model, pixels), before)
    assert state(model) == told


def test_masks_of_two_kinds_do_not_compose_and_leave_the_model_as_it_was(two, vit_base, pixels, tmp_path):
    *_, one, _ = two
    dropped = ErasedModel.from_pretrained(vit_base).erase(ELK, k=1, mask_head=True, erased_label=None, progress=False)
    dropped.save_eraser(tmp_path / "dropped")
    model = ErasedModel.from_pretrained(vit_base, eraser=one)
    before, told = logits_of(model, pixels), copy.deepcopy(state(model))
    with pytest.raises(InvalidValueError, match="one model does one of both"):
        model.load_eraser(tmp_path / "dropped")
    assert torch.equal(logits_of(model, pixels), before)
    assert state(model) == told
    plain = ErasedModel.from_pretrained(vit_base)
    before = logits_of(plain, pixels)
    plain.load_eraser(one).reset()
    assert torch.equal(logits_of(plain, pixels), before)


# Another base


def test_a_base_with_other_weights_is_refused_with_value_rule_and_way_out(eraser, vit_base, pixels):
    other = ViTForImageClassification.from_pretrained(vit_base)
    with torch.no_grad():
        other.vit.layernorm.weight[0] = torch.nextafter(other.vit.layernorm.weight[0], torch.tensor(9.0))
    model = ErasedModel.from_model(other)
    before = logits_of(model, pixels)
    with pytest.raises(InvalidValueError) as refused:
        model.load_eraser(eraser)
    text = str(refused.value)
    assert read_eraser(eraser).base_weights[:12] in text
    assert all(
        part in text for part in ("its weights have the digest", "trained since", "of no other", "Put it on that base")
    )
    assert torch.equal(logits_of(model, pixels), before)
    assert not model.is_erased
    other.save_pretrained(vit_base)
    with pytest.raises(InvalidValueError, match="its weights have the digest"):
        ErasedModel.from_pretrained(vit_base, eraser=eraser)


def test_a_base_that_was_trained_since_is_refused(eraser, vit_base):
    model = ErasedModel.from_pretrained(vit_base)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 16, 16)).logits.sum().backward()
    optimizer.step()
    with pytest.raises(InvalidValueError, match="trained since"):
        model.load_eraser(eraser)


def test_a_base_of_another_class_is_refused(eraser, resnet, processor):
    with pytest.raises(InvalidValueError, match="it is a ResNetForImageClassification"):
        ErasedModel.from_model(resnet, processor).load_eraser(eraser)


@pytest.mark.parametrize(
    "change",
    [{"layer_norm_eps": 1e-3}, {"hidden_act": "relu"}, {"id2label": {str(c): f"x{c}" for c in range(5)}}],
    ids=str,
)
def test_the_same_weights_under_other_settings_are_another_model(eraser, vit_base, change):
    edit_config(vit_base, lambda config: config.update(change))
    with pytest.raises(InvalidValueError, match="where the base of the eraser has|another model"):
        ErasedModel.from_pretrained(vit_base, eraser=eraser)


@pytest.mark.parametrize("fitted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", [None, "auto", torch.float32, "bfloat16"], ids=str)
def test_a_base_is_compared_in_the_precision_it_was_fitted_in_whatever_is_asked_for(
    vit_base, pixels, tmp_path, fitted, asked
):
    model = ErasedModel.from_pretrained(vit_base, dtype=fitted).erase(CAT, k=2, progress=False)
    model.save_eraser(tmp_path / "eraser")
    found = ErasedModel.from_pretrained(
        vit_base, eraser=tmp_path / "eraser", **({} if asked is None else {"dtype": asked})
    )
    wanted = {None: fitted, "auto": fitted, "bfloat16": torch.bfloat16}.get(asked, asked)
    assert next(found.inner.parameters()).dtype == wanted
    assert torch.equal(found.sites[0].eraser.directions, model.sites[0].eraser.directions)
    if wanted == fitted:
        pixels = pixels.to(fitted)
        assert torch.equal(found(pixels).logits, model(pixels).logits)


# What is not saved


def test_a_model_that_is_not_its_base_any_more_is_not_saved_as_an_eraser(vit_base, tmp_path):
    plain = ErasedModel.from_pretrained(vit_base)
    with pytest.raises(InvalidValueError, match="Nothing has been erased"):
        plain.save_eraser(tmp_path / "out")
    trained = ErasedModel.from_pretrained(vit_base).erase(CAT, k=1, progress=False)
    with torch.no_grad():
        trained.inner.classifier.bias += 1
    with pytest.raises(InvalidValueError, match="trained since.*save_pretrained"):
        trained.save_eraser(tmp_path / "out")
    converted = ErasedModel.from_pretrained(vit_base).erase(CAT, k=1, progress=False).to(torch.bfloat16)
    with pytest.raises(InvalidValueError, match="another precision"):
        converted.save_eraser(tmp_path / "out")
    folded = ErasedModel.from_model(ErasedModel.from_pretrained(vit_base).erase(CAT, k=1, progress=False).fold())
    folded.processor = trained.processor
    folded.erase(ELK, k=1, progress=False)
    with pytest.raises(InvalidValueError, match="an earlier eraser folded in.*save_pretrained"):
        folded.save_eraser(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_changed_by_unlearning_are_refused_by_name_of_the_method(vit, processor, tmp_path):
    from hf_kd import unlearn

    changed = unlearn(vit, CAT, "head-surgery", processor=processor, progress=False)
    model = ErasedModel.from_model(getattr(changed, "inner", changed), processor).erase(ELK, k=1, progress=False)
    with pytest.raises(InvalidValueError, match="were changed by head-surgery.*save_pretrained"):
        model.save_eraser(tmp_path / "out")
    with pytest.raises(InvalidValueError, match="were changed by head-surgery"):
        model.push_to_hub("ana/eraser", eraser_only=True)


def test_a_folder_holds_a_model_or_an_eraser(vit_base, eraser, pixels, tmp_path):
    model = ErasedModel.from_pretrained(vit_base, eraser=eraser)
    with pytest.raises(InvalidValueError, match="holds a model"):
        model.save_eraser(vit_base)
    (eraser / "notes.txt").write_text("mine")
    model.save_pretrained(eraser)
    names = {path.name for path in eraser.iterdir()}
    assert not names & {ERASER_CONFIG, ERASER_WEIGHTS}, "the files of the eraser went with it"
    assert "notes.txt" in names
    assert torch.equal(logits_of(ErasedModel.from_pretrained(eraser), pixels), logits_of(model, pixels))
    assert verify(eraser).ok


# Damaged


def edited(folder, change):
    path = folder / ERASER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def tensors(folder, change):
    found = load_file(folder / ERASER_WEIGHTS)
    change(found)
    save_file(found, folder / ERASER_WEIGHTS)


KEY = "sites.0.eraser.directions"
DAMAGED = {
    "no format": (lambda f: edited(f, lambda c: c.pop("eraser_format")), "format"),
    "a later format": (lambda f: edited(f, lambda c: c.update(eraser_format=2)), "later hf_kd"),
    "no digest of the base": (lambda f: edited(f, lambda c: c.pop("base_weights")), "no digest of its base"),
    "no records": (lambda f: edited(f, lambda c: c.update(erasures=[])), "contradicts|records no erasure"),
    "another record": (lambda f: edited(f, lambda c: c["erasures"][0].update(masked=True)), "contradicts"),
    "no digest of the eraser": (lambda f: edited(f, lambda c: c.pop("eraser_sha256")), "lacks the digests"),
    "an eraser inside": (
        lambda f: edited(f, lambda c: c.update(inner=c | {"model_type": "hf_kd_erased"})),
        "config.json",
    ),
    "a site elsewhere": (
        lambda f: (
            edited(f, lambda c: c["taps"][0]["places"][0].update(module="vit.nowhere")),
            edited(f, lambda c: c["erasures"][0].update(taps=["input of vit.nowhere (d = 32)"])),
        ),
        "does not have",
    ),
    "a shape of words": (
        lambda f: edited(f, lambda c: c["taps"][0].update(head_input_shape=["x", "y"])),
        r"config\.json",
    ),
    "a dimension of billions": (
        lambda f: (
            edited(f, lambda c: c["taps"][0].update(dim=10**10)),
            edited(f, lambda c: c["erasers"][0].update(dim=10**10)),
            edited(f, lambda c: c["erasures"][0].update(taps=["input of classifier (d = 10000000000)"])),
        ),
        "lacks|do not fit",
    ),
    "no tensor": (lambda f: tensors(f, lambda t: t.pop(KEY) is t.update(x=torch.zeros(1))), "no tensor of an eraser"),
    "another tensor": (lambda f: tensors(f, lambda t: t.update({"sites.1.x": torch.zeros(1)})), "does not describe"),
    "a tensor less": (lambda f: tensors(f, lambda t: t.update({"sites.0.eraser.y": t.pop(KEY)})), "lacks the eraser"),
    "another shape": (lambda f: tensors(f, lambda t: t.update({KEY: t[KEY][:-1].clone()})), "lacks|do not fit"),
    "another dtype": (lambda f: tensors(f, lambda t: t.update({KEY: t[KEY].half()})), "lacks|do not fit"),
    "other values": (lambda f: tensors(f, lambda t: t.update({KEY: t[KEY].flip(0).clone()})), "values of an eraser"),
    "no weights": (lambda f: (f / ERASER_WEIGHTS).unlink(), "has no eraser.safetensors"),
    "cut weights": (lambda f: (f / ERASER_WEIGHTS).write_bytes((f / ERASER_WEIGHTS).read_bytes()[:-9]), "damaged"),
    "no object": (lambda f: (f / ERASER_CONFIG).write_text("[]"), "no object"),
    "no JSON": (lambda f: (f / ERASER_CONFIG).write_text("{"), "damaged"),
    "too deep": (lambda f: (f / ERASER_CONFIG).write_text("[" * 5000), "damaged"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_eraser_is_refused_in_words_and_verify_notices(eraser, vit_base, pixels, how):
    receipt = (eraser / RECEIPT).read_bytes()
    damage, words = DAMAGED[how]
    damage(eraser)
    model = ErasedModel.from_pretrained(vit_base)
    before = logits_of(model, pixels)
    with pytest.raises(HfKdError, match=words):
        model.load_eraser(eraser)
    assert torch.equal(logits_of(model, pixels), before)
    assert not model.is_erased
    assert not model.config.erasures
    assert (eraser / RECEIPT).read_bytes() == receipt
    assert not verify(eraser, base=str(vit_base)).ok


def test_a_pickle_is_never_read(eraser, vit_base, monkeypatch):
    (eraser / ERASER_WEIGHTS).rename(eraser / "eraser.bin")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was opened"))
    with pytest.raises(MissingFileError, match=r"has no eraser\.safetensors"):
        ErasedModel.from_pretrained(vit_base, eraser=eraser)


def test_what_is_no_eraser_says_so(vit_base, tmp_path):
    with pytest.raises(MissingFileError, match=f"no {ERASER_CONFIG}"):
        ErasedModel.from_pretrained(vit_base, eraser=vit_base)
    with pytest.raises(MissingFileError, match="no folder"):
        ErasedModel.from_pretrained(vit_base, eraser=tmp_path / "nothing")


def test_without_a_base_on_the_hub_the_user_says_where_it_lies(eraser):
    with pytest.raises(InvalidValueError, match=r"from_pretrained\(BASE, eraser="):
        ErasedModel.from_pretrained(eraser)
    edited(eraser, lambda config: config.update(base_model="../../etc"))
    assert read_eraser(eraser).base == (None, None), "a path is no id"


# Written whole


class _Eraser:
    """A model whose save is that of its eraser."""

    def __init__(self, model):
        self.save_pretrained = model.save_eraser


def test_at_every_step_the_folder_reads_as_the_old_eraser_or_the_new(vit, processor, tmp_path, monkeypatch):
    first = ErasedModel.from_model(vit, processor).erase(CAT, k=2, progress=False)
    place = tmp_path / "work" / "eraser"
    first.save_eraser(place)
    old = content(place)
    second = ErasedModel.from_model(ViTForImageClassification(vit.config), processor).erase(ELK, k=1, progress=False)
    found = states(_Eraser(second), place, monkeypatch)
    new = content(place)
    assert new != old
    seen = [content(state) for state in found]
    changed = seen.index(new)
    assert 0 < changed < len(seen)
    assert all(state == old for state in seen[:changed])
    assert all(state == new for state in seen[changed:])
    assert not left_over(place)
    assert read_eraser(place).erasures == second.erasures


def test_no_log_and_no_file_has_a_token(vit_base, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    model = ErasedModel.from_pretrained(vit_base, token="hf_secret").erase(CAT, k=1, progress=False)
    model.save_eraser(tmp_path / "eraser")
    ErasedModel.from_pretrained(vit_base, eraser=tmp_path / "eraser", token="hf_secret")
    stored = "".join(path.read_text("latin-1") for path in (tmp_path / "eraser").iterdir())
    assert "hf_secret" not in stored + caplog.text


def test_a_checkpoint_error_is_an_error_of_files(eraser):
    (eraser / ERASER_CONFIG).write_text("{")
    with pytest.raises(CheckpointError):
        read_eraser(eraser)
