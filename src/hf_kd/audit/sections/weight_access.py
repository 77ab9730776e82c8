"""The section "What a downloader finds": every attack of the battery, beside original, reference and chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any

from hf_kd.audit.downloader import VERSIONS, left_out_words
from hf_kd.audit.schema import Quantity, Score, Section, scores_of
from hf_kd.audit.whitebox.class_row import ROW
from hf_kd.audit.whitebox.findings import NetworkFindings
from hf_kd.audit.whitebox.relearning import RelearningCurve
from hf_kd.metrics.attack_data import AttackResult
from hf_kd.metrics.information import InformationDifference, information_difference
from hf_kd.metrics.weight_signature import PartSignature

Pick = Callable[[NetworkFindings], AttackResult | None]

PROBES = ("linear", "mlp", "k-nn", "linear on maps")

SIGNATURE_NOTE = (
    "weights of ...: no attack. moved is how far the weights of a part are from the original's, as a share of their size; "
    "effective rank in about how many directions they moved, undefined where none did."
)


def weight_access_section(
    found: Mapping[str, NetworkFindings],
    classes: int,
    forgotten: int = 1,
    signatures: Mapping[str, Sequence[PartSignature]] | None = None,
    notes: Sequence[str] = (),
) -> Section:
    """The section of a report.

    Args:
        found: By version: `erased`, and where there are `original` and `reference`.
        classes: Number of classes, for chance.
        forgotten: How many of them were to be forgotten.
        signatures: Change of the weights by part, of `erased` and, beside it, of `reference`, both less the original.
        notes: What is to be said of this run besides.
    """
    chance = 100 / classes
    scores: list[Score] = []
    for group, pick in _attacks(found["erased"]):
        scores += _triple(found, group, pick, chance)
    scores += _row_scores(found)
    scores += _relearning_scores(found)
    scores += list(_profile(found, chance))
    difference = idi(found)
    if difference is not None:
        scores += _idi_scores(difference)
    for part in (signatures or {}).get("erased", ()):
        beside = {other.part: other for other in (signatures or {}).get("reference", ())}.get(part.part)
        versions = {"erased": part} | ({} if beside is None else {"reference": beside})
        scores += scores_of(
            versions,
            [
                Quantity("moved", "none", attrgetter("relative"), "relative"),
                Quantity("effective_rank", "none", attrgetter("effective_rank"), "rank"),
            ],
            f"weights of {part.part}",
            settings={"full_rank": part.full_rank},
        )
    told = [
        "Whoever has the weights has no eraser and no mask in the way: all attacks are on the bare network, F is recall of "
        "the forgotten test images, R accuracy on the retained ones, AUC that of forgotten against retained. Each number is "
        "the best for the attacker over blocks and, for relearning, over five learning rates.",
        *_strongest_note(found),
        *_states_note(found["erased"]),
        *([SIGNATURE_NOTE] if (signatures or {}).get("erased") else []),
        *notes,
        *_fewer_images(found["erased"], classes),
    ]
    if difference is not None and difference.idi is None:
        told.append(
            "IDI is undefined: original and reference differ by less than three standard deviations in the information that "
            "is read."
        )
    settings = {"seconds": {version: own.seconds for version, own in found.items()}, "forgotten_classes": forgotten}
    return Section("weight_access", "What a downloader finds", tuple(scores), tuple(told), settings)


def left_out_notes(found: Mapping[str, NetworkFindings]) -> list[str]:
    """What the budget had no time for, and what a network could not be asked for."""
    told = left_out_words({version: own.left_out for version, own in found.items()})
    reasons: dict[str, list[str]] = {}
    for version, own in found.items():
        for attack, reason in own.impossible.items():
            reasons.setdefault(reason, []).append(f"{attack} of {VERSIONS.get(version, version)}")
    return ([told] if told else []) + [f"Left out: {', '.join(what)}; {reason}." for reason, what in reasons.items()]


def _strongest_note(found: Mapping[str, NetworkFindings]) -> list[str]:
    """By what rule an attack is the strongest, and which one that is of each network."""
    told = []
    for what, pick in (("attack", attrgetter("strongest_attack")), ("probe", attrgetter("best"))):
        picked = {version: pick(own) for version, own in found.items()}
        names = [f"of {VERSIONS[version]} {called(best)}" for version, best in picked.items() if best is not None]
        told += [f"Strongest {what}: {'; '.join(names)}."] if names else []
    rule = "Strongest is, of each network by itself, what has the highest recall minus false alarms."
    return [" ".join([rule, *told])] if told else []


def _states_note(own: NetworkFindings) -> list[str]:
    """Which probes were read in which state of BatchNorm, and what starts from which."""
    states = list(dict.fromkeys(str(result.settings["batchnorm"]) for result in own.probes))
    told = []
    if len(states) > 1:
        told.append(
            f"The linear probe with all labels is read with BatchNorm {states[0]} and from {' and from '.join(states[1:])}; "
            f"every other probe from {states[-1]} alone, where the class's row, removal, regrowing and relearning start too."
        )
    if own.best_of("linear on maps") is not None:
        told.append("Maps are read by a linear probe with all labels alone.")
    return [" ".join(told)] if told else []


def called(attack: AttackResult) -> str:
    """An attack by its name, and whether it made the class's row; a probe by its kind, its place and, if few, its labels."""
    if "block" not in attack.settings:
        made = f", {f'{ROW} ' * (attack.name != ROW)}made anew from a few images"
        return attack.name + made * (attack.settings.get("row") == "made")
    labels = attack.settings["labels"]
    few = "" if labels == "all" else f", {attack.settings.get('of_each_class', labels)} labels a class"
    return f"{attack.name} at {attack.settings['block']}{few}"


