"""Methods that change weights: what ESC is compared with. One file each, one contract.

`base` has the contract, `task` what a method is handed and how gradient steps are taken, `training` the
loop of those that train by epochs. Re-implemented from the papers' formulas; knows `hf_kd.data` and no other layer.
"""

from hf_kd.errors import DivergedError
from hf_kd.methods.registry import make_unlearning_method, unlearning_methods
from hf_kd.methods.registry import register_method as register

from .bad_teaching import BadTeaching
from .base import UnlearningMethod
from .boundary import BoundaryExpand, BoundaryShrink
from .cola import Cola
from .damp import Damp
from .delete import Delete
from .finetune import Finetune
from .fisher import Fisher
from .head_surgery import HeadSurgery
from .kodge import Kodge
from .l1_sparse import L1Sparse
from .last_layers import CatastrophicForgetting, ExactUnlearning
from .lau import LAU
from .layer_resets import LayerResets
from .neggrad import NegGrad
from .neggrad_plus import NegGradPlus
from .noise_distill import NoiseDistill
from .random_label import Amnesiac, RandomLabel
from .regrow import Regrow
from .retrain import Retrain
from .salun import SalUn
from .scrub import Scrub
from .spotter import Spotter
from .ssd import SSD
from .steps import GradientSteps
from .task import Task
from .training import TrainedMethod
from .unsir import Unsir

__all__ = [
    "LAU",
    "SSD",
    "Amnesiac",
    "BadTeaching",
    "BoundaryExpand",
    "BoundaryShrink",
    "CatastrophicForgetting",
    "Cola",
    "Damp",
    "Delete",
    "DivergedError",
    "ExactUnlearning",
    "Finetune",
    "Fisher",
    "GradientSteps",
    "HeadSurgery",
    "Kodge",
    "L1Sparse",
    "LayerResets",
    "NegGrad",
    "NegGradPlus",
    "NoiseDistill",
    "RandomLabel",
    "Regrow",
    "Retrain",
    "SalUn",
    "Scrub",
    "Spotter",
    "Task",
    "TrainedMethod",
    "UnlearningMethod",
    "Unsir",
    "make_unlearning_method",
    "register",
    "unlearning_methods",
]
