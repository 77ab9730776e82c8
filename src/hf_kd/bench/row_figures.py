"""Figures of single rows, drawn while their model is at hand: class means (Fig. 3), t-SNE, Grad-CAM (Fig. 6).

The drawing is the audit's; here the original stands on the left and the row on the right, whether the row has an eraser
or other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hf_kd.audit.class_maps import panel
from hf_kd.audit.figures import draw_class_means, draw_tsne
from hf_kd.audit.hidden_states import class_maps
from hf_kd.audit.plotting import STYLE, add_title
from hf_kd.audit.sections.features import plot_numbers, plot_samples
from hf_kd.data.distributed import process_state
from hf_kd.features.heads import apply_erasers, side_by_side
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.methods.records import changes_of, treatment
from hf_kd.metrics.attack_data import AuditData
from hf_kd.model.erased_model import ErasedModel

from .figures import shown_name
from .measure import Features
from .protocols import Problem

MOST_IMAGES = 6
"""Rows of a Grad-CAM figure."""


@dataclass(frozen=True)
class _Numbers:
    """What the audit's figures read of a report."""

    plots: dict[str, Any]
    plot_samples: Any
    class_names: dict[int, str]
    forget_labels: tuple[int, ...]
    treatment: str


def panel_names(grad_cam: bool) -> list[str]:
    """Names of the panels of a row, without .png."""
    return ["class_means", "tsne", *["grad_cam"] * grad_cam]


def draw_panels(
    model: ErasedModel,
    features: Features,
    problem: Problem,
    original: tuple[ErasedModel, Features],
    settings: ReadOptions,
    label: str,
    folder: Path,
    *,
    title: str = "",
    grad_cam: bool = False,
    failures: tuple[type[Exception], ...] = (),
) -> dict[str, str]:
    """Draw class_means.png, tsne.png and, if asked for, grad_cam.png into `folder`, which is there.

    Returns {name: file, or why there is none}. features: of `model` before its erasers. title: over each of them; see
    `row_in_short`. failures: what a figure may raise without stopping the others.
    """
    drawers = {"class_means": _class_means, "tsne": _tsne, "grad_cam": _grad_cam}
    found = {}
    for name in panel_names(grad_cam):
        path = folder / f"{name}.png"
        try:
            found[name] = drawers[name](model, features, problem, original, settings, (label, title), path) or path.name
        except failures as error:
            found[name] = f"{type(error).__name__}: {error}"
            path.unlink(missing_ok=True)  # a part of it
    return found


def row_in_short(label: str, scores: Mapping[str, Any]) -> str:
    """What the figures of a row are to be read with: what its probe and its head say of the forgotten test images."""
    said = {"KR D_ft": "a converged probe reads {:.0f} % of the forgotten", "D_ft": "the head answers {:.0f} %"}
    told = [text.format(scores[key]) for key, text in said.items() if scores.get(key) is not None]
    return f"{label}: {', '.join(told)}" if told else label


def _numbers(model, features, problem, original) -> _Numbers | str:
    """The numbers of both versions, or why there are none."""
    forget = problem.forget_classes(len(problem.stages) - 1)
    if not forget:
        return "no class is forgotten"
    versions = []
    for one, parts in (original, (model, features)):
        train, test = (side_by_side(apply_erasers(one, split)) for split in (parts.train, parts.test))
        versions.append(AuditData.of(train, problem.probe_train, test, problem.probe_test, forget))
    if versions[0].test.shape != versions[1].test.shape:
        return "the features have another dimension than the original's"
    numbers, samples = plot_numbers(*versions), plot_samples(*versions)
    return _Numbers(numbers, samples, dict(problem.names), tuple(forget), _treatment(model))


def _treatment(model: ErasedModel) -> str:
    return treatment(changes_of(model.config), model.erasures)


def _class_means(model, features, problem, original, settings, titles, path) -> str | None:
    return _save(draw_class_means, model, features, problem, original, titles, path)


def _tsne(model, features, problem, original, settings, titles, path) -> str | None:
    return _save(draw_tsne, model, features, problem, original, titles, path)


def _save(drawer, model, features, problem, original, titles, path) -> str | None:
    if not process_state().is_main_process:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    label, title = titles
    numbers = _numbers(model, features, problem, original)
    if isinstance(numbers, str):
        return numbers
    with rc_context(STYLE):
        figure = drawer(numbers, Figure)
        if figure is None:
            return "too few test images"
        right = figure.axes[1]
        if drawer is draw_class_means:
            right.set_title(f"original against {shown_name(label)}")
            right.set_xlabel(f"mean of {shown_name(label)} and its length")
        else:
            right.set_title(shown_name(label))
        add_title(figure, title)
        figure.savefig(path)
    return None


def _grad_cam(model, features, problem, original, settings, titles, path) -> str | None:
    """Test images of the forgotten classes with the original's map, and the row's."""
    mask = problem.forget_test(len(problem.stages) - 1)
    if mask is None:
        return "no class is forgotten"
    rows = torch.nonzero(mask).flatten()
    target = int(problem.test_labels[rows[0]])  # what the head calls it: of a fine class, the class above
    rows = rows[problem.test_labels[rows] == target][:MOST_IMAGES]
    if not process_state().is_main_process:
        return None
    reader = ImageReader(model, problem.test.select(rows.tolist()), replace(settings, batch_size=MOST_IMAGES))
    inputs = next(iter(reader.batches()))["inputs"]
    first, second = class_maps(original[0], inputs, target), class_maps(model, inputs, target)
    maps = replace(second, original=first.original)
    names = model.class_names
    images = next(value for value in inputs.values() if value.ndim == 4)
    answers = [str(names[int(p)]) for p in maps.predicted]
    shown = images.float().cpu()
    panel(shown, maps, str(names[target]), answers, path, title=titles[1], treatment=_treatment(model))
    return None
