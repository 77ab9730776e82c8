"""Every vision architecture of transformers as a tiny model with random weights: the table behind the contract tests.

One `Case` per class says how to build it and what is known about it from reading its source, written down here on its
own so that the search for taps is compared with something. Weights and BatchNorm statistics are randomised: with the
default initialisation of tiny models pooled features are almost zero and everything compares equal.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

NUM_LABELS = 5

NOT_BUILT = {
    "TimmWrapperForImageClassification": "needs timm, and is as many architectures as timm has",
    "ShieldGemma2ForImageClassification": "a language model whose logits are two words: there is no pooled vector",
}

LEVIT_CACHE = "LeViT keeps attention_bias_cache, a plain dict of tensors with their graph: not copied, not cast"


@dataclass(frozen=True)
class Case:
    """How to build one class, and what it does with its pooled features."""

    name: str
    config: dict[str, Any]
    dim: int
    """d."""
    heads: tuple[str, ...] = ("classifier",)
    """The modules that map pooled features to logits; none for embedding models."""
    tower: str | None = None
    """The submodule whose `pooler_output` is what the heads take, where there is one."""
    image: tuple[int, ...] = (3, 32, 32)
    """Shape of one sample of `pixel_values`."""
    labels: bool = True
    """Whether forward takes `labels=` and returns a loss."""
    fold_tolerance: float = 1e-5
    faults: dict[str, str] = field(default_factory=dict)
    """What the plain model cannot do, without anything of ours: {what: why}."""

    @property
    def is_text_image(self) -> bool:
        return "text_config" in self.config


def _vit(**extra: Any) -> dict[str, Any]:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return size | {"image_size": 32, "patch_size": 8} | extra


def _dino(**extra: Any) -> dict[str, Any]:
    config = _vit(mlp_ratio=2, **extra)
    del config["intermediate_size"]
    return config


_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
_CONVNEXT_V2 = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "image_size": 32}
_CONVNEXT = _CONVNEXT_V2 | {"layer_scale_init_value": 0.5}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1]}
_LEVIT = {
    "image_size": 32,
    "hidden_sizes": [16, 24, 32],
    "num_attention_heads": [1, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
_PVT = {"image_size": 32, "hidden_sizes": [8, 16, 24, 24], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}
_PERCEIVER = {
    "num_latents": 8,
    "d_latents": 32,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
    "image_size": 16,
}
_TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_TOWERS = {"vision_config": _vit(projection_dim=24), "text_config": _TEXT | {"projection_dim": 24}}
_SIGLIP_TOWERS = {"vision_config": _vit(), "text_config": _TEXT | {"projection_size": 32}}
_SIGLIP2_VISION = {k: v for k, v in _vit().items() if k != "image_size"} | {"num_patches": 16}
_SIGLIP2_TOWERS = {"vision_config": _SIGLIP2_VISION, "text_config": _TEXT | {"projection_size": 32}}
_SIGLIP2_IMAGE = (16, 3 * 8 * 8)
_EFFICIENTNET = {
    "image_size": 32,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.25,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "hidden_dim": 320,
}
_HGNET = {
    "embedding_size": 8,
    "depths": [1, 1],
    "hidden_sizes": [16, 32],
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16],
    "stage_mid_channels": [8, 8],
    "stage_out_channels": [16, 32],
    "stage_num_blocks": [1, 1],
    "stage_downsample": [False, True],
    "stage_downsample_strides": [2, 2],
    "stage_light_block": [False, True],
    "stage_kernel_size": [3, 3],
    "stage_numb_of_layers": [1, 1],
}
_TEXTNET = {
    "image_size": [64, 64],
    "stem_out_channels": 8,
    "hidden_sizes": [8, 8, 16, 24],
    "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3]], [[3, 3]]],
    "conv_layer_strides": [[1], [2], [2]],
}
_PPLCNET = {
    "scale": 0.25,
    "class_expand": 48,
    "block_configs": [
        [[3, 16, 32, 1, False]],
        *([[3, 32, 32, stride, squeeze]] for stride, squeeze in ((2, False), (1, False), (2, False), (1, True))),
    ],
}

_CLASSIFIERS = [
    Case("BeitFor", _vit(), 32, tower="beit"),
    Case("BitFor", {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "num_groups": 2}, 24,
         ("classifier.1",), "bit"),
    Case("CLIPFor", _TOWERS, 32),
    Case("ConvNextFor", _CONVNEXT, 20, tower="convnext"),
    Case("ConvNextV2For", _CONVNEXT_V2, 20, tower="convnextv2"),
    Case("CvtFor", {"embed_dim": [8, 16, 32], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}, 32),
    Case("Data2VecVisionFor", _vit(), 32, tower="data2vec_vision"),
    Case("DeiTFor", _vit(), 32),
    Case("DeiTForWithTeacher", _vit(), 32, ("cls_classifier", "distillation_classifier"), labels=False),
    Case("DinatFor", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "kernel_size": 3}, 16, tower="dinat"),
    Case("Dinov2For", _dino(), 64),
    Case("Dinov2WithRegistersFor", _dino(num_register_tokens=2), 64),
    Case("DonutSwinFor", _SWIN, 16, tower="donut"),
    Case("EfficientNetFor", _EFFICIENTNET, 320, tower="efficientnet"),
    Case("FocalNetFor", {"image_size": 32, "embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                         "focal_levels": [1, 1], "focal_windows": [3, 3]}, 16, tower="focalnet"),
    Case("HGNetV2For", _HGNET, 32, ("fc",)),
    Case("HieraFor", {"image_size": [32, 32], "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1],
                      "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1,
                      "masked_unit_size": [4, 4], "masked_unit_attention": [True, False]}, 16, tower="hiera"),
    Case("IJepaFor", _vit(), 32),
    Case("ImageGPTFor", {"vocab_size": 17, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}, 32,
         ("score",), image=(16,)),
    Case("LevitFor", _LEVIT, 32, tower="levit", faults={"deepcopy": LEVIT_CACHE, "cast": LEVIT_CACHE}),
    Case("LevitForWithTeacher", _LEVIT, 32, ("classifier", "classifier_distill"), "levit", labels=False,
         faults={"deepcopy": LEVIT_CACHE, "cast": LEVIT_CACHE}),
    Case("MetaClip2For", _TOWERS, 32),
    Case("MobileNetV1For", {"image_size": 32, "depth_multiplier": 0.125}, 128, tower="mobilenet_v1"),
    Case("MobileNetV2For", {"image_size": 32, "depth_multiplier": 0.125, "finegrained_output": False}, 160,
         tower="mobilenet_v2"),
    Case("MobileViTFor", {"image_size": 32, "hidden_sizes": [8, 12, 16], "num_attention_heads": 2,
                          "neck_hidden_sizes": [8, 8, 8, 12, 12, 16, 40]}, 40, tower="mobilevit"),
    Case("MobileViTV2For", {"image_size": 64, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [16, 16, 16],
                            "width_multiplier": 0.25}, 128, tower="mobilevitv2", image=(3, 64, 64)),
    *(Case(f"PerceiverFor:{kind}", _PERCEIVER, 32, ("perceiver.decoder.decoder.final_layer",), image=(3, 16, 16))
      for kind in ("Learned", "Fourier", "ConvProcessing")),
    Case("PoolFormerFor", {"hidden_sizes": [8, 12, 16, 20], "depths": [1] * 4}, 20),
    Case("PPLCNetFor", _PPLCNET, 48, ("head",), labels=False),
    Case("PvtFor", _PVT, 24),
    Case("PvtV2For", _PVT, 24),
    Case("RegNetFor", _RESNET | {"groups_width": 8}, 24, ("classifier.1",), "regnet"),
    Case("ResNetFor", _RESNET, 24, ("classifier.1",), "resnet"),
    Case("SegformerFor", {"hidden_sizes": [8, 16, 24, 24], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}, 24),
    Case("SiglipFor", _SIGLIP_TOWERS, 32),
    Case("Siglip2For", _SIGLIP2_TOWERS, 32, image=_SIGLIP2_IMAGE),
    Case("SwiftFormerFor", {"image_size": 64, "depths": [1] * 4, "embed_dims": [8, 12, 16, 24], "mlp_ratio": 2}, 24,
         ("head", "dist_head"), image=(3, 64, 64)),
    Case("SwinFor", _SWIN, 16, tower="swin"),
    Case("Swinv2For", _SWIN, 16, tower="swinv2"),
    Case("TextNetFor", _TEXTNET, 24, ("fc",), image=(3, 64, 64)),
    Case("ViTFor", _vit(), 32),
    Case("ViTMSNFor", _vit(), 32),
]  # fmt: skip


def _full_name(short: str) -> str:
    stem, _, rest = short.rpartition("For")
    return f"{stem}ForImageClassification{rest.lstrip(':')}"


CLASSIFIERS: dict[str, Case] = {
    (name := _full_name(case.name)): Case(**(vars(case) | {"name": name})) for case in _CLASSIFIERS
}

EMBEDDERS: dict[str, Case] = {
    case.name: case
    for case in [
        Case("ViTModel", _vit(), 32, ()),
        Case("Dinov2Model", _dino(), 32, ()),
        Case("DINOv3ViTModel", _vit(num_register_tokens=2), 32, ()),
        Case("DINOv3ConvNextModel", _CONVNEXT, 20, ()),
        Case("SiglipVisionModel", _vit(), 32, ()),
        Case("Siglip2VisionModel", _SIGLIP2_VISION, 32, (), image=_SIGLIP2_IMAGE),
        Case("CLIPVisionModelWithProjection", _vit(projection_dim=24), 24, ()),
        Case("CLIPModel", _TOWERS | {"projection_dim": 24}, 24, ()),
        Case("MetaClip2Model", _TOWERS | {"projection_dim": 24}, 24, ()),
        Case("SiglipModel", _SIGLIP_TOWERS, 32, ()),
        Case("Siglip2Model", _SIGLIP2_TOWERS, 32, (), image=_SIGLIP2_IMAGE),
    ]
}

CASES = CLASSIFIERS | EMBEDDERS


def known_classes() -> set[str]:
    """Names of all image-classification classes that the installed transformers has."""
    names: set[str] = set()
    for entry in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values():
        names.update((entry,) if isinstance(entry, str) else entry)
    return names


def build(name: str, seed: int = 0, **config: Any) -> nn.Module:
    """A tiny model of the class, random but the same for the same seed, in eval mode. `config` overrides entries."""
    return copy.deepcopy(built(name, seed)) if not config else _make(name, seed, config)


@functools.cache
def built(name: str, seed: int = 0) -> nn.Module:
    """The same without a copy, for those who only read."""
    return _make(name, seed, {})


def _make(name: str, seed: int, config: dict[str, Any]) -> nn.Module:
    case = CASES[name]
    cls = getattr(transformers, name)
    if name.startswith("Dinat"):
        _stand_in_for_natten()
    settings = dict(case.config)
    if case.heads:
        settings["num_labels"] = NUM_LABELS
    model = cls(cls.config_class(**(settings | config)))
    return randomise(model, seed).eval()


def inputs(name: str, batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """A random batch for the class, under the input names its processor uses."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    if name.startswith("ImageGPT"):
        return {"input_ids": torch.randint(16, (batch, *case.image), generator=generator)}
    made = {"pixel_values": torch.randn(batch, *case.image, generator=generator)}
    if name.startswith("Siglip2"):
        side = math.isqrt(case.image[0])
        made["pixel_attention_mask"] = torch.ones(batch, case.image[0], dtype=torch.long)
        made["spatial_shapes"] = torch.full((batch, 2), side)
    if case.is_text_image and not case.heads:
        tokens = torch.randint(3, 40, (batch, 6), generator=generator)
        tokens[:, -1] = 2
        made |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return made


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and BatchNorm statistic a random value of sensible size, so that no layer is nearly idle."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and name.endswith("weight"):
                fan_in = parameter[0].numel()
                parameter.copy_(1.5 * noise(parameter) / math.sqrt(fan_in))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise(parameter))
            elif name.endswith("weight"):  # of a normalisation
                parameter.copy_(1 + 0.2 * noise(parameter))
            else:  # tokens, position embeddings, layer scales, temperatures
                parameter.copy_(0.5 + 0.5 * noise(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(0.3 * noise(module.running_mean))
                module.running_var.copy_(1 + 0.5 * noise(module.running_var).tanh())
    return model


def _stand_in_for_natten() -> None:
    """Let Dinat run without natten: its neighbourhood attention is replaced by its value projection.

    A stand-in with honest shapes: evidence for the path from the pooled features to the head, and for nothing before.
    """
    from transformers.models.dinat import modeling_dinat

    if modeling_dinat.is_natten_available():
        return
    modeling_dinat.requires_backends = lambda *args: None

    def values_only(self, hidden_states: Tensor, output_attentions: bool | None = False) -> tuple:
        return (self.value(hidden_states), None) if output_attentions else (self.value(hidden_states),)

    modeling_dinat.NeighborhoodAttention.forward = values_only
