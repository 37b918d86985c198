"""Normative detectors, score maps and clusters."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epizoo.detection.clusters import Cluster, find_clusters
    from epizoo.detection.detector import DETECTORS, Detector, create_detector
    from epizoo.detection.fusion import fuse_maps
    from epizoo.detection.normative import NormativeModel, fit_normative

__all__ = [
    "DETECTORS",
    "Cluster",
    "Detector",
    "NormativeModel",
    "create_detector",
    "find_clusters",
    "fit_normative",
    "fuse_maps",
]

_MODULES = {
    "DETECTORS": "detector",
    "Cluster": "clusters",
    "Detector": "detector",
    "NormativeModel": "normative",
    "create_detector": "detector",
    "find_clusters": "clusters",
    "fit_normative": "normative",
    "fuse_maps": "fusion",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: the solvers bring numba, which the command line's help need not wait for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
