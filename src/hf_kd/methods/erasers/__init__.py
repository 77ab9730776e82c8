"""The mathematics of erasing: moments of the forget features, methods that fit erasers, erasers. Imports torch only."""

from hf_kd.methods.registry import available_methods, get_method, make_method, register_eraser, register_method

from .base import Composition, Eraser, ForgetData, Head, Method, build, condition_number, describe
from .cover import Cover
from .cover_map import CoverMap
from .esc import ESC, NormedProjection, Projection, energy_share, orthonormal_union
from .esc_t import ESCT, MaskedProjection
from .leace import LEACE
from .mean_difference import MeanDifference
from .mean_projection import MeanProjection
from .moments import RetainMoments, SecondMoment
from .oblique import ObliqueProjection
from .prototype_orthogonal import PrototypeOrthogonal
from .retained_span import KeptSpan, RetainedSpan

__all__ = [
    "ESC",
    "ESCT",
    "LEACE",
    "Composition",
    "Cover",
    "CoverMap",
    "Eraser",
    "ForgetData",
    "Head",
    "KeptSpan",
    "MaskedProjection",
    "MeanDifference",
    "MeanProjection",
    "Method",
    "NormedProjection",
    "ObliqueProjection",
    "Projection",
    "PrototypeOrthogonal",
    "RetainMoments",
    "RetainedSpan",
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
