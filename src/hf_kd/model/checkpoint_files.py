"""Which files of a checkpoint are read: safetensors beside its configuration, and nothing that runs code on the way.

transformers knows more ways to weights than a folder shows (names in config.json, indexes of
shards, adapters); each is closed here for erased models, and the ones that lead out of the folder for all.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  (what torch raises; nothing is unpickled here)
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_kd.data.paths import ADAPTER_CONFIG, CONFIG_NAME
from hf_kd.errors import CheckpointError, HfKdError, InvalidValueError, out_of_memory

from .configuration import unknown_type

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The part of `from_pretrained`'s keyword arguments that says where files come from."""
    return {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}


def refuse_pickles(name: str, stored: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Raise OSError for an erased checkpoint whose weights are not safetensors: hf_kd never writes others, and reads none.

    Neither do adapters beside it count, which transformers would load into it unasked.
    """
    hub, variant = hub_arguments(kwargs), kwargs.get("variant")
    if stored.get("transformers_weights") is not None:
        raise CheckpointError(
            f"config.json of {name} names {stored['transformers_weights']!r} as its weights. An erased model keeps them in "
            f"{SAFE_WEIGHTS_NAME}: save it again with save_pretrained."
        )
    if find_file(name, ADAPTER_CONFIG, hub) is not None:
        raise CheckpointError(
            f"Beside the erased model {name} lies {ADAPTER_CONFIG}, and transformers would load that adapter into it. Keep "
            "adapters in a folder of their own, and load that."
        )
    if find_file(name, _variant(SAFE_WEIGHTS_NAME, variant), hub) is not None:
        return
    index = find_file(name, _variant(SAFE_WEIGHTS_INDEX_NAME, variant), hub)
    if index is not None:
        _refuse_other_shards(name, index)
        return
    for file in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        if find_file(name, _variant(file, variant), hub) is not None:
            raise CheckpointError(
                f"The weights of {name} are {_variant(file, variant)}, a pickle, which hf_kd does not read. Erased models "
                f"are saved as {SAFE_WEIGHTS_NAME}: save it again with save_pretrained."
            )


def refuse_other_files(name: str, stored: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Raise OSError for a stock checkpoint whose configuration or index names weights outside, or pickles among others."""
    hub, variant = hub_arguments(kwargs), kwargs.get("variant")
    named = stored.get("transformers_weights")
    if named is not None and not (
        isinstance(named, str) and named.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise CheckpointError(
            f"config.json of {name} names {named!r} as its weights, which are no safetensors: save the model again with "
            "save_pretrained."
        )
    if named is None and find_file(name, _variant(SAFE_WEIGHTS_NAME, variant), hub) is not None:
        return
    file = named or _variant(SAFE_WEIGHTS_INDEX_NAME, variant)
    index = find_file(name, file, hub) if file.endswith(".index.json") else None
    if index is not None:
        _refuse_other_shards(name, index)
    elif named is None and (index := find_file(name, _variant(WEIGHTS_INDEX_NAME, variant), hub)) is not None:
        _refuse_other_shards(name, index, ".bin")


def refuse_pickled_adapter(name: str, hub: dict[str, Any]) -> None:
    """Raise OSError for an adapter whose weights are not safetensors."""
    if find_file(name, ADAPTER_WEIGHTS, hub) is None:
        raise CheckpointError(
            f"The adapter {name} has no {ADAPTER_WEIGHTS}, and hf_kd reads no pickle. Save it again with peft."
        )


def _variant(file: str, variant: str | None) -> str:
    return f".{variant}.".join(file.rsplit(".", 1)) if variant else file


def _refuse_other_shards(name: str, index: str, suffix: str = ".safetensors") -> None:
    file = Path(index).name
    try:
        shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        strange = sorted(shard for shard in shards if Path(shard).name != shard or not shard.endswith(suffix))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} of {name} is damaged ({type(error).__name__}: {error}); download or save it again."
        ) from error
    if strange:
        raise CheckpointError(
            f"{file} of {name} names {strange[0]!r}, which is no {suffix[1:]} file beside it. hf_kd reads no other: save "
            "the model again with save_pretrained."
        )


def refuse_strange_weights(name: str, model: nn.Module, info: dict[str, Any]) -> None:
    """Raise ValueError where a stock configuration lies over weights that are not its own, such as an erased model's."""
    erased = sorted(key for key in info["unexpected_keys"] if key.startswith(("sites.", "text_sites.", "inner.")))
    if erased:
        raise InvalidValueError(
            f"The weights of {name} are those of an erased model ({erased[0]}), and its config.json is not. Loading it "
            "would give a random model that says it is not erased; it is refused. Restore the config.json saved with it."
        )
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    missing = sum(sizes.get(key, 0) for key in info["missing_keys"])
    if 2 * missing > sum(sizes.values()):
        raise InvalidValueError(
            f"{name} brings less than half of the weights that its config.json asks for (it lacks "
            f"{', '.join(sorted(info['missing_keys'])[:3])}, ...). The rest would be random; it is refused. Download or "
            "save it again."
        )


