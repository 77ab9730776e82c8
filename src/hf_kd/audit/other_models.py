"""Models that stand beside the audited one: its original, references."""

from __future__ import annotations

import os
from typing import Any

from hf_kd.features.protocol import TappedModel
from hf_kd.features.taps.inputs import input_device


def wrapped(model: TappedModel, source: Any) -> TappedModel:
    """Another model, wrapped as the audited one is where it is not yet; one that is named goes to where that one is.

    Args:
        model: The audited model.
        source: An `ErasedModel`, any `PreTrainedModel`, or the name or folder of one.
    """
    own: Any = type(model)
    if isinstance(source, str | os.PathLike):
        source = own.from_pretrained(source).to(input_device(model.inner))
        source.processor = source.processor or model.processor
    return source if isinstance(source, own) else own.from_model(source, processor=model.processor)
