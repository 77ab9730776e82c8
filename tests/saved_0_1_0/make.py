"""How the folders beside this file were written: by hf_kd 0.1.0, on 2 cores of x86-64 with torch 2.13 and transformers 5.23.

Kept as a description. It ran once, on version 0.1.0, and is not to be run again: what another version writes is no saved
model of 0.1.0. `tests/test_saved_0_1_0.py` loads the folders with the version at hand.

    python tests/saved_0_1_0/make.py FOLDER

Every model is random, has 8 features, and was balanced so that it answers each of its classes; images are smooth noise, and
their labels are the model's own answers. Each folder holds what `save_pretrained` wrote, and beside it

- `expected.safetensors`: 4 images (`images`, uint8 [4, 8, 8, 3]) and what the processor made of them (`pixel_values`);
  what the saved model answered in float32 on the CPU with one thread (`logits`, `image_embeds`, whatever its outputs
  name); for each tap the features behind its eraser (`pooled.0`), and features in front of it, of forgotten images
  (`forget.0`) with what the eraser made of them (`forget_erased.0`), and where a method read retained images theirs
  (`retain.0`);
- `expected.json`: what the model said of itself.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

import hf_kd
from hf_kd import ErasedModel, train_original, unlearn

NAMES = ["ape", "bee", "cat", "dog", "elk"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 8,
    "patch_size": 4,
}
PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
QUIET = {"progress": False}
WITH_CARD = ("with-report", "cover", "unlearned-then-erased")
"""Every saved model has a card; the others' were left out, to keep this folder small."""


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        scale = 1.5 / fan_in**0.5 if parameter.ndim > 1 else 0.2
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data += 1
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def pictures(count: int = 600) -> list[PILImage.Image]:
    """Smooth noise: a few coarse spots of colour, enlarged."""
    rng = np.random.default_rng(0)
    spots = rng.integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    return [PILImage.fromarray(spot).resize((8, 8), PILImage.Resampling.BICUBIC) for spot in spots]


PICTURES = pictures()