@contextlib.contextmanager
def checkpoint_errors(name: str) -> Iterator[None]:
    """Damaged weight files raise OSError, a configuration that is damaged or does not fit the weights ValueError.

    Whatever it trips over: classes of transformers take their settings as they come, and fail where they first use them.
    """
    try:
        yield
    except (HfKdError, OSError, ImportError):
        raise
    except SafetensorError as error:
        raise CheckpointError(f"The weights of {name} are damaged ({error}); download or save them again.") from error
    except UnpicklingError as error:
        raise CheckpointError(
            f"The weights of {name} are a pickle of more than tensors, which is not read. Save them as safetensors."
        ) from error
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise InvalidValueError(
                f"Memory does not hold {name} as its config.json describes it ({type(error).__name__}: {error}). Free some; "
                "if it is not that large, one of its settings is damaged: download or save the model again."
            ) from error
        raise InvalidValueError(
            f"The weights of {name} do not fit its configuration: download or save the model again. {error}"
        ) from error
    except (
        *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError),
        StrictDataclassError,
    ) as error:
        if kind := re.search("model type `(.*?)` but Transformers does not recognize", str(error)):
            raise unknown_type(name, kind[1]) from error
        raise InvalidValueError(
            f"{name} cannot be loaded as its config.json describes it ({type(error).__name__}: {error}). One of its "
            "settings is damaged, or of a later version: download or save the model again."
        ) from error


UNKNOWN_LIMIT, SPARE, A_TENSOR = 200_000, 10_000, 20
"""Modules and parameters that a model may have: of weights that are not safetensors; beside, and for each tensor stored."""

SPARE_VALUES, A_BYTE = 10**8, 4
"""Values that its parameters may hold: beside (a new head), and for each byte stored (packed ones hold two)."""


@contextlib.contextmanager
def bounded(name: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Stop building a model of far more parts or values than its weights have: a damaged size is built for hours."""
    tensors, size = _tensors_stored(name, kwargs), _bytes_stored(name, kwargs)
    limit = UNKNOWN_LIMIT if tensors is None else SPARE + A_TENSOR * tensors
    most_values = math.inf if size is None else SPARE_VALUES + A_BYTE * size
    thread, parts, values = threading.get_ident(), 0, 0

    def count(_module: nn.Module, _name: str, part: nn.Module | nn.Parameter | None) -> None:
        nonlocal parts, values
        if threading.get_ident() != thread:
            return
        parts += 1
        values += part.numel() if isinstance(part, nn.Parameter) else 0
        if parts > limit:
            raise InvalidValueError(
                f"config.json of {name} asks for a model of more than {limit:,} parts, and its weights have "
                f"{'few' if tensors is None else tensors} tensors: it is damaged. Download or save the model again."
            )
        if values > most_values:
            raise InvalidValueError(
                f"config.json of {name} asks for a model of at least {values:,} values, and its weights have {size:,} "
                "bytes: it is damaged. Download or save the model again."
            )

    with register_module_module_registration_hook(count), register_module_parameter_registration_hook(count):
        yield


def _tensors_stored(name: str, kwargs: dict[str, Any]) -> int | None:
    hub, variant = hub_arguments(kwargs), kwargs.get("variant")
    try:
        if (whole := find_file(name, _variant(SAFE_WEIGHTS_NAME, variant), hub)) is not None:
            with safe_open(whole, framework="pt") as file:
                return len(file.keys())
        if (index := find_file(name, _variant(SAFE_WEIGHTS_INDEX_NAME, variant), hub)) is not None:
            return len(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return None  # damaged, which is said when the weights are read
    return None


def _bytes_stored(name: str, kwargs: dict[str, Any]) -> int | None:
    """Size of the weights of a checkpoint: that of its file, or of all its shards as their index counts them."""
    hub, variant = hub_arguments(kwargs), kwargs.get("variant")
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME):
        found = find_file(name, _variant(file, variant), hub)
        if found is None:
            continue
        if file != SAFE_WEIGHTS_INDEX_NAME:
            return Path(found).stat().st_size
        try:
            size = json.loads(Path(found).read_text(encoding="utf-8"))["metadata"]["total_size"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return int(size) if isinstance(size, (int, float)) and 0 < size < math.inf else None
    return None


def refuse_incomplete(name: str, info: dict[str, Any]) -> None:
    """Raise ValueError when a checkpoint did not bring every tensor of an erased model, its erasers above all."""
    missing, mismatched = sorted(info["missing_keys"]), sorted(map(str, info["mismatched_keys"]))
    unexpected = [key for key in info["unexpected_keys"] if key.startswith(("sites.", "text_sites."))]
    erasers = [key for key in missing if key.startswith(("sites.", "text_sites."))]
    if erasers:
        what = f"lacks the eraser ({', '.join(erasers)})"
    elif missing or mismatched:
        what = f"lacks {', '.join((missing + mismatched)[:5])}"
    elif unexpected:
        what = f"brings {unexpected[0]}, but its configuration does not describe the erasers"
    else:
        return
    raise InvalidValueError(
        f"The checkpoint {name} {what}. Loading it would give a model that has not forgotten, or is random in part; it is "
        "refused. Download it again, or save the erased model again with save_pretrained."
    )


def commit_of(name_or_path: str, hub: dict[str, Any]) -> str | None:
    """The commit on the Hub that a checkpoint is read from; None where there is none."""
    return extract_commit_hash(find_file(name_or_path, CONFIG_NAME, hub), None)


def find_file(name_or_path: str, filename: str, hub: dict[str, Any]) -> str | None:
    """Where a file of a checkpoint lies on disk, fetched if need be; None where the checkpoint has no such file."""
    return cached_file(
        name_or_path,
        filename,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
