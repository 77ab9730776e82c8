"""DAMP (arXiv 2604.15166): project what is D_f's own out of the inputs of every layer. From its abstract alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kd.data.distributed import reduce_tensor
from hf_kd.data.modes import hooked
from hf_kd.data.samples import Samples
from hf_kd.methods.erasers.moments import wide
from hf_kd.methods.measured import KodgeMeasured

from .base import UnlearningMethod
from .kodge import editable
from .task import Task, is_layer


@dataclass(frozen=True, kw_only=True)
class Damp(UnlearningMethod):
    """Take the residual of the forgotten prototypes off the span of the retained ones out of every layer (DAMP).

    W <- W (I - U U^T), U an orthonormal basis of m_f - P_r m_f: m are means of a layer's inputs over the images of a class,
    P_r the projection on those of retained classes. By its description; the paper's code was not read.

    Attributes:
        batch_size: Images read at a time.
        samples: Images of each set that are read.
    """

    name: ClassVar[str] = "damp"
    when: ClassVar[str] = "A baseline without training: every layer is edited from the means of the classes."
    measures: ClassVar[type] = KodgeMeasured
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = "arXiv 2604.15166, by its abstract"

    batch_size: int = 100
    samples: int = 2000

    def change(self, task: Task) -> KodgeMeasured:
        retain = task.needed_retain(self.name)
        every = {name: module for name, module in task.model.named_modules() if is_layer(module)}
        modules = {name: module for name, module in every.items() if editable(module)}
        # both are drawn before anything is read: processes must agree on them
        some_forget = task.forget.subset(task.forget.shuffled()[: self.samples])
        some_retain = retain.subset(retain.shuffled()[: self.samples])
        forget_means, retain_means = (self._means(task, some, modules) for some in (some_forget, some_retain))
        edited = 0
        with torch.no_grad():
            for name, means in forget_means.items():
                basis = own_directions(means, retain_means[name])
                stored = cast(Tensor, modules[name].weight)
                weight = wide(stored.reshape(len(stored), -1))
                stored.copy_((weight - weight @ basis @ basis.T).reshape(stored.shape).to(stored))
                edited += basis.shape[1] > 0
        return {
            "n_forget": len(some_forget),
            "n_retain": len(some_retain),
            "layers_edited": edited,
            "layers_left": len(every) - edited,
        }

    @torch.no_grad()
    def _means(self, task: Task, samples: Samples, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Of each layer's inputs (patches, for a convolution) over the images of each class in a set: [classes, d]."""
        sums: dict[str, Tensor] = {}
        labels = torch.zeros(0, dtype=torch.long)

        def add(name: str, module: nn.Module, inputs: Tensor) -> None:
            rows = mean_rows(module, inputs, len(labels))
            if rows is not None:
                total = sums.setdefault(name, rows.new_zeros(task.num_labels, rows.shape[1]))
                total.index_add_(0, labels.to(rows.device), rows)

        handles = [
            module.register_forward_pre_hook(lambda module, args, *, name=name: add(name, module, args[0]))
            for name, module in modules.items()
        ]
        with hooked(handles), task.mode("eval"):
            for batch in task.batches(samples, self.batch_size):
                labels = batch.labels
                task.logits(batch.inputs)
        counts = torch.bincount(samples.labels, minlength=task.num_labels)
        present = counts > 0
        means = {}
        for name, total in sums.items():
            whole = reduce_tensor(total, "sum")
            means[name] = (whole / counts.clamp(min=1)[:, None].to(whole))[present.to(whole.device)]
        return means


def mean_rows(module: Any, inputs: Tensor, images: int) -> Tensor | None:
    """The mean of what a layer is fed with in each image: [images, d] in float64; None where rows are of no one image."""
    if isinstance(module, nn.Linear):
        rows = inputs.reshape(-1, module.in_features)
        if len(rows) % images:
            return None
        return wide(rows.reshape(images, -1, module.in_features)).mean(dim=1)
    if len(inputs) != images:
        return None
    patches = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    return wide(patches).mean(dim=2)


def own_directions(forget: Tensor, retain: Tensor) -> Tensor:
    """An orthonormal basis [d, r] of what is left of the rows of `forget` [f, d] off the span of those of `retain`."""
    _, sizes, across = torch.linalg.svd(retain, full_matrices=False)
    span = across[sizes > 1e-6 * sizes[0].clamp(min=1e-30)]
    left = forget - forget @ span.T @ span
    _, sizes, across = torch.linalg.svd(left, full_matrices=False)
    return across[sizes > 1e-6 * forget.norm()].T
