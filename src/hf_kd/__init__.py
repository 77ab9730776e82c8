"""hf_kd: make trained Hugging Face vision models forget, and measure what they still know.

Importing the package registers `ErasedModel` with the Auto classes of transformers, so that saved erased models load
with `AutoModelForImageClassification.from_pretrained` and `pipeline`.
"""

from importlib.metadata import version

from .configuration import ErasedConfig, Erasure
from .erasers import ESC, ESCT, Eraser, Method, SecondMoment, available_methods, register_eraser, register_method
from .modeling import ErasedModel

__version__ = version("hf-kd")

__all__ = [
    "ESC",
    "ESCT",
    "ErasedConfig",
    "ErasedModel",
    "Eraser",
    "Erasure",
    "Method",
    "SecondMoment",
    "available_methods",
    "register_eraser",
    "register_method",
]
