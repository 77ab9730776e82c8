"""A network of your own: wrap it in 40 lines, and every part of hf_kd works on it.

The CIFAR ResNet-20 (He et al. 2016; 0.27 M parameters, d = 64) is no class of transformers. Here it becomes one: a
configuration, a `PreTrainedModel`, two registrations. Run as a script it forgets one class of CIFAR-10:

    python examples/cifar_resnet20.py --weights DIR --data DIR [--forget cat] [--k 1]
    python examples/cifar_resnet20.py --weights DIR --save FOLDER      # a checkpoint for `hf-kd ... --import THIS_FILE`

DIR of --weights holds model.safetensors (names conv1, bn1, layer{1,2,3}.{i}.{conv,bn}{1,2}, linear); DIR of --data holds
train.parquet and test.parquet with an image and a label column.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
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

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CifarResNetConfig(PreTrainedConfig):
    model_type = "cifar_resnet"

    blocks: int = 3
    image_size: int = 32
    num_channels: int = 3


class Block(nn.Module):
    """Two 3x3 convolutions; the shortcut has no parameters (option A: stride and zero-padded channels)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.stride = 2 if after > before else 1
        self.padding = (after - before) // 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class CifarResNet(PreTrainedModel):
    config_class = CifarResNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        self.conv1 = nn.Conv2d(config.num_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for stage in (1, 2, 3):
            first = Block(widths[stage - 1], widths[stage])
            rest = [Block(widths[stage], widths[stage]) for _ in range(config.blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool = True):
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits = self.linear(x.mean(dim=(2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


AutoConfig.register("cifar_resnet", CifarResNetConfig, exist_ok=True)
AutoModelForImageClassification.register(CifarResNetConfig, CifarResNet, exist_ok=True)


def load(weights: Path) -> tuple[CifarResNet, ViTImageProcessorPil]:
    """The trained network and its preprocessing (ImageNet statistics, no resize)."""
    config = CifarResNetConfig(id2label=dict(enumerate(CIFAR10)), label2id={name: i for i, name in enumerate(CIFAR10)})
    model = CifarResNet(config)
    model.load_state_dict(load_file(weights / "model.safetensors"))
    processor = ViTImageProcessorPil(do_resize=False, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    return model.eval(), processor


def main() -> None:
    from datasets import load_dataset

    from hf_kd import ErasedModel
    from hf_kd.features.heads import predictions
    from hf_kd.features.reader import ImageReader
    from hf_kd.metrics.scores import forget_retain_accuracy

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--forget", default="cat", choices=CIFAR10)
    parser.add_argument("--method", default="esc")
    parser.add_argument("--k", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.save is not None:
        for part in load(arguments.weights):
            part.save_pretrained(arguments.save)
        return
    if arguments.data is None:
        parser.error("give --data to forget a class, or --save to write a checkpoint")

    files = {split: str(arguments.data / f"{split}.parquet") for split in ("train", "test")}
    data = load_dataset("parquet", data_files=files)
    label = CIFAR10.index(arguments.forget)
    forget = data["train"].filter(lambda y: y == label, input_columns="label")
    options = {"k": arguments.k} if arguments.method == "esc" else {}

    model = ErasedModel.from_model(*load(arguments.weights)).erase(forget, arguments.method, **options)
    print(model.erasures[0])
    test = ImageReader(model, data["test"]).read()
    for name, features in (("original", test.before), ("erased", test.erased(model))):
        scores = forget_retain_accuracy(predictions(model, features), test.labels, label)
        print(f"{name}: D_ft {scores[0]:.2f} %, D_rt {scores[1]:.2f} %")
    with torch.no_grad():
        print("tap:", *model.taps)


if __name__ == "__main__":
    main()
