"""A module that sits at a tap: an eraser acts on the features that pass, and a reader may look at them.

Sites use module-level hooks whose functions are bound methods, so that copies of a model own copies of the site (a
closure would go on using the original's eraser). Their state, the eraser, is a submodule of whoever owns the site.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from hf_kd.data.masked_classes import masked_logits
from hf_kd.errors import InvalidTypeError, InvalidValueError, NotErasedError

from .hooks import THREAD, Kind, Reader, hooks_of, is_registered, register, remove_alike
from .places import Place, Tap


class TapSite(nn.Module):
    """Stands at every place of one tap, and behind its heads. Without an eraser and masked classes it changes nothing.

    Its hooks follow the path of a module, not the object: before each forward it looks whether they are where the model
    now is, so a replaced, wrapped or quantised head stays behind the eraser (`follow`). A forward in which an eraser was
    not passed raises NotErasedError (`check_passed`).

    Args:
        tap: Where it stands.
    """

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.tap = tap
        self.eraser: Any = None
        """The module that acts; an `Eraser` wherever a request was carried out."""
        self.masked: tuple[int, ...] = ()
        """Classes that the heads never answer."""
        self._handles: list[Any] = []
        self._keys: list[int] = []
        """Of the handles, which graphs cannot look into."""
        self._traced = 0

    def attach(self, model: nn.Module) -> TapSite:
        """Hook into a model.

        Args:
            model: That of the tap.

        Returns:
            Itself.

        Raises:
            InvalidValueError: For a tap at modules that the model does not have.
        """
        for path, hook, kind in self._hooks():
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                raise InvalidValueError(
                    f"A tap stands at {path!r}, which {type(model).__name__} does not have: the description of the "
                    "taps is not of this model."
                ) from error
            self._handles.append(register(module, hook, kind))
            self._keys.append(self._handles[-1].id)
        # around the whole, so that a call of the model itself is checked as well
        self._handles.append(model.register_forward_pre_hook(functools.partial(self._before_all), prepend=True))
        self._handles.append(model.register_forward_hook(functools.partial(self._after_all)))
        return self

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._keys.clear()

    def _hooked(self, model: nn.Module) -> list[dict[int, Any]]:
        """The hooks on the modules of `model` at the places and the heads."""
        places = [hooks_of(model.get_submodule(place.module), place.side) for place in self.tap.places]
        return places + [hooks_of(model.get_submodule(name), "logits") for name in self.tap.heads]

    def _hooks(self) -> list[tuple[str, functools.partial, Kind]]:
        """What has to be hooked where, in the order of the handles: path of the module, the hook, and its side."""
        hooks: list[tuple[str, functools.partial, Kind]] = []
        for number, place in enumerate(self.tap.places):
            if place.side == "input":
                hooks.append((place.module, functools.partial(self._on_input, number), "input"))
            else:
                hooks.append((place.module, functools.partial(self._on_output, number, place.field), "output"))
        first = len(self.tap.places)
        logits = enumerate(self.tap.heads, first)
        return hooks + [(name, functools.partial(self._on_logits, number), "logits") for number, name in logits]

    def follow(self, model: nn.Module) -> None:
        """Stand where the model's modules are now, and forget what passed before.

        Args:
            model: That of the tap.

        Raises:
            NotErasedError: Where a module is gone that erased features pass, or was replaced while the model is compiled.
        """
        if torch.compiler.is_compiling():
            self._traced = 0
            if self._acts and not all(self._keys[n] in found for n, found in enumerate(self._hooked(model))):
                raise NotErasedError(
                    f"A module at the {self.tap} was replaced: call the model once before it is compiled."
                )
            return
        THREAD.passed.difference_update((id(self), number) for number in range(len(self._handles)))
        for number, (path, hook, kind) in enumerate(self._hooks()):
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                if not self._acts:
                    continue
                raise NotErasedError(
                    f"The model was erased at {path!r} and has no such module any more, so its answers would not be erased. "
                    "Put a module there, or load the erased model again."
                ) from error
            if not is_registered(module, hook, kind):
                self._handles[number].remove()
                remove_alike(module, hook, kind)  # a wrapper holds the module that was here, or copies of it
                self._handles[number] = register(module, hook, kind)
                self._keys[number] = self._handles[number].id

    def check_passed(self) -> None:
        """See that the last forward of this thread passed the eraser at every place, and the mask.

        Raises:
            NotErasedError: Where it did not.
        """
        places = len(self.tap.places)
        wanted = [*range(places if self.eraser is not None else 0)]
        wanted += range(places, places + len(self.tap.heads)) if self.masked else ()
        if torch.compiler.is_compiling():
            missed = any(not self._traced & (1 << number) for number in wanted)
        else:
            missed = any((id(self), number) not in THREAD.passed for number in wanted)
        if missed:
            raise NotErasedError(
                f"This model is erased at the {self.tap}, and the forward did not pass there: its answer is not erased and "
                "is withheld. The model was changed, or its description is not its own; load the erased model again."
            )

    @property
    def _acts(self) -> bool:
        return self.eraser is not None or bool(self.masked)

    def _before_all(self, module: nn.Module, args: tuple) -> None:
        self.follow(module)

    def _after_all(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.check_passed()

    def _mark(self, number: int) -> None:
        if torch.compiler.is_compiling():
            self._traced |= 1 << number
        else:
            THREAD.passed.add((id(self), number))

    def pass_through(self, features: Tensor, number: int = 0) -> Tensor:
        """The features as they go on: read if somebody reads, erased if there is an eraser.

        Args:
            features: As they come, of any shape that holds d values for each image.
            number: Of the place at which they pass; they are read at the first, 0.

        Returns:
            The features, in the shape in which they came.

        Raises:
            InvalidValueError: Where another number of values than d comes for each image.
        """
        self._mark(number)
        reader = None if number or torch.compiler.is_dynamo_compiling() else THREAD.readers.get(id(self))
        eraser = self.eraser
        if eraser is None and reader is None:
            return features
        rows = self._as_rows(features)
        if reader is not None and reader.stage == "before":
            reader.read(rows)
        if eraser is not None:
            rows = eraser(rows)
        if reader is not None and reader.stage == "after":
            reader.read(rows)
        return rows.reshape(features.shape)

    def _as_rows(self, features: Tensor) -> Tensor:
        per_sample = features[:1].numel() if features.ndim else 0
        if per_sample != self.tap.dim and features.shape[0] > 0:
            raise InvalidValueError(
                f"Pooled features at the {self.tap} have shape {tuple(features.shape)} here, but d = {self.tap.dim} "
                "values per sample were found there when the model was tapped. The model was called differently; call "
                "it through ErasedModel, or give the tap explicitly."
            )
        return features.reshape(features.shape[0], self.tap.dim)

    def _on_input(self, number: int, module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> tuple:
        if args:
            passed = (self.pass_through(args[0], number), *args[1:])
            return passed if kwargs is None else (passed, kwargs)
        given = kwargs or {}
        name = next((name for name, value in given.items() if isinstance(value, Tensor)), None)
        if name is None:
            raise NotErasedError(f"{type(module).__name__} at the {self.tap} was called without features to erase.")
        return args, given | {name: self.pass_through(given[name], number)}

    def _on_output(self, number: int, field: str | None, module: nn.Module, args: tuple, output: Any) -> Any:
        if field is None:
            return self.pass_through(output, number)
        if not isinstance(output, ModelOutput):
            raise InvalidTypeError(
                f"The pooled features pass in field {field!r} of a structured output, but {type(module).__name__} "
                f"returned a {type(output).__name__}: they cannot be erased there. Call the model through ErasedModel, "
                "whose forward asks the inner model for structured outputs and still returns a tuple on request."
            )
        output[field] = self.pass_through(output[field], number)
        return output

    def _on_logits(self, number: int, module: nn.Module, args: tuple, output: Any) -> Any:
        self._mark(number)
        return masked_logits(output, self.masked) if self.masked else None

    def extra_repr(self) -> str:
        return str(self.tap)


if TYPE_CHECKING:

    class Sites(nn.ModuleList):
        """Those of one model, in the order of its taps."""

        def __iter__(self) -> Iterator[TapSite]: ...
        def __getitem__(self, idx: Any) -> Any: ...
else:
    Sites = nn.ModuleList


def follow(model: nn.Module, sites: Iterable[TapSite]) -> None:
    """Let all sites stand where the model's modules are now; see `TapSite.follow`."""
    for site in sites:
        site.follow(model)


