"""What a card says of requests: what was asked and done, how each method works, and what gets through cover erasure.

Words for cover erasure are deniability and cover, never deletion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_kd.data.text import code, escape_markdown
from hf_kd.methods.records import fitted_from
from hf_kd.methods.settings import chosen_settings

GETS_THROUGH = (
    "What gets through: whoever holds the weights, an attacker who accepts false alarms, several views of one image, groups "
    "of images known to share a label, and anybody on data without the cover classes."
)
"""Of cover erasure, in one line."""

METHODS = {
    "esc": "ESC removes the principal directions of the forgotten images' features (paper, section 3.3).",
    "esc-t": "ESC-T trains a mask on the principal directions of the forgotten images' features (paper, section 3.4).",
    "mean-projection": "Mean projection removes the direction of the mean of each forgotten class.",
    "mean-difference": "Mean difference removes the direction from the mean of retained images to that of each forgotten "
    "class.",
    "leace": "LEACE (Belrose et al. 2023) makes the smallest affine change after which, on the images it was fitted on, no "
    "linear predictor of a forgotten class against all others beats a constant; it does not address other attackers.",
    "prototype-orthogonal": "Prototype-orthogonal erasure takes out the coordinates of the forgotten classes in the basis "
    "of all class means, and leaves what lies outside their span.",
    "retained-span": "Retained-span projection keeps of the features only what the head tells the retained classes apart "
    "by. A network stores a class redundantly, so expect a converged probe to read most of it from what is left.",
    "cover": "Cover erasure puts whatever the head takes for a forgotten class, and everything it takes for a cover class, "
    "on the same few constant points, one for each cover class; all other features pass unchanged. The cover classes keep "
    "their label and lose all detail within the class. Exactly repeated vectors show, without any label, that something "
    "was erased.",
}
"""How each method works; one of another package is named without."""

BY_NAME = (
    "By name: the map stands on both towers. It removes what prompts of the concept have in common, and keeps retained "
    "names. What is gone is the concept by its name, in zero-shot labelling and in search by text; images of it are still "
    "alike, and who has labelled images of it, or a map to the original embeddings, finds it again."
)

FORGET_IN_WEIGHTS = (
    " For weights that never saw it above some block use hf_kd.unlearn(model, images, 'regrow', retain=...), or "
    "hf-kd unlearn --method regrow on the command line."
)

WEIGHTS_KNOW = {
    "original": "The weights in this model are those of the original: whoever downloads it can take the eraser away and has "
    "the original again." + FORGET_IN_WEIGHTS,
    "changed": "The weights in this model were changed, and then an eraser was put in: whoever downloads it can take the "
    "eraser away, and the weights know all that it alone erases." + FORGET_IN_WEIGHTS,
    "folded": "An eraser that is folded in erases logits or embeddings alone: what lies below is as it was, and whoever "
    "downloads the model reads there what was to be forgotten." + FORGET_IN_WEIGHTS,
}
"""Said before anything is sent to the Hub, by what an eraser stands in or is folded into."""

BASE_KNOWS = (
    "This eraser is a layer in front of a base that stays as it is: whoever has the base has the original model. It "
    "protects what a service answers, and removes nothing from the base."
)
"""Said before an eraser on its own is sent to the Hub."""

HEADLINES = {
    "eraser": "**This is a layer for a service, not a removal.** The base model is public and stays as it is: whoever "
    "downloads it has everything that was to be forgotten.",
    "eraser of a base elsewhere": "**This is a layer for a service, not a removal.** The base model is not in here and "
    "stays as it is: whoever has it has everything that was to be forgotten.",
    "original": "**The weights are the original's: they still know what was to be forgotten.** Whoever downloads them can "
    "leave the eraser out.",
    "changed": "**The weights were changed, starting from the original's.** What they still tell is for an audit to say "
    "(`hf-kd audit --access weights`).",
    "changed, then erased": "**The weights were changed, and then an eraser was put in, which whoever downloads them can "
    "leave out.** They know all that it alone erases.",
    "folded": "**Below {where} the weights are the original's: they still know what was to be forgotten.** The eraser is "
    "folded into {where}; whoever downloads them reads what lies below.",
    "changed, then folded": "**The weights were changed, and then an eraser was folded into {where}.** Below it they know "
    "all that it alone erases, and whoever downloads them reads it there.",
    "regrown": "**There is no eraser to take away: the upper part of the network was drawn anew** and trained on retained "
    "images{alone}. The lower part {lower}.",
    "retrained": "**There is no eraser to take away: the network was trained anew** on retained images alone.",
    "retrained from another": "**There is no eraser to take away: the network was trained on retained images alone, "
    "starting from another checkpoint.** What that one knew is for an audit to say (`hf-kd audit --access weights`).",
}
"""By what a downloader holds."""

FOLDED = {
    "head": ("its head", "logits are erased, features are not"),
    "projection": ("the projection of its image tower", "embeddings of images are erased, what lies below is not"),
    "projections": ("both projections", "embeddings are erased, what lies below the projections is not"),
}
"""Where an eraser was folded in, and what is erased then; by `folded_into`."""


def folded_into(head: bool, by_name: bool) -> str:
    """The key of `FOLDED`.

    Args:
        head: Whether the model has a classification head behind its tap.
        by_name: Whether a request by name was folded in, which stands on both towers.
    """
    return "projections" if by_name else "head" if head else "projection"


RENORM = "Every feature then gets its length back, because a short one alone would give a forgotten image away."


@dataclass(frozen=True)
class Request:
    """One erasure as the card tells it."""

    images: int
    classes: int | None
    """How many classes; None where the labels are unknown to the model."""
    names: tuple[str, ...] | None
    """Their names, only if they may be published."""
    method: str
    settings: Mapping[str, Any]
    rank_removed: int
    energy_removed: float | None
    """Share of the forget features' energy that was removed."""
    condition_number: float | None
    """Of the fitted eraser; None where it has a null space."""
    source: str | None = None
    """Of a method that changed weights: what data it used and where it comes from. None for an eraser."""
    stopped: str | None = None
    """Why such a method ended early."""
    needs: str | None = None
    """What the method reads, as in its `MethodInfo`."""
    retained: int | None = None
    """Images of other classes that were read."""
    masked: bool | None = None
    """Whether the head never answers the classes any more."""
    erased_label: str | None = None
    """What masked classes are called; None where they were dropped."""
    measured: tuple[Mapping[str, Any], ...] = ()
    """What was measured while fitting, for each tap."""
    warnings: tuple[str, ...] = ()
    """What was noticed and may not be meant, such as labels that the head did not agree with."""
    cover_names: Mapping[int, str] = field(default_factory=dict)
    """Names of cover classes, as far as they may be published."""
    texts: int | None = None
    """How many texts were forgotten by name; None for a request by images alone."""
    words: tuple[str, ...] | None = None
    """The texts, only where the request published them."""
    folded: bool = False
    """Whether its eraser was folded into the weights before a later request."""

    @property
    def amount(self) -> str:
        """From what it was fitted: images, texts or both."""
        return fitted_from(self.images, self.texts)

    @property
    def reads(self) -> str:
        """What the method read of what was to be forgotten, and of what stays."""
        retained = f"{self.retained:,} retained" if self.retained else ""
        if self.needs == "D_r":
            cut = ", but chose where to cut" if any("scan" in part for part in self.measured) else ""
            return f"{retained or 'retained'} images alone; the {self.images:,} forgotten ones were not trained on{cut}"
        return f"{self.amount} and {retained} ones" if retained else self.amount

    @property
    def many_to_one(self) -> bool:
        """Whether the eraser has no inverse and yet removes no direction: it sends many inputs to one point."""
        return self.source is None and self.rank_removed == 0 and self.condition_number is None

    @property
    def covers(self) -> tuple[Mapping[str, Any], ...]:
        """What cover erasure measured at each tap; empty for other methods."""
        return tuple(part for part in self.measured if "cover_classes" in part)


