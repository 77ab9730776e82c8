"""What a Space of hf_kd holds: the metric for `evaluate`, and the page that shows an erased model beside its original.

The folder `knowledge_retention` is loadable by its path, offline, and is what a metric Space holds. `evaluate` is an
optional extra (`pip install hf-kd[evaluate]`) and is not imported here.
"""

from __future__ import annotations

from pathlib import Path

KNOWLEDGE_RETENTION = str(Path(__file__).parent / "knowledge_retention")
"""For `evaluate.load(KNOWLEDGE_RETENTION)`."""
