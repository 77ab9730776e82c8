"""Information about a class that is left in features, and IDI (Jeon et al., arXiv 2405.17878) from it, with a probe.

The paper bounds the mutual information of features and the label "is it forgotten" by a critic trained for it. Here the
bound is that of a converged probe: I = H(Y) - held-out cross entropy, which no critic has to be trusted for, and which is
negative where the probe does worse than the prior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ._inputs import ArrayLike
from .attack_data import AuditData
from .linear_probe import fit_linear_probe

LEAST_SD = 3.0
"""IDI is undefined where original and reference differ by fewer standard deviations."""


def class_information(data: AuditData, tolerance: float = 1e-5) -> Tensor:
    """Bits about "is it forgotten" that a converged binary probe reads, one term for each test sample.

    Terms are weighted so that forgotten and retained test samples count as often as in train, whatever their numbers are.

    Args:
        data: Features and labels of both splits.
        tolerance: Gradient norm of the probe.

    Returns:
        float64 [n_test]; the mean is the estimate of I(features; Y) in bits, the sd over sqrt(n) its error.

    Example:
        >>> x = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1], [5.2, 5.0], [9.0, 0.0], [9.1, 0.2]])
        >>> data = AuditData.of(x, [0, 0, 1, 1, 2, 2], x, [0, 0, 1, 1, 2, 2], 0)
        >>> 0 < float(class_information(data).mean()) <= 0.92
        True
    """
    positive, test_positive = data.train_forget, data.test_forget
    probe = fit_linear_probe(data.train, positive.long(), scales=data.scales, tolerance=tolerance)
    log_probabilities = probe.logits(data.test).log_softmax(dim=1)
    bits = -log_probabilities.gather(1, test_positive.long().unsqueeze(1)).squeeze(1) / math.log(2)
    prior = float(positive.double().mean())
    entropy = -prior * math.log2(prior) - (1 - prior) * math.log2(1 - prior)
    share = float(test_positive.double().mean())
    weight = torch.where(test_positive, prior / share, (1 - prior) / (1 - share))
    return (entropy - bits) * weight


@dataclass(frozen=True)
class InformationDifference:
    """IDI of a network: 0 where it knows as much of the class as one that never saw it, 1 as much as the original."""

    idi: float | None
    """Signed; None where the denominator is under `LEAST_SD` of its standard deviations."""
    sd: float | None
    """Over test samples, the three networks on the same ones."""
    excess: float
    """Bits, summed over blocks: this network minus the reference. The numerator."""
    original_excess: float
    """The same of the original. The denominator."""
    original_excess_sd: float


def information_difference(
    audited: Mapping[str, ArrayLike], original: Mapping[str, ArrayLike], reference: Mapping[str, ArrayLike]
) -> InformationDifference:
    """IDI from the terms [n_test] of `class_information` at each block, of the same test samples in all three networks.

    Args:
        audited: Terms by block.
        original: Terms by block.
        reference: Terms by block, of a network that never saw the class.

    Example:
        >>> one, half, none = ({"b": torch.full((50,), bits).double()} for bits in (1.0, 0.5, 0.0))
        >>> information_difference(half, one, none).idi
        0.5
    """
    sums = [
        torch.stack([torch.as_tensor(terms, dtype=torch.float64).cpu() for terms in network.values()]).sum(dim=0)
        for network in (audited, original, reference)
    ]
    above, whole = sums[0] - sums[2], sums[1] - sums[2]
    n = len(whole)
    numerator, denominator = float(above.mean()), float(whole.mean())
    deviation = float(whole.std() / math.sqrt(n)) if n > 1 else math.inf
    if not denominator > LEAST_SD * deviation:
        return InformationDifference(None, None, numerator, denominator, deviation)
    ratio = numerator / denominator
    sd = float((above - ratio * whole).std() / math.sqrt(n)) / denominator  # of a ratio of means, first order
    return InformationDifference(ratio, sd, numerator, denominator, deviation)