def headline(held: str, changes: Sequence[Request], where: str) -> str:
    """What whoever downloads a model holds, in a sentence or two.

    Args:
        held: A key of `HEADLINES`.
        changes: The requests that changed its weights.
        where: Into what its eraser is folded.
    """
    settings = changes[-1].settings if changes else {}
    leaks = ", to the probabilities of the model before, which tell of what was to be forgotten"
    lower = (
        "is not the original's: it was trained too"
        if settings.get("release")
        else "is as the request before left it"
        if len(changes) > 1
        else "is the original's"
    )
    return HEADLINES[held].format(where=where, alone=leaks if settings.get("soft") else " alone", lower=lower)


def classes_of(requests: Sequence[Request]) -> str:
    """The forgotten classes: their names, or how many they are."""
    if requests and all(request.texts for request in requests):
        words = [word for request in requests for word in request.words or ()]
        return ", ".join(f"\u201c{escape_markdown(word)}\u201d" for word in words) or "a concept, by its name"
    if any(request.classes is None for request in requests):
        return "a set of images"
    names = [name for request in requests for name in request.names or ()]
    if names:
        return ", ".join(escape_markdown(name) for name in names)
    count = sum(request.classes or 0 for request in requests)
    return "one class" if count == 1 else f"{count} classes"


def request_line(request: Request, folded: bool = False) -> str:
    """A request as one item of a list: images, method, settings, and what was measured; folded into the head or not."""
    chosen = chosen_settings(request.method, request.settings, bool(request.texts))
    settings = ", ".join(_setting(name, value) for name, value in chosen.items())
    given = f"{request.amount}, " if request.needs != "D_r" else ""
    parts = [f"- {classes_of([request])}: {given}method {code(request.method)}"]
    parts.append(f"({escape_markdown(settings, 200)})" if settings else "(default settings)")
    if request.needs == "D_r":
        parts.append(f"with {request.reads}")
    elif request.retained is not None:
        parts.append(f"with {request.retained:,} images of other {'things' if request.texts else 'classes'}")
        if by := (request.measured or ({},))[0].get("images_sorted_by"):
            parts.append("as they were given" if by == "given apart" else f"as told by {escape_markdown(by)}")
    told = " ".join(part for part in parts if part)
    if request.source is not None:
        ended = f" It stopped early: {escape_markdown(request.stopped, 200)}." if request.stopped else ""
        return f"{told}; it changed weights ({escape_markdown(request.source, 200)}).{ended}{_warnings(request)}"
    earlier = " Folded into the weights before the later requests." if request.folded else ""
    masked = _masked(request, folded or request.folded)
    return f"{told}; {', '.join(_facts(request))}.{earlier}{masked}{_warnings(request)}"


