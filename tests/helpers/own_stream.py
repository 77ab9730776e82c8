"""Runs the script named first with what it prints in a file of its own, named by the rank of the process.

Processes that share one stream write into each other's lines: under a launcher Python does not buffer, and `print` writes
a text and the end of its line one after the other.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    os.dup2(os.open(os.path.join(os.environ["SAID"], os.environ["RANK"]), os.O_WRONLY | os.O_CREAT), 1)
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
