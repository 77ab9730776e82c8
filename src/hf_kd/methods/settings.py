"""Which settings of a request were chosen: those that differ from the method's defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .registry import REQUIRED, available_methods, by_name_infos, get_method, method_info


def chosen_settings(method: str, settings: Mapping[str, Any], by_name: bool = False) -> dict[str, Any]:
    """The settings that differ from the defaults of the method as it is installed here.

    Args:
        method: Its name; where no package here has it, nothing but None is a default.
        settings: As a record has them.
        by_name: Whether the request was by name, whose methods all have the same settings.

    Example:
        >>> chosen_settings("esc", {"p": None, "k": 2, "renorm": False})
        {'k': 2}
    """
    known = by_name or method in available_methods(None)
    info = by_name_infos()[0] if by_name else method_info(method) if known else None
    options = () if info is None else info.options
    defaults = {option.name: [option.default] for option in options}
    if known and not by_name and all(option.default is not REQUIRED for option in options):
        for name, value in get_method(method)().settings().items():  # None may stand for a value
            defaults.setdefault(name, []).append(value)
    return {
        name: value for name, value in settings.items() if _plain(value) not in map(_plain, defaults.get(name, [None]))
    }


def _plain(value: Any) -> str:
    """As JSON, which has no tuples; what is none there is nobody's setting."""
    return json.dumps(value, default=repr)
