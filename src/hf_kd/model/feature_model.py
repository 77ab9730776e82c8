"""What `AutoModel` loads of an erased model: its erased features, where `ErasedModel` answers with logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_kd.features.taps.inputs import run
from hf_kd.features.taps.site import check_passed, follow, record

from .erased_model import ErasedModel
from .signature import InnerSignature


class ErasedFeatureModel(ErasedModel):
    """An `ErasedModel` that answers with features, as `AutoModel` and the image-feature-extraction pipeline ask for them.

    It loads the folder of an `ErasedModel` and saves one. An embedding model answers as an `ErasedModel` does, for its
    answer is erased features already.
    """

    @InnerSignature
    def forward(self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """The erased pooled features of images.

        Args:
            pixel_values: Images [n, C, H, W], or whatever else the model inside takes, by its names.
            labels: Not used: features have no loss.
            **kwargs: Further inputs of the model inside.

        Returns:
            `pooler_output` [n, d], equal to `pooled_features` in eval mode; of several taps one beside another, [n, sum
            of d]. There is no `last_hidden_state`: it bypasses the eraser. `hidden_states` and `attentions` only where
            they are asked for by name, not erased.

        Raises:
            NotErasedError: The forward did not pass the eraser.
        """
        inputs = kwargs | ({} if pixel_values is None else {"pixel_values": pixel_values})
        of_images = "input_ids" not in inputs and hasattr(self.inner, "get_image_features")
        taps = self.find_taps()
        if not of_images and not any(tap.heads for tap in taps):
            return super().forward(**inputs)
        answer: Any = self._features_once  # `torch.compiler.disable` says nothing of what it makes of a method
        return self._swap.unchanged_while(lambda: answer(dict(inputs)))

    @torch.compiler.disable  # graphs do not record what passes a tap
    def _features_once(self, inputs: dict[str, Any]) -> Any:
        return_dict = inputs.pop("return_dict", None)
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        with record(list(self.sites), detach=False) as take:
            follow(self.inner, self.sites)
            output = run(self.inner, inputs | {"return_dict": True})
            check_passed(self.sites)
            features = torch.cat(take(), dim=-1)
        asked = {
            name: getattr(output, name, None)
            for name in ("hidden_states", "attentions")
            if inputs.get(f"output_{name}")
        }
        answer = BaseModelOutputWithPooling(pooler_output=features, **asked)
        return answer if return_dict else answer.to_tuple()
