"""The mathematics of erasing: moments of the forget features, methods that fit erasers, erasers. Imports torch only."""

from .base import (
    Composition,
    Eraser,
    ForgetData,
    Head,
    Method,
    available_methods,
    build,
    condition_number,
    describe,
    get_method,
    make_method,
    register_eraser,
    register_method,
)
from .esc import ESC, Projection, energy_share, orthonormal_union
from .esc_t import ESCT, MaskedProjection
from .moments import SecondMoment

__all__ = [
    "ESC",
    "ESCT",
    "Composition",
    "Eraser",
    "ForgetData",
    "Head",
    "MaskedProjection",
    "Method",
    "Projection",
    "SecondMoment",
    "available_methods",
    "build",
    "condition_number",
    "describe",
    "energy_share",
    "get_method",
    "make_method",
    "orthonormal_union",
    "register_eraser",
    "register_method",
]
