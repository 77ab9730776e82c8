"""How texts reach the text tower of a two-tower model: tokenised, batched, and read where the towers' embeddings pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_kd.data.distributed import process_state
from hf_kd.data.modes import evaluating
from hf_kd.data.progress import counted
from hf_kd.errors import InvalidValueError
from hf_kd.features.taps.inputs import input_device
from hf_kd.features.taps.site import record
from hf_kd.features.taps.text import text_features

BATCH = 256


class TextReader:
    """Texts on their way into one model.

    Args:
        model: An erased model whose text tap was found.
        progress: Whether a bar is shown, by the main process.

    Raises:
        InvalidValueError: For a model without a tokenizer.
    """

    def __init__(self, model: Any, progress: bool = True) -> None:
        processor = model.whole_processor
        self.tokenizer = getattr(processor, "tokenizer", None) or processor
        if self.tokenizer is None:
            raise InvalidValueError(
                f"This {type(model.inner).__name__} came without a tokenizer, so texts cannot be read. Load it from a "
                "folder that has one, or pass its processor: ErasedModel.from_model(model, processor=...)."
            )
        self.model, self.progress = model, progress and process_state().is_main_process

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of the text tower, as the zero-shot pipeline makes them: SigLIP knows only texts of full length."""
        full = str(self.model.inner.config.model_type).startswith("siglip")
        most = getattr(getattr(self.model.inner.config, "text_config", None), "max_position_embeddings", None)
        sized = {"max_length": most} if most else {}
        made = self.tokenizer(
            list(texts), padding="max_length" if full else True, truncation=bool(most), return_tensors="pt", **sized
        )
        device = input_device(self.model.inner)
        return {name: made[name].to(device) for name in ("input_ids", "attention_mask") if name in made}

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [n, d] before the eraser of the text tower, float32 on the CPU.

        Texts of about one length share a batch, as all texts of a batch are padded to its longest.
        """
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        sites, rows = list(self.model.text_sites), []
        bar = counted(range(0, len(texts), BATCH), "reading names", "batch", self.progress)
        with evaluating(self.model.inner), record(sites, "before") as take, bar as starts:
            for start in starts:
                for site in sites:
                    site.follow(self.model.inner)
                text_features(self.model.inner, self.tokens([texts[number] for number in order[start : start + BATCH]]))
                rows.append(take()[0].float().cpu())
        return torch.cat(rows)[torch.tensor(order).argsort()]

    @torch.no_grad()
    def erased(self, embeddings: Tensor) -> Tensor:
        """Embeddings [n, d] of `read` behind the eraser."""
        eraser = self.model.text_sites[0].eraser
        return embeddings if eraser is None else eraser(embeddings.to(next(eraser.buffers()).device)).cpu()
