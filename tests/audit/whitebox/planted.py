"""A small network over planted features: its head reads them as well as they can be read."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from hf_kd.audit.whitebox.network import Images, Network, WhiteBoxData
from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.linear_probe import fit_linear_probe


class Planted(nn.Module):
    """Features [n, d] as images of d colours; three blocks with BatchNorm, their mean over places, a Linear head."""

    def __init__(self, d: int, classes: int, width: int = 48):
        super().__init__()
        pairs = pairwise([d, width, width, width])
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.blocks(pixel_values).mean(dim=(2, 3))))


def white_box(data: AuditData) -> WhiteBoxData:
    """The same samples as images."""
    splits = [
        Images({"pixel_values": x[:, :, None, None].expand(-1, -1, 4, 4).contiguous()}, y)
        for x, y in ((data.train, data.train_labels), (data.test, data.test_labels))
    ]
    return WhiteBoxData(*splits, data.forget)


def network(data: AuditData, seed: int = 0, forgets: bool = False) -> tuple[Network, WhiteBoxData]:
    """A network whose head was fitted on all classes, or with zeros for the forgotten ones; and its images."""
    images = white_box(data)
    d, classes = data.train.shape[1], int(data.train_labels.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Planted(d, classes)
    with torch.no_grad():
        model.train()
        model.blocks(images.train.inputs["pixel_values"])  # statistics of BatchNorm
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        model.blocks(images.train.inputs["pixel_values"])
    made = Network(model.eval(), tuple(f"blocks.{i}" for i in range(3)), ("head",), fresh=lambda: Planted(d, classes))
    probe = fit_linear_probe(made.head_inputs(images.train), data.train_labels, tolerance=1e-4)
    with torch.no_grad():
        model.head.weight.copy_(probe.weight.T)
        model.head.bias.copy_(probe.bias)
        if forgets:
            model.head.weight[list(data.forget)] = 0
            model.head.bias[list(data.forget)] = -1e4
    return made, images
