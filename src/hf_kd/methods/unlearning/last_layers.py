"""CF-k and EU-k (Goel et al. 2022): forget in the last k layers, by going on training them or by starting them anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import LastLayersMeasured

from .cut import choose_block, gradients_above, refuse_no_module, share_or_name, take_over
from .task import NORMS, Task, check_range, is_layer, parameters_from
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class _LastLayers(TrainedMethod):
    """min CE(D_r) over the last k convolutions and Linears, in order of registration, and the norms between them.

    Everything before stays exactly as it is, BatchNorm's statistics included.

    Attributes:
        k: How many convolutions and Linears are trained, counted from the end.
    """

    measures: ClassVar[type] = LastLayersMeasured
    needs: ClassVar[str] = "D_r"

    batch_size: int = 64
    k: int = 3

    def _train(self, task: Task, start_anew: bool, keep: float | str | None = None) -> LastLayersMeasured:
        retain = task.needed_retain(self.name)
        cut = None if keep is None else choose_block(task, keep)
        if cut is None:
            layers, names = parameters_from(task.model, self.k)
            owners = {name.rpartition(".")[0] for name in names}
            # with their buffers: BatchNorm's statistics are of D_f too
            new = [name for name in task.model.state_dict() if name.rpartition(".")[0] in owners]
        else:
            new = list(cut.new)
            names = [name for name, parameter in task.model.named_parameters() if name in set(new)]
            owners = {name.rpartition(".")[0] for name in new}
            layers = [name for name, module in task.model.named_modules() if name in owners and is_layer(module)]
        if start_anew:
            take_over(task.model, self.fresh_model(task, beside_kept=True), new)
        for name, parameter in task.model.named_parameters():
            parameter.requires_grad_(name in names)
        frozen = [m for name, m in task.model.named_modules() if isinstance(m, NORMS) and name not in owners]

        def loss(batch: Batch) -> Tensor:
            for norm in frozen:  # whatever `bn_mode` says about those that are trained
                norm.eval()
            return task.cross_entropy(batch)

        optimizer = self.make_optimizer([task.model.get_parameter(name) for name in names])
        with gradients_above(task.model, cut):
            done = self.descend(task, retain, loss, optimizer)
        measured: LastLayersMeasured = {"n_retain": len(retain), "layers": layers, **done}
        if cut is not None:
            measured["block"] = cut.block
        return measured


@dataclass(frozen=True, kw_only=True)
class CatastrophicForgetting(_LastLayers):
    """CF-k: fine-tune the last k layers on D_r (Goel et al. 2022)."""

    name: ClassVar[str] = "cf-k"
    when: ClassVar[str] = "A baseline: only the last layers are trained on."
    source: ClassVar[str] = "Goel et al. 2022; settings of SCRUB's comparison; k is ours"

    def change(self, task: Task) -> LastLayersMeasured:
        return self._train(task, start_anew=False)


@dataclass(frozen=True, kw_only=True)
class ExactUnlearning(_LastLayers):
    """EU-k: give the last k layers fresh weights and train them on D_r as from scratch (Goel et al. 2022).

    With new BatchNorm statistics in those layers.

    Attributes:
        keep: Instead of `k`, the part that is kept, as in `Regrow`: a share of the blocks, or the name of the last one.
    """

    name: ClassVar[str] = "eu-k"
    when: ClassVar[str] = "A baseline: only the last layers are trained anew."
    source: ClassVar[str] = "Goel et al. 2022; settings of SCRUB's comparison; k is ours"

    epochs: int = 30
    bn_mode: Literal["eval", "freeze", "train"] = "train"
    decay_epochs: tuple[int, ...] = (11, 16, 21)
    keep: float | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        keep = share_or_name(self.keep)
        holds = self.keep is None or keep is not None
        check_range(self.name, [("keep", self.keep, holds, "a share between 0 and 1, or the name of a block")])
        object.__setattr__(self, "keep", keep)

    def check_model(self, model: nn.Module, blocks: Callable[[], Sequence[str]]) -> None:
        refuse_no_module(model, self.keep, blocks)

    def change(self, task: Task) -> LastLayersMeasured:
        return self._train(task, True, self.keep)
