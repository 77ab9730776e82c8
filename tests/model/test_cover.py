"""Cover and its comparators through ErasedModel: what attackers read, what is saved, folded, refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from hf_kd import ESC, AuditOptions, ErasedModel, unlearn
from hf_kd.data.masked_classes import MASKED_LOGIT
from hf_kd.methods.erasers.base import Composition
from hf_kd.methods.erasers.cover import Cover, CoverMap
from hf_kd.metrics.linear_probe import fit_linear_probe
from hf_kd.metrics.neighbours import knn_predictions
from hf_kd.metrics.nonlinear_probes import fit_mlp_probe
from tests.helpers.small import make_dataset
from tests.helpers.taught import taught
from tests.methods.erasers.test_cover import CLASSES, planted

QUICK = {"options": AuditOptions(attacks=["linear", "norm", "knn-l2"], draws=1, shots=[1]), "progress": False}


def answer(model, pixels) -> Tensor:
    with torch.no_grad():
        return model(pixel_values=pixels).logits


def images(processor, labels, seed: int = 0) -> Tensor:
    return processor(list(make_dataset(labels, seed=seed)["image"]), return_tensors="pt")["pixel_values"]


@pytest.fixture
def known(model, processor):
    """A model whose head knows the classes of the pictures."""
    return taught(model, processor)


@pytest.fixture
def retain():
    return make_dataset([0, 1, 3, 4] * 15, seed=2)


# What converged attackers read of planted classes: a positive and a negative control.


def recalls(eraser, forgotten: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    """For each attacker trained behind the eraser: recall of forgotten classes, accuracy on the others."""
    train, labels, _ = planted(400, seed=1)
    test, truth, _ = planted(200, seed=2)
    train, test = eraser(train), eraser(test)
    found = {
        "linear": fit_linear_probe(train, labels).predict(test),
        "mlp": labels.unique()[fit_mlp_probe(train, labels, (128,)).logits(test).argmax(dim=1)],
        "knn": labels.unique()[knn_predictions(train, labels, test).argmax(dim=1)],
    }
    gone = torch.isin(truth, torch.tensor(forgotten))
    return {
        name: (float((p == truth)[gone].float().mean()), float((p == truth)[~gone].float().mean()))
        for name, p in found.items()
    }


def fitted(method, *forgotten: int):
    features, labels, head = planted(300)
    rows = torch.isin(labels, torch.tensor(forgotten))
    return method.fit(features[rows], labels[rows], head)


@pytest.mark.parametrize("forgotten", [(3,), (3, 5)])
def test_no_converged_attacker_names_a_covered_class(forgotten):
    for name, (left, kept) in recalls(fitted(Cover(), *forgotten), forgotten).items():
        assert left < 0.06, name  # what the head never recognised passes unchanged
        assert kept > 0.9, name


def test_every_converged_attacker_names_a_class_that_esc_projected_away():
    before = recalls(nn.Identity(), (3,))
    for name, (left, kept) in recalls(fitted(ESC(k=1), 3), (3,)).items():
        assert left > 0.7, name
        assert left > before[name][0] - 0.25, name
        assert kept > 0.8, name


def test_too_little_cover_is_what_gives_the_class_away():
    """The ratio is what hides: of one cover class the forgotten ones are as many as the cover."""
    alone, two = (recalls(fitted(Cover(m=m), 3), (3,)) for m in (1, 2))
    assert max(left for left, _ in two.values()) < 0.06
    assert max(left for left, _ in alone.values()) > 0.3, {name: left for name, (left, _) in alone.items()}


def test_the_best_decision_at_every_point_is_never_forgotten():
    features, labels, _ = planted(1000, seed=3)
    for m in (2, 3):
        eraser = fitted(Cover(m=m), 3)
        points, index, counts = eraser(features).unique(dim=0, return_inverse=True, return_counts=True)
        repeated = (counts > 1).nonzero().flatten()
        assert len(repeated) == m
        for point in repeated.tolist():
            mass = labels[index == point].bincount(minlength=CLASSES)
            assert int(mass.argmax()) != 3
            assert float(mass[3]) < 0.75 * float(mass.max())
        assert len(points) > m


# Through ErasedModel.


def test_erased_saved_and_loaded_bit_for_bit(known, processor, forget, tmp_path):
    pixels = images(processor, [0, 1, 2, 3, 4] * 6, seed=5)
    before = answer(known, pixels)
    erased = ErasedModel.from_model(known, processor).erase(forget, method="cover", progress=False)
    eraser, record = erased.sites[0].eraser, erased.erasures[0]
    assert isinstance(eraser, CoverMap)
    assert record.classes == (2,) == eraser.forgotten
    assert (record.condition_number, record.rank_removed) == ((None,), (0,))
    assert record.measured[0]["cover_classes"] == list(eraser.cover)
    assert record.measured[0]["shared_by"] == "views"
    assert len(record.measured[0]["moved_by_views"]) == 2
    logits, features = answer(erased, pixels), erased.pooled_features(pixels)
    assert (logits[:, 2] == MASKED_LOGIT).all()
    untouched = (features == erased.pooled_features(pixels, stage="before")).all(dim=1)
    assert 0 < int(untouched.sum()) < 30
    assert torch.equal(logits[untouched][:, [0, 1, 3, 4]], before[untouched][:, [0, 1, 3, 4]])
    assert len(features[~untouched].unique(dim=0)) <= 2
    erased.save_pretrained(tmp_path)
    again = ErasedModel.from_pretrained(tmp_path)
    assert torch.equal(answer(again, pixels), logits)
    assert torch.equal(again.pooled_features(pixels), features)
    assert again.erasures == erased.erasures
    with pytest.raises(ValueError, match=r"'cover' is not linear.*save_pretrained keeps the eraser"):
        erased.fold()
    assert torch.equal(answer(erased.reset(), pixels), before)


def test_half_precision_keeps_what_is_not_replaced(known, processor, forget, tmp_path):
    pixels = images(processor, [0, 1, 2, 3, 4] * 6, seed=5)
    erased = ErasedModel.from_model(known, processor).erase(forget, method="cover", progress=False)
    erased.save_pretrained(tmp_path)
    for half in (copy.deepcopy(erased).to(torch.bfloat16), ErasedModel.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        before, after = (half.pooled_features(pixels.bfloat16(), stage=stage) for stage in ("before", "after"))
        hit = erased.sites[0].eraser.decide(before.float())[1]
        assert torch.equal(after[~hit], before[~hit])
        assert len(after[hit].unique(dim=0)) <= 2
        eraser = half.sites[0].eraser
        for name, value in erased.sites[0].eraser.named_buffers():
            assert torch.equal(getattr(eraser, name), value), "nothing is rounded"


def test_settings_of_every_kind_survive_the_file(known, processor, forget, tmp_path):
    dim = ErasedModel.from_model(copy.deepcopy(known), processor).pooled_features(images(processor, [0])).shape[1]
    options = {
        "class_sizes": dict.fromkeys(range(5), 10),
        "cover_classes": (3, 1),
        "prototypes": {1: torch.linspace(0, 1, dim)},
        "guard": 0.1,
    }
    erased = ErasedModel.from_model(known, processor).erase(forget, method="cover", **options, progress=False)
    erased.save_pretrained(tmp_path)
    again = ErasedModel.from_pretrained(tmp_path)
    assert again.erasures == erased.erasures
    settings = json.loads((tmp_path / "config.json").read_text())["erasures"][0]["settings"]
    assert settings == erased.erasures[0].settings
    assert Cover(**settings).settings() == settings


def test_requests_compose_and_what_cannot_is_refused(vit, processor, forget, tmp_path):
    pixels = images(processor, [0, 1, 2, 3, 4] * 6, seed=5)
    erased = ErasedModel.from_model(taught(vit, processor), processor)
    erased.erase(forget, method="cover", m=1, progress=False)
    (cover,) = erased.sites[0].eraser.cover
    others = [c for c in (0, 1, 3, 4) if c != cover]
    config = erased.config.to_dict()
    with pytest.raises(ValueError, match="one and the same point"):
        erased.erase(make_dataset([cover] * 20), method="cover", progress=False)
    with pytest.raises(ValueError, match="never answered"):
        erased.erase(forget, method="cover", progress=False)
    assert erased.config.to_dict() == config
    erased.erase(make_dataset([others[0]] * 20), method="cover", progress=False)
    assert isinstance(erased.sites[0].eraser, Composition)
    assert erased.config.masked == sorted([2, others[0]])
    logits = answer(erased, pixels)
    assert (logits[:, [2, others[0]]] == MASKED_LOGIT).all()
    erased.save_pretrained(tmp_path)
    assert torch.equal(answer(ErasedModel.from_pretrained(tmp_path), pixels), logits)


@pytest.mark.parametrize("earlier", ["esc", "neggrad"])
def test_a_class_that_an_earlier_request_forgot_is_no_cover(vit, processor, forget, earlier):
    """Its features are elsewhere by then, so nothing would lie on its point but what is forgotten."""
    model = taught(vit, processor)
    first = ErasedModel.from_model(copy.deepcopy(model), processor).erase(forget, method="cover", m=1, progress=False)
    (nearest,) = first.sites[0].eraser.cover
    images = make_dataset([nearest] * 20, seed=6)
    if earlier == "esc":
        second = ErasedModel.from_model(model, processor).erase(images, progress=False)
    else:  # so little that the head answers as before
        changed = unlearn(model, images, earlier, processor=processor, lr=1e-9, epochs=1, progress=False)
        second = ErasedModel.from_model(changed, processor)
    second.erase(forget, method="cover", m=1, progress=False)
    assert nearest not in second.erasures[-1].measured[0]["cover_classes"]


def test_a_damaged_cover_does_not_load(vit, processor, forget, tmp_path):
    from safetensors.torch import load_file, save_file

    erased = ErasedModel.from_model(taught(vit, processor), processor).erase(forget, method="cover", progress=False)
    erased.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = [name for name in tensors if "eraser" in name]
    assert len(names) == 7
    for name in names:
        save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match="eraser"):
            ErasedModel.from_pretrained(tmp_path)
    roles = next(name for name in names if name.endswith("roles"))
    save_file(tensors | {roles: torch.zeros_like(tensors[roles])}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="damaged"):
        ErasedModel.from_pretrained(tmp_path)


def test_audit_of_a_covered_model(known, processor, forget):
    splits = make_dataset([0, 1, 2, 3, 4] * 16), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)
    erased = ErasedModel.from_model(known, processor).erase(forget, method="cover", progress=False)
    report = erased.audit(*splits, **QUICK)
    assert report.score("head", "D_ft").value == 0
    assert report.forget_labels == (2,)
    assert "cover" in report.to_markdown()


def test_streams_and_loaders_are_covered_as_data_sets_are(vit, processor, forget):
    vit = taught(vit, processor)
    pixels = images(processor, [2] * 20)

    def fit(data) -> CoverMap:
        return ErasedModel.from_model(copy.deepcopy(vit), processor).erase(data, method="cover", progress=False)

    whole = fit(forget).sites[0].eraser.state_dict()
    rows = [{"pixel_values": x, "labels": 2} for x in pixels]
    for data in (forget.to_iterable_dataset(), torch.utils.data.DataLoader(rows, batch_size=7)):
        other = fit(data).sites[0].eraser
        for name, value in other.state_dict().items():
            assert torch.allclose(value.float(), whole[name].float(), atol=1e-3), name
    generator = torch.Generator().manual_seed(0)
    shuffled = fit(torch.utils.data.DataLoader(rows, batch_size=7, shuffle=True, generator=generator))
    measured = shuffled.erasures[0].measured[0]
    assert measured["shared_by"] == "logits", "views of images in another order cannot be compared"
    assert torch.allclose(shuffled.sites[0].eraser.prototypes, whole["prototypes"], atol=1e-4)


def test_inputs_that_are_no_pictures_are_shared_by_logits(vit, processor, forget, monkeypatch):
    monkeypatch.setattr("hf_kd.model.fit_data.VIEWS", {})
    erased = ErasedModel.from_model(taught(vit, processor), processor).erase(forget, method="cover", progress=False)
    assert erased.erasures[0].measured[0]["shared_by"] == "logits"


def test_samples_of_classes_that_stay_have_no_cover(vit, processor, forget):
    wrapped = ErasedModel.from_model(vit, processor)
    for method in ("cover", "retained-span"):
        with pytest.raises(ValueError, match="takes whole classes out"):
            wrapped.erase(forget, method=method, whole_classes=False, progress=False)
    assert not wrapped.is_erased


# The comparators.

COMPARATORS = ["leace", "mean-difference", "mean-projection", "prototype-orthogonal", "retained-span"]


@pytest.mark.parametrize("method", COMPARATORS)
def test_comparators_are_saved_and_folded(known, processor, forget, retain, method, tmp_path):
    pixels = images(processor, [0, 1, 2, 3, 4] * 4, seed=5)
    erased = ErasedModel.from_model(known, processor).erase(forget, method=method, retain=retain, progress=False)
    logits = answer(erased, pixels)
    erased.save_pretrained(tmp_path)
    again = ErasedModel.from_pretrained(tmp_path)
    assert torch.equal(answer(again, pixels), logits)
    assert again.erasures == erased.erasures
    folded = answer(erased.fold(), pixels)
    assert torch.allclose(folded, logits, atol=1e-4 * max(1.0, float(logits[logits > MASKED_LOGIT].abs().max())))
    reads = erased.erasures[0].n_retain
    assert reads == (60 if method in ("leace", "mean-difference", "prototype-orthogonal") else None)


class NormedHead(nn.Sequential):
    """BatchNorm in front of a Linear, as LeViT and SwiftFormer have it."""

    def __init__(self, dim: int):
        norm, linear = nn.BatchNorm1d(dim), nn.Linear(dim, 5)
        generator = torch.Generator().manual_seed(0)
        norm.running_mean.copy_(torch.randn(dim, generator=generator))
        norm.running_var.copy_(torch.rand(dim, generator=generator) + 0.5)
        super().__init__(norm, linear)


@pytest.mark.parametrize("method", ["leace", "retained-span"])
def test_the_constant_of_an_eraser_folds_through_a_batch_norm_and_needs_a_bias(vit, processor, forget, retain, method):
    pixels = images(processor, [0, 1, 2, 3, 4] * 4, seed=5)
    other = copy.deepcopy(vit)
    other.classifier = NormedHead(32).eval()
    erased = ErasedModel.from_model(other, processor).erase(
        forget, method=method, retain=retain, mask_head=False, allow_unrecognised=True, progress=False
    )
    assert float(erased.sites[0].eraser.offset().abs().max()) > 1e-3
    assert torch.allclose(answer(erased.fold(), pixels), answer(erased, pixels), atol=1e-4)
    vit.classifier = nn.Linear(32, 5, bias=False)
    bare = ErasedModel.from_model(vit, processor).erase(
        forget, method=method, retain=retain, mask_head=False, allow_unrecognised=True, progress=False
    )
    with pytest.raises(ValueError, match=r"no bias to take up the constant of the eraser.*save_pretrained"):
        bare.fold()


def test_a_linear_eraser_folds_into_a_head_without_bias(vit, processor, forget):
    pixels = images(processor, [0, 1, 2, 3, 4] * 4, seed=5)
    vit.classifier = nn.Linear(32, 5, bias=False)
    erased = ErasedModel.from_model(vit, processor).erase(forget, method="mean-projection", progress=False)
    assert torch.allclose(answer(erased.fold(), pixels), answer(erased, pixels), atol=1e-5)


def test_renorm_folds_not_and_says_so(vit, processor, forget):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=1, renorm=True, progress=False)
    with pytest.raises(ValueError, match="'normed-projection' is not linear"):
        erased.fold()


@pytest.mark.parametrize("method", ["leace", "mean-difference", "prototype-orthogonal"])
def test_retained_images_have_to_be_there_and_retained(vit, processor, forget, retain, method):
    wrapped = ErasedModel.from_model(vit, processor)
    mixed = make_dataset([0, 1, 2, 3])
    for given, message in ((None, "retain="), (mixed, r"forgotten classes \[2\]"), (retain.select([]), "empty")):
        with pytest.raises(ValueError, match=message):
            wrapped.erase(forget, method=method, retain=given, progress=False)
        assert not wrapped.is_erased
        assert wrapped.erasures == ()


def test_leace_on_the_model_leaves_no_linear_predictor(known, processor, forget, retain):
    pixels = torch.cat([images(processor, forget["label"]), images(processor, retain["label"], seed=2)])
    z = torch.cat([torch.ones(len(forget)), torch.zeros(len(retain))]).double()
    erased = ErasedModel.from_model(known, processor).erase(forget, method="leace", retain=retain, progress=False)
    before, after = (erased.pooled_features(pixels, stage=stage).double() for stage in ("before", "after"))
    covariances = [(f - f.mean(dim=0)).T @ (z - z.mean()) / len(z) for f in (before, after)]
    assert float(covariances[0].abs().max()) > 1e-3
    assert float(covariances[1].abs().max()) < 1e-6 * max(1.0, float(before.abs().max()))
