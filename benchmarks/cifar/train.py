"""Originals, and references that never saw a class: networks trained from scratch on the 50,000 images of CIFAR-10.

    python benchmarks/cifar/train.py --data DIR --output RUNS resnet20:60 resnet20-cat:60 resnet20-deer:15:1

A network is named KIND[-CLASS]:EPOCHS[:SEED]; with a CLASS its images are left out of the training (the head keeps its
row), with "random" in its place the tenth of all images that the random protocol of the bench forgets. Each lands in
RUNS/KIND[-CLASS]-EPOCHS-SEED: a folder of transformers with its processor and `result.json`. A network that is there is
skipped; one that was cut off goes on from its last epoch. On CUDA all networks train side by side, every step of each a
recorded graph on a stream of its own (bfloat16); on the CPU one after the other, in bfloat16 where the processor multiplies
it in hardware and is the quicker for it (1.8 to four times; `result.json` says which).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from images import CLASSES, load
from networks import RECIPES, Recipe
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from hf_kd.bench.protocols import random_rows

RANDOM = "random"
MOMENTUM = 0.9
WARM_UP = 0.2
"""Share of the steps in which the learning rate of a cycle rises."""
AHEAD = 40
"""Recorded steps that may wait on one stream, so that a slow network does not hold up the others."""


@dataclass(frozen=True)
class Job:
    """One network to train."""

    kind: str
    without: str | None
    epochs: int
    seed: int

    @classmethod
    def parse(cls, text: str) -> Job:
        """KIND[-CLASS]:EPOCHS[:SEED]."""
        name, epochs, *seed = text.split(":")
        kind, _, without = name.partition("-")
        if kind not in RECIPES or (without and without not in (*CLASSES, RANDOM)) or len(seed) > 1:
            raise SystemExit(
                f"{text}: KIND[-CLASS]:EPOCHS[:SEED], with a kind of {', '.join(RECIPES)}, a class of CIFAR-10 or {RANDOM}"
            )
        return cls(kind, without or None, int(epochs), int(seed[0]) if seed else 0)

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.kind}{'-' + self.without if self.without else ''}-{self.epochs}-{self.seed}"


class Run:
    """A network in training: its state, one step, and how far it is."""

    def __init__(self, job: Job, images: Tensor, labels: Tensor, output: Path):
        self.job, self.recipe, self.folder = job, RECIPES[job.kind], output / job.folder
        self.images, device = images, images.device
        torch.manual_seed(job.seed)
        self.model = self.recipe.make().to(device).train()
        self.bfloat16 = device.type == "cuda" or multiplies_bfloat16(self.recipe)
        self.model.to(memory_format=torch.channels_last)
        self.labels = labels
        kept = torch.ones_like(labels, dtype=torch.bool)
        if job.without == RANDOM:
            kept[random_rows(labels.cpu(), 0.1).to(device)] = False
        elif job.without:
            kept = labels != CLASSES.index(job.without)
        self.members = kept.nonzero().flatten()
        self.per_epoch = len(self.members) // self.recipe.batch
        self.order = self.members.clone()
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.generator = torch.Generator(device).manual_seed(job.seed)
        self.rates = schedule(self.recipe, job.epochs * self.per_epoch).to(device)
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in self.recipe.normalisation)
        self.mean, self.std = mean, std
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.moments = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters] if self.recipe.optimizer == "adamw" else []
        self.done, self.seconds = 0, 0.0
        self.resume()

    # -- state on disk

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"moment.{i}": value for i, value in enumerate(self.moments)}
        return state | {f"square.{i}": value for i, value in enumerate(self.squares)}

    @property
    def state_file(self) -> Path:
        """Beside the folder, so that the folder itself exists only when its network is finished."""
        return self.folder.with_suffix(".state.safetensors")

    def resume(self) -> None:
        """Continue from the last epoch that was written."""
        if self.state_file.exists():
            saved = load_file(self.state_file)
            self.done, self.seconds = int(saved.pop("epoch")), float(saved.pop("seconds"))
            for name, value in self.tensors().items():
                value.copy_(saved[name])

    def keep(self) -> None:
        """Write the state of this epoch in one exchange."""
        part = self.state_file.with_suffix(".part")
        tensors = {name: value.contiguous() for name, value in self.tensors().items()}
        about = {"epoch": torch.tensor(self.done), "seconds": torch.tensor(self.seconds)}
        save_file(tensors | about, part)
        os.replace(part, self.state_file)

    # -- training

    def begin(self) -> None:
        """Order of the next epoch; drawn from its number, so that a continued run sees what an uncut one would."""
        drawn = np.random.default_rng([self.job.seed, self.done]).permutation(len(self.members))
        self.order.copy_(self.members[torch.from_numpy(drawn).to(self.members.device)])
        self.step.fill_(self.done * self.per_epoch)
        if not self.images.is_cuda:  # a recorded graph goes on with its own numbers
            self.generator.manual_seed(self.job.seed * 10_000 + self.done)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images of this step, cropped and mirrored at random on the device, and their labels."""
        size, crop, device = self.recipe.batch, self.recipe.crop, self.images.device
        start = (self.step % self.per_epoch) * size
        chosen = self.order[start + torch.arange(size, device=device)]
        grid = torch.arange(32, device=device)
        shift = torch.randint(4 - crop, 5 + crop, (2, size, 1), generator=self.generator, device=device)
        mirrored = torch.rand(size, 1, generator=self.generator, device=device) < 0.5
        columns = torch.where(mirrored, 31 - grid, grid) + shift[1]
        rows = (grid + shift[0])[:, :, None]
        pixels = self.images[chosen[:, None, None], rows, columns[:, None, :]].permute(0, 3, 1, 2).float()
        return resized((pixels - self.mean) / self.std, self.recipe.size), self.labels[chosen]

    def advance(self) -> None:
        """One step: forward, backward, update."""
        pixels, labels = self.batch()
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
            logits = self.model(pixel_values=pixels).logits
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.smoothing)
        gradients = list(torch.autograd.grad(loss, self.parameters))
        with torch.no_grad():
            self.update(gradients)
            self.step += 1

    def update(self, gradients: list[Tensor]) -> None:
        """Nesterov's SGD or AdamW with the rate of this step; weight decay spares 1-D tensors."""
        recipe, rate = self.recipe, self.rates.index_select(0, self.step).view(())
        decayed = [i for i, p in enumerate(self.parameters) if p.ndim > 1]
        weights = [self.parameters[i] for i in decayed]
        if recipe.optimizer == "sgd":
            torch._foreach_add_([gradients[i] for i in decayed], weights, alpha=recipe.weight_decay)
            torch._foreach_mul_(self.moments, MOMENTUM)
            torch._foreach_add_(self.moments, gradients)
            torch._foreach_add_(gradients, self.moments, alpha=MOMENTUM)
            torch._foreach_mul_(gradients, -rate)
        else:
            torch._foreach_mul_(weights, 1 - rate * recipe.weight_decay)
            torch._foreach_lerp_(self.moments, gradients, 0.1)
            torch._foreach_mul_(self.squares, 0.999)
            torch._foreach_addcmul_(self.squares, gradients, gradients, 0.001)
            count = (self.step + 1).view(())
            size = torch._foreach_div(self.squares, 1 - 0.999**count)
            torch._foreach_sqrt_(size)
            torch._foreach_add_(size, 1e-8)
            gradients = torch._foreach_div(torch._foreach_div(self.moments, 1 - 0.9**count), size)
            torch._foreach_mul_(gradients, -rate)
        torch._foreach_add_(self.parameters, gradients)

    def record(self) -> None:
        """The step as a CUDA graph on a stream of its own; three steps run first and are taken back."""
        before = {name: value.clone() for name, value in self.tensors().items()}
        self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self.advance()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.advance()
        for name, value in self.tensors().items():
            value.copy_(before[name])
        self.begin()
        torch.cuda.synchronize()
        self.waiting: list[torch.cuda.Event] = []
        self.launched = 0

    def replay(self) -> bool:
        """Launch the next step unless enough of them wait; False once every step is launched."""
        self.waiting = [event for event in self.waiting if not event.query()]
        if len(self.waiting) >= AHEAD:
            return True
        with torch.cuda.stream(self.stream):
            self.graph.replay()
            event = torch.cuda.Event()
            event.record()
            self.waiting.append(event)
            self.launched += 1
            if self.launched == self.per_epoch:
                self.done, self.launched = self.done + 1, 0
                if self.done < self.job.epochs:
                    self.begin()
        return self.done < self.job.epochs

    # -- the end

    @torch.no_grad()
    def hits(self, images: Tensor, labels: Tensor) -> Tensor:
        """1 where the answer to an image without augmentation is right, else 0."""
        predicted = []
        for part in images.split(1000):
            pixels = (part[:, 4:36, 4:36].permute(0, 3, 1, 2).float() - self.mean) / self.std
            predicted.append(self.model(pixel_values=resized(pixels, self.recipe.size)).logits.argmax(-1))
        return (torch.cat(predicted) == labels).double()

    @torch.no_grad()
    def finish(self, test: Tensor, labels: Tensor) -> dict[str, object]:
        """Test accuracy; folder with weights, processor and result."""
        self.model.eval()
        right = self.hits(test, labels)
        learned = self.hits(self.images[self.members], self.labels[self.members])
        by_class = {name: round(100 * float(right[labels == i].mean()), 2) for i, name in enumerate(CLASSES)}
        kept = labels != CLASSES.index(self.job.without) if self.job.without in CLASSES else labels >= 0
        result = {
            "kind": self.job.kind,
            "without": self.job.without,
            "epochs": self.job.epochs,
            "seed": self.job.seed,
            "training_images": len(self.members),
            "training_accuracy": round(100 * float(learned.mean()), 2),
            "test_accuracy": round(100 * float(right[kept].mean()), 2),
            "test_accuracy_by_class": by_class,
            "seconds": round(self.seconds, 1),
            "device": torch.cuda.get_device_name() if test.is_cuda else "cpu",
            "precision": "bfloat16" if self.bfloat16 else "float32",
        }
        part = self.folder.with_suffix(".part")
        self.model.to(memory_format=torch.contiguous_format).save_pretrained(part)
        self.recipe.processor().save_pretrained(part)
        (part / "result.json").write_text(json.dumps(result, indent=1))
        os.replace(part, self.folder)
        self.state_file.unlink(missing_ok=True)
        print(json.dumps(result), flush=True)
        return result