def _fewer_images(own: NetworkFindings, classes: int) -> Iterator[str]:
    """Where relearning had fewer labelled images of a class than its name says."""
    for curve in own.relearning:
        if 0 < curve.images < curve.shots * classes:
            yield (
                f"Relearning from {curve.shots} images a class had {curve.images:,} of {classes} classes: some have no more "
                "here."
            )


def weight_access_data(found: Mapping[str, NetworkFindings]) -> dict[str, Any]:
    """What verdict and figures need: `best` F by version and the attack's `name`, details, profiles, relearning curves.

    Args:
        found: By version, further references too.

    Returns:
        Plain data.
    """
    best = {version: own.strongest_attack for version, own in found.items()}
    details = {
        version: {"F": b.recall_forget, "R": b.accuracy_retain, "false_alarms": b.false_alarms, "AUC": b.auc}
        | {"attack": b.name, "called": called(b), **b.settings}
        for version, b in best.items()
        if b is not None
    }
    worst = best.get("erased")
    return {
        "best": {version: detail["F"] for version, detail in details.items()}
        | ({} if worst is None else {"name": called(worst)}),
        "strongest": details,
        "profile": {version: _profile_data(own) for version, own in found.items()},
        "relearning": {version: [asdict(curve) for curve in own.relearning] for version, own in found.items()},
        "seconds": {version: own.seconds for version, own in found.items()},
        "left_out": {version: own.left_out for version, own in found.items()},
    }


def _profile_data(own: NetworkFindings) -> dict[str, dict[str, float | None]]:
    """The converged probe at every block, and its F with few labels (`F_10`, `F_50`)."""
    points: dict[str, dict[str, float | None]] = {
        block: {"F": result.recall_forget, "R": result.accuracy_retain, "AUC": result.auc}
        for block, result in own.profile().items()
    }
    for result in own.probes:
        if result.name == "linear" and result.settings["labels"] != "all":
            points[str(result.settings["block"])][f"F_{result.settings['labels']}"] = result.recall_forget
    return points


def idi(found: Mapping[str, NetworkFindings]) -> InformationDifference | None:
    """IDI (probe) of the audited network; None without original or reference."""
    terms = [found[v].information if v in found else {} for v in ("erased", "original", "reference")]
    shared = [block for block in terms[0] if all(block in own for own in terms)]
    if not shared or len({len(own[block]) for own in terms for block in shared}) > 1:
        return None
    return information_difference(*({block: own[block] for block in shared} for own in terms))


