"""Another team: an interpreter that has TensorFlow and not epizoo."""

import subprocess
import sys
from pathlib import Path

import tensorflow as tf

# TensorFlow's own site-packages and nothing else: ``-I -S`` leaves out the working folder, PYTHONPATH and the
# hooks of editable installs; the finder refuses epizoo if it is there still.
CONSUMER = """
import runpy, sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("epizoo", "tfds_epilepsy"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nowhere())
sys.path.append(sys.argv[1])
try:
    import epizoo
    sys.exit("epizoo can be imported")
except ModuleNotFoundError:
    pass
for script in sys.argv[2:]:
    sys.argv[1:] = []
    runpy.run_path(script, run_name="__main__")
"""


def run_consumer(*scripts):
    """Runs the scripts there, one after the other."""
    packages = Path(tf.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", CONSUMER, packages, *scripts]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)
