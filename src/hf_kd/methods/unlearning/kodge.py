"""Kodge, Saha, Roy (TMLR 2024): take the space that discriminates D_f from D_r out of the inputs of every layer.

In these terms ESC is the last layer alone, with a hard cut of D_f's top directions and nothing kept of D_r's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kd.data.distributed import reduce_tensor
from hf_kd.data.samples import Samples
from hf_kd.methods.erasers.moments import wide
from hf_kd.methods.measured import KodgeMeasured

from .base import UnlearningMethod
from .task import Task, is_layer


def projection_of(gram: Tensor, alpha: float) -> Tensor:
    """U Lambda U^T [d, d] of activations with second moment `gram`, Lambda_i = alpha s_i / ((alpha - 1) s_i + 1), s_i the
    share of direction i in the energy. alpha = 1 weighs by energy; a large one keeps every direction in use.
    """
    values, directions = torch.linalg.eigh(gram)
    share = values.clamp(min=0)
    share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
    scale = alpha * share / ((alpha - 1) * share + 1)
    return (directions * scale) @ directions.T


class LayerInputs:
    """Second moments of what convolutions and Linears are fed with: patches [n, in_channels k_h k_w] or rows [n, in]."""

    def __init__(self, modules: dict[str, nn.Module], columns: int) -> None:
        self.modules, self.columns = modules, columns
        self.grams: dict[str, Tensor] = {}

    def __enter__(self) -> LayerInputs:
        self._handles = [
            module.register_forward_pre_hook(lambda module, args, *, name=name: self._add(name, module, args[0]))
            for name, module in self.modules.items()
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, name: str, module: nn.Module, inputs: Tensor) -> None:
        if isinstance(module, nn.Linear):
            rows = inputs.reshape(-1, module.in_features)
        else:
            conv = cast(nn.Conv2d, module)
            padding = cast("tuple[int, ...]", conv.padding)  # not a name: see `editable`
            patches = F.unfold(inputs, conv.kernel_size, conv.dilation, padding, conv.stride)
            rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        if len(rows) > self.columns:
            rows = rows[torch.randperm(len(rows))[: self.columns].to(rows.device)]
        rows = wide(rows)
        gram = rows.T @ rows
        self.grams[name] = self.grams[name] + gram if name in self.grams else gram


def editable(module: nn.Module) -> bool:
    """A Linear, or a convolution without groups and with plain zero padding; not one that computes something else, such as
    a convolution that standardises its weight on the way.
    """
    if type(module).forward is nn.Conv2d.forward:
        conv = cast(nn.Conv2d, module)
        return conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return type(module).forward is nn.Linear.forward


@dataclass(frozen=True, kw_only=True)
class Kodge(UnlearningMethod):
    """Take the space that discriminates D_f from D_r out of the inputs of every layer (Kodge et al. 2024).

    W <- W (I - P_dis)^T, P_dis = P_f (I - P_r), for every convolution and Linear, or the last layer only. Layers that are
    not `editable` or never called are left as they are; the record counts them.

    Attributes:
        alpha_forget: How sharply the directions that D_f uses are kept, see `projection_of`.
        alpha_retain: The same for D_r.
        forget_samples: Images of D_f that are read.
        retain_samples: Images of D_r that are read.
        columns: At most so many patches of a batch, drawn at random.
        batch_size: Images read at a time.
        last_layer_only: Edit the last layer alone: the comparator of ESC.
    """

    name: ClassVar[str] = "kodge"
    when: ClassVar[str] = "No training: both sets are read once, and every layer is edited."
    measures: ClassVar[type] = KodgeMeasured
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = "Kodge et al. 2024, CIFAR-10"

    alpha_forget: float = 3.0
    alpha_retain: float = 100.0
    forget_samples: int = 900
    retain_samples: int = 900
    columns: int = 10_000
    batch_size: int = 100
    last_layer_only: bool = False

    def change(self, task: Task) -> KodgeMeasured:
        retain = task.needed_retain(self.name)
        every = {n: m for n, m in task.model.named_modules() if is_layer(m)}
        if self.last_layer_only:
            task.linear_heads()
            every = {name: task.model.get_submodule(name) for name in task.heads}
        modules = {name: module for name, module in every.items() if editable(module)}
        # both are drawn before patches are: processes must agree on them
        some_forget = task.forget.subset(task.forget.shuffled()[: self.forget_samples])
        some_retain = retain.subset(retain.shuffled()[: self.retain_samples])
        forget_grams, retain_grams = (self._read(task, samples, modules) for samples in (some_forget, some_retain))
        with torch.no_grad():
            for name, gram in forget_grams.items():
                stored = cast(Tensor, modules[name].weight)
                of_forget = projection_of(gram, self.alpha_forget)
                of_retain = projection_of(retain_grams[name], self.alpha_retain)
                kept = torch.eye(len(of_forget), dtype=of_forget.dtype, device=of_forget.device)
                kept = kept - of_forget @ (kept - of_retain)
                edited = wide(stored.reshape(stored.shape[0], -1)) @ kept.T
                stored.copy_(edited.reshape(stored.shape).to(stored))
        return {
            "n_forget": len(some_forget),
            "n_retain": len(some_retain),
            "layers_edited": len(forget_grams),
            "layers_left": len(every) - len(forget_grams),
        }

    @torch.no_grad()
    def _read(self, task: Task, samples: Samples, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
        with LayerInputs(modules, self.columns) as inputs, task.mode("eval"):
            for batch in task.batches(samples, self.batch_size):
                task.logits(batch.inputs)
        return {name: reduce_tensor(gram, "sum") for name, gram in inputs.grams.items()}
