"""An eraser as a folder of its own: what a full save writes, without the weights of the base, whose digest it names.

`eraser_config.json` is the config.json of a full save and what the base has to be; `eraser.safetensors` are the tensors of
the erasers, under the names that they have there. Nothing of it is run, and nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_kd.data.digest import inner_digest
from hf_kd.data.paths import CONFIG_NAME, ERASER_CONFIG, local_path, refuse_missing_model, with_revision
from hf_kd.data.text import one_line
from hf_kd.errors import CheckpointError, InvalidValueError, MissingFileError
from hf_kd.features.taps.places import Tap
from hf_kd.features.taps.site import Sites, TapSite
from hf_kd.hub.files import ERASER_WEIGHTS
from hf_kd.hub.receipt import ERASERS
from hf_kd.hub.text import is_repo_id
from hf_kd.methods.erasers.base import build
from hf_kd.methods.records import Erasure, config_errors, weight_changes

from . import checkpoint_files as files
from . import consistency, loading
from .configuration import ErasedConfig, label_names, refuse_strange_settings

FORMAT = 1
"""Of the folder; a later one is refused."""
OWN = ("eraser_format", "base_weights", "base_dtype")
"""What the configuration holds beside that of a full save."""


class StoredEraser(nn.Module):
    """Erasers as a folder has them, beside no model yet, and what their base has to be.

    Attributes:
        name: Folder or Hub id.
        config: What config.json of a full save would be.
        base_weights: Digest of the weights of the base.
        base_dtype: Of most of them; None where that is not known.
        sites: One for each tap, hooked into nothing, with the eraser.
        text_sites: The same of the text tower; empty where nothing was forgotten by name.
        processor: The image processor beside it; None where there is none, and the base's is used.
    """

    processor: Any | None = None

    def __init__(self, name: str, config: ErasedConfig, base_weights: str, base_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.name, self.config, self.base_weights, self.base_dtype = name, config, base_weights, base_dtype
        self.sites, self.text_sites = Sites(), Sites()
        for tap, description in zip(config.tap_list, config.erasers, strict=True):
            self.sites.append(_site(tap, description))
        if config.text_tower:
            with config_errors("the text tower", config.text_tower):
                self.text_sites.append(_site(Tap.from_dict(config.text_tower["tap"]), config.text_tower["eraser"]))

    @property
    def erasures(self) -> tuple[Erasure, ...]:
        return self.config.records

    @property
    def taps(self) -> tuple[Tap, ...]:
        return self.config.tap_list

    @property
    def is_erased(self) -> bool:
        return True

    @property
    def class_names(self) -> dict[int, str]:
        return label_names(self.config.inner)

    @property
    def base(self) -> tuple[str | None, str | None]:
        """Hub id and commit of the base, as far as they can be such; None where it came from somewhere else."""
        name, commit = self.config.base_model, self.config.base_commit
        if not isinstance(name, str) or not is_repo_id(name) or os.path.exists(name):
            return None, None
        return name, commit if re.fullmatch("[0-9a-f]{40}", str(commit)) else None

    @property
    def base_in_words(self) -> str:
        """The base as a message names it."""
        name, commit = self.base
        where = f"{name} at {commit[:12]}" if name and commit else name or "a base that is not on the Hub"
        return f"{where} ({one_line(self.config.inner_class, 80)}, weights {self.base_weights[:12]})"


def _site(tap: Tap, description: Any) -> TapSite:
    site = TapSite(tap)
    site.eraser = build(description) if description else None
    return site


# Writing


def write_eraser(model: Any, folder: Path) -> None:
    """Write configuration, erasers and image processor of an erased model into a folder that is there.

    Raises InvalidValueError where its base is no model that others could have: its weights were changed.
    """
    digest = refuse_changed_base(model)
    stored = json.loads(model.config.to_json_string())
    stored |= dict(zip(OWN, (FORMAT, digest, _dtype_name(model.inner)), strict=True))
    (folder / ERASER_CONFIG).write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {
        name: value.detach().cpu().contiguous()
        for part in ("sites", "text_sites")
        for name, value in getattr(model, part).state_dict(prefix=f"{part}.").items()
    }
    save_file(tensors, folder / ERASER_WEIGHTS, metadata={"format": "pt"})
    if hasattr(model.processor, "save_pretrained"):  # of images; a tokenizer is the base's, and megabytes
        model.processor.save_pretrained(folder)


def _dtype_name(inner: nn.Module) -> str:
    """The dtype of most of the weights, as a base has to be loaded."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in inner.parameters():
        sizes[parameter.dtype] += parameter.numel()
    return str(sizes.most_common(1)[0][0]).removeprefix("torch.")


def refuse_changed_base(model: Any) -> str:
    """Digest of the weights that an eraser of this model stands on, the same as its base has.

    Raises:
        InvalidValueError: Nothing was erased, or the model inside is not the base any more: weights were changed by
            unlearning, folding, training or another precision, or cannot be read here.
    """
    if not model.is_erased:
        raise InvalidValueError("Nothing has been erased, so there is no eraser to save. Call erase first.")
    refuse_changed_weights(model)
    found, told = inner_digest(model), model.config.weights_erased
    if found is None:
        raise InvalidValueError(f"The weights of this model cannot be hashed here, so no base would be known. {WHOLE}")
    if told is not None and told != found:
        raise InvalidValueError(
            f"The weights have the digest {found[:12]}, and those that the first request found {told[:12]}: they were "
            f"trained since, or are in another precision, so the base is not what this eraser was fitted on. {WHOLE}"
        )
    return found


WHOLE = "Save or publish the whole model instead: with save_pretrained or push_to_hub in Python, else without --eraser-only."


