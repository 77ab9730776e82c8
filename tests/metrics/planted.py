"""Features with known content, for positive and negative controls."""

import numpy as np
import torch


def planted(seed: int = 0, n: int = 900, d: int = 8, classes: int = 3, strength: float = 4.0):
    """Gaussian classes on their own axes; class 0 lies three times as far out. Train and test features and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = strength * np.eye(classes, d)
    means[0] *= 3
    train, test = (rng.normal(size=(n, d)) + means[labels] for _ in range(2))
    return torch.from_numpy(train).float(), torch.from_numpy(labels), torch.from_numpy(test).float(), labels


def noise(seed: int = 0, n: int = 900, d: int = 8, classes: int = 3):
    """Features that know nothing of their labels."""
    return planted(seed, n, d, classes, strength=0.0)
