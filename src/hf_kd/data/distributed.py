"""One process of several: which one this is, sums over all of them, rows of all of them, and the precision they run in."""

from __future__ import annotations

import contextlib
import os
from typing import Any, cast

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather, pad_across_processes, reduce
from torch import Tensor

from hf_kd.errors import InvalidValueError

MIXED_PRECISION = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}

ABSENT = -2
"""Stands for "no row here" where processes exchange labels; -1 means a row without a label."""


def process_state() -> PartialState:
    """Which process of how many this is.

    On a machine without accelerator it has to be told that the CPU is meant, or every process would take itself for the only
    one.
    """
    return PartialState() if torch.accelerator.is_available() else PartialState(cpu=True)


def memory_room(share: float, processes: int) -> int:
    """Bytes that each of the processes on this machine may take, for all of them to take a share of the free memory."""
    return int(share * psutil.virtual_memory().available / processes)


def reduce_tensor(tensor: Tensor, how: str) -> Tensor:
    """The "sum" or "mean" of a tensor over all processes; itself where there is one."""
    if process_state().num_processes == 1:
        return tensor
    return cast(Tensor, reduce(tensor, reduction=how))  # accelerate declares what it returns for nested ones


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on the device it came from.

    Args:
        tensor: Float64, of the same shape in each process.
    """
    state = process_state()
    if state.num_processes == 1:
        return tensor
    return reduce_tensor(tensor.to(state.device), "sum").to(tensor.device)


def gather_rows(tensor: Tensor, fill: int = 0) -> Tensor:
    """Concatenate the rows of all processes, whose numbers may differ.

    Args:
        tensor: [n, ...] of this process.
        fill: What short ones are padded with.

    Returns:
        Each process's rows in turn, padded to the largest n; on the CPU where there are several processes.
    """
    state = process_state()
    if state.num_processes == 1:
        return tensor
    moved = tensor.to(state.device)
    for dim in range(moved.ndim):  # a process without rows does not know d
        moved = cast(Tensor, pad_across_processes(moved, dim=dim, pad_index=fill))
    return cast(Tensor, gather(moved)).cpu()


def precision_of(mixed_precision: str | None) -> str:
    """Which of "no", "fp16" and "bf16" is meant; by default what `accelerate launch` was told."""
    name = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if name not in MIXED_PRECISION:
        raise InvalidValueError(f"mixed_precision={name!r} is unknown; choose {', '.join(map(repr, MIXED_PRECISION))}.")
    return name


def autocast(device: torch.device, mixed_precision: str | None) -> contextlib.AbstractContextManager[Any]:
    """The forward pass in "no", "fp16" or "bf16"; by default what `accelerate launch` was told."""
    dtype = MIXED_PRECISION[precision_of(mixed_precision)]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
