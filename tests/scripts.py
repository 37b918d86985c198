"""Scripts of ``examples/``, run as their users run them."""

import runpy
import sys

import pytest


def run_script(script, *arguments):
    """As ``python SCRIPT ARGUMENTS``, to its last line, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
    assert end.value.code in (0, None)