def multiplies_bfloat16(recipe: Recipe) -> bool:
    """Whether this processor is quicker in bfloat16: with tiles (AMX), and with AVX-512 alone where there are convolutions.

    With the latter a step of the ResNet-20 in float32 took 1.76 times as long, of the All-CNN 1.9 times, of a ViT 0.82.
    """
    has = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("amx_bf16") or (has.get("avx512_bf16") and recipe.convolutions))


def resized(pixels: Tensor, size: int) -> Tensor:
    """Bilinear, as the processor of the saved folder does it."""
    return pixels if size == pixels.shape[-1] else F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def schedule(recipe: Recipe, steps: int) -> Tensor:
    """Learning rate of every step: a line up to the top over `WARM_UP` of them, then a cosine to nothing; or
    constant, with a tenth of it over the last tenth.
    """
    if recipe.constant:
        return recipe.lr * torch.where(torch.arange(steps + 1) < 0.9 * steps, 1.0, 0.1)
    warm = max(1, round(WARM_UP * steps))
    count = torch.arange(steps + 1, dtype=torch.float64)
    rising = (count + 1) / warm
    falling = 0.5 * (1 + torch.cos(torch.pi * (count - warm).clamp(min=0) / max(1, steps - warm)))
    return (recipe.lr * torch.minimum(rising, falling)).float()


