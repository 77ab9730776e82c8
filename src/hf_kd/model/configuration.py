"""What a saved erased model says about itself: the inner model, its taps, its erasers, and what was asked.

Imports what a configuration needs and no more: it is loaded wherever both `hf_kd` and `AutoConfig` are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_kd.errors import InvalidValueError, UnknownModelTypeError
from hf_kd.methods.records import Erasure, config_errors

from . import auto_classes

if TYPE_CHECKING:
    from hf_kd.features.taps.places import Tap

MODEL_TYPE = "hf_kd_erased"
ARCHITECTURE = "ErasedModel"

LISTS = {
    "taps": dict,
    "erasers": (dict, type(None)),
    "leaking": str,
    "erasures": dict,
    "masked": int,
    "eraser_sha256": (str, type(None)),
}
"""What the lists in a configuration hold."""

STATE = (
    "leaking",
    "erasures",
    "base_model",
    "base_commit",
    "masked",
    "dropped",
    "weights_erased",
    "eraser_sha256",
    "text_tower",
)
"""What a configuration holds besides the model inside, its taps and its erasers."""

DAMAGED = "config.json is damaged; save the model again."

ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def label_names(config: PreTrainedConfig) -> dict[int, str]:
    """The classes of a model: what its configuration names them, or what transformers does where it does not (PVT)."""
    names = config.id2label or {c: f"LABEL_{c}" for c in range(config.num_labels or 0)}
    return {int(label): str(name) for label, name in names.items()}


def take_name(model: Any) -> None:
    """Take off the name of the checkpoint that a model was loaded from, once it is another model.

    PEFT names that as the base of adapters, which would then come back on what never forgot anything.
    """
    model.name_or_path = model.config.name_or_path = ""


def without_attention(stored: Any) -> Any:
    """A stored configuration without the attention it asks for.

    It may name a repository with code, and which code runs is for the user who loads to say, not for a file.
    """
    return without_settings(stored, ATTENTION)


def without_settings(stored: Any, names: Sequence[str]) -> Any:
    """A stored configuration without some settings, at any depth."""
    if isinstance(stored, dict):
        return {name: without_settings(value, names) for name, value in stored.items() if name not in names}
    return stored


MOST_LABELS = 10**6
"""transformers makes up a name for each label that `num_labels` counts."""


def unknown_type(name: str, kind: str) -> UnknownModelTypeError:
    """The error where transformers knows no such kind of model, the way out first for who wrote the class."""
    return UnknownModelTypeError(
        f"{name} is of type {kind!r}, which transformers {version('transformers')} does not know. If its class is your own, "
        "run the file that registers it first: import it, or --import FILE on the command line. Otherwise a later "
        "version may know it: pip install --upgrade transformers."
    )


def refuse_strange_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError for a dtype that is another attribute of torch, where transformers looks names up, and for a number
    of labels that nobody has.
    """
    import torch

    for key in ("dtype", "torch_dtype"):
        dtype = settings.get(key)
        if isinstance(dtype, str) and not isinstance(getattr(torch, dtype.removeprefix("torch."), None), torch.dtype):
            raise InvalidValueError(f"{key}={dtype!r} is no number type of torch: {DAMAGED}")
    labels = settings.get("num_labels")
    if labels is not None and not (isinstance(labels, int) and 0 <= labels <= MOST_LABELS):
        raise InvalidValueError(
            f"num_labels={str(labels)[:100]!r} is no number of labels up to {MOST_LABELS:,}: {DAMAGED}"
        )


def _refuse_damaged(lists: Mapping[str, Any], inner_class: Any) -> None:
    for name in LISTS:
        values = lists[name]
        if values is None or (isinstance(values, list) and all(isinstance(value, LISTS[name]) for value in values)):
            continue
        raise InvalidValueError(f"{name}={str(values)[:200]!r}: {DAMAGED}")
    taps, erasers = lists["taps"] or (), lists["erasers"]
    if erasers and len(erasers) != len(taps):
        raise InvalidValueError(f"{len(erasers)} erasers for {len(taps)} taps: {DAMAGED}")
    if not isinstance(inner_class, (str, type(None))):
        raise InvalidValueError(f"inner_class={inner_class!r} is no name: {DAMAGED}")


def _refuse_damaged_tower(text_tower: Any) -> None:
    if not isinstance(text_tower, (dict, type(None))):
        raise InvalidValueError(f"text_tower is no mapping: {DAMAGED}")
    withheld = (text_tower or {}).get("withheld", [])
    if not (isinstance(withheld, list) and all(isinstance(name, str) for name in withheld)):
        raise InvalidValueError(
            f"text_tower withholds {str(withheld)[:200]!r}, which are no names of fields: {DAMAGED}"
        )


