"""Normative detectors, score maps and clusters.

Each name is imported when it is first used: the solvers bring numba, and the help of the command line does
not wait for it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
