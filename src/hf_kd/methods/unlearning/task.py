"""What a method that changes weights is handed: a model, its data, and the few things all such methods do with them.

`Task` knows the samples and answers for them; `steps.GradientSteps` takes steps with what it is handed.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kd.data.distributed import autocast, precision_of, process_state, reduce_tensor
from hf_kd.data.hidden_state import logits_of
from hf_kd.data.masked_classes import MASKED_LOGIT, silent_rows
from hf_kd.data.modes import drop_caches, hooked, prefer_channels_last, set_memory_format
from hf_kd.data.progress import Bar
from hf_kd.data.samples import Batch, Samples, in_dtype
from hf_kd.errors import InvalidValueError, did_you_mean
from hf_kd.methods.choices import refuse_fp16
from hf_kd.methods.registry import missing_retain

logger = logging.getLogger(__name__)

NORMS = (nn.modules.batchnorm._NormBase,)
"""Layers with running statistics."""


@dataclass
class Task:
    """One request: the model to change, in place, and what may be read for it."""

    model: nn.Module
    """Changed in place by the method."""
    forget: Samples
    """D_f."""
    retain: Samples | None = None
    """D_r, or what of it may be used."""
    num_labels: int = 0
    """C."""
    heads: tuple[str, ...] = ()
    """Dotted paths of the Linear layers that give the logits."""
    fresh: Callable[[int, str | None], nn.Module] | None = None
    """(seed, init) -> a model of the same class, initialised anew or from the checkpoint `init`."""
    blocks: Callable[[dict[str, Tensor], bool], tuple[str, ...]] | None = None
    """(inputs, every) -> names of the model's blocks in the order in which an image leaves them, or of every module that
    hands on a hidden state."""
    forgotten_before: Collection[int] = ()
    """Ids of the classes that earlier requests forgot, by their records."""
    changed_before: int = 0
    """How many changes of its weights the records tell of."""
    reference: nn.Module | None = None
    """A model of the same class that never saw the classes of D_f, where there is one."""
    checkpoint: Path | None = None
    """Folder in which a method that can be resumed keeps its state while it works."""
    pixel_mean: Tensor | None = None
    """Of the model's normalisation, for each channel in [0, 1]; None where it is unknown."""
    pixel_std: Tensor | None = None
    mixed_precision: str = "no"
    """Of forward passes: "no" or "bf16"."""
    progress: bool = True
    warnings: list[str] = field(default_factory=list)
    """What a method noticed that the record should say, without names of classes."""

    def __post_init__(self) -> None:
        refuse_fp16(precision_of(self.mixed_precision))
        self.state = process_state()
        self.seconds_before, self._begun = 0.0, time.perf_counter()
        self._bars = contextlib.ExitStack()

    def begin(self) -> None:
        """From now on time counts as the method's."""
        self.seconds_before, self._begun = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """That the method has taken, with those of earlier calls that it went on from (`seconds_before`)."""
        return self.seconds_before + time.perf_counter() - self._begun

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def bar(self, steps: int | None, name: str, done: int = 0) -> Bar:
        """A progress bar over steps, which `close_bars` closes whatever happened.

        Args:
            steps: How many there will be, if that is known.
            name: What stands before it.
            done: How many of them an earlier run did.
        """
        bar = Bar(steps, name, "step", self.progress and self.state.is_main_process, leave=False, done=done)
        self._bars.callback(bar.close)
        return bar

    def close_bars(self) -> None:
        """Close the bars that an error left open: the clock of each runs until then."""
        self._bars.close()

    def warn(self, text: str) -> None:
        """Log what the record says too.

        Args:
            text: Without names of classes.
        """
        logger.warning(text)
        self.warnings.append(text)

    @property
    def forget_classes(self) -> Tensor:
        """Ids of the classes in D_f, ascending."""
        return self.forget.labels.unique()

    @property
    def gone_classes(self) -> Tensor:
        """Ids of the classes in D_f of which D_r has no image: not those of random samples, or of a part of a class."""
        found = self.forget_classes
        return found if self.retain is None else found[~torch.isin(found, self.retain.labels)]

    @property
    def silent_classes(self) -> Tensor:
        """Ids of the classes that an earlier request took from the Linear heads."""
        heads = [self.model.get_submodule(name) for name in self.heads]
        rows = [silent_rows(head) for head in heads if isinstance(head, nn.Linear)]
        return torch.cat(rows).unique() if rows else torch.zeros(0, dtype=torch.long)

    @property
    def earlier_classes(self) -> Tensor:
        """Ids of the classes that earlier requests forgot: the silent ones, and those recorded."""
        recorded = torch.tensor([c for c in self.forgotten_before if 0 <= c < self.num_labels], dtype=torch.long)
        return torch.cat([self.silent_classes, recorded]).unique()

    @property
    def kept_classes(self) -> Tensor:
        """Ids of the classes that D_f may be taught instead: answered, not forgotten before, and not in D_f.

        Where that leaves a label of D_f no other class, those in D_f too (random samples), else those forgotten before.
        """
        every = torch.arange(self.num_labels)
        answered = every[~torch.isin(every, self.silent_classes)]
        earlier, forget = self.earlier_classes, self.forget_classes
        for gone in (torch.cat([earlier, forget]), earlier, forget):
            kept = answered[~torch.isin(answered, gone)]
            if len(kept) > int(torch.isin(kept, forget).any()):
                return kept
        return answered

    def batches(self, samples: Samples, batch_size: int, shuffle: bool = False) -> Iterator[Batch]:
        """This process's part of each batch, on the model's device.

        Args:
            samples: In the model's ids.
            batch_size: Of all processes together.
            shuffle: In another order each time.
        """
        order = samples.shuffled() if shuffle else None
        for batch in samples.batches(batch_size, order, part=self.state.process_index, parts=self.state.num_processes):
            batch = batch.to(self.device)
            yield Batch(in_dtype(self.model, batch.inputs), batch.labels)

    def logits(self, inputs: dict[str, Tensor], model: nn.Module | None = None) -> Tensor:
        """Logits [b, C] in float32.

        Args:
            inputs: A batch, by the model's names.
            model: Another than the one that is being changed.
        """
        model = self.model if model is None else model
        drop_caches(model)
        with self.autocast():
            output = model(**in_dtype(model, inputs))
        return logits_of(output).float()

    def cross_entropy(self, batch: Batch) -> Tensor:
        """Of the labels of a batch, its mean.

        Args:
            batch: Of `batches`.
        """
        return F.cross_entropy(self.logits(batch.inputs), batch.labels)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of forward passes, as the task says."""
        return autocast(self.device, self.mixed_precision)

    def find_blocks(self, every: bool = False) -> tuple[str, ...]:
        """Names of the model's blocks, in order; see `blocks`.

        Args:
            every: Every module that hands on a hidden state.

        Raises:
            InvalidValueError: Where the task cannot find them.
        """
        if self.blocks is None:
            raise InvalidValueError("This method looks for blocks: give the task `blocks`, a way to find them.")
        return self.blocks(self.two_images(), every)

    def two_images(self) -> dict[str, Tensor]:
        """Inputs of two images, on the model's device: to see how the model runs."""
        samples = self.forget if self.retain is None else self.retain
        few = samples.subset(torch.arange(min(2, len(samples))))  # of no more: images may lie on disk
        inputs = next(few.batches(2)).to(self.device).inputs
        pairs = {n: v if len(v) > 1 else torch.cat([v, v.flip(-1) if v.ndim > 2 else v]) for n, v in inputs.items()}
        return in_dtype(self.model, pairs)

    def frozen_copy(self) -> nn.Module:
        """The model as it is now, in eval mode, without gradients: a teacher."""
        return copy.deepcopy(self.model).eval().requires_grad_(False)

    @torch.no_grad()
    def accuracy(self, samples: Samples, batch_size: int = 256) -> float:
        """Percent of samples that are classified as labelled, by all processes together.

        Args:
            samples: In the model's ids.
            batch_size: Of all processes together.
        """
        with self.mode("eval"):
            hits = torch.zeros(2, dtype=torch.float64)
            for batch in self.batches(samples, batch_size):
                right = float((self.logits(batch.inputs).argmax(dim=1) == batch.labels).sum())
                hits += torch.tensor([right, len(batch)], dtype=torch.float64)
        hits = reduce_tensor(hits.to(self.device, torch.float32), "sum")
        return 100.0 * float(hits[0] / hits[1].clamp(min=1))

    @contextlib.contextmanager
    def mode(self, name: str) -> Iterator[None]:
        """Training modes inside; afterwards each module is in the mode it was in.

        Args:
            name: "eval" (BatchNorm uses its statistics, no dropout), "freeze" (dropout, but BatchNorm uses its statistics)
                or "train" (BatchNorm uses and changes them with every batch).
        """
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.train(name != "eval")
        if name == "freeze":
            for module in self.model.modules():
                if isinstance(module, NORMS):
                    module.eval()
        try:
            yield
        finally:
            self.model.train()
            self.model.eval()  # modules may drop what they cached on the way
            for module, training in modes:
                module.training = training

    @contextlib.contextmanager
    def channels_last(self) -> Iterator[None]:
        """The weights of a convolutional network in channels-last order inside, where it can run so."""
        with torch.no_grad(), self.mode("eval"):
            reordered = prefer_channels_last(self.model, lambda: self.logits(self.two_images()))
        try:
            yield
        finally:
            if reordered:
                set_memory_format(self.model, torch.contiguous_format)

    def linear_heads(self) -> list[nn.Linear]:
        """The Linear layers that give the logits.

        Raises:
            InvalidValueError: Where the head is something else.
        """
        found = [self.model.get_submodule(name) for name in self.heads]
        linear = [module for module in found if isinstance(module, nn.Linear)]
        if not found or len(linear) < len(found):
            raise InvalidValueError(
                f"This method works on the last Linear layer, and {type(self.model).__name__} has none that gives its "
                "logits. Choose a method that changes all weights."
            )
        return linear

    def logits_and_features(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [b, C], and what the first Linear head is fed with [b, d], both in float32 and with their graph.

        Args:
            inputs: A batch, by the model's names.
        """
        taken: list[Tensor] = []
        head = self.linear_heads()[0]
        with head.register_forward_pre_hook(lambda module, args: taken.append(args[0])):
            logits = self.logits(inputs)
        return logits, taken[0].reshape(-1, head.in_features).float()

    @torch.no_grad()
    def head_inputs(self, samples: Samples, batch_size: int = 256) -> list[Tensor]:
        """What each Linear head is fed with, for all samples: [n, d] each, on the model's device.

        Every process reads all of it, since whoever works on features alone needs no second process.

        Args:
            samples: Those to read.
            batch_size: Samples a forward pass.
        """
        heads = self.linear_heads()
        kept: list[list[Tensor]] = [[] for _ in heads]
        handles = [
            head.register_forward_pre_hook(
                lambda module, args, *, store=store: store.append(
                    args[0].detach().reshape(-1, module.in_features).float()
                )
            )
            for head, store in zip(heads, kept, strict=True)
        ]
        with hooked(handles), self.mode("eval"):
            for batch in samples.batches(batch_size):
                self.logits(batch.to(self.device).inputs)
        return [torch.cat(store) for store in kept]

    def needed_retain(self, name: str) -> Samples:
        """D_r, for a method that cannot do without.

        Args:
            name: Of the method, for the message.

        Raises:
            InvalidValueError: Where it was not given, or is empty.
        """
        if self.retain is None or not len(self.retain):
            raise missing_retain(name, "weights")
        return self.retain


def soft_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits [b, C], summed over classes, mean over samples."""
    target = torch.log_softmax(teacher / temperature, dim=1)
    answer = torch.log_softmax(student / temperature, dim=1)
    return temperature**2 * torch.nn.functional.kl_div(answer, target, reduction="batchmean", log_target=True)


def other_answers(logits: Tensor, kept_classes: Tensor, labels: Tensor) -> Tensor:
    """Logits [b, C] with all masked but those of the kept classes, and of these that of the label [b]."""
    masked = torch.ones_like(logits, dtype=torch.bool).index_fill(1, kept_classes.to(logits.device), False)
    return logits.masked_fill(masked.scatter(1, labels[:, None], True), MASKED_LOGIT)


def endless(make: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    """Batches of one epoch after another.

    Raises:
        InvalidValueError: When an epoch has none.
    """
    while True:
        empty = True
        for batch in make():
            empty = False
            yield batch
        if empty:
            raise InvalidValueError("There are fewer samples than processes; run with fewer processes.")


def batch_count(samples: Samples, batch_size: int) -> int:
    """Batches in an epoch, the last of which may be smaller."""
    return -(-len(samples) // batch_size)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution or a Linear."""
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))


def parameters_from(model: nn.Module, layers: int) -> tuple[list[str], list[str]]:
    """Names of the last `layers` convolutions and Linears in order of registration, and of all parameters from the first
    of them on, the norms between them included.
    """
    names = [name for name, module in model.named_modules() if is_layer(module)]
    if not 0 < layers <= len(names):
        raise InvalidValueError(
            f"k={layers} is out of range: this model has {len(names)} convolutions and Linear layers."
        )
    chosen = names[-layers:]
    every = [name for name, _ in model.named_parameters()]
    first = min(i for i, name in enumerate(every) if name.rpartition(".")[0] == chosen[0])
    return chosen, every[first:]


def check_range(name: str, values: Sequence[tuple[str, Any, bool, str]]) -> None:
    """Raise ValueError for the first (setting, value, holds, rule) that does not hold."""
    for setting, value, holds, rule in values:
        if not holds:
            near = did_you_mean(value, re.findall(r"[\w-]+", rule)) if isinstance(value, str) else ""
            raise InvalidValueError(f"{name}: {setting}={value!r} is out of range: it has to be {rule}.{near}")
