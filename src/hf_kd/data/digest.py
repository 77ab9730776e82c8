"""What tells tensors apart: one hash of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of all distinct tensors, whatever their order and names; tied ones count once."""
    return hashlib.sha256("\n".join(sorted({_tensor_digest(tensor) for tensor in tensors})).encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    whole = getattr(tensor, "full_tensor", lambda: tensor)()  # one that is spread over processes too
    values = whole.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    if values.numel():
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
