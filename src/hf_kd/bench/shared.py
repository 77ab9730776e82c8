"""What the cells of one experiment share: the model that all rows start from, the data, and what was read of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hf_kd.data.devices import chosen_device
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import has_head
from hf_kd.features.reader import ReadOptions
from hf_kd.model.erased_model import ErasedModel

from .config import Experiment
from .measure import Features, read_both
from .other_data import OtherData, open_other, read_other
from .protocols import Problem, make_problem


@dataclass
class Shared:
    """Each made when the first cell needs it."""

    experiment: Experiment
    device: str | None
    progress: bool

    @cached_property
    def original(self) -> ErasedModel:
        options = {"revision": self.experiment.revision} if self.experiment.revision else {}
        model = ErasedModel.from_pretrained(self.experiment.model, **options).to(chosen_device(self.device))
        if not has_head(model):
            raise InvalidValueError(
                f"{self.experiment.model} has no classification head, which a bench measures first."
            )
        if model.is_erased:
            raise InvalidValueError(
                f"{self.experiment.model} carries an eraser: name the model before anything was erased."
            )
        return model

    @cached_property
    def problem(self) -> Problem:
        return make_problem(self.experiment, self.original.class_names)

    @property
    def settings(self) -> ReadOptions:
        where = self.experiment.dataset
        return ReadOptions(
            where.get("image_column"),
            where.get("label_column"),
            where.get("label_mapping"),
            self.experiment.batch_size,
            self.experiment.mixed_precision,
            None,
            self.progress,
        )

    @cached_property
    def features(self) -> Features:
        return self.read(self.original)

    def read(self, model: ErasedModel) -> Features:
        return read_both(model, self.problem, self.settings, self.experiment.measures.attacks)

    @cached_property
    def elsewhere(self) -> OtherData:
        """Of the original, on the data set that `transfer` names."""
        return self.read_elsewhere(self.original)

    @cached_property
    def _other_images(self) -> Mapping[str, Any]:
        return open_other(self.experiment.measures.transfer)

    def read_elsewhere(self, model: ErasedModel) -> OtherData:
        return read_other(model, self._other_images, self.experiment.measures.transfer, self.settings)
