"""What the battery found in one network, as plain data: it goes into a report, or into a JSON file and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from hf_kd.metrics.attack_data import AttackResult

from .relearning import RelearningCurve


@dataclass
class NetworkFindings:
    """Of one network; filled attack by attack."""

    probes: list[AttackResult] = field(default_factory=list)
    """At every block; settings say `block`, `labels` and `batchnorm`."""
    information: dict[str, list[float]] = field(default_factory=dict)
    """Terms of `class_information` [n_test] by block, in bits."""
    answers: list[AttackResult] = field(default_factory=list)
    """Of the head, as it is and with BatchNorm recalibrated."""
    class_row: AttackResult | None = None
    removal: list[AttackResult] = field(default_factory=list)
    regrown: AttackResult | None = None
    relearning: list[RelearningCurve] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What the budget had no time for."""
    impossible: dict[str, str] = field(default_factory=dict)
    """Attacks that this network cannot be asked for, and why."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By attack."""

    @property
    def best(self) -> AttackResult | None:
        """The strongest probe, by recall minus false alarms."""
        return _strongest(self.probes)

    @property
    def strongest_attack(self) -> AttackResult | None:
        """The strongest of all attacks, by recall minus false alarms."""
        once = [result for result in (self.class_row, self.regrown) if result is not None]
        relearned = [curve.result() for curve in self.relearning]
        every = [*self.probes, *self.answers, *self.removal, *once, *relearned]
        return _strongest(every)

    def best_at(self, block: str) -> AttackResult | None:
        """The strongest probe at one block."""
        there = [result for result in self.probes if result.settings["block"] == block]
        return _strongest(there)

    def best_of(self, name: str, labels: str = "all", batchnorm: str | None = None) -> AttackResult | None:
        """The strongest of one kind of probe over all blocks, in one state of BatchNorm or any."""
        same = [
            result
            for result in self.probes
            if result.name == name
            and result.settings["labels"] == labels
            and batchnorm in (None, result.settings["batchnorm"])
        ]
        return _strongest(same)

    @property
    def blocks(self) -> list[str]:
        """In the order in which an image passes them, the tap last."""
        return list(dict.fromkeys(str(result.settings["block"]) for result in self.probes))

    def profile(self) -> dict[str, AttackResult]:
        """The converged linear probe with all labels at every block, with BatchNorm recalibrated where there is any."""
        return {
            str(result.settings["block"]): result
            for result in self.probes  # the last state of BatchNorm comes last
            if result.name == "linear" and result.settings["labels"] == "all"
        }

    def level(self) -> tuple[float, float] | None:
        """(R, F) of the converged linear probe at the last place, in percent: a point of the curve of references."""
        profile = list(self.profile().values())
        return (profile[-1].accuracy_retain, profile[-1].recall_forget) if profile else None

    def without_hits(self) -> NetworkFindings:
        """The same without which of the test samples each attack found: counts are known, and files stay small."""

        def plain(result: AttackResult | None) -> Any:
            return None if result is None else replace(result, hits=None)

        lists = {name: [plain(r) for r in getattr(self, name)] for name in ("probes", "answers", "removal")}
        return replace(self, **lists, class_row=plain(self.class_row), regrown=plain(self.regrown))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers."""
        values = asdict(self.without_hits())
        values["information"] = {block: [round(x, 5) for x in terms] for block, terms in self.information.items()}
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkFindings:
        """Inverse of `to_dict`, also after JSON."""
        values = dict(data)
        for name in ("probes", "answers", "removal"):
            values[name] = [AttackResult(**result) for result in values[name]]
        for name in ("class_row", "regrown"):
            values[name] = None if values[name] is None else AttackResult(**values[name])
        values["relearning"] = [
            RelearningCurve(**cast(Any, {key: tuple(v) if isinstance(v, list) else v for key, v in curve.items()}))
            for curve in values["relearning"]
        ]
        return cls(**values)


def _strongest(results: Sequence[AttackResult]) -> AttackResult | None:
    """By recall minus false alarms, because recall alone rewards flagging everybody."""
    return max(results, key=lambda result: result.advantage, default=None)
