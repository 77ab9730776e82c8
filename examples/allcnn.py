"""AllCNN as a model of transformers, and a folder of it with fresh weights to train from.

All convolutional (Springenberg et al. 2015, All-CNN-C) with half the filters, 48 and 96, and BatchNorm: the network of the
paper's CIFAR-10 rows; 32 px, d = 96. The paper's own network ends in a 1x1 convolution to 96 channels, the average over the
image and a Linear layer. So do we: what the average gives is the pooled feature, and the Linear is the head that reads it.
(A last 1x1 convolution to C channels and then the average, as in All-CNN-C, gives the same logits: both are linear.)

    python examples/allcnn.py --output allcnn
    hf-kd train-original allcnn --import examples/allcnn.py --dataset uoft-cs/cifar10 --recipe allcnn-cifar10 \\
        --output originals/cifar10-allcnn

Every later command on the trained folder needs the same --import; a program imports this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class AllCNNConfig(PreTrainedConfig):
    model_type = "allcnn"

    filters: float = 0.5
    """Of the 96 and 192 of the original."""
    image_size: int = 32
    num_channels: int = 3


def convolution(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; the norm's shift makes a bias superfluous."""
    layer = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.ReLU())


class AllCNN(PreTrainedModel):
    config_class = AllCNNConfig
    main_input_name = "pixel_values"

    def __init__(self, config: AllCNNConfig):
        super().__init__(config)
        narrow, wide = round(96 * config.filters), round(192 * config.filters)
        self.features = nn.Sequential(
            convolution(config.num_channels, narrow),
            convolution(narrow, narrow),
            convolution(narrow, wide, stride=2),
            convolution(wide, wide),
            convolution(wide, wide),
            convolution(wide, wide, stride=2),
            convolution(wide, wide),
            convolution(wide, wide, size=1),
        )
        self.classifier = nn.Linear(wide, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool = True):
        pooled = self.features(pixel_values).mean(dim=(2, 3))
        logits = self.classifier(pooled)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


AutoConfig.register("allcnn", AllCNNConfig, exist_ok=True)
AutoModelForImageClassification.register(AllCNNConfig, AllCNN, exist_ok=True)


def processor(size: int = 32) -> ViTImageProcessorPil:
    """Images of `size` pixels in [-1, 1]: the paper's normalisation for CIFAR."""
    return ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Folder for configuration, weights and processor.")
    parser.add_argument("--labels", type=int, default=10, help="How many; train-original names them as the data does.")
    parser.add_argument("--filters", type=float, default=0.5, help="Share of the original's 96 and 192 filters.")
    arguments = parser.parse_args()

    model = AllCNN(AllCNNConfig(filters=arguments.filters, num_labels=arguments.labels))
    model.save_pretrained(arguments.output)
    processor().save_pretrained(arguments.output)
    print(f"{sum(p.numel() for p in model.parameters()):,} untrained parameters in {arguments.output}")


if __name__ == "__main__":
    main()
