"""What importing the mathematics costs."""

import subprocess
import sys


def test_importing_the_metrics_does_not_load_scikit_learn():
    """It takes a second; the functions that need it import it."""
    code = "import sys, hf_kd.metrics; print('sklearn' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
