"""From features, or from a model and its images, to a `RetentionReport`: the sections, the report and its pictures.

`audit_features` needs matrices only; `audit_model` reads them off a model. The numbers themselves are in `hf_kd.metrics`.
"""

from .audit_features import AuditExtras, audit_features
from .options import AuditOptions, Retrained, Unseen
from .report import RetentionReport
from .schema import Score, Section

__all__ = [
    "AuditExtras",
    "AuditOptions",
    "RetentionReport",
    "Retrained",
    "Score",
    "Section",
    "Unseen",
    "audit_features",
]
