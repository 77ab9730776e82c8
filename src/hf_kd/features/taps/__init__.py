"""Find where pooled features pass in any vision model, and stand there. Knows models, but no erasers.

`find` searches by data flow, with one probe forward; `probe` makes its input; `site` sits at a found tap and lets an
eraser act and a reader look; `blocks` finds what lies below.
"""

from hf_kd.data.hidden_state import as_map, hidden_state, pooled
from hf_kd.data.masked_classes import MASKED_LOGIT
from hf_kd.data.modes import drop_caches, evaluating
from hf_kd.errors import TapNotFoundError

from .blocks import find_blocks
from .find import TapSearch, find_taps
from .inputs import image_inputs, main_input, probe_inputs, run
from .places import Place, Tap, without_fields
from .site import TapSite, head_function, record, sites_on

__all__ = [
    "MASKED_LOGIT",
    "Place",
    "Tap",
    "TapNotFoundError",
    "TapSearch",
    "TapSite",
    "as_map",
    "drop_caches",
    "evaluating",
    "find_blocks",
    "find_taps",
    "head_function",
    "hidden_state",
    "image_inputs",
    "main_input",
    "pooled",
    "probe_inputs",
    "record",
    "run",
    "sites_on",
    "without_fields",
]