def refuse_changed_weights(model: Any) -> None:
    """Raise InvalidValueError, before a request too, for a model whose weights are not those that others find in its base:
    changed by `unlearn` or `fold`, or drawn where it was loaded.
    """
    if drawn := getattr(model, "drawn", ()):
        raise InvalidValueError(
            f"{drawn[0]} was not in the checkpoint and was drawn at random: an eraser on its own would stand beside a base "
            f"that has other values each time it is loaded. {WHOLE}"
        )
    changed = [change.method for change in weight_changes(model.config)]
    if changed or getattr(model.config.inner, "hf_kd_folded", None):
        how = f"were changed by {', '.join(map(one_line, changed))}" if changed else "have an earlier eraser folded in"
        raise InvalidValueError(
            f"The weights of this model {how}: an eraser on its own would stand beside a base that does not have that. "
            f"{WHOLE}"
        )


def refuse_model_there(directory: str | os.PathLike[str]) -> None:
    """Raise InvalidValueError for a folder that holds a model: an eraser in it would be taken for a part of that."""
    if os.path.lexists(local_path(directory) / CONFIG_NAME):
        raise InvalidValueError(
            f"{directory} holds a model ({CONFIG_NAME}), and an eraser is kept in a folder of its own: name another one."
        )


# Reading


def find_eraser(name: str, hub: dict[str, Any]) -> bool:
    """Whether a folder or a repository holds an eraser on its own, and no model."""
    name, hub = with_revision(name, hub)
    refuse_missing_model(name)
    return loading.stored_config(name, hub) is None and files.find_file(name, ERASER_CONFIG, hub) is not None


def read_eraser(source: str | os.PathLike[str], hub: dict[str, Any] | None = None) -> StoredEraser:
    """The eraser in a folder, or a repository USER/NAME or USER/NAME@REVISION.

    Raises:
        MissingFileError: There is none.
        CheckpointError: A file of it is damaged.
        InvalidValueError: It contradicts its records, or is of a later hf_kd.
    """
    name, hub = with_revision(os.path.expanduser(source), dict(hub or {}))
    refuse_missing_model(name)
    stored = _read_config(name, hub)
    own = {key: stored.pop(key, None) for key in OWN}
    with files.checkpoint_errors(name):
        config = ErasedConfig.from_dict(stored)
        if config.inner is None or not config.records:
            raise InvalidValueError(
                f"{ERASER_CONFIG} of {name} records no erasure, or no base: it is damaged. Save the eraser again."
            )
        consistency.refuse_contradictions(config)
        with torch.device("meta"):  # a damaged size costs nothing before the file is seen not to have it
            found = StoredEraser(name, config, own["base_weights"], getattr(torch, own["base_dtype"] or "", None))
        _fill(found, _read_tensors(name, hub))
        for site in [*found.sites, *found.text_sites]:
            site.eraser.check()
        consistency.refuse_other_erasers(found)
    found.processor = loading.load_processor(name, hub)
    return found.eval()


def _read_config(name: str, hub: dict[str, Any]) -> dict[str, Any]:
    path = files.find_file(name, ERASER_CONFIG, hub)
    if path is None:
        raise MissingFileError(
            f"{name} holds no eraser on its own: it has no {ERASER_CONFIG}, which save_eraser writes. A whole model is "
            "loaded as the model, and not as the eraser of another."
        )
    try:
        stored = ErasedConfig._dict_from_json_file(path)  # which knows how transformers writes infinity
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{ERASER_CONFIG} of {name} is damaged ({error}); download or save it again.") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{ERASER_CONFIG} of {name} is no object of settings; download or save it again.")
    if stored.get("eraser_format") != FORMAT or stored["eraser_format"] is True:
        raise InvalidValueError(
            f"{ERASER_CONFIG} of {name} has format {str(stored.get('eraser_format'))[:100]!r}, and this hf_kd reads "
            f"{FORMAT}: it is damaged, or of a later hf_kd. Save the eraser again, or install a later version."
        )
    refuse_strange_settings(stored | {"dtype": stored.get("base_dtype")})
    weights, dtype = stored.get("base_weights"), stored.get("base_dtype")
    if not (
        isinstance(weights, str) and re.fullmatch("[0-9a-f]{64}", weights) and isinstance(dtype, (str, type(None)))
    ):
        raise InvalidValueError(
            f"{ERASER_CONFIG} of {name} has no digest of its base (base_weights is {str(weights)[:100]!r}), without which "
            "nothing says what it stands on: it is damaged. Download or save it again."
        )
    return stored


def _read_tensors(name: str, hub: dict[str, Any]) -> dict[str, Tensor]:
    path = files.find_file(name, ERASER_WEIGHTS, hub)
    if path is None:
        raise MissingFileError(f"{name} has no {ERASER_WEIGHTS}: the eraser is not there. Download or save it again.")
    with safe_open(path, framework="pt") as file:
        strange = [key for key in file.keys() if not key.startswith(ERASERS)]  # noqa: SIM118  (no mapping)
        if strange:
            raise InvalidValueError(
                f"{ERASER_WEIGHTS} of {name} brings {one_line(strange[0], 100)!r}, which is no tensor of an eraser: it is "
                "damaged. Save the eraser again with save_eraser."
            )
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _fill(found: StoredEraser, tensors: dict[str, Tensor]) -> None:
    """Put the values of the file into erasers without any, where names, shapes and dtypes are the same."""
    own = found.state_dict()
    info = {
        "missing_keys": set(own) - set(tensors),
        "unexpected_keys": set(tensors) - set(own),
        "mismatched_keys": [
            key
            for key, value in tensors.items()
            if key in own and (value.shape != own[key].shape or value.dtype != own[key].dtype)
        ],
    }
    files.refuse_incomplete(found.name, info)
    found.load_state_dict(tensors, assign=True)
    loading.align_memory(found)
