"""The section of a report about membership: does the model betray that an image was in its training set?

Loss attack (Table 1), member rate (Table 5), the attacks of Unlearn-Sparse / SalUn, and RMIA where reference models are at
hand. All two-sided: far below chance is a leak too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hf_kd.audit.schema import Quantity, Score, Section, scores_of
from hf_kd.errors import InvalidValueError
from hf_kd.metrics._inputs import ArrayLike, as_logits
from hf_kd.metrics.membership import LossAttack, loss_attack
from hf_kd.metrics.membership_reference import rmia_attack
from hf_kd.metrics.membership_share import member_rate, mia_efficacy

from .head import Answers, part_of

LEAST = 10
"""Images a side below which nothing is measured."""

DRAWS = 20
"""Draws of the images behind the mean and the deviations of the loss attack."""

SUPPORT_VECTORS = 1000
"""Images a side for the support vector machines of the efficacy attacks, whose cost is quadratic."""


def membership_section(
    answers: Mapping[str, Answers], references: Sequence[tuple[ArrayLike, ArrayLike]] = ()
) -> Section:
    """All membership attacks on D_f; `references` are train and test logits of models that never saw D_f, for RMIA."""
    title = "Membership of D_f (two-sided)"
    if "erased" not in answers:
        return Section("membership", title, notes=("Not measured: no logits were given.",))
    data = answers["erased"].data
    sides = int(data.train_forget.sum()), int(data.test_forget.sum())
    if min(sides) < LEAST:
        return Section(
            "membership", title, notes=(f"Not measured: {sides[0]} and {sides[1]} images; it needs {LEAST} a side.",)
        )
    scores = [*_by_loss(answers), *_by_share(answers)]
    notes = [
        "Far below 50 % is a leak too: the attacker turns the test around. A model retrained without the class answers "
        "neither its train nor its test images, so compare with a reference, not with 50 %. Deviations are "
        "over draws of the images, not over seeds.",
        "Member rate: share of D_f that an attacker fitted on D_r against D_rt calls members; its chance level is what the "
        "same attacker calls members among unseen images. Efficacy = 100 - member rate, as Unlearn-Sparse prints it.",
    ]
    if references:
        scores += _by_references(answers, references)
        notes.append(f"RMIA with {len(references)} reference models that never saw D_f; population: D_rt.")
    return Section("membership", title, tuple(scores), tuple(notes))


def _by_loss(answers: Mapping[str, Answers]) -> list[Score]:
    found: dict[str, LossAttack] = {
        version: loss_attack(*a.part("D_f"), *a.part("D_ft"), draws=DRAWS) for version, a in answers.items()
    }
    erased = found["erased"]
    quantities = [
        Quantity("accuracy", "chance", lambda a: a.accuracy, chance=50.0, sd=erased.accuracy_sd),
        Quantity("auc_two_sided", "chance", lambda a: a.auc_two_sided, chance=50.0, sd=erased.auc_sd),
        Quantity("tpr_at_1%_fpr", "chance", lambda a: max(a.tpr, a.tpr_reversed), chance=1.0),
        Quantity("leak", "lower", lambda a: a.leak, unit="points", chance=0.0),
    ]
    settings = {"members": erased.members, "nonmembers": erased.nonmembers, "sd_over": f"{erased.draws} draws"}
    protocol = "loss of each image, D_f (members) against D_ft"
    return scores_of(found, quantities, "loss", protocol=protocol, settings=settings)


def _by_share(answers: Mapping[str, Answers]) -> list[Score]:
    attacks = {}
    for version, a in answers.items():
        parts = [a.part(name) for name in ("D_r", "D_rt", "D_f")]
        attacks[version] = {"entropy, logistic": member_rate(*(logits for logits, _ in parts))} | {
            f"{name}, SVC": share
            for name, share in mia_efficacy(*(x for part in parts for x in part), max_samples=SUPPORT_VECTORS).items()
        }
    scores: list[Score] = []
    for name, share in attacks["erased"].items():
        rate = Quantity(
            "member_rate", "chance", lambda found, name=name: found[name].member_rate, chance=share.false_alarm_rate
        )
        scores += scores_of(
            attacks,
            [rate],
            name,
            protocol="D_r (members) against D_rt, judged on D_f",
            settings={"images_a_side": share.samples, "efficacy": share.efficacy},
        )
    return scores


def _by_references(answers: Mapping[str, Answers], references: Sequence[tuple[ArrayLike, ArrayLike]]) -> list[Score]:
    data = answers["erased"].data
    checked = [
        tuple(as_logits(logits, f"membership reference {n} {split} logits") for split, logits in pairs)
        for n, pairs in enumerate(zip(("train", "test"), pair, strict=True) for pair in references)
    ]
    for number, (train, test) in enumerate(checked):
        for split, logits, own in (("train", train, answers["erased"].train), ("test", test, answers["erased"].test)):
            if logits.shape != own.shape:
                raise InvalidValueError(
                    f"Membership reference {number} has {split} logits {tuple(logits.shape)}; expected {tuple(own.shape)}, "
                    "a row for each sample and a column for each label of the model."
                )
    blind = {
        name: torch.stack([part_of(data, name, *pair)[0].cpu() for pair in checked]) for name in ("D_f", "D_ft", "D_rt")
    }
    found = {
        version: rmia_attack(
            *(
                (logits.cpu(), blind[name], labels)
                for name in ("D_f", "D_ft", "D_rt")
                for logits, labels in [a.part(name)]
            )
        )
        for version, a in answers.items()
    }
    quantities = [
        Quantity("auc_two_sided", "chance", lambda f: f.auc_two_sided, chance=50.0),
        Quantity("tpr_at_1%_fpr", "chance", lambda f: max(f.tpr, f.tpr_reversed), chance=1.0),
    ]
    return scores_of(
        found, quantities, "RMIA", protocol="RMIA, D_f against D_ft", settings={"references": len(checked)}
    )