def _attacks(own: NetworkFindings) -> Iterator[tuple[str, Pick]]:
    """Rows of the table, each with what it takes from the findings of one network."""
    yield "strongest attack", attrgetter("strongest_attack")
    yield "strongest probe", attrgetter("best")
    for number, result in enumerate(
        own.answers
    ):  # heads of other networks may have other numbers of answers, and names
        yield result.name, lambda found, n=number: found.answers[n] if n < len(found.answers) else None
    states = list(dict.fromkeys(str(r.settings["batchnorm"]) for r in own.probes))
    for state in states:
        told = "linear probe" + (f", BatchNorm from {state}" if "images" in state else ", BatchNorm as it is")
        yield (
            told if len(states) > 1 else "linear probe",
            lambda found, state=state: found.best_of("linear", "all", state),
        )
    for name in PROBES[1:]:
        yield name, lambda found, name=name: found.best_of(name)
    for labels in ("50", "10"):
        for name in PROBES[:3]:
            few = own.best_of(name, labels)
            if few is not None:
                each = few.settings.get("of_each_class", labels)
                yield f"{name}, {each} labels a class", lambda found, n=name, k=labels: found.best_of(n, k)
    for result in own.removal:
        yield result.name, lambda found, name=result.name: next((r for r in found.removal if r.name == name), None)
    yield "regrown by the attacker", lambda found: found.regrown


def _triple(found: Mapping[str, NetworkFindings], group: str, pick: Pick, chance: float) -> list[Score]:
    picked = {version: pick(own) for version, own in found.items()}
    audited = picked["erased"]
    if audited is None:
        return []
    return scores_of(picked, _of_an_attack(chance), group, settings=dict(audited.settings))


def _of_an_attack(chance: float) -> list[Quantity]:
    """What every attack gives; `chance` of finding the forgotten by guessing."""
    return [
        Quantity("F", "chance", lambda r: r and r.recall_forget, chance=chance),
        Quantity("R", "higher", lambda r: r and r.accuracy_retain),
        Quantity("false_alarms", "none", lambda r: r and r.false_alarms),
        Quantity("auc", "chance", lambda r: r and r.auc, chance=50.0),
    ]


def _row_scores(found: Mapping[str, NetworkFindings]) -> list[Score]:
    rows = {version: own.class_row for version, own in found.items()}
    audited = rows["erased"]
    if audited is None:
        return []
    quantities = [
        *_of_an_attack(chance=1.0),
        Quantity("auc_two_sided", "chance", lambda r: r and r.settings["auroc_of_logit"], chance=50.0),
    ]
    return scores_of(rows, quantities, f"{ROW}, 1 % false alarms", settings=dict(audited.settings))


def _relearning_scores(found: Mapping[str, NetworkFindings]) -> list[Score]:
    scores: list[Score] = []
    for number, curve in enumerate(found["erased"].relearning):
        curves: dict[str, RelearningCurve | None] = {
            version: own.relearning[number] if number < len(own.relearning) else None for version, own in found.items()
        }
        quantities = [
            Quantity("F", "chance", lambda c: c and c.recall[-1]),
            Quantity("R", "higher", lambda c: c and c.retained[-1]),
            Quantity("false_alarms", "none", lambda c: c and c.false_alarms[-1]),
            Quantity("auc", "chance", lambda c: c and c.auc[-1], chance=50.0),
            Quantity("relearning_area", "chance", lambda c: c and c.area, "share", 0.5),
            Quantity("steps_to_half", "higher", lambda c: c and c.steps_to_half, "steps"),
        ]
        group = f"relearning, {curve.shots} images a class"
        scores += scores_of(
            curves, quantities, group, settings={"learning_rate": curve.learning_rate, "row": curve.row}
        )
    return scores


def _profile(found: Mapping[str, NetworkFindings], chance: float) -> Iterator[Score]:
    own = found["erased"]
    for block in own.blocks:
        yield from _triple(found, f"strongest at {block}", lambda other, at=block: other.best_at(at), chance)
        bits = {version: other.information.get(block) for version, other in found.items()}
        if bits["erased"]:
            yield from scores_of(
                bits, [Quantity("bits", "chance", lambda terms: terms and sum(terms) / len(terms), "bits")],
                f"strongest at {block}",
            )  # fmt: skip


def _idi_scores(difference: InformationDifference) -> list[Score]:
    values = asdict(difference)
    return [
        Score(
            "idi_probe", difference.idi, "chance", "all blocks", unit="share", chance=0.0, original=1.0, reference=0.0,
            sd=difference.sd, protocol="signed; converged binary probes", settings=values | {"sd_over": "test images"},
        )
    ]  # fmt: skip
