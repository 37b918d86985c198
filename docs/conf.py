"""The documentation site: ``make docs`` builds it into ``build/docs``; a warning is an error."""

import os
import subprocess
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the build's own warnings are those to see

project = "epizoo"
author = "the epizoo authors"
copyright = author
version = release = version_of("epizoo")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["figures"]
highlight_language = "none"  # indented blocks are commands
suppress_warnings = ["config.cache"]  # of functions in this file

html_theme = "furo"
html_title = "epizoo"

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

# Notebooks are stored without outputs, and run at every build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # a guard against what hangs: each takes under 40 s of one free core
nb_output_stderr = "remove"  # progress

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def write_command_line(app: Sphinx) -> None:
    """The page of the command line, as its own help says it."""
    page = Path(app.srcdir) / "reference" / "command_line.md"
    command = [sys.executable, "-m", "typer", "epizoo.cli", "utils", "docs"]
    command += ["--name", "epizoo", "--title", "Command line"]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if not page.is_file() or page.read_text(encoding="utf-8") != made:
        page.write_text(made, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_command_line)