def _inner_configuration(inner: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig | None:
    """That of the model inside, where it is stored as plain values."""
    if isinstance(inner, dict):
        settings = dict(inner)
        refuse_strange_settings(settings)
        if isinstance(kind := settings.get("model_type"), str) and kind not in CONFIG_MAPPING:
            raise unknown_type("The model inside", kind)
        with config_errors("the inner model", inner):
            # from_dict and not the constructor: some configurations are read otherwise than they are made
            inner = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    if isinstance(inner, ErasedConfig):
        raise InvalidValueError(
            "An erased model stands inside another one: config.json is not of hf_kd's making. Save the model again."
        )
    return inner


class ErasedConfig(PreTrainedConfig):
    """Configuration of an `ErasedModel`.

    Args:
        inner: Configuration of the model inside.
        inner_class: Its class name.
        taps: Where pooled features pass.
        erasers: Which eraser stands at each tap (its shapes; values are in the weights).
        **kwargs: Those of any configuration, and those of `STATE`.

    Attributes:
        eraser_sha256: Digest of what stands at each tap.
        leaking: Fields of the inner model's output that carry knowledge past the taps and are withheld.
        erasures: One record per request.
        base_model: Where the model inside came from, on the Hub; None where that is not known: it came from somewhere else,
            adapters were merged into it, or it may have been trained since (in memory, or in training mode).
        base_commit: Its commit there.
        masked: Ids of the model inside that are never answered.
        dropped: Whether they also leave no column in the logits.
        weights_erased: Digest of the inner model's weights as the first request found them; None where it is not known.
        text_tower: Tap, eraser, digest and withheld fields of the text tower, where a concept was forgotten by its name.
    """

    model_type = MODEL_TYPE
    # declared as a property for what transformers' own classes hold; this is how others name theirs
    sub_configs = {"inner": AutoConfig}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    def __new__(cls, *args: Any, **kwargs: Any) -> ErasedConfig:
        auto_classes.register_model()  # here and not in __init__, which unpickling and copying pass by
        return super().__new__(cls)

    def __init__(
        self,
        inner: PreTrainedConfig | dict[str, Any] | None = None,
        inner_class: str | None = None,
        taps: list[dict[str, Any]] | None = None,
        erasers: list[dict[str, Any] | None] | None = None,
        **kwargs: Any,
    ):
        state = {name: kwargs.pop(name, None) for name in STATE}
        _refuse_damaged({"taps": taps, "erasers": erasers, **state}, inner_class)
        self.inner: Any = _inner_configuration(inner)
        self.inner_class = inner_class
        self.taps = taps or []
        _ = self.tap_list  # which refuses taps at which nothing could be erased
        self.erasers = erasers or []
        self.eraser_sha256 = state["eraser_sha256"] or []
        self.leaking = state["leaking"] or []
        self.erasures = state["erasures"] or []
        self.base_model = state["base_model"]
        self.base_commit = state["base_commit"]
        self.masked = state["masked"] or []
        self.dropped = bool(state["dropped"])
        self.weights_erased = state["weights_erased"]
        self.text_tower = state["text_tower"]
        _refuse_damaged_tower(self.text_tower)
        attention = getattr(self.inner, "_attn_implementation", None)
        refuse_strange_settings(kwargs)
        with config_errors("the labels and the rest", kwargs):
            super().__init__(**kwargs)
        if "siglip" in str(getattr(self.inner, "model_type", "")):
            # by this word the zero-shot pipeline knows how to pad texts; declared as the class's alone, and saved from here
            self.model_type = f"{MODEL_TYPE}_siglip"  # pyright: ignore[reportAttributeAccessIssue]
        if self.inner is not None and getattr(self.inner, "_attn_implementation", None) is None:
            # building the outer configuration resets the attention of every inner one; give it back
            self.inner._attn_implementation = attention

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> ErasedConfig:
        """As in transformers; attention is what the caller asks for, never what a file does.

        Args:
            config_dict: What config.json holds.
            **kwargs: As in transformers, `attn_implementation` among them.

        Returns:
            The configuration; with `return_unused_kwargs=True` also the keywords that are none of its fields.
        """
        return super().from_dict(without_attention(config_dict), **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: nothing of where a model lay on this machine, nor by which Auto class it was loaded."""
        stored = without_settings(super().to_diff_dict(), ("_name_or_path",))
        return stored | ({"architectures": [ARCHITECTURE]} if stored.get("architectures") else {})

    @classmethod
    def around(cls, model: Any) -> ErasedConfig:
        """The configuration that wraps a model without touching its configuration.

        Args:
            model: A `PreTrainedModel`. Its classes become those of the wrapper.
        """
        inner = model.config
        labels = {
            name: getattr(inner, name)
            for name in ("id2label", "label2id", "problem_type")
            if getattr(inner, name, None) is not None
        }
        if inner.id2label is None:
            labels["id2label"] = label_names(inner)
            labels["label2id"] = {name: c for c, name in labels["id2label"].items()}
        return cls(inner=inner, inner_class=type(model).__name__, **labels)

    @property
    def tap_list(self) -> tuple[Tap, ...]:
        if not self.taps:
            return ()
        from hf_kd.features.taps.places import Tap, refuse_doubled

        with config_errors("taps", self.taps):
            taps = tuple(Tap.from_dict(tap) for tap in self.taps)
            refuse_doubled(taps)
        return taps

    @property
    def records(self) -> tuple[Erasure, ...]:
        with config_errors("erasures", self.erasures):
            return tuple(Erasure.from_dict(record) for record in self.erasures)