def check_passed(sites: Iterable[TapSite]) -> None:
    """Raise NotErasedError where the last forward of this thread did not pass some eraser."""
    for site in sites:
        site.check_passed()


def sites_on(model: nn.Module) -> list[TapSite]:
    """The sites whose hooks stand on modules of a model, each once.

    Args:
        model: Or a part of one.
    """
    found: dict[int, TapSite] = {}
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            owner = getattr(getattr(hook, "func", None), "__self__", None)
            if isinstance(owner, TapSite):
                found[id(owner)] = owner
    return list(found.values())


@contextlib.contextmanager
def record(
    sites: Sequence[TapSite], stage: Literal["before", "after"] = "after", *, detach: bool = True
) -> Iterator[Callable[[], list[Tensor]]]:
    """Read what passes.

    Args:
        sites: Where to read.
        stage: Before or after the eraser of each site.
        detach: Read without gradients.

    Yields:
        A function that returns (and forgets) the features [n, d] of the last forward at each site.

    Raises:
        NotErasedError: By that function, where features did not pass a site just once.
    """

    own = {id(site): Reader(stage, detach=detach) for site in sites}

    def take() -> list[Tensor]:
        taken = []
        for site in sites:
            rows = own[id(site)].rows
            if len(rows) != 1:
                raise NotErasedError(f"Features passed the {site.tap} {len(rows)} times in one forward; expected once.")
            taken.append(rows.pop())
        return taken

    before = THREAD.readers
    THREAD.readers = before | own
    try:
        yield take
    finally:
        THREAD.readers = before


