"""Cut a network in two behind a block: which weights lie below, fresh ones for what lies above, and the upper part alone.

Nothing here knows a model family. What a block's hidden state depends on is asked of autograd; the upper part is run by
letting the whole model read one image and putting other hidden states in the place of the block's.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_kd.data.hidden_state import first_of, hidden_state, with_hidden_state
from hf_kd.data.modes import drop_caches, evaluating, hooked
from hf_kd.data.samples import in_dtype
from hf_kd.errors import InvalidValueError, did_you_mean, out_of_memory

from .task import Task


@dataclass(frozen=True)
class Cut:
    """Where a network is cut.

    Attributes:
        block: The last block that is kept, or "none".
        depth: How many blocks are kept; None where `block` is none of those that are counted.
        blocks: All blocks that are counted, in the order in which an image leaves them.
        kept: Names of the parameters and buffers that the hidden state of `block` depends on.
        new: Names of all others: those of later blocks, of norms behind them and of heads, and what nothing uses.
        modules: Names of the modules that were done when `block` was: they stay in eval mode.
    """

    block: str
    depth: int | None
    blocks: tuple[str, ...]
    kept: tuple[str, ...]
    new: tuple[str, ...]
    modules: tuple[str, ...]


class _Reached(Exception):
    """A forward came to the block where it was to stop."""


def cut_behind(model: nn.Module, block: str, inputs: Mapping[str, Any], blocks: Sequence[str] = ()) -> Cut:
    """Which tensors of a model lie below the output of `block`, and which above.

    Args:
        model: Run once, in eval mode; its flags stay as they are.
        block: Path of a module that hands on a hidden state.
        inputs: Of two images or more.
        blocks: The model's blocks, for the record.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    flags = [parameter.requires_grad for parameter in parameters]
    finished: dict[str, None] = {}
    drop_caches(model)  # what was kept of a weight (LeViT) has no graph
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        handles = [
            module.register_forward_hook(lambda module, args, output, name=name: finished.setdefault(name))
            for name, module in model.named_modules()
        ]
        with hooked(handles), torch.enable_grad(), evaluating(model):
            hidden = hidden_at(model, block, inputs)
        gradients = torch.autograd.grad(hidden.sum(), parameters, allow_unused=True)
        kept, new = _sorted_tensors(model, parameters, gradients, finished)
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
        drop_caches(model)  # nor is the graph that was asked kept
    depth = list(blocks).index(block) + 1 if block in blocks else None
    return Cut(block, depth, tuple(blocks), kept, new, tuple(finished))


def nothing_kept(model: nn.Module) -> Cut:
    """All of a model lies above: what is grown has seen nothing but what it is trained on."""
    return Cut("none", 0, (), (), tuple(model.state_dict()), ())