def _warnings(request: Request) -> str:
    return "".join(f" **Warning:** {escape_markdown(text, 300)}" for text in request.warnings)


def _setting(name: str, value: Any) -> str:
    if isinstance(value, Mapping) and any(isinstance(item, list) for item in value.values()):
        return f"{name} of {len(value)} classes"  # class means: d numbers each
    return f"{name} = {value}"


def _facts(request: Request) -> list[str]:
    if request.covers:
        places = [f"at tap {n}: " if len(request.covers) > 1 else "" for n in range(1, len(request.covers) + 1)]
        found = zip(places, request.covers, strict=True)
        return ["; ".join(place + _covered(request, measured) for place, measured in found)]
    if request.many_to_one:
        return ["its map sends many inputs to one point, so nothing undoes it behind the eraser"]
    count = request.rank_removed
    plural = "" if count == 1 else "s"
    facts = [f"{count} direction{plural} removed" if count else "no direction removed entirely"]
    if request.energy_removed is not None:
        facts.append(f"{request.energy_removed:.1%} of the energy of the forgotten features")
    facts.append(
        "its operator has a null space"
        if request.condition_number is None
        else f"its operator has condition number {request.condition_number:.1f}, so a linear probe can undo it"
    )
    return facts


def _covered(request: Request, measured: Mapping[str, Any]) -> str:
    classes = measured["cover_classes"]
    named = ", ".join(
        f"{c} ({escape_markdown(request.cover_names[c])})" if c in request.cover_names else escape_markdown(c)
        for c in classes
    )
    sizes = "the class sizes given" if request.settings.get("class_sizes") else "classes of equal size"
    told = (
        f"cover {'class' if len(classes) == 1 else 'classes'} {named}; {measured['share_of_forget_replaced']:.1%} of the "
        f"forgotten images were replaced, and with {sizes} {measured['share_of_inputs_expected']:.1%} of inputs will be"
    )
    if "guard_margin" not in measured:
        return f"{told}; no guard"
    return (
        f"{told}; guard: nothing is replaced whose two largest logits differ by {measured['guard_margin']:.2f} or less"
    )


def _masked(request: Request, folded: bool) -> str:
    if not request.masked:
        return ""
    if folded:
        return " What was forgotten is masked: never answered, and its label stays in the configuration."
    if request.erased_label is None:
        return " What was forgotten is masked: labels and logits are without it, and the other ids were numbered anew."
    label = escape_markdown(request.erased_label)
    return f" What was forgotten is masked: never answered, and labelled \u201c{label}\u201d."


def methods_text(requests: Sequence[Request]) -> str:
    """A sentence on each eraser's method that was used, in the order of its first use."""
    found: dict[str, None] = {}
    for request in requests:
        if request.source is None:
            told = METHODS.get(request.method, f"{code(request.method)} is a method of another package.")
            found.setdefault(BY_NAME if request.texts else told)
            if request.settings.get("renorm"):
                found.setdefault(RENORM)
    return " ".join(found)


def cover_limits(requests: Sequence[Request]) -> str:
    """What cover erasure is not, as items of a list; empty where it was not used."""
    used = [measured for request in requests for measured in request.covers]
    if not used:
        return ""
    guarded = all("guard_margin" in measured for measured in used)
    unlike = (
        "inputs that the guard lets pass: they are returned as they are, forgotten ones among them"
        if guarded
        else "inputs unlike the training data: there is no guard, a head puts such inputs into few classes, and those it "
        "takes for a forgotten or a cover class are replaced whatever they show, which also gives the erasure away"
    )
    lines = [
        "- **Cover erasure is deniability and cover, not deletion.** One returned feature may be a forgotten image's or a "
        "cover class's, and that is all it hides. What gets through:",
        "  - the white box: the weights are unchanged, and whoever holds them reads the features before the map;",
        "  - an attacker who accepts false alarms: everything on the points of the cover classes may be called forgotten;",
        "  - several views of one image: forgotten images move between the points more than those of a cover class do;",
        "  - groups of images known to share a label: forgotten ones are shared out among the points, those of a cover "
        "class lie on their own;",
        f"  - {unlike};",
        "  - anybody, on data without the cover classes: then nothing but forgotten images lies on the points.",
        "- **A recall of the forgotten classes near 0 is no evidence of equivalence to retraining.** It is below what a "
        "class gives that the network has never seen (62 to 76 % for a converged linear probe on CIFAR-10 ResNet-20s); "
        "compare false alarms and AUC too.",
    ]
    return "\n".join(lines)
