"""The map of cover erasure: some features become one of a few constant points, all others stay bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from .base import Eraser

KEPT, FORGOTTEN = -1, -2
"""Roles of classes that are no cover; the role of a cover class is its row among the prototypes."""


class CoverMap(Eraser):
    """A(z) = P_argmax_M s(z) where the head sees a forgotten class, P_r where its retained answer r is a cover class, and z
    elsewhere.

    s is affine and shares the forgotten features out; a close call between a forgotten class and a cover class r is P_r.
    Decides by its own copy of the head, sample by sample, without randomness. Everything that is not replaced is returned
    bit for bit.

    Args:
        dim: d.
        num_labels: C, of the head.
        forgotten: The forgotten classes, in the head's ids.
        cover: The cover classes, in the order of `prototypes`.

    Raises:
        InvalidValueError: For classes that the head does not have.
    """

    kind = "cover"
    is_linear = False
    is_projection = True

    def __init__(self, dim: int, num_labels: int, forgotten: Sequence[int], cover: Sequence[int]) -> None:
        super().__init__(dim)
        self.forgotten, self.cover = tuple(forgotten), tuple(cover)
        if not {*self.forgotten, *self.cover} <= set(range(num_labels)):
            raise InvalidValueError(
                f"Classes {self.forgotten} and {self.cover} are not all among the {num_labels} of the head."
            )
        self.register_buffer("weight", torch.zeros(num_labels, dim))
        self.register_buffer("bias", torch.zeros(num_labels))
        self.register_buffer("prototypes", torch.zeros(len(self.cover), dim))
        self.register_buffer("share_weight", torch.zeros(len(self.cover), dim))
        self.register_buffer("share_bias", torch.zeros(len(self.cover)))
        self.register_buffer("limits", torch.zeros(3))
        self.register_buffer("roles", torch.full((num_labels,), float(KEPT)))  # transformers casts integers on loading
        self.weight: Tensor
        """W of the head [C, d]."""
        self.bias: Tensor
        """b of the head [C]."""
        self.prototypes: Tensor
        """P_c of the cover classes [|M|, d]."""
        self.share_weight: Tensor
        self.share_bias: Tensor
        """s(z) = S z + t: S [|M|, d], t [|M|]."""
        self.limits: Tensor
        """tau; the margin between the two largest logits above which anything is replaced (-inf: always); the margin of a
        forgotten class up to which it is a close call."""
        self.roles: Tensor
        """Of each class [C], as a float: row of its prototype, `KEPT` or `FORGOTTEN`."""

    def erase(self, features: Tensor) -> Tensor:
        rows, replaced = self.decide(features)
        prototypes = self.prototypes.to(features.device, features.dtype)
        return torch.where(replaced[..., None], prototypes[rows], features)

    def decide(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Which features are replaced, and by what.

        Args:
            features: [..., d].

        Returns:
            The row of `prototypes` that each feature would get [...], and whether it is replaced at all [...].
        """
        device, dtype = features.device, features.dtype
        weight, bias, share_weight, share_bias, limits = (
            b.to(device, dtype) for b in (self.weight, self.bias, self.share_weight, self.share_bias, self.limits)
        )
        roles = self.roles.to(device, torch.long)
        logits = features @ weight.T + bias
        retained, answer = logits.masked_fill(roles == FORGOTTEN, -torch.inf).max(dim=-1)
        margin = logits.masked_fill(roles != FORGOTTEN, -torch.inf).amax(dim=-1) - retained
        seen, role = margin > limits[0], roles[answer]
        shared = (features @ share_weight.T + share_bias).argmax(dim=-1)
        rows = torch.where(seen & ((margin > limits[2]) | (role < 0)), shared, role.clamp(min=0))
        first, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
        return rows, (seen | (role >= 0)) & (first - second > limits[1])

    @property
    def rank_removed(self) -> int:
        return 0

    @property
    def condition_number(self) -> float:
        return float("inf")

    def spec(self) -> dict[str, Any]:
        return {
            "dim": self.dim,
            "num_labels": len(self.bias),
            "forgotten": list(self.forgotten),
            "cover": list(self.cover),
        }

    def own_roles(self) -> Tensor:
        """The roles [C] that follow from the forgotten and the cover classes."""
        roles = torch.full_like(self.roles, KEPT)
        roles[list(self.forgotten)] = FORGOTTEN
        roles[list(self.cover)] = torch.arange(len(self.cover)).to(roles)
        return roles

    def check(self) -> None:
        prototypes, weight, bias = (each.cpu().double() for each in (self.prototypes, self.weight, self.bias))
        own = (prototypes @ weight.T + bias).argmax(dim=1).tolist() == list(self.cover)
        finite = all(bool(torch.isfinite(buffer).all()) for name, buffer in self.named_buffers() if name != "limits")
        finite = finite and not bool(torch.isnan(self.limits).any())
        if not (finite and torch.equal(self.own_roles(), self.roles) and own):
            raise InvalidValueError(
                "The prototypes of a cover eraser have to be answered as their own classes, and its roles to be those its "
                "description names: the eraser was not loaded or is damaged."
            )