def pixels(images: list[PILImage.Image]) -> torch.Tensor:
    return PROCESSOR(images, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def balanced(model: torch.nn.Module, *heads: torch.nn.Linear) -> torch.nn.Module:
    """Every class is answered about equally often: each head's logits get mean 0 and deviation 3."""
    for head in heads:
        seen: list[torch.Tensor] = []
        handle = head.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        model(pixel_values=pixels(PICTURES))
        handle.remove()
        mean, deviation = seen[0].mean(dim=0), seen[0].std(dim=0) / 3
        head.weight /= deviation[:, None]
        head.bias.copy_((head.bias - mean) / deviation)
    return model


@torch.no_grad()
def answers(model: torch.nn.Module) -> tuple[list[int], list[float]]:
    """What a model answers on all pictures, and by how much the first class is ahead of the second."""
    first, second = model(pixel_values=pixels(PICTURES)).logits.topk(2, dim=1).values.unbind(dim=1)
    return model(pixel_values=pixels(PICTURES)).logits.argmax(dim=1).tolist(), (first - second).tolist()


def dataset(rows: list[int], labels: list[int]) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict(
        {"image": [PICTURES[i] for i in rows], "label": [labels[i] for i in rows]}, features=features
    )


class Images:
    """Pictures under the labels a classifier gives them, 12 of each and 10 to test; the surest are left for the answers."""

    def __init__(self, model: torch.nn.Module):
        self.labels, margins = answers(model)
        surest = sorted(range(len(PICTURES)), key=lambda i: -margins[i])
        found = {c: [i for i in surest if self.labels[i] == c] for c in range(len(NAMES))}
        short = {NAMES[c]: len(rows) for c, rows in found.items() if len(rows) < 23}
        if short:
            raise SystemExit(f"{type(model).__name__} answers some classes too seldom: {short}")
        self.found = found

    def of(self, *classes: int) -> Dataset:
        return dataset([i for c in classes for i in self.found[c][1:13]], self.labels)

    def test(self) -> Dataset:
        return dataset([i for rows in self.found.values() for i in rows[13:23]], self.labels)

    def but(self, *classes: int) -> Dataset:
        return self.of(*(c for c in range(len(NAMES)) if c not in classes))

    def shown(self) -> list[PILImage.Image]:
        """Four images: of cat, dog, ape and elk, each the one the model is surest of."""
        return [PICTURES[self.found[c][0]] for c in (2, 3, 0, 4)]


def plain(value):
    return json.loads(json.dumps(value))


def kinds(eraser) -> list:
    description = eraser.spec()
    return [stage["kind"] for stage in description["stages"]] if "stages" in description else []


@torch.no_grad()
def record(
    folder: Path, load, images, forget=None, retain=None, auto="AutoModelForImageClassification", load_with=None
) -> None:
    """Write what the model in `folder`, loaded again, answers and says of itself. No eraser is needed for it."""
    torch.set_num_threads(1)
    model = load(folder, **({"dtype": torch.float32} if load_with else {})).eval()
    inputs = {"pixel_values": pixels(images)}
    tensors = dict(inputs)
    tensors["images"] = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    if type(getattr(model, "inner", model)) is CLIPModel:
        tensors["input_ids"] = torch.tensor([[0, 5, 9, 2], [0, 7, 3, 2]])
        output = model(**inputs, input_ids=tensors["input_ids"])
    else:
        output = model(**inputs)
    named = [name for name, value in output.items() if isinstance(value, torch.Tensor)]
    tensors |= {name: output[name] for name in named}
    says = {
        "type": type(model).__name__,
        "auto": auto,
        "outputs": named,
        "id2label": {str(c): name for c, name in (model.config.id2label or {}).items()}
        if auto != "AutoModel"
        else None,
    }
    if load_with:
        says["load"] = load_with
    if isinstance(model, ErasedModel):
        pooled = model.pooled_features(**inputs)
        for i, rows in enumerate(pooled if isinstance(pooled, tuple) else (pooled,)):
            tensors[f"pooled.{i}"] = rows
        for what, data in (("forget", forget), ("retain", retain)):
            if data is None:
                continue
            seen = model.pooled_features(pixels(list(data["image"])), stage="before")
            for i, rows in enumerate(seen if isinstance(seen, tuple) else (seen,)):
                tensors[f"{what}.{i}"] = rows
                if what == "forget":
                    tensors[f"forget_erased.{i}"] = model.sites[i].eraser(rows)
        says |= {
            "is_erased": model.is_erased,
            "inner": type(model.inner).__name__,
            "methods": [erasure.method for erasure in model.erasures],
            "classes": [erasure.classes for erasure in model.erasures],
            "k": [erasure.k for erasure in model.erasures],
            "masked": model.config.masked,
            "dropped": model.config.dropped,
            "kinds": [site.eraser.kind for site in model.sites if site.eraser is not None],
            "stages": [kinds(site.eraser) for site in model.sites if site.eraser is not None],
            "taps": [str(tap) for tap in model.taps],
            "class_names": {str(c): name for c, name in model.class_names.items()},
        }
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(plain(says), indent=1) + "\n", encoding="utf-8")


def vit() -> ViTForImageClassification:
    model = randomise(ViTForImageClassification(ViTConfig(**VIT, **LABELS)))
    return balanced(model, model.classifier)


def resnet() -> ResNetForImageClassification:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", **LABELS)
    model = randomise(ResNetForImageClassification(config))
    return balanced(model, model.classifier[1])


def deit() -> DeiTForImageClassificationWithTeacher:
    model = randomise(DeiTForImageClassificationWithTeacher(DeiTConfig(**VIT, **LABELS)), seed=2)
    return balanced(model, model.cls_classifier, model.distillation_classifier)


