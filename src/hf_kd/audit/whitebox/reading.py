"""Features of all blocks in one pass: pooled for every image, as 4x4 maps for some.

Nothing larger than a batch of hidden states is ever kept: pooled features are [n, channels], maps are at most 64 channels
(the principal ones) at 16 places in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kd.audit.hidden_states import block_outputs, grid_of
from hf_kd.data.hidden_state import as_map, pooled
from hf_kd.data.modes import evaluating
from hf_kd.features.taps.inputs import run
from hf_kd.methods.erasers.moments import wide
from hf_kd.metrics._inputs import first_rows

from .network import Images, Network, WhiteBoxData

SIDE = 4
CHANNELS = 64
"""Of a map at most; of more, the directions of greatest variance over places and images are kept."""

TAP = "tap"
"""The name of the pooled features that the heads are fed with, where they are no block's."""


@dataclass(frozen=True, eq=False)
class BlockFeatures:
    """Features of one set of images, by block and, where there are heads, at their inputs."""

    pooled: dict[str, Tensor]
    """float32 [n, d]."""
    maps: dict[str, Tensor]
    """float16 [m, 16 c] of some images; blocks without a grid are left out."""
    map_rows: Tensor
    """Their numbers [m]."""


@dataclass
class _Reader:
    """One pass over train and one over test, which share the channels that maps keep."""

    network: Network
    channels: dict[str, Tensor] = field(default_factory=dict)
    tap_is_last: bool | None = None
    """Whether the heads are fed with the mean of the last block, which is then read once."""

    def read(self, images: Images, map_rows: int) -> BlockFeatures:
        model, blocks, heads = self.network.model, self.network.blocks, self.network.heads
        tapped: list[Tensor] = []
        parts: dict[str, list[Tensor]] = {}
        maps: dict[str, list[Tensor]] = {}
        done, chosen = 0, first_rows(images.labels, map_rows) if map_rows else images.labels[:0]
        mapped = torch.zeros(len(images), dtype=torch.bool)
        mapped[chosen.cpu()] = True
        with (
            evaluating(model),
            torch.no_grad(),
            block_outputs(model, blocks) as take,
            self.network.fed(heads) as fed,
        ):
            for part in images.batches():
                run(model, part.inputs)
                here = mapped[done : done + len(part)]
                for name, hidden in take(len(part)).items():
                    parts.setdefault(name, []).append(pooled(hidden))
                    if here.any():
                        found = self._map(name, hidden if here.all() else hidden[here], part)
                        if found is not None:
                            maps.setdefault(name, []).append(found)
                tapped += [fed()] if heads else []
                done += len(part)
        joined = {name: torch.cat(rows) for name, rows in parts.items()}
        if tapped:
            tap = torch.cat(tapped)
            if self.tap_is_last is None:
                self.tap_is_last = bool(joined) and _same(tap, list(joined.values())[-1])
            if not self.tap_is_last:
                joined[TAP] = tap
        return BlockFeatures(joined, {name: torch.cat(rows) for name, rows in maps.items()}, chosen)

    def _map(self, name: str, hidden: Tensor, images: Images) -> Tensor | None:
        pixels = next((value for value in images.inputs.values() if value.ndim == 4), None)
        grid = None if pixels is None else grid_of(hidden, (pixels.shape[-2], pixels.shape[-1]))
        if grid is None or min(grid) < 2:
            return None
        rows, columns = grid
        places = as_map(hidden).float()[:, :, -rows * columns :]
        if places.shape[1] > CHANNELS:
            if name not in self.channels:
                flat = wide(places.transpose(1, 2).flatten(0, 1))
                axes = torch.linalg.eigh(torch.cov(flat.T)).eigenvectors[:, -CHANNELS:]
                self.channels[name] = axes.float().to(places.device)
            places = torch.einsum("ncp,ck->nkp", places, self.channels[name])
        places = places.unflatten(2, (rows, columns))
        return F.adaptive_avg_pool2d(places, (min(SIDE, rows), min(SIDE, columns))).flatten(1).half()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


def read_blocks(
    network: Network, data: WhiteBoxData, map_rows: tuple[int, int] = (0, 0)
) -> tuple[BlockFeatures, BlockFeatures]:
    """Features of train and test at every block and at the tap, on the network's device.

    Args:
        network: In eval mode while it is read.
        data: Its images.
        map_rows: Of how many images of train and of test there are maps, two of every class among them; none by default.
    """
    reader = _Reader(network)
    return reader.read(data.train, map_rows[0]), reader.read(data.test, map_rows[1])
