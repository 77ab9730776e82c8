"""What the measures of identities share: queries and gallery, the centre of the retained, and which images are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, as_columns, as_features, as_labels
from .scaling import unit_rows

SIMILARITIES = ("cosine", "centred")


def query_and_gallery(
    queries: ArrayLike,
    query_identities: ArrayLike,
    gallery: ArrayLike,
    gallery_identities: ArrayLike,
    erased: Sequence[int],
    similarity: str,
) -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
    """Unit rows and labels of both, minus the centre of the gallery's retained identities where that is asked for."""
    q = as_features(queries, "queries")
    g = as_columns(gallery, q.shape[1], "gallery images", like="queries").to(q.device)
    q_labels = as_labels(query_identities, len(q), name="query identities").numpy()
    g_labels = as_labels(gallery_identities, len(g), name="gallery identities").numpy()
    centre = centre_of(g, ~np.isin(g_labels, np.asarray(list(erased), dtype=np.int64)), similarity)
    return unit_rows(q - centre)[0], q_labels, unit_rows(g - centre)[0], g_labels


def centre_of(embeddings: Tensor, retained: np.ndarray, similarity: str) -> Tensor:
    """What to subtract from every embedding, float64 [d]."""
    if similarity not in SIMILARITIES:
        raise InvalidValueError(f"similarity={similarity!r}; expected 'cosine' or 'centred'.")
    if similarity == "cosine":
        return embeddings.new_zeros(embeddings.shape[1], dtype=torch.float64)
    if not retained.any():
        raise InvalidValueError("Every identity is erased; similarity='centred' needs retained ones for the mean.")
    return embeddings[torch.from_numpy(retained).to(embeddings.device)].to(torch.float64).mean(dim=0)


def erased_mask(labels: np.ndarray, erased: Sequence[int], name: str) -> np.ndarray:
    """Which rows [n] are of erased identities; an error where none is."""
    mask = np.isin(labels, np.asarray(list(erased), dtype=np.int64))
    if not mask.any():
        raise InvalidValueError(
            f"None of the erased identities ({listed(erased)}) occurs in {name}; pass images that show them."
        )
    return mask


def listed(erased: Sequence[int]) -> str:
    """Up to five of them, for a message."""
    return ", ".join(map(str, list(erased)[:5])) or "none given"


def percent(shares: np.ndarray) -> float:
    """Their mean, as percent."""
    return 100 * float(np.mean(shares))


def rounded(cosines: Tensor) -> np.ndarray:
    """Cosines of equal vectors can differ in the last bits, by their place in the product; they have to be ties."""
    return cosines.cpu().numpy().round(12)


def drawn_images(labels: np.ndarray, is_erased: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Row numbers, ascending: all, or `most` of them, identity by identity in random order and the erased first."""
    if len(labels) <= most:
        return np.arange(len(labels))
    generator = np.random.default_rng(seed)
    _, identity = np.unique(labels, return_inverse=True)
    place = generator.permutation(identity.max() + 1)[identity]
    order = np.lexsort((generator.random(len(labels)), place))
    inside, outside = order[is_erased[order]], order[~is_erased[order]]
    inside = inside[: max(most // 2, most - len(outside))]
    return np.sort(np.concatenate([inside, outside[: most - len(inside)]]))
