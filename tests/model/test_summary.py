"""A model in one line; its modules are those of the model inside."""

from __future__ import annotations

from hf_kd import ErasedModel


def test_a_model_says_what_it_forgot_and_where(vit, processor, forget):
    model = ErasedModel.from_model(vit, processor)
    assert repr(model) == "<ErasedModel: ViTForImageClassification, nothing forgotten; tap: not looked for yet>"
    model.erase(forget, k=2, progress=False)
    tap = str(model.taps[0])
    assert "d = 32" in tap
    assert repr(model) == f"<ErasedModel: ViTForImageClassification, class 2 (cat) forgotten by esc; tap: {tap}, k = 2>"
    assert str(model.__rich__()) in repr(model)
    assert model._repr_markdown_().startswith("**ErasedModel**: ViTForImageClassification")
    assert "ViTEncoder" in repr(model.inner) or "ViTLayer" in repr(model.inner), "the modules are a print away"
    config = model.inner.config
    config.hf_kd_unlearned = [model.erasures[0].to_dict() | {"method": "scrub", "classes": None}]
    assert "class 2 (cat) and samples forgotten by scrub, esc" in repr(model)


def test_of_a_folded_model_too(vit, processor, forget):
    model = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    folded = ErasedModel.from_model(model.fold(), processor)
    assert "class 2 (cat) forgotten by esc" in repr(folded)
