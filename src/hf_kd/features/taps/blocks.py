"""Find the hidden states of a backbone by data flow: what is handed on so that nothing of the image goes around it.

For whoever wants to look below the tap: the layer profile of an audit, Grad-CAM. One forward with its graph is recorded;
a module hands on a hidden state where every path from the answer back to the image passes its output. So the output of a
residual block counts, and what stands inside its branch (convolutions, attention, gates) does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hf_kd.data.hidden_state import hidden_state
from hf_kd.data.modes import drop_caches, evaluating, hooked

from .find import answer_field
from .inputs import run
from .trace import fields

AT_LEAST = 6
"""Blocks that a nesting level should have before a finer one is looked at: four stages hide what sixteen blocks show."""

AT_MOST = 16


def find_blocks(
    model: nn.Module,
    inputs: Mapping[str, Any],
    main_input: str = "pixel_values",
    every: bool = False,
    at_most: int | None = AT_MOST,
    also: str | None = None,
) -> tuple[str, ...]:
    """Names of the blocks in the order in which an image leaves them; none where there is none.

    A block is an element of a `ModuleList` or `Sequential` that has weights and hands on a hidden state. Of nested ones the
    outermost are taken, or those of the first level further in that has `AT_LEAST` where the outermost are fewer.

    Args:
        model: Where they are looked for, by a forward pass.
        inputs: A probe batch of two or more images.
        main_input: Name of the images in it.
        every: All modules that hand on a hidden state, whatever holds them; of several that hand on the same one, the
            outermost.
        at_most: Of more, an even choice that keeps the first and the last; None for all of them.
        also: A module that is among them whatever was chosen, if it hands on a hidden state.
    """
    passed = _hand_on_everything(model, inputs, main_input)
    if every:
        return tuple({edge: name for name, edge in passed.items()}.values())
    repeated = [
        name
        for name in passed
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.ModuleList | nn.Sequential)
        and any(parameter.ndim >= 2 for parameter in model.get_submodule(name).parameters())
    ]
    depth = {name: sum(name.startswith(f"{other}.") for other in repeated) for name in repeated}
    levels = [_level(depth, level) for level in range(max(depth.values(), default=-1) + 1)]
    chosen = next((names for names in levels if len(names) >= AT_LEAST), levels[0] if levels else [])
    if at_most is not None and len(chosen) > at_most:
        last = len(chosen) - 1
        chosen = [chosen[round(i * last / (at_most - 1))] for i in range(at_most)]
    return tuple(name for name in passed if name in chosen or name == also)


def _hand_on_everything(model: nn.Module, inputs: Mapping[str, Any], main_input: str) -> dict[str, GradientEdge]:
    """Modules whose output is a hidden state that all of the image's influence passes, in the order they finish."""
    images = inputs[main_input]
    from_colours = not images.is_floating_point()  # a sequence of colour numbers: followed from its embeddings on
    if not from_colours:
        images = images.detach().clone().requires_grad_(True)
    edges: dict[str, GradientEdge] = {}
    sources = [] if from_colours else [get_gradient_edge(images)]

    def after(name: str, module: nn.Module, output: Any) -> None:
        hidden = hidden_state(output, images.shape[0])
        if hidden is not None and hidden.requires_grad:
            edges[name] = get_gradient_edge(hidden)  # as it is now: the next module may change it in place
        if from_colours and isinstance(module, nn.Embedding):
            sources.append(get_gradient_edge(output if output.requires_grad else output.requires_grad_(True)))

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: after(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with hooked(handles), evaluating(model), torch.enable_grad():
            output = fields(run(model, {**inputs, main_input: images}))
            answer = output[answer_field(model, [], output)]
    finally:
        drop_caches(model)
    if not answer.requires_grad:
        return {}
    through = _bottlenecks(get_gradient_edge(answer), sources)
    return {name: edge for name, edge in edges.items() if edge in through}


def _bottlenecks(sink: GradientEdge, sources: Sequence[GradientEdge]) -> set[GradientEdge]:
    """The edges of an autograd graph that lie on every path from `sink` to any of `sources`: paths are counted.

    As many paths lead through an edge as lead to it times as many as lead on from it; a bottleneck has all of them.
    """
    onward: dict[GradientEdge, int] = dict.fromkeys(sources, 1)
    order: list[Any] = []  # nodes, each behind all that it leads to
    seen, stack = {sink.node}, [(sink.node, iter(sink.node.next_functions))]
    while stack:
        node, following = stack[-1]
        for next_node, _ in following:
            if next_node is not None and next_node not in seen:
                seen.add(next_node)
                stack.append((next_node, iter(next_node.next_functions)))
                break
        else:
            stack.pop()
            order.append(node)
    beyond: dict[Any, int] = {}

    def paths(node: Any, number: int) -> int:
        edge = GradientEdge(node, number)
        return onward[edge] if edge in onward else beyond[node]

    for node in order:
        beyond[node] = sum(paths(*following) for following in node.next_functions if following[0] is not None)
    total = paths(*sink[:2])
    arriving: dict[GradientEdge, int] = {GradientEdge(*sink[:2]): 1}
    at_node = {sink.node: 1}
    for node in reversed(order):
        for following in node.next_functions:
            if following[0] is not None:
                edge = GradientEdge(*following)
                arriving[edge] = arriving.get(edge, 0) + at_node.get(node, 0)
                if edge not in onward:  # paths end at a source
                    at_node[following[0]] = at_node.get(following[0], 0) + at_node.get(node, 0)
    return {edge for edge, count in arriving.items() if total and count * paths(*edge[:2]) == total}


def _level(depth: Mapping[str, int], level: int) -> list[str]:
    """The blocks `level` deep, and those further out that hold none of them."""
    inner = [name for name, own in depth.items() if own == level]
    outer = [
        name for name, own in depth.items() if own < level and not any(other.startswith(f"{name}.") for other in depth)
    ]
    return [name for name in depth if name in inner or name in outer]
