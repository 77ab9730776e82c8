"""Features with known content, for positive and negative controls."""

from hf_kd.testing.probes import noise, planted

__all__ = ["noise", "planted"]
