"""What erase and unlearn measure beside what they do: the head's accuracy on a test split, before and after."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kd.errors import HfKdError, InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor

    from hf_kd.features.reader import ReadOptions
    from hf_kd.model.erased_model import ErasedModel

PARTS = ("forget", "retain")


class HeadAccuracy:
    """Of the head on a test split, in percent, before and after: what the split or the model lacks is refused at once.

    Args:
        model: Before the work.
        data: The test split.
        split: Its name.
        classes: Ids of the model; those of all earlier requests count as forgotten too.
        reading: How images are read.

    Raises:
        InvalidValueError: Without a head or forgotten labels, and for a split without an image of either part.
        LabelMismatchError: For labels that the model does not know.
    """

    def __init__(self, model: ErasedModel, data: Any, split: str, classes: list[int], reading: ReadOptions) -> None:
        from hf_kd.features.heads import has_head, no_choice, predictions
        from hf_kd.features.reader import ImageReader
        from hf_kd.methods.records import forgotten_classes

        if not has_head(model):
            raise InvalidValueError(
                "--test-split measures the head's accuracy, and this model has no classification head: leave it out."
            )
        if what := no_choice(model):
            raise InvalidValueError(
                f"--test-split measures which classes the head answers, and this one answers {what}: leave it out."
            )
        if not classes:
            raise InvalidValueError(
                "--test-split measures forgotten against other labels; name the forgotten ones with --forget-labels."
            )
        self.data, self.split, self.reading = data, split, reading.of_test()
        self.forgotten = sorted(forgotten_classes(model) | set(classes))
        self.reader = ImageReader(model, data, self.reading)
        try:
            self.read = self.reader.read()
            self.answers = predictions(model, self.read.before, masked=False, labels=self.read.labels)
            self.before = self._rates(self.answers)
        except HfKdError as error:
            error.args = (f"--test-split {split}: {error}", *error.args[1:])
            raise

    def _rates(self, answers: Tensor) -> dict[str, float]:
        from hf_kd.metrics.scores import forget_retain_accuracy

        return dict(zip(PARTS, forget_retain_accuracy(answers, self.read.labels, self.forgotten), strict=True))

    def measured(self, output: Path, changed: ErasedModel | None = None) -> dict[str, Any]:
        """What is printed and told as JSON: behind the eraser that the model has now, or of the `changed` model.

        `changes` says of both parts how many images they have, and how many are answered rightly no more, or only now;
        `hardest_hit` which other class lost most, as a `Share`, where one lost more than chance.

        Args:
            output: Where the result of the work was saved before this.
            changed: The model with other weights.
        """
        from hf_kd.audit.shares import Share, hardest_hit
        from hf_kd.features.heads import predictions
        from hf_kd.features.reader import ImageReader
        from hf_kd.metrics._inputs import is_in

        labels = self.read.labels
        try:
            if changed is None:
                answers = predictions(self.reader.model, self.read.erased(self.reader.model), labels=labels)
            else:
                read = ImageReader(changed, self.data, self.reading).read()
                answers = predictions(changed, read.before, labels=labels)
            after = self._rates(answers)
        except HfKdError as error:
            error.args = (f"--test-split {self.split}: {error} (The model is saved in {output}.)", *error.args[1:])
            raise
        rows = is_in(labels, self.forgotten)
        hits, hits_before = answers == labels, self.answers == labels

        def changes(own: Tensor) -> dict[str, Any]:
            lost, gained = hits_before & ~hits & own, hits & ~hits_before & own
            return {"samples": int(own.sum()), "lost": int(lost.sum()), "gained": int(gained.sum())}

        worst = hardest_hit(
            {
                int(label): Share(_percent(hits[own]), _percent(hits_before[own]), **changes(own))
                for label in labels[~rows].unique()
                for own in [labels == label]
            }
        )
        return {
            "split": self.split,
            "classes": self.forgotten,
            "sampled": self.reader.sampled,
            "original": self.before,
            "erased": after,
            "changes": dict(zip(PARTS, (changes(rows), changes(~rows)), strict=True)),
            "hardest_hit": None if worst is None else {"label": worst[0], **asdict(worst[1])},
        }


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())
