"""What an audit is asked: `AuditOptions`, and the reference that its numbers stand beside, `Retrained` or `Unseen`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

from hf_kd.errors import InvalidTypeError, InvalidValueError, check_choice, did_you_mean, shortened
from hf_kd.metrics._inputs import ArrayLike
from hf_kd.metrics.attacks import attack_names


@dataclass(frozen=True)
class AuditOptions:
    """What an audit measures, and how often.

    Attributes:
        attacks: "standard", "full" (also several views of an image, groups, attackers that accept false alarms, and ZRF), or
            names of `hf_kd.metrics.ATTACKS`. The converged linear probe always runs.
        seeds: How often everything that depends on chance is repeated, for mean and standard deviation.
        draws: Random draws of the labelled samples that a few-label attacker gets; its score is their mean.
        shots: Numbers of labelled samples of each forgotten class, for the label efficiency; by default 1, 2, 5, 10, ...
        identities: Whether the features are also asked for the forgotten labels as identities (faces): verification,
            gallery search, open set. By default where a model has no classification head.
        layer_profile: Whether the converged probe is also fitted at every block of the backbone, in a second pass over at
            most 4,000 training and 2,000 test images. Needs a model.
        access: What the attacker has. "features": what the model gives out. "weights": also the weights, for attacks that
            retrain, disturb and probe the bare network. Needs a model.
        texts: Names of the one forgotten label, by which a two-tower model is asked for it, or a
            `hf_kd.audit.by_name.TextAudit`. Needs a model.
        budget: Minutes for the attacks of `access="weights"`; None for as long as they take. Cheapest first; one that has
            begun on the model runs on original and reference too; what there was no time for is named.
        membership_references: Models that never saw D_f, for the RMIA membership attack; for `audit_features` the train and
            test logits [n, C] of each.
        max_classes: How many retained classes attackers tell the forgotten ones from: their cost grows with samples times
            classes. Of more that many are drawn by a fixed seed, and the report says so; None takes all.
        progress: Whether a bar over probes and attacks is shown on a terminal; of a model, where its reading shows one.

    Raises:
        ValueError: For an unknown attack (the message lists all), no seed, no draw, shots or a budget that are not positive,
            or an access that there is not.
    """

    attacks: str | Sequence[str] = "standard"
    seeds: int = 1
    draws: int = 10
    shots: Sequence[int] | None = None
    identities: bool | None = None
    layer_profile: bool = False
    access: str = "features"
    texts: Any = None
    budget: float | None = None
    membership_references: Sequence[Any] = field(default=(), repr=False, compare=False)
    max_classes: int | None = 200
    progress: bool = field(default=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        attack_names(self.attacks)
        for name in ("seeds", "draws"):
            if not isinstance(number := getattr(self, name), int) or number < 1:
                raise InvalidValueError(f"{name} is {number!r}; at least one is needed. Pass a positive whole number.")
        if self.max_classes is not None and (not isinstance(self.max_classes, int) or self.max_classes < 1):
            raise InvalidValueError(
                f"max_classes is {self.max_classes!r}; give a number of classes from 1 on, or None."
            )
        check_choice("access", self.access, ("features", "weights"))
        if self.budget is not None and not (isinstance(self.budget, int | float) and self.budget > 0):
            raise InvalidValueError(f"budget={self.budget!r} minutes: expected more than 0. Leave it out for no limit.")
        if self.budget is not None and self.access != "weights":
            raise InvalidValueError(
                f"budget={self.budget!r} is for the attacks of access='weights' alone: ask for those, or leave it out."
            )
        if self.shots is not None and (
            not self.shots or not all(isinstance(n, Integral) and n > 0 for n in self.shots)
        ):
            raise InvalidValueError(
                f"shots are {list(self.shots)}; expected numbers of labelled samples such as [1, 5, 20], each at least 1."
            )


@dataclass(frozen=True, eq=False)
class Retrained:
    """A model retrained without the forgotten classes as reference: every number stands beside the same number of it.

    `Retrained(model)` for `ErasedModel.audit`, `Retrained(train, test)` for `audit_features`.

    Attributes:
        source: An `ErasedModel`, any `PreTrainedModel`, or the name or folder of one, or a list of several: the one whose
            converged probe reads the retained classes as well as the audited model's is the reference, and the level of all
            is read off at the audited model's own accuracy. For `audit_features` its features of
            the training samples [n, d], which are those of the audited model in the same order.
        test: For `audit_features`: its features of the test samples [m, d].
        logits: For `audit_features`: train and test logits [n, C] and [m, C] of its head, where it has one; they add the
            gap to it (Table 5).
    """

    source: Any
    test: Any = None
    logits: tuple[ArrayLike, ArrayLike] | None = None

    @property
    def sources(self) -> tuple[Any, ...]:
        """The models, one or several."""
        return tuple(self.source) if isinstance(self.source, list | tuple) else (self.source,)


@dataclass(frozen=True, eq=False)
class Unseen:
    """Classes that the original model was never trained on as reference, each in turn in the place of the forgotten one.

    `Unseen(images)` for `ErasedModel.audit`, `Unseen(features, labels)` for `audit_features`.

    Attributes:
        source: Labelled images, anything `erase` takes, with the data set's own class ids; for `audit_features` features of
            the ORIGINAL model [m, d]. A quarter of every class is held out for testing, so each needs 8 samples.
        labels: For `audit_features`: their class ids [m].
    """

    source: Any
    labels: Any = None


Reference = Retrained | Unseen | None


def checked_reference(reference: Any, of_features: bool) -> Reference:
    """The reference, if it is one and says what is needed: matrices for `audit_features`, a model or images otherwise."""
    if reference is None:
        return None
    if not isinstance(reference, Retrained | Unseen):
        raise InvalidTypeError(
            f"reference is a {type(reference).__name__}; it says what it is: hf_kd.Retrained(...), trained without the "
            "forgotten classes, or hf_kd.Unseen(...), classes never trained on."
        )
    second, name = (reference.test, "test") if isinstance(reference, Retrained) else (reference.labels, "labels")
    kind = type(reference).__name__
    if of_features and second is None:
        first = "train" if name == "test" else "features"
        raise InvalidValueError(
            f"audit_features takes matrices: reference=hf_kd.{kind}({first}, {name}), and {name} is missing. A model or "
            "images are for ErasedModel.audit."
        )
    if not of_features and second is not None:
        raise InvalidValueError(
            f"hf_kd.{kind} was given {name}=, as for matrices of features. Here the model reads them itself: "
            f"reference=hf_kd.{kind}({'model' if name == 'test' else 'images'})."
        )
    if not of_features and isinstance(reference, Retrained) and not reference.sources:
        raise InvalidValueError("hf_kd.Retrained([]) names no model; give one, several, or reference=None.")
    return reference


def checked_options(options: Any) -> AuditOptions:
    """The options, or the default ones."""
    if options is None:
        return AuditOptions()
    if not isinstance(options, AuditOptions):
        names = ", ".join(f.name for f in fields(AuditOptions))
        raise InvalidTypeError(
            f"options is {shortened(options)}; expected hf_kd.AuditOptions(...) with any of {names}."
        )
    return options


_NOW = (
    {option.name: f"options=AuditOptions({option.name}=...)" for option in fields(AuditOptions)}
    | {
        "reference_model": "reference=Retrained(model)",
        "unseen": "reference=Unseen(images)",
        "original_model": "original=model",
        "forget": "forget_labels=...",
        "more": "extras=AuditExtras(extra_sections=...)",
        "retain": "retain_labels=...",
    }
    | {
        name: f"extras=AuditExtras({name}=...)"
        for name in ("views", "random_logits", "fit_class", "context", "class_names")
    }
)
"""Where what one may look for as an argument of its own is said."""


def refuse_unknown(function: str, unknown: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise TypeError for any keyword in `unknown`; the message says where it belongs, or what there is."""
    if not unknown:
        return
    told = [f"{name} is said as {_NOW[name]}" for name in unknown if name in _NOW]
    strange = [name for name in unknown if name not in _NOW]
    if strange:
        told.append(f"there is no argument {', '.join(strange)}: it takes {', '.join(known)}")
    near = did_you_mean(strange[0], known) if strange else ""
    text = "; ".join(told)
    end = "" if text.endswith("...") else "."
    raise InvalidTypeError(f"{function}() got {', '.join(unknown)}: {text}{end}{near}")
