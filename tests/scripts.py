"""Scripts of ``examples/``, which is no package."""

import importlib.util


def load_script(script):
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
