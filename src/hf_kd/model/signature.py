"""`forward` with the signature of the model inside: `Trainer` keeps the columns of a data set that it names."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn


class InnerSignature:
    """Decorator for the `forward` of a wrapper: on an instance it says what the forward of `instance.inner` takes."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        functools.update_wrapper(cast(Any, self), function)  # which asks for a callable and only writes to it

    def __get__(self, instance: nn.Module | None, owner: type | None = None) -> Any:
        if instance is None:
            return self._function
        if torch.compiler.is_compiling():
            return functools.partial(self._function, instance)  # which can be traced
        inner = instance.__dict__.get("_modules", {}).get("inner")
        if inner is None:
            return types.MethodType(self._function, instance)
        return types.MethodType(_signed(self._function, type(inner)), instance)


@functools.lru_cache(maxsize=64)
def _signed(function: types.FunctionType, inner: type[nn.Module]) -> types.FunctionType:
    """A copy of a function with the signature of a class's forward."""
    copied = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__, copied.__doc__, copied.__qualname__ = (
        function.__kwdefaults__,
        function.__doc__,
        function.__qualname__,
    )
    copied.__signature__ = inspect.signature(inner.forward)
    return copied