class HeadFunction:
    """The model's logits as a function of the features at all taps: [n, d] each -> [n, C], in float32, eval mode.

    The mean over all heads, as every several-headed model in transformers has it. Works on copies, so the model and
    its training mode stay as they are.
    """

    def __init__(
        self,
        heads: Sequence[tuple[int, tuple[int, ...], nn.Module]],
        masked: Collection[int] = (),
        forgotten: Collection[int] = (),
    ) -> None:
        self._heads = heads
        self.masked = tuple(masked)
        """Classes that are never answered."""
        self.forgotten = frozenset(forgotten)
        """Classes that earlier requests forgot, whether the head still answers them or not."""

    def __call__(self, features: Sequence[Tensor]) -> Tensor:
        outputs = []
        for i, shape, head in self._heads:
            rows = features[i]
            device = next((p.device for p in head.parameters()), rows.device)  # stored features are on the CPU
            answer = masked_logits(head(rows.to(device).reshape(rows.shape[0], *shape)), self.masked)
            outputs.append(answer.reshape(rows.shape[0], -1).to(rows.device))
        return torch.stack(outputs).mean(dim=0) if len(outputs) > 1 else outputs[0]

    def of_tap(self, number: int) -> OneHead:
        """The logits as the heads at one tap alone give them: features [n, d] -> [n, C]."""
        own = [(0, shape, head) for i, shape, head in self._heads if i == number]
        return OneHead(HeadFunction(own, self.masked, self.forgotten))


class OneHead:
    """The heads of a single tap: features [n, d] -> logits [n, C]."""

    def __init__(self, function: HeadFunction) -> None:
        self._function = function
        self.masked, self.forgotten = function.masked, function.forgotten

    def __call__(self, features: Tensor) -> Tensor:
        return self._function([features])


def head_function(
    model: nn.Module, taps: Sequence[Tap], masked: Collection[int] = (), forgotten: Collection[int] = ()
) -> HeadFunction | None:
    """The logits of a model as a function of features; None when some tap has no head.

    Args:
        model: Whose heads are copied.
        taps: All its taps.
        masked: Classes that are never answered.
        forgotten: Classes that earlier requests forgot.
    """
    if not all(tap.heads for tap in taps):
        return None
    heads = [(i, tap.head_input_shape, plain_copy(model, name)) for i, tap in enumerate(taps) for name in tap.heads]
    return HeadFunction(heads, masked, forgotten)


def plain_copy(
    model: nn.Module, name: str, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> nn.Module:
    """A frozen copy of a submodule in eval mode, without any hooks: its mathematics alone; by default where it is."""
    head = model.get_submodule(name)
    with contextlib.ExitStack() as stack:
        for module in head.modules():  # weights that are offloaded, for as long as they are copied
            stack.enter_context(align_module_device(module))
        offload = [module._hf_hook for module in head.modules() if hasattr(module, "_hf_hook")]
        head = copy.deepcopy(
            head, {id(hook): hook for hook in offload}
        )  # which may hold the weights of the whole model
    remove_hook_from_module(head, recurse=True)
    for module in head.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    head = head if device is None else head.to(device)
    return head.to(dtype).eval().requires_grad_(False)


def place_value(place: Place, inputs: Any, output: Any) -> Any:
    """What is at a place, given the recorded input and output of its module."""
    if place.side == "input":
        return inputs
    return output if place.field is None else output[place.field]
