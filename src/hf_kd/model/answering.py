"""What an erased model answers: the forward of the model inside, behind the erasers and without what goes around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from hf_kd.data.modes import evaluating
from hf_kd.errors import InvalidTypeError
from hf_kd.features.taps.inputs import run
from hf_kd.features.taps.places import hidden_state_fields, without_fields
from hf_kd.features.taps.site import check_passed, follow, record

from . import label_mask as masking
from .signature import InnerSignature
from .tapped import Tapped


class Answering(Tapped):
    """The calls of an `ErasedModel` that answer."""

    also_leaking: tuple[str, ...] = ()
    """Fields that bypass the erasers, found when the model was loaded and known to no record."""

    @InnerSignature
    def forward(self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """The inner model's forward, behind the erasers. Same inputs and outputs; see the class for what is withheld."""
        inputs = kwargs | {k: v for k, v in (("pixel_values", pixel_values), ("labels", labels)) if v is not None}
        return self._answer(self.inner, inputs)

    def get_image_features(self, pixel_values: Tensor | None = None, **kwargs: Any) -> Any:
        """Erased image embeddings of a two-tower model (CLIP, SigLIP, MetaCLIP 2)."""
        inputs = kwargs | ({"pixel_values": pixel_values} if pixel_values is not None else {})
        return self._answer(self.inner.get_image_features, inputs)

    def _replicate_for_data_parallel(self) -> Any:
        raise InvalidTypeError(
            "torch.nn.DataParallel answers with copies of a model that are made anew for every forward, and they would not "
            "pass the erasers. Trainer wraps a model in it where it sees several GPUs: start one process for each "
            "(torchrun --nproc-per-node=gpu SCRIPT, or accelerate launch SCRIPT), or show it one (CUDA_VISIBLE_DEVICES=0)."
        )

    def _answer(self, call: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        return self._swap.unchanged_while(lambda: self._answer_once(call, dict(inputs)))

    def _answer_once(self, call: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        return_dict = inputs.pop("return_dict", None)
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        follow(self.inner, self.sites)
        output = call(**masking.to_inner_ids(self, inputs), return_dict=True)
        check_passed(self.sites)
        output = masking.drop_masked_columns(self, output)
        if self.is_erased and not inputs.get("output_hidden_states"):
            withheld = [*self.config.leaking, *self.also_leaking, *self.text_withheld]
            # also where config.json asks for them: only the caller can
            output = without_fields(output, [*withheld, *hidden_state_fields(output)])
        return output if return_dict or not isinstance(output, ModelOutput) else output.to_tuple()

    @torch.no_grad()
    def pooled_features(
        self, pixel_values: Tensor | None = None, stage: Literal["before", "after"] = "after", **inputs: Any
    ) -> Any:
        """Pooled features [n, d] of images, in eval mode: what passes the tap behind (or "before") its eraser.

        A tuple of them for a model with several taps.
        """
        inputs |= {} if pixel_values is None else {"pixel_values": pixel_values}
        self.find_taps()

        def read() -> list[Tensor]:
            with evaluating(self.inner), record(list(self.sites), stage) as take:
                follow(self.inner, self.sites)
                run(self.inner, inputs)
                check_passed(self.sites)
                return take()

        features = self._swap.unchanged_while(read)
        return features[0] if len(features) == 1 else tuple(features)
