"""Regrow: keep the lower part of a network, draw the rest anew, and train that on retained images alone.

A class is forgotten where a network that never saw it differs from one that did, and block by block the two agree up to some
depth. What lies below is kept and frozen; what lies above has never seen the class.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kd.data.devices import seed_generators
from hf_kd.data.distributed import reduce_tensor
from hf_kd.data.masked_classes import silence_rows, silent_rows
from hf_kd.data.modes import mean_statistics
from hf_kd.data.samples import Samples
from hf_kd.errors import GIVE_RETAIN_DATA, InvalidValueError
from hf_kd.methods.measured import PhaseMeasured, RegrowMeasured

from .activations import KeptActivations, Source, source_of
from .base import UnlearningMethod
from .cut import (
    Cut,
    choose_block,
    gradients_above,
    only_heads_above,
    only_trainable,
    refuse_no_module,
    share_or_name,
    take_over,
)
from .cut_scan import refuse_few, scan, where_profiles_part
from .resume import count_earlier, load_progress, run_identity, save_progress
from .steps import GradientSteps
from .targets import answers_of, say_unknown
from .task import NORMS, Task, check_range, soft_divergence
from .training import SETTLE, one_cycle

SOFT = (
    "The probabilities of the model as it was tell its successor what the forgotten class looks like, also with the class "
    "taken out of them. Where the class has to go, do without soft=True."
)

RECENT = 2_048
"""Images by which a scan tells how many retained images a network answers while it is trained."""

MANY = 0.45
"""Share of the blocks from which on half of the epochs are run unless the settings say how many."""


@dataclass(frozen=True)
class Phase:
    """Epochs with one optimizer: the part above the cut, then, where it is released, everything.

    Attributes:
        name: On the progress bar, and of the folder where it can be gone on with.
        epochs: Passes over D_r.
        optimizer: Of the weights that are trained.
        lr: Its learning rate at its highest.
        names: Of the tensors that change.
        frozen: Names of modules that stay in eval mode.
        same: What has to be as it was for the phase to go on; where it is empty, nothing is kept.
        level: Of a scan: the percent of the last images at which the phase ends. Its learning rate stays at its highest.
    """

    name: str
    epochs: int
    optimizer: torch.optim.Optimizer
    lr: float
    names: tuple[str, ...]
    frozen: tuple[str, ...]
    same: Mapping[str, Any]
    level: float | None = None


@dataclass(frozen=True, kw_only=True)
class Regrow(UnlearningMethod):
    """Keep the first blocks, frozen, and train the rest from fresh weights on D_r, with the classes of D_f never answered.

    min CE(f(x), y) over D_r and the weights above the cut. The part below stays bit for bit as it is, BatchNorm's
    statistics included, and goes on knowing what it knew; D_f only says which classes are meant.

    Attributes:
        keep: Which part is kept: a share of the blocks (rounded down to the end of a stage one block away), the name of
            the last block (`hf-kd inspect` lists them), or, with labels="data", "auto": cuts are tried from the top down
            until a converged probe reads no more of the class than where nothing is kept, neither before the head nor at
            blocks that were drawn anew. More is cheaper and leaves more of the class.
        epochs: Passes over D_r; unless given 8, or 4 where almost half of the blocks or more are kept.
        lr: Learning rate at its highest; 0.1 for sgd and 1e-3 for adamw unless given.
        batch_size: Images in each step, of all processes together.
        optimizer: "sgd" (Nesterov, momentum 0.9), "adamw", or "auto": sgd where the part above has BatchNorm.
        weight_decay: Of matrices and kernels alone; 5e-4 for sgd and 0.05 for adamw unless given.
        labels: "data", or "teacher": those that the model as it was gives, with the classes of D_f and of earlier requests
            masked. Retained images then need no labels.
        soft: With labels="teacher": its probabilities instead. They leak the class.
        temperature: Of `soft`.
        augment: "none", "flip" (half of the images mirrored) or "flip-crop" (and shifted by up to an eighth of their size).
        crops: With augment="flip-crop": so many shifted views of every image are kept; 0: new ones in each epoch, through
            the kept part, which costs its forward pass every time.
        scan_epochs: With keep="auto": epochs of the network of which nothing is kept, and at most of those above the cuts
            that are tried, which are trained until they answer as many retained images.
        release: Epochs at the end in which everything is trained, gently (`release_lr`): more accuracy, and the kept part
            is then no longer as it was.
        release_lr: Learning rate of these at its highest, as a share of `lr`.
        cache: Where activations of the kept part are: "memory", "disk", "none" (not kept), or "auto": in memory up to
            `cache_share` of what is free, else on disk.
        cache_share: Share of free memory.
    """

    name: ClassVar[str] = "regrow"
    when: ClassVar[str] = (
        "The weights leave your hands and a retraining is too dear: the upper part is drawn anew, the lower is kept."
    )
    measures: ClassVar[type] = RegrowMeasured
    needs: ClassVar[str] = "D_r"
    source: ClassVar[str] = "ours; EU-k (Goel et al. 2022) with an earlier cut and its own statistics"

    needs_head: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    unlabelled: ClassVar[str] = "Or take the labels of the model as it was: labels='teacher', with a share: keep=0.33."

    bn_mode: Literal["eval", "freeze", "train"] = "train"
    keep: float | str = 1 / 3
    epochs: int | None = None
    lr: float | None = None
    batch_size: int = 64
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    weight_decay: float | None = None
    labels: Literal["data", "teacher"] = "data"
    soft: bool = False
    temperature: float = 4.0
    augment: Literal["none", "flip", "flip-crop"] = "flip"
    crops: int = 0
    scan_epochs: int = 2
    release: int = 0
    release_lr: float = 0.2
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    cache_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        share = share_or_name(self.keep)
        known = "a share between 0 and 1, the name of a block, or 'auto'"
        foreign = "a share such as 0.33 with labels='teacher': from foreign images any network tells the class"
        check_range(
            self.name,
            [
                ("keep", self.keep, share is not None, known),
                ("keep", share, share != "auto" or self.labels == "data", foreign),
                ("soft", self.soft, not self.soft or self.labels == "teacher", "False unless labels='teacher'"),
                ("weight_decay", self.weight_decay, (self.weight_decay or 0) >= 0, "0 or more"),
                ("crops", self.crops, self.crops >= 0, "0 or more"),
                ("crops", self.crops, not self.crops or self.augment == "flip-crop", "0 unless augment='flip-crop'"),
                ("release", self.release, self.release >= 0, "0 epochs or more"),
                ("cache_share", self.cache_share, 0 < self.cache_share <= 1, "above 0 and at most 1"),
            ],
        )
        object.__setattr__(self, "keep", share)

    @property
    def reads_retained_labels(self) -> bool:
        return self.labels == "data"

    def missing_retain(self) -> InvalidValueError:
        share, give = "", GIVE_RETAIN_DATA
        if self.keep == "auto":  # which takes no images of another data set
            share = " and a share as keep, keep=0.33"
            give = "retain=... (on the command line a --dataset that has other labels too)"
        return InvalidValueError(
            f"{self.name} trains the upper part of the network anew, on images of the classes that stay, and none were "
            f"given: pass labelled images, or unlabelled ones with labels='teacher'{share}, as {give}. From "
            "the forget set alone no network was grown that answers the other classes and does not know this one; if those "
            "images are all there is and only features or answers are served, erase with method='esc'."
        )

    def check_model(self, model: nn.Module, blocks: Callable[[], Sequence[str]]) -> None:
        refuse_no_module(model, self.keep, blocks)

    def check_forget(self, forget: Samples) -> None:
        if self.keep == "auto":
            refuse_few(forget)

    def _deciding(self) -> dict[str, Any]:
        """Settings that the result depends on: not where activations are kept, but whether they are."""
        own = {"cache": "none" if self.cache == "none" else "auto"}
        return {name: value for name, value in self.settings().items() if name != "cache_share"} | own

    def change(self, task: Task) -> RegrowMeasured:
        retain = task.needed_retain(self.name)
        self._check_whole_classes(task, retain)
        same = run_identity(task, self._deciding(), retain)
        if self.soft:
            task.warn(SOFT)
        targets = retain.labels.to(task.device) if self.labels == "data" else answers_of(task, retain, self.soft)
        if not self.soft:
            say_unknown(task, targets)
        found: dict[str, Any] = {}
        auto = self.keep == "auto"
        cut = self._scanned(task, retain, targets, found, same) if auto else choose_block(task, self.keep)
        if only_heads_above(task.model, task.heads, cut):
            text = f"Nothing but the head is new above {cut.block}, and features tell the class as before."
            task.warn(f"{text} Keep less: keep=0.33.")
        many = cut.depth is not None and cut.depth >= MANY * len(cut.blocks)
        found |= self._grow(task, retain, cut, targets, self.epochs or (4 if many else 8), same)
        if self.release:
            found |= self._release(task, retain, cut, targets, found, same)
        return cast(RegrowMeasured, {"n_retain": len(retain), **found})

    def _scanned(
        self, task: Task, retain: Samples, targets: Tensor, found: dict[str, Any], same: Mapping[str, Any]
    ) -> Cut:
        """The cut that a scan finds; what it read goes into `found`."""
        if task.reference is not None:
            cut, found["scan"], told = where_profiles_part(task, retain, task.reference)
            text = "The profiles of model and reference do not part where one could cut. The deepest cut was taken."
        else:
            grow = partial(self._tried, task, retain, targets)
            cut, found["scan"], told = scan(task, retain, grow, same)
            text = (
                "The scan could not tell where to cut: at each cut the class was read better than where nothing is kept, "
                "noise could hide that, or fewer retained images were answered. The deepest was taken."
            )
        if not told:
            task.warn(text)
        return cut

    def _tried(self, task: Task, retain: Samples, targets: Tensor, cut: Cut, level: float) -> float:
        """Grow a network above a cut for a scan: percent of the last images that it answered."""
        new = self._draw(task, cut, targets)
        phase = Phase("tried", self.scan_epochs, *self._optimizer(task, cut, new), cut.new, cut.modules, {}, level)
        # not kept: a part of the images may do
        with source_of(task, retain, cut.block, self.augment, place="none") as source, gradients_above(task.model, cut):
            return self._train(task, phase, source, targets)["retained_accuracy"][-1]

    def _draw(self, task: Task, cut: Cut, targets: Tensor) -> list[nn.Parameter]:
        """Draw everything above a cut anew; these weights, which alone can be trained then."""
        seed_generators(task.device, self.seed)  # whatever was tried before, also by a process that was killed
        silent = [silent_rows(head) for head in task.linear_heads()]  # of earlier requests
        take_over(task.model, self.fresh_model(task, beside_kept=True), cut.new)
        for head, earlier in zip(task.linear_heads(), silent, strict=True):
            # masked in the loss and in the answers: their gradient is 0. Those that were unless there are images of them
            silence_rows(head, torch.cat([task.forget_classes, earlier[~torch.isin(earlier, targets.cpu())]]))
        return only_trainable(task.model, cut.new)

    def _grow(
        self, task: Task, retain: Samples, cut: Cut, targets: Tensor, epochs: int, same: Mapping[str, Any]
    ) -> RegrowMeasured:
        """Draw everything above a cut anew and train it."""
        new = self._draw(task, cut, targets)
        same = same and {**same, "block": cut.block, "epochs": epochs}
        phase = Phase("grown", epochs, *self._optimizer(task, cut, new), cut.new, cut.modules, same)
        started = time.perf_counter()
        with source_of(task, retain, cut.block, self.augment, self.crops, self.cache, self.cache_share) as source:
            kept = source if isinstance(source, KeptActivations) else None
            seconds = time.perf_counter() - started
            size = 0 if kept is None else kept.store.nbytes
            with gradients_above(task.model, cut):
                run = self._train(task, phase, source, targets)
        return {
            "block": cut.block,
            "blocks_kept": cut.depth,
            "blocks": len(cut.blocks),
            "share_of_weights_new": round(
                sum(p.numel() for p in new) / sum(p.numel() for p in task.model.parameters()), 4
            ),
            "activations": kept.place if kept is not None else "none",
            "activation_bytes": size,
            "activation_seconds": round(seconds, 3),
            **run,
        }

    def _release(
        self, task: Task, retain: Samples, cut: Cut, targets: Tensor, grown: dict[str, Any], same: Mapping[str, Any]
    ) -> PhaseMeasured:
        """Train everything, gently; what both phases did together."""
        names = tuple(task.model.state_dict())
        optimizer, lr = self._optimizer(task, cut, only_trainable(task.model, names))
        same = same and {**same, "block": cut.block, "epochs": self.release}
        phase = Phase("released", self.release, optimizer, lr * self.release_lr, names, (), same)
        with source_of(task, retain, cut.block, self.augment, place="none") as source:
            more = self._train(task, phase, source, targets)
        return {
            "epochs_run": grown["epochs_run"] + more["epochs_run"],
            "retained_accuracy": grown["retained_accuracy"] + more["retained_accuracy"],
            "steps": grown["steps"] + more["steps"],
            "last_loss": more["last_loss"],
        }

    def _check_whole_classes(self, task: Task, retain: Samples) -> None:
        classes = len(task.forget_classes)
        check_range(self.name, [("forget classes", classes, classes < task.num_labels, "fewer than all")])
        forgotten = int(torch.isin(retain.labels, task.forget_classes).sum())
        if forgotten:
            raise InvalidValueError(
                f"{self.name}: {forgotten:,} of {len(retain):,} retained images have a label that is to be forgotten, and "
                "the network would be trained on them. Leave them out; whole classes are forgotten here, not single images."
                + ("" if self.labels == "data" else " If their labels mean something else, give them without labels.")
            )
        if any(head.bias is None for head in task.linear_heads()):
            raise InvalidValueError(
                f"{self.name} needs a last layer with a bias, and that of this {type(task.model).__name__} has none, so "
                "a class could not be kept from being answered. Give it one, or forget with method='retrain'."
            )

    def _optimizer(self, task: Task, cut: Cut, parameters: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, float]:
        """The optimizer of the settings, and the learning rate at its highest."""
        below = set(cut.modules)
        norms = any(isinstance(m, NORMS) for name, m in task.model.named_modules() if name not in below)
        kind = ("sgd" if norms else "adamw") if self.optimizer == "auto" else self.optimizer
        lr = self.lr or (0.1 if kind == "sgd" else 1e-3)
        decay = (5e-4 if kind == "sgd" else 0.05) if self.weight_decay is None else self.weight_decay
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if kind == "sgd":
            return torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True), lr
        return torch.optim.AdamW(groups, lr), lr

    def _train(self, task: Task, phase: Phase, source: Source, targets: Tensor) -> PhaseMeasured:
        """The epochs of a phase, from where a checkpoint stands on."""
        index, processes = task.state.process_index, task.state.num_processes
        own, rows, batch = targets[index::processes], len(targets) // processes, self.batch_size // processes
        folder = task.checkpoint / phase.name if task.checkpoint is not None and phase.same else None
        done = {} if folder is None else load_progress(folder, task.model, phase.optimizer, phase.same)
        count_earlier(task, done)
        accuracies: list[float] = done.get("accuracies", [])
        steps = max(1, math.ceil(rows / batch))
        name, before = f"{self.name}: {phase.name}", steps * len(accuracies)
        descent = GradientSteps(task, phase.optimizer, steps=steps * phase.epochs, name=name, done=before)
        descent.steps, descent.last_loss = done.get("steps", 0), done.get("last_loss", math.nan)
        frozen = [task.model.get_submodule(name) for name in phase.frozen]
        recent, reached = deque[Tensor](maxlen=max(1, RECENT // self.batch_size)), False
        for epoch in range(len(accuracies), phase.epochs):
            seed_generators(task.device, self.seed * 1_000_003 + epoch)  # so that an epoch is the same after a resume
            hits = torch.zeros((), dtype=torch.long, device=task.device)
            with task.mode(self.bn_mode):
                for module in frozen:
                    module.training = False
                for number, (logits, at) in enumerate(source.batches(batch)):
                    share = (epoch + number / steps) / phase.epochs
                    for group in phase.optimizer.param_groups:
                        group["lr"] = phase.lr * one_cycle(share, falls=phase.level is None)
                    descent.step(self._loss(logits, own[at]))
                    right = logits.detach().argmax(dim=1) == (own[at].argmax(dim=1) if self.soft else own[at])
                    hits += right.sum()
                    recent.append(right.float().mean())
                    full = len(recent) == recent.maxlen
                    if reached := phase.level is not None and full and _percent(recent) >= phase.level:
                        break
            accuracies.append(round(_percent([hits / rows] if phase.level is None else recent), 2))
            descent.show(f"retained {accuracies[-1]:.1f} %")
            if reached:
                break
            if folder is not None and task.state.is_main_process:
                about = {"accuracies": accuracies, "steps": descent.steps, "last_loss": descent.last_loss}
                about |= {**phase.same, "seconds": task.seconds}
                save_progress(folder, task.model, phase.names, phase.optimizer, about)
        seed_generators(task.device, self.seed * 1_000_003 + phase.epochs)
        if self.bn_mode == "train":
            norms = [m for m in task.model.modules() if isinstance(m, NORMS) and m.track_running_stats]
            trained = [norm for norm in norms if norm not in set(frozen)]
            mean_statistics(task.model, trained, itertools.islice(source.batches(batch), SETTLE))
        return {"epochs_run": phase.epochs, "retained_accuracy": accuracies, **descent.close()}

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return soft_divergence(targets, logits, self.temperature) if self.soft else F.cross_entropy(logits, targets)


def _percent(shares: Iterable[Tensor]) -> float:
    """The mean of shares of one number that this process has, and of those of all processes."""
    return 100 * float(reduce_tensor(torch.stack(list(shares)).mean().reshape(1), "mean"))
