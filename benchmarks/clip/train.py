"""Train a small CLIP on CIFAR-10 and captions made of its class names; with --without CLASS, one that never saw it.

    python benchmarks/clip/train.py CIFAR10.npz --output clip --minutes 2.5 [--without cat] [--half]

The .npz holds train_images and test_images (uint8, [n, 32, 32, 3]), train_labels and test_labels; benchmarks/clip/pack.py
makes one. Runs on an accelerator where there is one (bfloat16, all data on it), else on the CPU (bfloat16 where the
processor multiplies it in hardware), where this takes two networks side by side on two cores under two hours:

    --steps 5000 --batch 256 --captions 128 --width 160 --patches 0.5 --mix 0.25

Started again with the same output it goes on where it was stopped. Writes an ordinary folder of transformers: model,
tokenizer, image processor, and training.json with what was measured. Needs torch, transformers, tokenizers, safetensors
and numpy.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import captions as words
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
STATE = "state.safetensors"


@dataclass(frozen=True)
class Size:
    """Widths and depths of the two towers."""

    width: int = 256
    layers: int = 6
    text_width: int = 128
    text_layers: int = 2
    joint: int = 128


SMALL = Size(64, 2, 32, 1, 32)


def build(size: Size, vocabulary: int) -> CLIPModel:
    text = {
        "vocab_size": vocabulary, "hidden_size": size.text_width, "intermediate_size": 4 * size.text_width,
        "num_hidden_layers": size.text_layers, "num_attention_heads": size.text_width // 32,
        "max_position_embeddings": words.LONGEST, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 3,
    }  # fmt: skip
    vision = {
        "hidden_size": size.width, "intermediate_size": 4 * size.width, "num_hidden_layers": size.layers,
        "num_attention_heads": size.width // 32, "image_size": 32, "patch_size": 4, "hidden_act": "gelu",
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=size.joint))


def normalised(images: Tensor) -> Tensor:
    """uint8 [n, 32, 32, 3] -> float [n, 3, 32, 32]."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def augmented(images: Tensor) -> Tensor:
    """Each image shifted, turned, scaled, mirrored, in other colours and with a hole, all drawn by itself."""
    n, device = len(images), images.device

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape, device=device).uniform_(low, high)

    angle, scale, mirror = draw(-0.25, 0.25), draw(0.8, 1.1), (draw(0, 1) < 0.5).float() * 2 - 1
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack(
        [
            torch.stack([mirror * cos, -sin, draw(-0.25, 0.25)], 1),
            torch.stack([mirror * sin, cos, draw(-0.25, 0.25)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 3, 32, 32], align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    x = (x + draw(-0.4, 0.4, 1, 1, 1)) * draw(0.7, 1.3, 1, 1, 1) + draw(-0.1, 0.1, 3, 1, 1)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * draw(0.5, 1.4, 1, 1, 1)
    line = torch.arange(32, device=device)
    half, row, column = draw(0, 6, 1), draw(0, 32, 1), draw(0, 32, 1)
    hole = ((line - row).abs() < half)[:, None, :, None] & ((line - column).abs() < half)[:, None, None, :]
    return x.masked_fill(hole, 0.0)


def mixed(images: Tensor, truth: Tensor, batches: float) -> tuple[Tensor, Tensor]:
    """CutMix for two thirds of a share of the batches and mixup for the rest of it: images [n, 3, 32, 32] and truth
    [n, classes] of both.
    """
    kind, share = torch.rand(()).item() / max(batches, 1e-9), float(np.random.beta(1.0, 1.0))
    order = torch.randperm(len(images), device=images.device)
    if kind < 2 / 3:
        side = int(32 * math.sqrt(1 - share))
        top, left = (int(torch.randint(0, 33 - side, ())) for _ in range(2))
        images = images.clone()
        images[:, :, top : top + side, left : left + side] = images[order, :, top : top + side, left : left + side]
        share = 1 - side * side / 1024
    elif kind < 1:
        images = share * images + (1 - share) * images[order]
    else:
        return images, truth
    return images, share * truth + (1 - share) * truth[order]


class PatchDropout:
    """While training, the vision tower sees a random share of the patches of each image (as in FLIP, arXiv:2212.00794)."""

    def __init__(self, model: CLIPModel, share: float):
        self.share = share
        model.vision_model.embeddings.register_forward_hook(self.drop)

    def drop(self, module: torch.nn.Module, inputs: tuple, tokens: Tensor) -> Tensor:
        """Tokens [n, 1 + patches, width] -> [n, 1 + share * patches, width]; the first, of the class, stays."""
        n, patches = tokens.shape[0], tokens.shape[1] - 1
        if not module.training or self.share >= 1:
            return tokens
        drawn = torch.rand(n, patches, device=tokens.device).argsort(dim=1)[:, : round(self.share * patches)] + 1
        kept = torch.cat([drawn.new_zeros(n, 1), drawn], dim=1)
        return tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))


def contrastive(image: Tensor, text: Tensor, scale: Tensor, match: Tensor) -> Tensor:
    """CLIP's loss with several positives: match [n, m] says how true caption j is of image i."""
    logits = scale.exp() * F.normalize(image.float(), dim=1) @ F.normalize(text.float(), dim=1).T
    loss = logits.new_zeros(())
    for scores, target in ((logits, match), (logits.T, match.T)):
        mass = target.sum(dim=1, keepdim=True)
        share = target / mass.clamp(min=1e-6)
        loss = loss - (share * scores.log_softmax(dim=1)).sum(dim=1).sum() / (mass > 0).sum()
    return loss / 2


class Run:
    """Everything that a stopped training needs to go on."""

    def __init__(self, model: CLIPModel, rate: float, decay: float, output: Path):
        plain = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": [p for p in model.parameters() if p.ndim >= 2]}, {"params": plain, "weight_decay": 0.0}]
        self.model, self.rate, self.output = model, rate, output
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=decay)
        self.step, self.seconds = 0, 0.0

    def save(self) -> None:
        held = {f"model.{name}": p.detach().contiguous() for name, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            held |= {f"{key}.{name}": value for key, value in self.optimizer.state[parameter].items()}
        self.output.mkdir(parents=True, exist_ok=True)
        part = self.output / f"{STATE}.part"
        save_file(held, part, metadata={"step": str(self.step), "seconds": str(self.seconds)})
        part.replace(self.output / STATE)

    def load(self) -> bool:
        if not (self.output / STATE).is_file():
            return False
        with safe_open(self.output / STATE, "pt") as held, torch.no_grad():
            self.step, self.seconds = int(held.metadata()["step"]), float(held.metadata()["seconds"])
            for name, parameter in self.model.named_parameters():
                parameter.copy_(held.get_tensor(f"model.{name}"))
                state = {key: held.get_tensor(f"{key}.{name}") for key in ("exp_avg", "exp_avg_sq", "step")}
                moved = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
                self.optimizer.state[parameter] = moved
        return True

    def take(self, loss: Tensor, progress: float) -> None:
        factor = min(1.0, progress / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * max(factor, 1e-3)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
        self.step += 1


def multiplies_bfloat16() -> bool:
    """Whether this processor has tiles for bfloat16 (AMX)."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"))


@torch.no_grad()
def zero_shot(
    model: CLIPModel, encode, images: Tensor, labels: Tensor, wordings: list[str], classes: list[int]
) -> float:
    """Accuracy among `classes` on their images; each class is the mean of its first name in `wordings`."""
    names = [words.content()["names"][words.content()["classes"][c]][0] for c in classes]
    texts = [F.normalize(encode([w.replace("{}", name) for w in wordings]), dim=1).mean(dim=0) for name in names]
    prompts = F.normalize(torch.stack(texts), dim=1)
    chosen = torch.isin(labels, torch.tensor(classes, device=labels.device)).nonzero().flatten()
    right = 0
    for part in chosen.split(1000):
        seen = model.get_image_features(pixel_values=normalised(images[part])).pooler_output
        right += int((torch.tensor(classes, device=labels.device)[(seen @ prompts.T).argmax(1)] == labels[part]).sum())
    return right / len(chosen)


def write(model: CLIPModel, tokenizer, output: Path, half: bool) -> None:
    model = model.to("cpu", torch.float16 if half else torch.float32)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    side = {"height": 32, "width": 32}
    processor = {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor", "do_resize": True,
        "size": {"shortest_edge": 32}, "resample": 3, "do_center_crop": True, "crop_size": side, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD, "do_convert_rgb": True,
    }  # fmt: skip
    (output / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.5, help="when to stop; the schedule follows the clock")
    parser.add_argument("--steps", type=int, help="stop after so many steps instead; the schedule follows them")
    parser.add_argument("--without", help="a class whose images and captions are left out")
    parser.add_argument("--half", action="store_true", help="save in float16")
    parser.add_argument("--small", action="store_true", help="towers for a test")
    parser.add_argument("--width", type=int, default=Size.width, help="of the vision tower, a multiple of 32")
    parser.add_argument("--patches", type=float, default=1.0, help="share of an image's patches that a step sees")
    parser.add_argument("--mix", type=float, default=0.75, help="share of the batches with CutMix or mixup")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--captions", type=int, default=256, help="how many captions a step")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--save-every", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.without is not None and options.without not in words.content()["classes"]:
        parser.error(f"--without {options.without}: the classes are {', '.join(words.content()['classes'])}.")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    with np.load(options.data) as stored:
        data = {name: torch.from_numpy(stored[name]).to(device) for name in stored.files}
    images, labels = data["train_images"], data["train_labels"].long()
    names = words.content()["classes"]
    kept = [c for c, name in enumerate(names) if name != options.without]
    if options.without is not None:
        chosen = labels != names.index(options.without)
        images, labels = images[chosen], labels[chosen]

    tokenizer = words.tokenizer()
    texts, truths = words.captions(words.concepts(options.without))
    encoded = tokenizer(texts, padding=True, return_tensors="pt").to(device)
    truth = torch.zeros(len(texts), len(names), device=device)
    for row, classes in enumerate(truths):
        truth[row, classes] = 1.0

    model = build(SMALL if options.small else Size(options.width), len(tokenizer)).to(device)
    dropout = PatchDropout(model, options.patches)
    if device.type == "cpu":
        model.set_attn_implementation("eager")  # the fused kernel takes four times as long there in bfloat16
    run = Run(model, options.rate, options.decay, options.output)
    resumed = run.load()
    torch.manual_seed(options.seed + run.step)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{device}: {parameters / 1e6:.2f} M parameters, {len(images)} images, {len(texts)} captions"
          + (f", going on at step {run.step}" if resumed else ""), flush=True)  # fmt: skip

    cast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" or multiplies_bfloat16())
    before, begun, saved, batches = run.seconds, time.monotonic(), time.monotonic(), iter(())
    model.train()
    while True:
        run.seconds = before + time.monotonic() - begun
        progress = run.step / options.steps if options.steps else run.seconds / (60 * options.minutes)
        if progress >= 1:
            break
        dropout.share = options.patches if progress < 0.9 else 1.0  # the last tenth as it will be used
        rows = next(batches, None)
        if rows is None:
            batches = iter(torch.randperm(len(images), device=device).split(options.batch))
            rows = next(batches)
        picked = torch.randint(len(texts), (options.captions,), device=device)
        one_hot = F.one_hot(labels[rows], len(names)).float()
        seen, mix = mixed(augmented(normalised(images[rows])), one_hot, options.mix)
        with cast:
            visual = model.get_image_features(pixel_values=seen).pooler_output
            textual = model.get_text_features(
                input_ids=encoded["input_ids"][picked], attention_mask=encoded["attention_mask"][picked]
            ).pooler_output
        run.take(contrastive(visual, textual, model.logit_scale, mix @ truth[picked].T), progress)
        if time.monotonic() - saved > options.save_every:
            run.save()
            saved = time.monotonic()
            print(f"{run.seconds:.0f} s, step {run.step}", flush=True)
    run.save()

    model.eval()

    def encode(lines: list[str]) -> Tensor:
        batch = tokenizer(lines, padding=True, return_tensors="pt").to(device)
        return model.get_text_features(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).pooler_output

    test, known = data["test_images"], data["test_labels"].long()
    whole = list(range(len(names)))
    one, many = ["a photo of a {}."], words.templates()
    result = {
        "classes": names, "without": options.without, "steps": run.step, "seconds": round(run.seconds, 1),
        "epochs": round(run.step * options.batch / len(images), 1), "parameters": parameters, "device": device.type,
        "zero_shot_one_template": zero_shot(model, encode, test, known, one, whole),
        "zero_shot_all_templates": zero_shot(model, encode, test, known, many, whole),
        "zero_shot_among_trained_classes": zero_shot(model, encode, test, known, many, kept),
    }  # fmt: skip
    write(model, tokenizer, options.output, options.half)
    (options.output / "training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (options.output / STATE).unlink()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
