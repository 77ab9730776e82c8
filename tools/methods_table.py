"""Write what the classes of the methods say to where it is read: methods.json for the registry, docs/methods.md for people.

python tools/methods_table.py            write both
python tools/methods_table.py --check    exit 1, and say what differs, where one of them is not current
"""

from __future__ import annotations

import argparse
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from hf_kd.methods import erasers, unlearning
from hf_kd.methods.attribute_texts import typed_texts
from hf_kd.methods.concepts import ConceptMethod
from hf_kd.methods.erasers.base import Eraser, Method
from hf_kd.methods.registry import MethodInfo, about_of, options_of
from hf_kd.methods.unlearning.base import UnlearningMethod

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = ROOT / "src" / "hf_kd" / "methods" / "methods.json"
DOCS = ROOT / "docs" / "methods.md"
PIPE = r"\|"  # in a cell of a table


def classes(package: Any, base: type, key: str) -> Iterator[tuple[str, type]]:
    """(name, class) of every concrete subclass of `base` in the files of a package that says `key` itself or inherits it."""
    for file in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = import_module(file.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, base) and cls.__module__ == file.name and not inspect.isabstract(cls):
                yield getattr(cls, key), cls


def described() -> tuple[dict[str, MethodInfo], dict[str, type], dict[str, type]]:
    """Infos and classes of all methods, and classes of all erasers, by name."""
    methods = dict(sorted([*classes(erasers, Method, "name"), *classes(unlearning, UnlearningMethod, "name")]))
    return {name: MethodInfo.of(cls) for name, cls in methods.items()}, methods, dict(classes(erasers, Eraser, "kind"))


def by_name() -> MethodInfo:
    """Of the method that forgets by name; its `name` is what `method=` says, and no setting."""
    cls = ConceptMethod
    options = tuple(option for option in options_of(cls) if option.name != "name")
    return MethodInfo(cls.name, "by name", cls.needs, cls.source, about_of(cls), cls.when, options)


def registry_text() -> str:
    """The content of methods.json."""
    infos, methods, kinds = described()
    stored = {}
    named = by_name()
    for name, info in (infos | {named.name: named}).items():
        stored[name] = {
            "class": path(methods.get(name, ConceptMethod)),
            "kind": info.kind,
            "needs": info.needs,
            "source": info.source,
            "about": info.about,
            "when": info.when,
            "options": {option.name: [option.type, option.default, option.about] for option in info.options},
        }
    own = {named.name: stored.pop(named.name)}
    content = {"methods": stored, "by_name": own, "erasers": {kind: path(cls) for kind, cls in sorted(kinds.items())}}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def measured(method: type) -> Iterator[tuple[str, str, str]]:
    """(key, type, text) of everything that a method may measure."""
    texts = typed_texts(method.measures)
    for key, hint in get_type_hints(method.measures).items():
        yield key, hint.__name__ if isinstance(hint, type) else str(hint), texts[key]


def docs_text() -> str:
    """The content of docs/methods.md."""
    infos, methods, _ = described()
    parts = [
        "# Methods\n",
        "Written by `tools/methods_table.py` from the classes. D_f are the images to forget, D_r those that stay.\n",
    ]
    for kind, title, intro in (
        ("eraser", "Methods that fit an eraser", "`ErasedModel.erase`, `hf-kd erase`: weights stay as they are."),
        (
            "by name",
            "Methods that forget by name",
            "`ErasedModel.erase(texts=[...])`, `hf-kd erase --text`: two-tower models. "
            "With `esc` the same without `ridge` and `push`: an orthogonal projection.",
        ),
        ("weights", "Methods that change weights", "`hf_kd.unlearn`, `hf-kd unlearn`: the result is a stock model."),
    ):
        chosen = [info for info in (*infos.values(), by_name()) if info.kind == kind]
        parts += [f"## {title}\n", f"{intro}\n", "| method | needs | when | source |", "|---|---|---|---|"]
        parts += [
            f"| [`{i.name}`](#{i.name.replace('+', '')}) | {i.needs} | {cell(i.when)} | {cell(i.source)} |"
            for i in chosen
        ]
        for info in chosen:
            parts += [
                f"\n### {info.name}\n",
                f"{info.about}\n",
                "| option | type | default | what it does |",
                "|---|---|---|---|",
            ]
            parts += [f"| `{o.name}` | `{cell(o.type)}` | `{o.default!r}` | {cell(o.about)} |" for o in info.options]
            if kind == "by name":
                continue
            parts += ["\n| measured | type | what it is |", "|---|---|---|"]
            parts += [f"| `{key}` | `{hint}` | {cell(text)} |" for key, hint, text in measured(methods[info.name])]
        parts.append("")
    return "\n".join(parts).replace("`'", "`").replace("'`", "`")


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", PIPE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for place, text in ((REGISTRY, registry_text()), (DOCS, docs_text())):
        if place.exists() and place.read_text(encoding="utf-8") == text:
            continue
        stale.append(place.relative_to(ROOT).as_posix())
        if not check:
            place.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"Not current: {', '.join(stale)}. Run: python tools/methods_table.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
