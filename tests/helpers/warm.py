"""Imported by the server that processes are forked from: what libraries make when they are first used is made once."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("vit")  # compiles a thousand patterns
