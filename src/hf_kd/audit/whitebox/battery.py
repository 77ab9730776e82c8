"""All attacks of a downloader, cheapest first, on several networks and within a budget of time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hf_kd.data.progress import Steps

from .answers import answers_by_batchnorm
from .class_row import class_row_attack
from .findings import NetworkFindings
from .network import Network, WhiteBoxData, recalibrated
from .probes import BATCHNORM_IMAGES, amounts, probe_attacks
from .regrowing import no_regrowing, regrow_attack
from .relearning import SHOTS, STEPS, relearn
from .removal import removal_attacks

logger = logging.getLogger(__name__)

READ = 900
"""Test images, up to a third of them forgotten, on which networks are read while they are trained: paired, as all networks
are read on the same ones."""


@dataclass(frozen=True)
class Attack:
    """One row of the battery."""

    name: str
    run: Callable[[Network, WhiteBoxData, NetworkFindings, int], None]
    impossible: Callable[[Network, WhiteBoxData], str] = lambda network, data: ""
    """Why a network cannot be attacked so; nothing where it can."""


def _headless(network: Network, data: WhiteBoxData) -> str:
    return network.without_head


def _answers(network: Network, data: WhiteBoxData, found: NetworkFindings, seed: int) -> None:
    found.answers = list(answers_by_batchnorm(network, data))
    found.class_row = class_row_attack(_calibrated(network, data), data, seed)


def _probes(network: Network, data: WhiteBoxData, found: NetworkFindings, seed: int) -> None:
    found.probes, found.information = [], {}
    for result, information in probe_attacks(network, data, seed):
        found.probes.append(result)
        if information is not None:
            found.information[str(result.settings["block"])] = information.tolist()


def _removal(network: Network, data: WhiteBoxData, found: NetworkFindings, seed: int) -> None:
    found.removal = list(removal_attacks(_calibrated(network, data), data.balanced_test(2 * READ), seed))


def _regrown(network: Network, data: WhiteBoxData, found: NetworkFindings, seed: int) -> None:
    found.regrown = regrow_attack(_calibrated(network, data), data, seed)


def _relearning(network: Network, data: WhiteBoxData, found: NetworkFindings, seed: int) -> None:
    start, read = _calibrated(network, data), data.balanced_test(READ)
    shots = amounts(SHOTS, data.class_sizes[1])
    found.relearning = [relearn(start, read, count, seed=seed, steps=STEPS) for count in shots]


def _calibrated(network: Network, data: WhiteBoxData) -> Network:
    return recalibrated(network, data.train.rows(slice(BATCHNORM_IMAGES[-1])))


ATTACKS = (
    Attack("answers", _answers, _headless),
    Attack("probes", _probes),
    Attack("removal", _removal, _headless),
    Attack("regrown", _regrown, impossible=no_regrowing),
    Attack("relearning", _relearning, impossible=lambda network, data: network.without_rows(data.classes)),
)
"""Cheapest first, but that every network is probed before any is trained."""


def run_battery(
    networks: Mapping[str, Network],
    data: WhiteBoxData | Mapping[str, WhiteBoxData],
    *,
    budget: float | None = None,
    seed: int = 0,
    attacks: Sequence[str] | None = None,
    found: Mapping[str, NetworkFindings] | None = None,
    together: Sequence[str] | None = None,
    called: Mapping[str, str] | None = None,
    progress: bool = False,
) -> dict[str, NetworkFindings]:
    """Run each attack on every network before the next one, as long as there is time.

    An attack begins where it is expected to end in time on all networks that are shown side by side, on each of which it is
    taken to last as long as everything before it. Once it has begun on one of them it runs on the others too, even where it
    lasts longer than that: a number beside which nothing stands says little. Further networks follow while there is time.

    Args:
        networks: By name, the audited one first.
        data: Images for all of them, or for each name where their preprocessing differs.
        budget: Minutes; None for as long as it takes.
        seed: Of all that is random.
        attacks: Names among `ATTACKS`; all by default.
        found: What was found before; attacks that have run there (`seconds`) do not run again.
        together: Names of the networks that are shown side by side; all by default.
        called: What the bar calls networks, where that is another name.
        progress: Whether a bar is shown on a terminal.

    Returns:
        What was found in each, and what was left out, for want of time or because a network cannot be asked for it.
    """
    started = time.monotonic()
    results = {name: (found or {}).get(name) or NetworkFindings() for name in networks}
    images = {name: data if isinstance(data, WhiteBoxData) else data[name] for name in networks}
    wanted = [attack for attack in ATTACKS if attacks is None or attack.name in attacks]
    late: dict[str, float] = {}  # attacks that began on no network: at how many seconds they are expected to end
    unspent = 0.0
    with Steps(len(wanted) * len(networks), "weights", progress) as bar:
        for attack in wanted:
            due = []
            for name, network in networks.items():
                if attack.name in results[name].seconds:
                    continue
                reason = attack.impossible(network, images[name])
                if reason:
                    results[name].impossible[attack.name] = reason
                else:
                    due.append(name)
            beside = [name for name in due if together is None or name in together]
            took: list[float] = []
            for name, network in networks.items():
                bar.begin(f"{attack.name}: {(called or {}).get(name, name)}")
                if name not in due:
                    continue
                result, begun = results[name], time.monotonic()
                result.left_out = [other for other in result.left_out if other != attack.name]  # of an earlier budget
                if budget is not None and not (took and name in beside):
                    each = max(took) if took else (begun - started) / len(networks)
                    ahead = 1 if took else max(1, len(beside))
                    if begun - started + ahead * each > 60 * budget or (not took and name != due[0]):
                        result.left_out.append(attack.name)
                        if took:
                            unspent += each
                        else:  # with more time, what was left out of further networks before runs first
                            until = begun - started + unspent
                            late.setdefault(attack.name, until * (1 + ahead / len(networks)))
                        continue
                attack.run(network, images[name], result, seed)
                took.append(time.monotonic() - begun)
                result.seconds[attack.name] = round(took[-1], 2)
                logger.info("%s: %s took %.1f s", name, attack.name, took[-1])
    if late:  # of the later ones nothing is known: they grow by their own laws, not as those that ran
        first, needed = next(iter(late.items()))
        logger.warning(
            f"budget={budget:g} had no time for {', '.join(late)}. Here {first} begins from about "
            f"budget={math.ceil(needed / 60)} on; how long it takes, and so when the next begins, is known once it has run."
        )
    return results
