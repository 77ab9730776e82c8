"""Options that several commands have, each written once, and those made of the hyper-parameters of methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.models import OptionInfo

from hf_kd.data.paths import local_path
from hf_kd.errors import InvalidValueError
from hf_kd.methods.choices import words_of
from hf_kd.methods.registry import MethodInfo, by_name_infos, method_infos

from ._choices import CHOICES, DEVICES

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Folder, or USER/NAME[@REVISION] on the Hub, of a checkpoint, a PEFT adapter, an erased model or an eraser."
    ),
]

BaseOption = Annotated[
    str | None,
    typer.Option(help="The model before erasing, where an eraser stands on one that is not on the Hub: folder or id."),
]

READING = ("config_name", "image_column", "label_column", "label_mapping", "labels", "num_workers", "quiet")
"""Options that all commands have which read images: of `hf_kd.data.load.load_source` and `hf_kd.ReadOptions`."""

OF_DATA = ("split", "forget_labels", "retain_limit", "limit", "batch_size", "mixed_precision",
           *(name for name in READING if name != "quiet"))  # fmt: skip
"""Options that say something of a data set, and nothing where none is given."""

LIMITS = ("limit", "limit_test")
"""Options for a first look at fewer images, of `hf_kd.ReadOptions`."""

LABELS, DATA, RESULT, MODEL = "Data and labels", "How images are read", "Result", "Model and device"
ATTACKS, COMPARED, OTHER = "Attacks", "Compared with", "Options"
MASKS, BY_NAME, METHOD = "Masked classes", "By name", "Settings of methods"

PANELS = (LABELS, ATTACKS, COMPARED, OTHER, RESULT, MASKS, BY_NAME, DATA, MODEL, METHOD)
"""Groups of options in the help, in their order."""

PANEL_OF = {
    name: panel
    for panel, names in {
        LABELS: "dataset forget_labels method split test_split retain retain_labels retain_limit limit limit_test "
        "allow_unrecognised",
        ATTACKS: "attacks seeds access budget max_classes layer_profile identities texts",
        COMPARED: "original retrained unseen membership_references",
        RESULT: "output fold eraser_only summary grad_cam to dtype quiet overwrite as_json",
        MASKS: "mask_head erased_label drop_label",
        BY_NAME: "text retain_text language publish_texts ask",
        DATA: "config_name image_column label_column label_mapping labels batch_size num_workers mixed_precision",
        MODEL: "base reference_model eraser tap processor device revision imports",
        METHOD: "option",
    }.items()
    for name in names.split()
}
"""The group of every option but the settings of methods, which are `METHOD`, and the plain options."""

COMPLETED = {**CHOICES, "device": DEVICES}
"""Words that a shell completes an option by."""

MODELS = ("model", "source", "original", "retrained", "reference_model", "membership_references", "base", "eraser")
DATA_SETS = ("dataset", "unseen", "retain")
"""Arguments of commands that name one, or several: a folder, a file, or what there is on the Hub."""

VALUES = {int: "N", float: "X", Path: "PATH"}
"""What stands for the value of an option, by its type; else TEXT."""


@dataclass(frozen=True)
class Shared:
    """The options that several commands have; a command names the fields it takes."""

    option: Annotated[
        list[str] | None,
        typer.Option(
            help="Any setting of the method as NAME=VALUE; repeat it. The value is JSON, or numbers with commas: "
            'cover_classes=5,2 or \'class_sizes={"0": 500, "1": 400}\'.'
        ),
    ] = None
    eraser: Annotated[
        list[str] | None,
        typer.Option(
            help="Eraser to put on the model, as --eraser-only saves it: folder, or USER/NAME[@REVISION]; repeat it, in "
            "their order."
        ),
    ] = None
    tap: Annotated[
        str | None,
        typer.Option(help="Where pooled features pass, path.to.module; found without it."),
    ] = None
    processor: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of the image processor, where the model has none."),
    ] = None
    config_name: Annotated[str | None, typer.Option(help="Configuration of the data set, if there are several.")] = None
    image_column: Annotated[str | None, typer.Option(help="Column of images, if there are several.")] = None
    label_column: Annotated[str | None, typer.Option(help="Column of labels, if there are several.")] = None
    label_mapping: Annotated[
        list[str] | None,
        typer.Option(help="DATASET_LABEL=MODEL_LABEL (names or ids) where names do not match; repeat it."),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option(
            help="Whose ids labels without names are: model (the default), or dataset, which --label-mapping translates."
        ),
    ] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a forward pass; 64 by default.")] = None
    num_workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode images.")] = None
    mixed_precision: Annotated[
        str | None, typer.Option(help="no, bf16 or fp16 for the forward passes; not fp16 in training.")
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="At most so many images of each set that is read, every class in its share: a first look, which records "
            "and reports call a sample.",
        ),
    ] = None
    limit_test: Annotated[int | None, typer.Option(min=1, help="The same for --test-split.")] = None
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Write into a folder that has something in it: files of the same name are replaced, the others stay.",
        ),
    ] = False
    allow_unrecognised: Annotated[
        bool,
        typer.Option(
            "--allow-unrecognised",
            help="Carry on where the head takes the images for other classes than their labels say.",
        ),
    ] = False
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default cuda if it is there.")] = None
    revision: Annotated[str | None, typer.Option(help="Revision of the model on the Hub.")] = None
    imports: Annotated[
        list[Path] | None,
        typer.Option("--import", help="Python file of yours to run first: it registers model classes of your own."),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the method, from its flags and `--option`."""

    def at_revision(self, model: str) -> str:
        """The model as it was loaded, for a command that is named to go on with."""
        return model if self.revision is None or "@" in model or Path(model).exists() else f"{model}@{self.revision}"

    def documented(self, model: str) -> str:
        """Where card and report of a model lie: with it, or with the one eraser on it; empty where there are several."""
        if not self.eraser:
            return self.at_revision(model)
        return self.eraser[0] if len(self.eraser) == 1 else ""

    @property
    def import_words(self) -> list[str]:
        """`--import` and its files, for a command that is named to go on with."""
        return [word for path in self.imports or () for word in ("--import", str(path))]

    def chosen(self, *names: str) -> dict[str, Any]:
        """Those of these options that were given, as keywords."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def grouped(
    parameters: Mapping[str, inspect.Parameter], settings: Mapping[str, inspect.Parameter]
) -> dict[str, inspect.Parameter]:
    """Parameters of a command, whose options know their group in the help and what stands for a value, group by group.

    Args:
        parameters: All but the settings.
        settings: Options that are settings of methods.
    """
    made = {name: _described(parameter, PANEL_OF.get(name, OTHER)) for name, parameter in parameters.items()}
    made |= {name: _described(parameter, METHOD) for name, parameter in settings.items()}

    def place(name: str) -> int:
        return PANELS.index(get_args(made[name].annotation)[1].rich_help_panel) if _is_option(made[name]) else -1

    return {name: made[name] for name in sorted(made, key=place)}


def _is_option(parameter: inspect.Parameter) -> bool:
    return any(isinstance(part, OptionInfo) for part in get_args(parameter.annotation)[1:])


def method_names(*kinds: str) -> Callable[[str], list[str]]:
    """What a shell completes the name of a method by; of all kinds where none is named."""

    def complete(incomplete: str) -> list[str]:
        names = [info.name for info in (*method_infos(), *by_name_infos()) if not kinds or info.kind in kinds]
        return [name for name in names if name.startswith(incomplete)]

    return complete


def _completed(words: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def _local(value: str | Path) -> Path:
    try:
        return local_path(value)
    except InvalidValueError as error:
        raise typer.BadParameter(str(error)) from error


def _local_or_on_hub(value: str) -> str:
    place = _local(value)
    return str(place) if value.startswith("~") else value


def _described(parameter: inspect.Parameter, panel: str) -> inspect.Parameter:
    if len(get_args(parameter.annotation)) < 2:  # the context
        return parameter
    hint, option = get_args(parameter.annotation)
    option = copy(option)  # several commands share one
    kinds = [hint, *get_args(hint), *(part for inner in get_args(hint) for part in get_args(inner))]
    if Path in kinds:
        option.parser = _local
    elif parameter.name in (*MODELS, *DATA_SETS, "processor"):
        option.parser = _local_or_on_hub
    if not isinstance(option, OptionInfo):
        return parameter.replace(annotation=Annotated[hint, option])
    option.rich_help_panel = panel
    if parameter.name in COMPLETED and option.autocompletion is None:
        option.autocompletion = _completed(COMPLETED[parameter.name])
    option.metavar = option.metavar or next((VALUES[kind] for kind in kinds if kind in VALUES), "TEXT")
    return parameter.replace(annotation=Annotated[hint, option])


def also_setting(parameter: inspect.Parameter, methods: Sequence[MethodInfo]) -> inspect.Parameter:
    """An option that is handed on as a setting where its value is a word of one: with these words, and whose they are."""
    found = {
        m.name: words for m in methods for o in m.options if o.name == parameter.name and (words := words_of(o.type))
    }
    if not found:
        return parameter
    hint, option = get_args(parameter.annotation)
    option = copy(option)  # several commands share one
    told = "; ".join(f"{' or '.join(words)} ({name})" for name, words in found.items())
    option.help = f"{option.help} Also a setting: {told}."
    option.autocompletion = _completed(
        [*COMPLETED.get(parameter.name, ()), *(w for words in found.values() for w in words)]
    )
    return parameter.replace(annotation=Annotated[hint, option])


def method_flags(methods: Sequence[MethodInfo]) -> dict[str, inspect.Parameter]:
    """One option for each hyper-parameter that any of these methods has."""
    having: dict[str, list[tuple[str, Any]]] = {}
    for method in methods:
        for option in method.options:
            having.setdefault(option.name, []).append((method.name, option))
    made = {}
    for key, found in having.items():
        about = next((option.about for _, option in found if option.about), "").split(". ")[0].rstrip(".")
        defaults = [name + ("" if option.default is None else f": {_shown(option.default)}") for name, option in found]
        whose = ", ".join(defaults) if len(found) <= 3 else f"{len(found)} methods; hf-kd methods NAME has its default"
        plain = {option.type.removesuffix(" | None") for _, option in found}
        kind = {"bool": bool, "int": int, "float": float}.get(plain.pop(), str) if len(plain) == 1 else str
        text = f"{about} ({whose})" if about and len(methods) > 1 else about or f"Of {whose}."
        hint = Annotated[kind | None, typer.Option(help=text)]
        made[key] = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
    return made


def _shown(default: Any) -> str:
    return "yes" if default is True else "no" if default is False else f"{default}"