def train_side_by_side(runs: list[Run], finish: Callable[[Run], object]) -> None:
    """All networks at once on CUDA, each finished when its last step is through."""
    for run in runs:
        run.begin()
        run.record()
    started, open_runs = time.time(), list(runs)
    with tqdm(total=sum(run.job.epochs for run in runs), unit="epoch", mininterval=5) as bar:
        while open_runs:
            for run in list(open_runs):
                before = run.done
                if not run.replay():
                    run.stream.synchronize()
                    run.seconds = time.time() - started
                    open_runs.remove(run)
                    finish(run)
                bar.update(run.done - before)


def train_alone(run: Run) -> None:
    """One network, its state kept at the end of every epoch."""
    for _ in range(run.done, run.job.epochs):
        started = time.time()
        run.begin()
        for _ in tqdm(range(run.per_epoch), desc=f"{run.job.folder}, epoch {run.done + 1}", mininterval=5):
            run.advance()
        run.done, run.seconds = run.done + 1, run.seconds + time.time() - started
        run.keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="+", type=Job.parse, metavar="KIND[-CLASS]:EPOCHS[:SEED]")
    parser.add_argument("--data", type=Path, required=True, help="Folder of parquet files, or an .npz made of them.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="512 images only, to try the whole way.")
    parser.add_argument("--eager", action="store_true", help="On CUDA too: one after the other, without graphs.")
    arguments = parser.parse_args()

    arguments.output.mkdir(parents=True, exist_ok=True)
    arrays = load(arguments.data)
    if arguments.small:
        arrays = {name: values[:512] for name, values in arrays.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    border = ((0, 0), (4, 4), (4, 4), (0, 0))
    pictures = {k: torch.from_numpy(np.pad(arrays[f"{k}_x"], border, "reflect")).to(device) for k in ("train", "test")}
    labels = {k: torch.from_numpy(arrays[f"{k}_y"]).to(device) for k in ("train", "test")}
    jobs = [job for job in arguments.jobs if not (arguments.output / job.folder).exists()]
    make = lambda job: Run(job, pictures["train"], labels["train"], arguments.output)  # noqa: E731
    finish = lambda run: run.finish(pictures["test"], labels["test"])  # noqa: E731
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if device.type == "cuda" and not arguments.eager:
        train_side_by_side([make(job) for job in jobs], finish)
        return
    for job in jobs:
        run = make(job)
        train_alone(run)
        finish(run)


if __name__ == "__main__":
    main()
