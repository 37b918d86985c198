"""A command of epizoo on a system without POSIX: ``python -m tests.elsewhere run DATA OUT``."""

import builtins
import os
import sys
from pathlib import Path

HIDDEN = ("fcntl", "resource")
OURS = ("epizoo", "tfds_epilepsy", "tuning")


def hide():
    """Take away what Windows and macOS lack from our own code; psutil has its own ways on each system."""
    imported = builtins.__import__

    def importing(name, *arguments, **options):
        if name in HIDDEN and is_ours():
            raise ImportError(f"no module named {name} here")
        return imported(name, *arguments, **options)

    builtins.__import__ = importing
    for name in ("sched_getaffinity", "sched_setaffinity"):
        if hasattr(os, name):
            delattr(os, name)
    for owner, name in ((Path, "read_text"), (Path, "write_text"), (Path, "open"), (builtins, "open")):
        setattr(owner, name, refusing(getattr(owner, name)))


def is_ours():
    """Whether the code that called the caller is of our packages."""
    return sys._getframe(2).f_globals.get("__name__", "").split(".")[0] in OURS


def refusing(function):
    def refused(path, *arguments, **options):
        if str(path).startswith("/proc") and is_ours():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return function(path, *arguments, **options)

    return refused


if __name__ == "__main__":
    hide()
    from epizoo.cli import main

    main()
