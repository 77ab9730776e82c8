"""Tiny two-tower models with random weights, whole with a processor that reads images and texts."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipProcessor,
)

from . import zoo

NAMES = ["dog", "horse", "ship", "boat", "truck", "car", "bird", "frog", "tree", "house", "chair"]
WORDS = ["a", "of", "photo", "the", "this", "is", "cat", "tabby", "kitten", "animal", *NAMES]
TEMPLATES = ["a photo of a {}", "this is the {}", "{}"]
TWO_TOWERS = ("CLIPModel", "MetaClip2Model", "SiglipModel", "Siglip2Model")


def tokenizer() -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **special)


def processor(name: str) -> Any:
    if name == "SiglipModel":
        return SiglipProcessor(SiglipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer())
    if name == "Siglip2Model":
        from transformers import Siglip2ImageProcessorPil, Siglip2Processor

        return Siglip2Processor(Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16), tokenizer())
    sides = {"height": 32, "width": 32}
    return CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=sides), tokenizer())


def two_towers(name: str, seed: int = 0, vision_layers: int = 2) -> tuple[Any, Any]:
    """The model and its processor."""
    config = zoo.CASES[name].config
    text = config["text_config"] | {"max_position_embeddings": 64}  # as long as the pipeline pads SigLIP's
    vision = config["vision_config"] | {"num_hidden_layers": vision_layers}
    return zoo.build(name, seed, text_config=text, vision_config=vision), processor(name)


OTHERS = {
    "AlignModel": {"vision_config": zoo._EFFICIENTNET | {"depthwise_padding": []}, "projection_dim": 8},
    "AltCLIPModel": {},
    "ChineseCLIPModel": {},
    "GroupViTModel": {
        "vision_config": {"depths": [1, 1, 1], "num_hidden_layers": 3, "num_group_tokens": [4, 2, 0],
                          "num_output_groups": [4, 2, 2]},
        "projection_intermediate_dim": 32,
    },
    "Aimv2Model": {},
}  # fmt: skip
"""Further models with two towers, and what their configurations have of their own."""


def other_towers(name: str) -> tuple[Any, Any]:
    """One of `OTHERS` and a processor, as `two_towers`."""
    own, cls = OTHERS[name], getattr(transformers, name)
    text = zoo._TEXT | {"max_position_embeddings": 70, "project_dim": 24}
    text = text if name == "AltCLIPModel" else {key: value for key, value in text.items() if key != "project_dim"}
    vision = own.get("vision_config", {})
    vision = vision if name == "AlignModel" else zoo._vit(projection_dim=24) | vision
    config = {"projection_dim": 24, **own, "text_config": text, "vision_config": vision}
    return zoo.randomise(cls(cls.config_class(**config))).eval(), processor("CLIPModel")
