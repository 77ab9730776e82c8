"""Numbers from arrays: what features [n, d] and answers [n, C] reveal of forgotten classes. Knows no model and no data set.

`scores` are the paper's accuracies, `linear_probe` and `knowledge_retention` measure KR, `attacks` (with
`nonlinear_probes` and `neighbours`) try to get the forgotten classes back, `label_efficiency` tells knowing from learning
anew by how few labels an attacker needs, `membership` asks what was in the training data, `identities` who is on a
picture, `similarity` and `weights` how far features and weights moved.
"""

from .attack_data import AttackResult, AuditData
from .attacks import ATTACKS, Attack, run_attacks
from .knowledge_retention import KnowledgeRetentionResult, knowledge_retention
from .label_efficiency import LabelEfficiency, RelativeArea, label_efficiency, relative_area
from .linear_probe import Convergence, LinearProbe, fit_linear_probe, fit_paper_probe
from .scores import (
    ForgetRetainScores,
    average_gap,
    harmonic_mean,
    mean_and_sd,
    nearest_retained_classes,
    normalised_retention,
    per_class_accuracy,
    recovery_ratio,
    scores_over_seeds,
)
from .similarity import RepeatedVectors, repeated_vectors, share_changed

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "AuditData",
    "Convergence",
    "ForgetRetainScores",
    "KnowledgeRetentionResult",
    "LabelEfficiency",
    "LinearProbe",
    "RelativeArea",
    "RepeatedVectors",
    "average_gap",
    "fit_linear_probe",
    "fit_paper_probe",
    "harmonic_mean",
    "knowledge_retention",
    "label_efficiency",
    "mean_and_sd",
    "nearest_retained_classes",
    "normalised_retention",
    "per_class_accuracy",
    "recovery_ratio",
    "relative_area",
    "repeated_vectors",
    "run_attacks",
    "scores_over_seeds",
    "share_changed",
]
