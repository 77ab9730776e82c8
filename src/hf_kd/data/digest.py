"""What tells tensors apart: one hash of all of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from torch import Tensor

logger = logging.getLogger(__name__)


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of all distinct tensors, whatever their order and names; tied ones count once."""
    return hashlib.sha256("\n".join(sorted({_tensor_digest(tensor) for tensor in tensors})).encode()).hexdigest()


def inner_digest(model: Any) -> str | None:
    """Digest of the weights of the model inside, the same as of a file they are saved in; one pass over them.

    None where they cannot be read as plain tensors here, such as those that lie on another machine.
    """
    try:
        state = model.inner.state_dict()
        if any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in state.values()):
            state = get_state_dict_offloaded_model(model.inner)
        return tensors_digest(tensor for tensor in state.values() if isinstance(tensor, Tensor))
    except (RuntimeError, TypeError) as error:
        logger.info(f"The weights cannot be hashed here ({error}): nothing can be said of what was before.")
        return None


def _tensor_digest(tensor: Tensor) -> str:
    whole = getattr(tensor, "full_tensor", lambda: tensor)()  # one that is spread over processes too
    values = whole.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    if values.numel():
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
