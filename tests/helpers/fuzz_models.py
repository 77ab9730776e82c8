"""Small models saved by the code at hand: every kind of eraser, mask, way of saving, and some families of models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTModel

from hf_kd import ErasedModel, unlearn
from tests.helpers import zoo
from tests.helpers.fuzz import Base
from tests.helpers.two_towers import NAMES, TEMPLATES, two_towers
from tests.saved_0_1_0 import make

WORDS = {"retain_texts": NAMES, "templates": TEMPLATES}
FAMILIES = (
    "SwinForImageClassification",
    "ConvNextV2ForImageClassification",
    "Dinov2ForImageClassification",
    "BeitForImageClassification",
    "SiglipModel",
    "MobileNetV2ForImageClassification",
    "LevitForImageClassificationWithTeacher",
    "ViTMSNForImageClassification",
)
"""Beside ViT, ResNet, DeiT with two heads and CLIP."""


def new_bases(root: Path) -> list[Base]:
    """Save the models below `root`, where they are not there yet."""
    root.mkdir(parents=True, exist_ok=True)
    found: list[Base] = []
    base = make.vit()
    images = make.Images(base)
    cat, elk, others = images.of(2), images.of(4), images.but(2)
    quiet = {"progress": False}

    def wrapped(model: Any = None) -> ErasedModel:
        return ErasedModel.from_model(copy.deepcopy(base if model is None else model), make.PROCESSOR)

    def keep(name: str, model: Any, inputs: Any = None, pictures: Any = None, auto: str = "", **saving: Any) -> None:
        pictures = pictures or (images.shown() if inputs is None else None)
        folder = root / f"new-{name}"
        if not folder.exists():
            model().save_pretrained(folder, **saving)
        inputs = {"pixel_values": make.pixels(pictures)} if inputs is None else inputs
        found.append(Base(folder, inputs, pictures, auto or "AutoModelForImageClassification"))

    keep("projection", lambda: wrapped().erase(cat, k=2, **quiet))
    keep("mean-difference", lambda: wrapped().erase(cat, "mean-difference", retain=others, **quiet))
    keep("renorm", lambda: wrapped().erase(cat, k=2, renorm=True, **quiet))
    keep("esc-t", lambda: wrapped().erase(cat, "esc-t", **quiet))
    keep("prototype", lambda: wrapped().erase(cat, "prototype-orthogonal", retain=others, remap=True, **quiet))
    keep("cover", lambda: wrapped().erase(cat, "cover", **quiet))
    keep("retained-span", lambda: wrapped().erase(cat, "retained-span", **quiet))
    keep(
        "two",
        lambda: wrapped().erase(cat, k=1, **quiet).erase(elk, "prototype-orthogonal", retain=images.but(4), **quiet),
    )
    keep("two-not-linear", lambda: wrapped().erase(cat, "esc-t", **quiet).erase(elk, k=1, renorm=True, **quiet))
    keep("two-of-one-kind", lambda: wrapped().erase(cat, k=1, **quiet).erase(elk, k=1, **quiet))
    keep("masked", lambda: wrapped().erase(cat, k=2, mask_head=True, **quiet))
    keep("dropped", lambda: wrapped().erase(cat, k=2, mask_head=True, erased_label=None, **quiet))
    keep(
        "two-masked",
        lambda: wrapped().erase(cat, k=1, mask_head=True, **quiet).erase(elk, k=1, mask_head=True, **quiet),
    )
    keep("samples", lambda: wrapped().erase(list(cat["image"]), k=2, whole_classes=False, **quiet))
    keep("sharded", lambda: wrapped().erase(cat, k=2, **quiet), max_shard_size="3KB")
    keep("bfloat16", lambda: wrapped().erase(cat, k=2, **quiet).to(torch.bfloat16))
    keep("untouched", lambda: _with_taps(wrapped()))
    keep("folded", lambda: wrapped().erase(cat, k=2, mask_head=True, **quiet).fold())
    changed = unlearn(base, cat, "scrub", retain=others, processor=make.PROCESSOR, epochs=2, max_epochs=1, **quiet)
    keep("unlearned-then-erased", lambda: wrapped(changed).erase(elk, k=1, **quiet))
    conv, teacher = make.resnet(), make.deit()
    seen = make.Images(conv)
    keep("resnet", lambda: wrapped(conv).erase(seen.of(2), k=2, **quiet), pictures=seen.shown())
    keep("leace", lambda: wrapped(conv).erase(seen.of(2), "leace", retain=seen.but(2), **quiet), pictures=seen.shown())
    two = make.Images(teacher)
    keep("two-taps", lambda: wrapped(teacher).erase(two.of(2), k=2, **quiet), pictures=two.shown())
    text = {"pixel_values": make.pixels(images.shown()[:2]), "input_ids": torch.tensor([[0, 5, 9, 2], [0, 7, 3, 2]])}
    keep("clip", lambda: wrapped(make.clip()).erase(cat, k=2, **quiet), inputs=text, auto="AutoModel")
    found += eraser_bases(root)
    keep(
        "by-name",
        lambda: ErasedModel.from_model(*two_towers("CLIPModel")).erase(texts=["cat"], **WORDS),
        inputs=zoo.inputs("CLIPModel"),
        auto="AutoModel",
    )
    headless = make.randomise(ViTModel(ViTConfig(**make.VIT)))
    keep("headless", lambda: wrapped(headless).erase(cat, k=2, **quiet), auto="AutoModel")
    for name in FAMILIES:
        both = name.endswith("ipModel")
        keep(name, lambda name=name: _of_family(name), inputs=zoo.inputs(name, 3, 5), auto="AutoModel" if both else "")
    return found


def eraser_bases(root: Path) -> list[Base]:
    """Erasers saved on their own, and the base they stand on."""
    root.mkdir(parents=True, exist_ok=True)
    stock, images = root / "base", make.Images(make.vit())
    cat, elk = images.of(2), images.of(4)
    if not stock.exists():
        make.vit().save_pretrained(stock)
        make.PROCESSOR.save_pretrained(stock)
    requests = {
        "projection": lambda model: model.erase(cat, k=2, progress=False),
        "masked": lambda model: model.erase(cat, k=2, mask_head=True, progress=False),
        "cover": lambda model: model.erase(cat, "cover", progress=False),
        "two": lambda model: model.erase(cat, "esc-t", progress=False).erase(elk, k=1, progress=False),
    }
    found = []
    for name, erase in requests.items():
        folder = root / f"eraser-{name}"
        if not folder.exists():
            erase(ErasedModel.from_pretrained(stock)).save_eraser(folder)
        inputs = {"pixel_values": make.pixels(images.shown())}
        found.append(Base(folder, inputs, images.shown(), "AutoModelForImageClassification", stands_on=stock))
    towers, folder = root / "base-two-towers", root / "eraser-by-name"
    if not folder.exists():
        for part in two_towers("CLIPModel"):
            part.save_pretrained(towers)
        model = ErasedModel.from_pretrained(towers)
        model.erase(texts=["cat"], **WORDS).save_eraser(folder)
    return [*found, Base(folder, zoo.inputs("CLIPModel"), None, "AutoModel", stands_on=towers)]


def _with_taps(model: ErasedModel) -> ErasedModel:
    model.find_taps()
    return model


def _of_family(name: str) -> ErasedModel:
    from tests.model.test_architectures import erased

    return erased(name)