def _sorted_tensors(
    model: nn.Module, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], finished: Container[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a model's tensors that lie below a cut, and of those above it."""
    below = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    kept, new = [], []
    for name, tensor in model.state_dict(keep_vars=True).items():
        # buffers have no gradient: kept are those of modules that were done by then, as BatchNorm's statistics
        lies_below = id(tensor) in below if tensor.requires_grad else name.rpartition(".")[0] in finished
        (kept if lies_below else new).append(name)
    return tuple(kept), tuple(new)


def only_heads_above(model: nn.Module, heads: tuple[str, ...], cut: Cut) -> bool:
    """Whether no matrix but those of heads lies above a cut: features go on saying what they said."""
    state, others = model.state_dict(), {*heads, *cut.modules}  # of what is below, `cut.new` has what nothing uses
    return all(name.rpartition(".")[0] in others for name in cut.new if state[name].ndim > 1)


@torch.no_grad()
def take_over(model: nn.Module, other: nn.Module, names: Iterable[str]) -> None:
    """Give the tensors `names` of a model the values they have in another one of its class, in place; others stay."""
    values, state = other.state_dict(), model.state_dict()
    for name in names:
        state[name].copy_(values[name])


def only_trainable(model: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """Let the parameters among `names` have gradients and no others; returns them, in the model's order."""
    trained = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained and parameter.is_floating_point())
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def share_or_name(keep: Any) -> float | str | None:
    """What `keep` says: a share of the blocks, also as a string from a command line, or a name; None where it is neither."""
    if isinstance(keep, str):
        with contextlib.suppress(ValueError):
            keep = float(keep)
    return keep if isinstance(keep, str) or (isinstance(keep, int | float) and 0 < keep < 1) else None


def refuse_no_module(model: nn.Module, keep: Any, blocks: Callable[[], Sequence[str]]) -> None:
    """Refuse a `keep` that no module is called, for which no image has to be read; `blocks`: finds what it may be."""
    if isinstance(keep, str) and keep != "auto" and keep not in dict(model.named_modules()):
        raise _no_block(model, keep, blocks())


def _no_block(model: nn.Module, keep: str, blocks: Sequence[str]) -> InvalidValueError:
    return InvalidValueError(
        f"keep={keep!r} is no block of this {type(model).__name__}.{did_you_mean(keep, blocks)} Its blocks are "
        f"{', '.join(blocks)}. Give one of them, or a share of them such as keep=0.33."
    )


def choose_block(task: Task, keep: float | str) -> Cut:
    """The cut that `keep` asks for: a share of the blocks, or the name of the last one that is kept.

    A share is rounded to whole blocks, and down to the end of a stage where that is one block away: where the shape of
    the hidden state changes next, a stage ends.

    Raises:
        InvalidValueError: For an unknown block, and where a model has fewer than two.
    """
    names = task.find_blocks()
    inputs = task.two_images()
    if isinstance(keep, str):
        if keep not in names and keep not in task.find_blocks(every=True):
            raise _no_block(task.model, keep, names)
        return cut_behind(task.model, keep, inputs, names)
    if len(names) < 2:
        raise InvalidValueError(
            f"No two blocks were found in this {type(task.model).__name__}, so there is no part to keep: start from fresh "
            "weights with method='retrain', or name the module whose output is kept: keep='path.to.module'."
        )
    shapes = [shape[1:] for shape in _shapes(task.model, names, inputs)]
    ends = {i + 1 for i, (here, there) in enumerate(itertools.pairwise(shapes)) if here != there}
    count = min(max(1, math.floor(keep * len(names) + 0.5)), len(names) - 1)
    if count not in ends and count - 1 in ends:
        count -= 1
    return cut_behind(task.model, names[count - 1], inputs, names)


def hidden_at(model: nn.Module, block: str, inputs: Mapping[str, Any]) -> Tensor:
    """The hidden state that `block` hands on; what comes behind it is not computed.

    Raises:
        InvalidValueError: Where the block hands on none.
    """
    images = next(value.shape[0] for value in inputs.values() if isinstance(value, Tensor))
    found: list[Tensor] = []

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        hidden = hidden_state(output, images)
        if hidden is not None:
            found.append(hidden)
            raise _Reached

    with model.get_submodule(block).register_forward_hook(stop), contextlib.suppress(_Reached):
        model(**in_dtype(model, inputs))
    if not found:
        raise InvalidValueError(
            f"{block!r} hands on no hidden state [n, ...] with positions in it; name another block."
        )
    return found[0]


@contextlib.contextmanager
def gradients_above(model: nn.Module, cut: Cut | None) -> Iterator[None]:
    """Inside, what lies above a cut (None: a frozen part that is none), whose kept part is frozen, gets all its gradients.

    On a processor the backward of GroupNorm ends the process where a channels-last input asks for no gradient, and
    reentrant gradient checkpointing gives none to the first block whose input asks for none.
    """

    def ask(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = first_of(output)
        if hidden.requires_grad or not torch.is_grad_enabled():
            return None
        return with_hidden_state(output, hidden.detach().requires_grad_().clone())  # a leaf cannot be changed in place

    normed = any(isinstance(part, nn.GroupNorm) for part in model.modules())
    places = [model.get_submodule(cut.block)] if cut is not None and cut.kept and normed else []
    handles = [place.register_forward_hook(ask) for place in places]
    reentrant = [part for part in model.modules() if "_gradient_checkpointing_func" in vars(part)]
    before = [cast(Any, part)._gradient_checkpointing_func for part in reentrant]
    for part, checkpointed in zip(reentrant, before, strict=True):
        cast(Any, part)._gradient_checkpointing_func = partial(checkpointed, use_reentrant=False)
    try:
        with hooked(handles):
            yield
    finally:
        for part, checkpointed in zip(reentrant, before, strict=True):
            cast(Any, part)._gradient_checkpointing_func = checkpointed


@contextlib.contextmanager
def upper_part(task: Task, block: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """The network above `block` as a function of the block's hidden states [b, ...] -> logits [b, C] in float32.

    The part below is given a single image each time, whose hidden state is replaced.
    """
    one = {name: value[:1] for name, value in task.two_images().items()}
    given: list[Tensor] = []
    precision = next(task.model.parameters()).dtype  # kept hidden states come in float32, and weights may be doubles

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        return with_hidden_state(output, given[0]) if given else None

    def forward(hidden: Tensor) -> Tensor:
        given[:] = [hidden.to(torch.promote_types(hidden.dtype, precision))]
        try:
            return task.logits(one)
        finally:
            given.clear()

    with task.model.get_submodule(block).register_forward_hook(replace):
        yield forward


@torch.no_grad()
def upper_part_stands_alone(task: Task, block: str) -> bool:
    """Whether the upper part gives the model's own answers from the hidden states alone."""
    inputs = task.two_images()
    if len(inputs) > 1:  # masks and shapes are another image's each time, and only hidden states are given
        return False
    with task.mode("eval"):
        whole = task.logits(inputs)
        with task.autocast():  # as `whole` is computed, and as hidden states are kept
            hidden = hidden_at(task.model, block, inputs)
        try:
            with upper_part(task, block) as above:
                alone = above(hidden)
        except (RuntimeError, ValueError, IndexError) as error:  # something above counts the images that came in
            if out_of_memory(error):
                raise
            return False
    return alone.shape == whole.shape and torch.allclose(alone, whole, rtol=1e-3, atol=1e-3)


def _shapes(model: nn.Module, names: Sequence[str], inputs: Mapping[str, Any]) -> list[torch.Size]:
    """Of the hidden state of each block."""
    images = next(value.shape[0] for value in inputs.values() if isinstance(value, Tensor))
    found: dict[str, torch.Size] = {}

    def see(name: str, output: Any) -> None:
        hidden = hidden_state(output, images)
        if hidden is not None:
            found[name] = hidden.shape

    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: see(name, output))
        for name in names
    ]
    with hooked(handles), torch.no_grad(), evaluating(model):
        model(**inputs)
    return [found[name] for name in names]
