"""Architecture search: keras-tuner proposes, lesion detection on validation subjects judges.

>>> from tuning import DetectionTuner
>>> tuner = DetectionTuner("phantom_2mm", "search", model="siamese", trials=30)  # doctest: +SKIP
>>> tuner.search()  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuning.detection_tuner import DetectionTuner
    from tuning.trial import SearchFailed

__all__ = ["DetectionTuner", "SearchFailed"]

_MODULES = {"DetectionTuner": "detection_tuner", "SearchFailed": "trial"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: a trial's process has no use for keras-tuner."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
