"""The audit: what features still reveal about forgotten classes. Works on feature matrices and labels, knows no model.

`audit_features` measures everything and returns a `RetentionReport`. Below it, `scores` are the numbers, `probes` measure
Knowledge Retention, `attacks` try to get the forgotten classes back, and `label_efficiency` tells knowing from learning
anew by how few labels an attacker needs.
"""

from .attack_data import AttackResult, AuditData
from .attacks import ATTACKS, Attack, StrongestAttacks, run_attacks, strongest
from .evaluate import audit_features
from .label_efficiency import LabelEfficiency, RelativeArea, label_efficiency, relative_area
from .probes import (
    Convergence,
    KnowledgeRetention,
    LinearProbe,
    fit_linear_probe,
    fit_paper_probe,
    knowledge_retention,
)
from .repetition import RepeatedVectors, repeated_vectors, share_changed
from .report import RetentionReport, Score, Section
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

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "AuditData",
    "Convergence",
    "ForgetRetainScores",
    "KnowledgeRetention",
    "LabelEfficiency",
    "LinearProbe",
    "RelativeArea",
    "RepeatedVectors",
    "RetentionReport",
    "Score",
    "Section",
    "StrongestAttacks",
    "audit_features",
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
    "strongest",
]
