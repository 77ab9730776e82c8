"""Every method by name, those that fit erasers and those that change weights, and what there is to say about each.

Command-line help, `hf-kd methods`, docs/methods.md, error messages and cards read a method's `MethodInfo`. Importing this
module imports no method and no torch: built-in methods are described by methods.json, which `tools/methods_table.py` writes
from their classes, and a class is imported when it is first used.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, resources
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from hf_kd.errors import GIVE_RETAIN, GIVE_RETAIN_DATA, InvalidTypeError, InvalidValueError, did_you_mean

from .attribute_texts import attribute_texts
from .choices import refuse_unfit
from .entry_points import ENTRY_POINT_GROUP, entry_points_of_methods

NEEDS = ("D_f", "D_r", "D_f and D_r")
"""What a method reads: the images to forget, retained images, or both."""

BASES = {
    "eraser": "hf_kd.methods.erasers.base:Method",
    "weights": "hf_kd.methods.unlearning.base:UnlearningMethod",
}
"""Kinds of methods, and the base class of each."""

REQUIRED = dataclasses.MISSING
"""Default of an option that has none."""

_Class = TypeVar("_Class", bound=type)


@dataclass(frozen=True)
class MethodOption:
    """A hyper-parameter of a method.

    Attributes:
        name: Name of the dataclass field.
        type: Its annotation, such as "int | None".
        default: Its default value; `REQUIRED` where it has none.
        about: What it does, from the `Attributes` section of the class or its bases; may be empty.
    """

    name: str
    type: str
    default: Any
    about: str = ""


@dataclass(frozen=True)
class MethodInfo:
    """What there is to say about a method.

    Attributes:
        name: Name under which it is registered.
        kind: "eraser" (fits an eraser, weights stay), "weights" (changes weights) or "by name" (fits erasers to texts).
        needs: What it reads, one of `NEEDS`; "texts" by name.
        source: Where the method and its defaults come from.
        about: What it does, in a sentence or two.
        when: When to choose it.
        options: Its hyper-parameters, in the order of the dataclass.
    """

    name: str
    kind: str
    needs: str
    source: str
    about: str
    when: str
    options: tuple[MethodOption, ...] = ()

    @property
    def needs_retain(self) -> bool:
        """Whether it reads retained images."""
        return "D_r" in self.needs

    @classmethod
    def of(cls, method: type) -> MethodInfo:
        """The info of a method class, from its attributes and docstring."""
        kind = _kind_of(method)
        needs = method.needs if kind == "weights" else "D_f and D_r" if method.needs_retain else "D_f"
        return cls(method.name, kind, needs, method.source, about_of(method), method.when, options_of(method))


def about_of(method: type) -> str:
    """What a class of methods says it does."""
    return " ".join(inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].split())


def options_of(method: type) -> tuple[MethodOption, ...]:
    """The hyper-parameters of a class of methods."""
    texts = attribute_texts(*method.__mro__)
    return tuple(
        MethodOption(
            field.name,
            field.type if isinstance(field.type, str) else inspect.formatannotation(field.type),
            field.default if field.default_factory is REQUIRED else field.default_factory(),
            texts.get(field.name, ""),
        )
        for field in dataclasses.fields(method)
    )


def _read() -> tuple[dict[str, MethodInfo], dict[str, str | type], dict[str, str | type], dict[str, MethodInfo]]:
    """Infos, classes of methods and classes of erasers that are built in, as "module:Class"; infos of methods by name."""
    stored = json.loads(resources.files("hf_kd.methods").joinpath("methods.json").read_text(encoding="utf-8"))
    infos, classes = {}, {}
    for name, entry in (stored["methods"] | stored["by_name"]).items():
        classes[name] = entry.pop("class")
        options = tuple(
            MethodOption(key, type_, tuple(default) if isinstance(default, list) else default, about)
            for key, (type_, default, about) in entry.pop("options").items()
        )
        infos[name] = MethodInfo(name, options=options, **entry)
    by_name = {name: infos.pop(name) for name in stored["by_name"]}
    return infos, {name: classes[name] for name in infos}, stored["erasers"], by_name


_INFOS, _METHODS, _ERASERS, _BY_NAME = _read()


def available_methods(kind: str | None = "eraser") -> list[str]:
    """Names of all methods of a kind, those of installed packages included.

    Args:
        kind: "eraser", "weights", or None for both.

    Returns:
        The names in alphabetical order. Code of other packages is not imported for this, so an entry point that was not
        used yet is listed whichever kind it is of.
    """
    own = {name for name in _METHODS if kind in (None, _stored_kind(name))}
    return sorted(own | set(_third_party()))


def unlearning_methods() -> dict[str, type]:
    """All methods that change weights, by name; imports them, those of installed packages included."""
    names = available_methods("weights")
    return {name: get_method(name) for name in names if method_info(name).kind == "weights"}


def by_name_infos() -> list[MethodInfo]:
    """Of the methods that forget a concept by its name; `erase(texts=[...])` takes them, and nothing else does."""
    return list(_BY_NAME.values())


def method_info(name: str) -> MethodInfo:
    """What there is to say about a method; imports its class only where another package brings it.

    Raises:
        InvalidValueError: For an unknown name.
        InvalidTypeError: Where an entry point gives something else than a method.
    """
    return _INFOS[name] if name in _INFOS else MethodInfo.of(get_method(name))


def built_in_infos(kind: str) -> list[MethodInfo]:
    """Of the methods of a kind that hf_kd brings, by name: help reads these, because it imports no other package."""
    return sorted((info for info in _INFOS.values() if info.kind == kind), key=lambda info: info.name)


def method_infos(kind: str | None = None) -> list[MethodInfo]:
    """Of all methods of a kind ("eraser" or "weights"), or of both: erasers first, then by name."""
    infos = [method_info(name) for name in available_methods(None)]
    return sorted((i for i in infos if kind in (None, i.kind)), key=lambda info: (info.kind, info.name))


def get_method(name: str, kind: str | None = None) -> type[Any]:
    """The class of a method: first of those registered, then of the entry points of installed packages.

    Args:
        name: Name of the method.
        kind: "eraser" or "weights" where the method has to be of that kind.

    Raises:
        InvalidValueError: For an unknown name, and for a method of the other kind.
        InvalidTypeError: Where an entry point gives something else than a method.
    """
    _find(name, kind)
    return _resolve(_METHODS, name)


def refuse_method(name: str, kind: str, options: Mapping[str, Any]) -> None:
    """Refuse a method by what is known without importing it, unless another package brings it: its name, kind and options.

    Args:
        name: Name of the method.
        kind: "eraser" or "weights", of which it has to be.
        options: The hyper-parameters that are given.

    Raises:
        InvalidValueError: For an unknown name, a method of the other kind, and a value that an option cannot have.
        InvalidTypeError: For an unknown option.
    """
    _find(name, kind)
    known = {option.name: option.type for option in method_info(name).options}
    unknown = sorted(set(options) - set(known))
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise InvalidTypeError(
            f"Method {name!r} has no option {', '.join(unknown)}.{near} It takes {', '.join(known) or 'none'}."
        )
    refuse_unfit(name, known, options)


def make_method(method: Any, **options: Any) -> Any:
    """A method that fits erasers.

    Args:
        method: Its name, or a `Method`, which passes through.
        **options: Its hyper-parameters, with a name only.

    Raises:
        InvalidValueError: For an unknown name, a method that changes weights, and values out of range.
        InvalidTypeError: For an unknown option, options beside a `Method`, and anything else in its place.
    """
    return _make("eraser", method, options)


def make_unlearning_method(method: Any, **options: Any) -> Any:
    """A method that changes weights.

    Args:
        method: Its name, or an `UnlearningMethod`, which passes through.
        **options: Its hyper-parameters, with a name only.

    Raises:
        InvalidValueError: For an unknown name, a method that fits erasers, and values out of range.
        InvalidTypeError: For an unknown option, options beside an `UnlearningMethod`, and anything else in its place.
    """
    return _make("weights", method, options)


def register_method(cls: _Class) -> _Class:
    """Class decorator: make a method, of either kind, available under its `name`.

    Args:
        cls: The class, which is returned as it is.

    Raises:
        InvalidValueError: Where another class has that name, and for `needs` that are none of `NEEDS`.
        InvalidTypeError: For a class that is no method.
    """
    if _kind_of(cls) == "weights" and cls.needs not in NEEDS:
        raise InvalidValueError(f"{cls.name}: needs={cls.needs!r}; it has to be one of {', '.join(NEEDS)}.")
    return _register(_METHODS, cls.name, cls)


def register_eraser(cls: _Class) -> _Class:
    """Class decorator: let saved models rebuild an eraser from its `kind`.

    Args:
        cls: Its class, which is returned as it is.

    Raises:
        InvalidValueError: Where another class has that `kind`.
    """
    return _register(_ERASERS, cls.kind, cls)


def eraser_class(kind: str) -> type[Any]:
    """The class of erasers of a kind; imports the methods of installed packages where none here has it.

    Raises:
        InvalidValueError: For an unknown kind.
    """
    if kind not in _ERASERS:
        for name in _third_party():
            get_method(name)  # an eraser class registers itself when the package of its method is imported
    if kind not in _ERASERS:
        raise InvalidValueError(
            f"Unknown eraser kind {kind!r}; known: {', '.join(sorted(_ERASERS))}. Install the package whose method "
            f"wrote this model (it registers itself in the entry-point group {ENTRY_POINT_GROUP!r})."
        )
    return _resolve(_ERASERS, kind)


def missing_retain(name: str, kind: str) -> InvalidValueError:
    """The error of a method of this kind that reads retained images and was given none."""
    alone = [info.name for info in _INFOS.values() if info.kind == kind and info.needs == "D_f"]
    give, erase = (GIVE_RETAIN, "") if kind == "eraser" else (GIVE_RETAIN_DATA, ", or erase with method='esc'")
    return InvalidValueError(
        f"Method {name!r} reads retained images and none were given: pass labelled images of the classes that stay, "
        f"{give}, or choose a method that reads the forget set alone: {', '.join(sorted(alone))}{erase}."
    )


def _other_kind(name: str, kind: str) -> InvalidValueError:
    """The error where a method of this kind stands in the place of one of the other."""
    if kind == "weights":
        return InvalidValueError(
            f"{name!r} changes weights and fits no eraser: use hf_kd.unlearn(model, images, {name!r}, ...), or "
            f"hf-kd unlearn --method {name} on the command line."
        )
    return InvalidValueError(
        f"{name!r} fits an eraser and leaves weights alone: use ErasedModel.from_model(model).erase(images, {name!r}, ...), "
        f"or hf-kd erase --method {name} on the command line."
    )


def _make(kind: str, method: Any, options: dict[str, Any]) -> Any:
    if not isinstance(method, str):
        base = _load(BASES[kind])
        if not isinstance(method, base):
            for other in BASES.keys() - {kind}:
                if isinstance(method, _load(BASES[other])):
                    raise _other_kind(method.name, other)
            raise InvalidTypeError(f"method has to be a name or a {base.__name__}, got {type(method).__name__}.")
        if options:
            raise InvalidTypeError(
                f"{method!r} already has its settings; got options {sorted(options)} too. Pass either a method with its "
                "settings or a name with options."
            )
        return method
    refuse_method(method, kind, options)
    cls = get_method(method)
    types = {option.name: option.type for option in method_info(method).options}
    # JSON and the command line have lists where the dataclass has tuples
    return cls(**{key: tuple(v) if isinstance(v, list) and types[key].startswith("tuple") else v
                  for key, v in options.items()})  # fmt: skip


def _register(table: dict[str, str | type], name: str, cls: _Class) -> _Class:
    known, own = table.get(name), f"{cls.__module__}:{cls.__qualname__}"
    known = known if known is None or isinstance(known, str) else f"{known.__module__}:{known.__qualname__}"
    if known is not None and known != own:
        raise InvalidValueError(f"{name!r} is already registered by {known.replace(':', '.')}; choose another name.")
    table[name] = cls
    return cls


def _find(name: str, kind: str | None) -> None:
    """See that there is a method of this name and kind; one of another package is imported for it."""
    if name not in _METHODS:
        point = _third_party().get(name)
        if point is None:
            if name in _BY_NAME:
                raise InvalidValueError(f"{name!r} forgets by name: give texts=['TEXT'] too, or take another method.")
            listed = {key: ", ".join(available_methods(key)) for key in ([kind] if kind else BASES)}
            names = listed[kind] if kind else "; ".join(f"{key}: {names}" for key, names in listed.items())
            near = did_you_mean(name, available_methods(kind))
            raise InvalidValueError(f"Unknown method {name!r}.{near} Available: {names}.")
        _METHODS[name] = _loaded(point)
    found = _stored_kind(name)
    if kind is not None and found != kind:
        raise _other_kind(name, found)


def _third_party() -> dict[str, EntryPoint]:
    """Entry points of methods that are not registered yet."""
    return {point.name: point for point in entry_points_of_methods() if point.name not in _METHODS}


def _loaded(point: EntryPoint) -> type:
    found = point.load()
    if not isinstance(found, type):
        raise _no_method(f"The entry point {point.value!r} of group {ENTRY_POINT_GROUP!r} gives {found!r}")
    _kind_of(found, f"The entry point {point.value!r} of group {ENTRY_POINT_GROUP!r} gives {found!r}")
    return found


def _kind_of(cls: type, what: str | None = None) -> str:
    """The kind of a method class. The base of erasers is asked first: it imports torch alone."""
    for kind, base in BASES.items():
        if issubclass(cls, _load(base)):
            return kind
    raise _no_method(what or f"{cls!r} is no method")


def _no_method(what: str) -> InvalidTypeError:
    return InvalidTypeError(
        f"{what}; it has to be a subclass of hf_kd.Method (fits erasers) or hf_kd.methods.unlearning.UnlearningMethod "
        "(changes weights)."
    )


def _stored_kind(name: str) -> str:
    return _INFOS[name].kind if name in _INFOS else _kind_of(_resolve(_METHODS, name))


def _resolve(table: dict[str, str | type], name: str) -> type[Any]:
    found = table[name]
    if isinstance(found, str):
        found = table[name] = _load(found)
    return found


def _load(path: str) -> type[Any]:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
