"""What a downloader finds, in words: from the data of `access="weights"` in a report to verdict, summary and screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_kd.metrics.equal_accuracy import ALONE

VERSIONS = {"erased": "this model", "original": "the original", "reference": "the first reference"}


def downloader_sentence(weights: Mapping[str, Any], outside: float | None = None) -> str:
    """On `access="weights"`: the strongest attack on this model, beside the original and never-seen networks.

    Args:
        weights: `best`: percent of the forgotten images, by `erased`, `original`, `reference`; maybe `name`, the attack.
            `strongest`: details of the same, `R` among them: percent of the other classes' images. `left_out`: by network,
            the attacks that the budget had no time for.
        outside: Percent that an attacker on the features reads, which whoever has the weights reads at least.

    Returns:
        One sentence, and one more on what the budget left out; nothing where nothing is known.
    """
    best, skipped = weights.get("best") or {}, left_out_words(weights.get("left_out") or {})
    own = best.get("erased")
    if own is None:
        return f"What whoever downloads the weights reads was not measured. {skipped}" if skipped else ""
    told = f"Whoever downloads the weights reads {own:.0f} %"
    if outside is not None and round(outside) > round(own):
        told = (
            f"Whoever downloads the weights reads at least the {outside:.0f} % that are read from the features; the "
            f"strongest attack on the bare network reads {own:.0f} %"
        )
    details = (weights.get("strongest") or {}).get("erased") or {}
    about = [f"by {best['name']}"] if best.get("name") else []
    about += [f"at {details['false_alarms']:.0f} % false alarms"] if details.get("false_alarms") is not None else []
    beside = [
        f"{name} {best[key]:.0f} %" if best.get(key) is not None else f"{name}: not measured"
        for key, name in (("original", "from the original"), ("reference", "from a network that never saw it"))
        if key == "original" or best.get(key) is not None
    ]
    inside = "; ".join(part for part in (", ".join(about), ", ".join(beside) + _less_alike(weights)) if part)
    return f"{told} ({inside}).{f' {skipped}' if skipped else ''}"


def _less_alike(weights: Mapping[str, Any]) -> str:
    """That the never-seen network is more or less accurate: a better one is read better, whether it saw the class or not."""
    own, other = ((weights.get("strongest") or {}).get(key, {}).get("R") for key in ("erased", "reference"))
    if own is None or other is None or abs(other - own) <= ALONE:
        return ""
    return f", which knows the others {'better' if other > own else 'worse'} by {abs(other - own):.0f} points"


def left_out_words(left_out: Mapping[str, Sequence[str]]) -> str:
    """What the budget had no time for: once where it is the same for all networks, else by network.

    Args:
        left_out: By network: names of attacks.

    Returns:
        A sentence; nothing where nothing was left out.
    """
    networks: dict[tuple[str, ...], list[str]] = {}
    for version, attacks in left_out.items():
        networks.setdefault(tuple(attacks), []).append(VERSIONS.get(version, version))
    if len(networks) == 1 and "erased" in left_out:
        networks = {attacks: [] for attacks in networks}
    parts = [
        ", ".join(attacks) + (f" of {' and '.join(names)}" if names else "")
        for attacks, names in networks.items()
        if attacks
    ]
    return f"The budget had no time for {'; '.join(parts)}." if parts else ""