def clip() -> CLIPModel:
    text = {
        "vocab_size": 12,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 8,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    towers = {"vision_config": {**VIT, "projection_dim": 8}, "text_config": {**text, "projection_dim": 8}}
    return randomise(CLIPModel(CLIPConfig(**towers, projection_dim=8)))


def write(root: Path) -> None:
    base = vit()
    images = Images(base)
    shown = images.shown()

    def wrapped(model=None) -> ErasedModel:
        return ErasedModel.from_model(copy.deepcopy(base if model is None else model), PROCESSOR)

    def keep(name: str, model, forget, retain=None, *, shown=shown, auto="AutoModelForImageClassification", **saving):
        model.save_pretrained(root / name, **saving)
        record(root / name, ErasedModel.from_pretrained, shown, forget, retain, auto)

    cat, elk, others = images.of(2), images.of(4), images.but(2)

    # one for each kind of eraser, and for each method that writes it
    keep("projection", wrapped().erase(cat, k=2, **QUIET), cat)
    keep("mean-difference", wrapped().erase(cat, "mean-difference", retain=others, **QUIET), cat, others)
    keep("normed-projection", wrapped().erase(cat, k=2, renorm=True, **QUIET), cat)
    keep("masked-projection", wrapped().erase(cat, "esc-t", **QUIET), cat)
    oblique = wrapped().erase(cat, "prototype-orthogonal", retain=others, remap=True, **QUIET)
    keep("oblique-prototype", oblique, cat, others)
    keep("cover", wrapped().erase(cat, "cover", **QUIET), cat)
    keep("kept-span", wrapped().erase(cat, "retained-span", **QUIET), cat)
    two = wrapped().erase(cat, k=1, **QUIET).erase(elk, "prototype-orthogonal", retain=images.but(4), **QUIET)
    keep("composition", two, elk, images.but(4))
    two = wrapped().erase(cat, "esc-t", **QUIET).erase(elk, k=1, renorm=True, **QUIET)
    keep("composition-not-linear", two, elk)
    keep("two-requests-one-kind", wrapped().erase(cat, k=1, **QUIET).erase(elk, k=1, **QUIET), elk)

    # masked, dropped; classes unknown
    keep("masked", wrapped().erase(cat, k=2, mask_head=True, **QUIET), cat)
    keep("dropped", wrapped().erase(cat, k=2, mask_head=True, erased_label=None, **QUIET), cat)
    keep("samples", wrapped().erase(list(cat["image"]), k=2, whole_classes=False, **QUIET), cat)

    # other models
    conv = resnet()
    found = Images(conv)
    keep("resnet", wrapped(conv).erase(found.of(2), k=2, **QUIET), found.of(2), shown=found.shown())
    # LEACE stands here: on 8 features behind a LayerNorm 0.1.0 takes the direction of rounding errors for a real one
    leace = wrapped(conv).erase(found.of(2), "leace", retain=found.but(2), **QUIET)
    keep("oblique-leace", leace, found.of(2), found.but(2), shown=found.shown())
    teacher = deit()
    found = Images(teacher)
    keep(
        "two-taps",
        wrapped(teacher).erase(found.of(2), "esc-t", threshold=0.95, lr=2.0, **QUIET),
        found.of(2),
        shown=found.shown(),
    )
    keep("clip", wrapped(clip()).erase(cat, k=2, **QUIET), cat, auto="AutoModel")
    headless = randomise(ViTModel(ViTConfig(**VIT)))
    keep("vit-without-head", wrapped(headless).erase(cat, k=2, **QUIET), cat, auto="AutoModel")

    # other ways of saving
    keep("sharded", wrapped().erase(cat, k=2, **QUIET), cat, max_shard_size="3KB")
    half = wrapped().erase(cat, k=2, **QUIET).to(torch.bfloat16)
    half.save_pretrained(root / "bfloat16")
    record(root / "bfloat16", ErasedModel.from_pretrained, shown, cat, load_with={"dtype": "float32"})
    documented(root / "with-report", wrapped().erase(cat, k=2, **QUIET), images)
    record(root / "with-report", ErasedModel.from_pretrained, shown, cat)

    # stock checkpoints
    def stock(name: str, model) -> None:
        model.save_pretrained(root / name)
        PROCESSOR.save_pretrained(root / name)
        record(root / name, type(model).from_pretrained, shown)

    stock("folded", wrapped().erase(cat, k=2, mask_head=True, **QUIET).fold())
    changed = unlearn(base, cat, "scrub", retain=others, processor=PROCESSOR, epochs=2, max_epochs=1, **QUIET)
    stock("unlearned", changed)
    keep("unlearned-then-erased", wrapped(changed).erase(elk, k=1, **QUIET), elk)
    everything = images.of(*range(len(NAMES)))
    stock("trained", train_original(base, everything, processor=PROCESSOR, from_scratch=False, epochs=1, **QUIET))


def documented(folder: Path, model: ErasedModel, images: Images) -> None:
    """With report, card and receipt, as `hf-kd audit` and `hf-kd card` write them where matplotlib is not installed."""
    from hf_kd import commands, documenting

    train, test = images.of(*range(len(NAMES))), images.test()
    report = model.audit(train, test, attacks=["linear"], draws=1, shots=[1], **QUIET)
    model.save_pretrained(folder)
    path = folder.with_name("report.json")
    report.to_json(path)
    documenting.find_spec = lambda name: None
    commands.card(folder, path)
    path.unlink()


if __name__ == "__main__":
    if hf_kd.__version__ != "0.1.0":
        raise SystemExit(f"This is hf_kd {hf_kd.__version__}; the folders are those of 0.1.0 and stay as they are.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
        for made in sorted(Path(temporary).iterdir()):
            if made.name not in WITH_CARD:
                (made / "README.md").unlink(missing_ok=True)
            shutil.copytree(made, Path(sys.argv[1]) / made.name, dirs_exist_ok=True)
