"""The site: `make docs` builds it in docs/_build, with warnings as errors and without a network."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

project = "hf_kd"
author = "the authors of hf_kd"
project_copyright = "the authors of hf_kd, Apache-2.0"
release = version = version_of("hf-kd")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_nb",
    "docstrings",
    "pages",
]
exclude_patterns = ["_build", "_ext", "_templates"]
html_theme = "furo"
html_title = "hf_kd"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_show_sphinx = False

autosummary_generate = True
autodoc_typehints = "none"  # the signature has them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
default_role = "code"
nitpicky = False  # annotations name classes of torch and transformers, whose sites are not asked

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

nb_execution_mode = "cache"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # reports and benches print tables
nb_kernel_rgx_aliases = {".*": "python3"}
