"""Carry out a request by name: prompts -> what the names mean -> a map for each tower -> its place, and a record."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_kd.data.labels import NamedIds
from hf_kd.data.vocabulary import checked_names, checked_templates, objects, shares_words
from hf_kd.errors import GIVE_RETAIN, InvalidValueError, did_you_mean
from hf_kd.features.forward import FeatureStore
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.readers import open_readers
from hf_kd.features.taps.inputs import input_device
from hf_kd.features.text_reader import TextReader
from hf_kd.methods.concepts import ConceptMaps, ConceptMethod, NameVectors, Prompts, SeenImages, as_unit, fit_concept
from hf_kd.methods.records import Erasure, texts_digest

from . import outcome
from .erase import common_fields, leave_checkpoint, weights_found

logger = logging.getLogger(__name__)

MOST_PROMPTS = 4096
"""Prompts of retained names that are read; with more names each gets fewer templates, in turn."""
CLOSE, SAME = 0.5, 0.7
"""Cosine from which a retained name is told to be close, and from which it is not protected."""
SHOWN = 5
"""Close names that a warning lists."""
NO_BAR = ReadOptions(progress=False)


@dataclass(frozen=True)
class Near:
    """A retained name that means something close to what is forgotten."""

    name: str
    cosine: float
    protected: bool
    """Whether the map keeps it; not where it is too close, or shares words with what is forgotten."""


@dataclass(frozen=True)
class ReadConcept:
    """The prompts of a request, read behind the erasers of earlier ones."""

    texts: tuple[str, ...]
    retained: tuple[str, ...]
    """Names that stay, those that share words with the texts last."""
    overlapping: Tensor
    """Which those are [m]."""
    concept: Prompts
    others: tuple[Prompts, ...]
    vectors: NameVectors

    @classmethod
    def of(
        cls,
        model: Any,
        texts: Sequence[str],
        retain_texts: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        progress: bool = True,
    ) -> ReadConcept:
        """Read them.

        Raises:
            InvalidTypeError: For a model without a text tower.
            InvalidValueError: For names or templates that cannot be, or where no name is retained.
        """
        names, wordings = checked_names(texts, "texts"), checked_templates(templates)
        given = objects() if retain_texts is None else checked_names(retain_texts, "retain_texts")
        told = {name.casefold() for name in names}
        retained = [name for name in given if name.casefold() not in told]
        shared = [name for name in retained if shares_words(name, names)]
        apart = [name for name in retained if name not in shared]
        if len(apart) < 2:
            raise InvalidValueError(
                f"Of the retained names {len(apart)} share no words with the texts to forget; without two such nothing "
                "says what has to stay. Give more as retain_texts."
            )
        model.find_text_tap()
        reader = TextReader(model, progress)
        kept = _read(reader, apart, wordings)
        used, numbers = kept.templates.unique(return_inverse=True)
        kept, wordings = replace(kept, templates=numbers), tuple(wordings[number] for number in used.tolist())
        concept = _read(reader, names, wordings, len(names) * len(wordings))
        also = _read(reader, shared, wordings) if shared else None
        overlapping = torch.arange(len(retained)) >= len(apart)
        others = (kept,) if also is None else (kept, also)
        return cls(names, (*apart, *shared), overlapping, concept, others, NameVectors.of(concept, kept, also))

    def refuse_other_space(self, model: Any) -> None:
        """Raise InvalidValueError where images have no vector in the space of these texts."""
        dims, dim = [tap.dim for tap in model.taps], self.concept.embeddings.shape[1]
        if dims != [dim]:
            raise InvalidValueError(
                f"Images pass at {len(dims)} taps of d = {dims} and texts have d = {dim}: this model has no joint space "
                "with one vector an image. Forget by images alone, without texts."
            )

    def unprotected(self) -> Tensor:
        """Which retained names the map does not keep [m]."""
        near = (self.vectors.nearness() >= SAME) | self.overlapping
        return near if int((~near).sum()) >= 2 else self.overlapping

    def near(self) -> list[Near]:
        """Retained names that lie close, nearest first."""
        cosine, left = self.vectors.nearness(), self.unprotected()
        rows = [n for n in cosine.argsort(descending=True).tolist() if cosine[n] >= CLOSE or bool(self.overlapping[n])]
        return [Near(self.retained[n], round(float(cosine[n]), 3), not bool(left[n])) for n in rows]

    def classify(self, images: Tensor) -> Tensor:
        """Which of unit embeddings [n, d] the model itself takes for the concept, among all names [n]."""
        rows = torch.cat([prompts.by_name() for prompts in (self.concept, *self.others)])
        return (images @ as_unit(rows).T).argmax(dim=1) < len(self.texts)


def erase_texts(
    model: Any,
    texts: Sequence[str],
    images: Any,
    method: Any,
    retain: Any,
    wanted: Mapping[str, Any],
    publish_texts: bool,
    reading: ReadOptions | None,
    settings: Mapping[str, Any],
) -> Any:
    """Fit and put in place; see `ErasedModel.erase_texts`. On an error the model stays as it was."""
    options = ReadOptions.given(reading, True, settings)
    if retain is not None and images is None:
        raise InvalidValueError(
            "retain= are images of other things, and there are no images of the concept: give both."
        )
    chosen = _method(method, settings)
    changes, started = model._swap.changes, time.perf_counter()
    read = ReadConcept.of(model, texts, **wanted, progress=options.progress)
    read.refuse_other_space(model)
    near = read.near()
    close = _near_warnings(near)
    sets = {"images": images} if retain is None else {"forget": images, "retain": retain}
    readers = open_readers(model, options, **sets)
    seen, by, told = _seen(readers, read)
    for warning in told:
        logger.warning(warning)
    between = time.perf_counter()
    maps = _fit(model, chosen, read, seen)
    times = (started, between, time.perf_counter())
    erasure = Erasure(
        method=chosen.name,
        settings={name: value for name, value in asdict(chosen).items() if name != "name"},
        taps=tuple(map(str, model.taps)),
        n_forget=0 if seen is None else len(seen.concept),
        classes=None,
        measured=(maps.measured | {"n_retain_texts": len(read.retained), "n_near": len(near)} | by,),
        n_retain=None if seen is None else len(seen.others),
        needs="texts" if seen is None else "texts and images",
        warnings=(*close, *told),
        withheld=tuple(model.config.leaking),
        n_texts=len(read.texts),
        texts_sha256=texts_digest(read.texts, secrets.token_hex(16)),
        texts=read.texts if publish_texts else None,
        **common_fields([maps.images], readers, next(model.inner.parameters()).dtype, times),
    )
    _put_in_place(model, maps, erasure, changes)
    return model


def _fit(model: Any, method: ConceptMethod, read: ReadConcept, seen: SeenImages | None) -> ConceptMaps:
    """Both maps, refused where they change nothing."""
    embeddings = read.concept.embeddings
    known = (
        [_labelled(ImageReader(model, noise_pictures(), NO_BAR))[0]] if seen is None else [seen.concept, seen.others]
    )
    maps = fit_concept(method, read.vectors.without(read.unprotected()), torch.cat(known).mean(dim=0), seen)
    if float((maps.texts(embeddings) - embeddings).norm()) <= outcome.SAME * float(embeddings.norm()):
        raise InvalidValueError(
            "The request changes nothing: was the concept forgotten before? No record is made. Leave it out, or name more."
        )
    return maps


def _put_in_place(model: Any, maps: ConceptMaps, erasure: Erasure, changes: int) -> None:
    """Behind earlier erasers, unless the model was changed since its erasers had changed so many times."""
    weights = weights_found(model)
    device = input_device(model.inner)
    with model._swap.change():
        if model._swap.changes != changes + 1:
            raise InvalidValueError(
                "This model was erased or reset while this request was fitted. Nothing was changed: erase again."
            )
        for site, eraser in ((model.sites[0], maps.images), (model.text_sites[0], maps.texts)):
            fitted = eraser.to(device)
            site.eraser = fitted if site.eraser is None else site.eraser.then(fitted)
        model.config.weights_erased = weights
        model._describe_erasers()
        model.config.erasures = [*model.config.erasures, erasure.to_dict(names=True)]
        leave_checkpoint(model)


def _method(method: Any, settings: Mapping[str, Any]) -> ConceptMethod:
    known = [field.name for field in fields(ConceptMethod) if field.name != "name"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise InvalidValueError(f"{unknown[0]} is no setting of a request by name.{near} They are {', '.join(known)}.")
    if isinstance(method, ConceptMethod):
        return replace(method, **settings)
    return ConceptMethod(name=getattr(method, "name", method), **settings)


def _read(reader: TextReader, names: Sequence[str], templates: Sequence[str], most: int = MOST_PROMPTS) -> Prompts:
    """Prompts of all names in all templates; where those are more than `most`, each name in some, in turn."""
    each = min(len(templates), max(1, most // len(names)))
    step = max(1, len(templates) // each)
    pairs = [(n, (n + step * j) % len(templates)) for n in range(len(names)) for j in range(each)]
    rows = reader.read([templates[t].replace("{}", names[n]) for n, t in pairs])
    chosen = torch.tensor(pairs)
    return Prompts(as_unit(reader.erased(rows)), chosen[:, 0], chosen[:, 1])


def _near_warnings(near: Sequence[Near]) -> list[str]:
    """What the record says of close names: how many. The log says which, as no record may."""
    if not near:
        return []
    told = f"{len(near)} retained names lie close to what was forgotten"
    listed = ", ".join(f"{n.name} ({n.cosine:.2f}{'' if n.protected else ', not kept'})" for n in near[:SHOWN])
    more = f" and {len(near) - SHOWN} more" if len(near) > SHOWN else ""
    logger.warning(f"{told}: {listed}{more}. Forget one of them too? Name it beside the others: texts=['NAME'].")
    return [f"{told}."]


def _labelled(reader: ImageReader) -> tuple[Tensor, Tensor]:
    """Unit embeddings [n, d] and labels of the data set [n]."""
    store = FeatureStore()
    reader.run(store)
    features, labels = store.collect(1)
    return as_unit(features[0]), labels


def noise_pictures(count: int = 40, side: int = 64) -> list[Image.Image]:
    """Noise of many grains, always the same: where nothing is known of images, it says where a tower puts images at all.

    What images have in common, whatever they show, is most of an embedding (the cone of Liang et al. 2022, "Mind the gap").
    """
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        grain = 2 ** (1 + number % 5)
        pixels = rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8)
        how = Image.Resampling.BILINEAR if number % 2 else Image.Resampling.NEAREST
        found.append(Image.fromarray(pixels).resize((side, side), how))
    return found


def _seen(readers: Mapping[str, ImageReader], read: ReadConcept) -> tuple[SeenImages | None, dict[str, str], list[str]]:
    """Embeddings of images of the concept and of other things, None without images; what told them apart; warnings.

    All of "forget" are of the concept where others are given as "retain", else those whose label is called like it; of what
    has no label, or where none is called so, those that the model itself takes for it.
    """
    if not readers:
        return None, {}, []
    reader = next(iter(readers.values()))
    rows, labels = _labelled(reader)
    if "retain" in readers:
        return SeenImages(rows, _labelled(readers["retain"])[0]), {"images_sorted_by": "given apart"}, []
    called = NamedIds(reader.label_names)(read.texts) if reader.images.has_labels else []
    labelled = (labels >= 0) if called else torch.zeros(len(rows), dtype=torch.bool)
    of_concept = torch.isin(labels, torch.tensor(called)) & labelled
    if not bool(labelled.all()):
        of_concept |= ~labelled & read.classify(rows)
    seen = SeenImages(rows[of_concept], rows[~of_concept])
    answered = None if bool(labelled.all()) else of_concept[~labelled]
    told = _told_apart(len(seen.concept), len(seen.others), answered)
    by = ["labels"] * bool(labelled.any()) + ["zero-shot answers"] * (not bool(labelled.all()))
    return seen, {"images_sorted_by": " and ".join(by)}, told


def _told_apart(concept: int, others: int, answered: Tensor | None) -> list[str]:
    """What a user may not have meant by the images; `answered`: which of those without a label the model took for it."""
    way = f"images of other things: {GIVE_RETAIN}"
    if not others:
        return [
            f"All {concept:,} images are of the concept, and without images of other things nothing says what sets them "
            f"apart: the names alone decide. Give {way}."
        ]
    if answered is None:
        none = f"None of the {others:,} images has a label that is called like a text, so they say nothing of how it looks."
        return [] if concept else [none]
    taken = int(answered.sum())
    if 2 * taken < len(answered):
        return [
            f"Among all names the model takes {taken:,} of {len(answered):,} images for the concept, and the others "
            f"count as images of other things. If they all show it, give labels that are called like a text, or {way}."
        ]
    return []
