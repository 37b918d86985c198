"""A Keras zoo of encoders of normal brain tissue, and a detector of lesions on their codes.

Everything below is imported when it is first used: ``import epizoo`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epizoo.dense import DenseEncoder as DenseEncoder
    from epizoo.detection import NormativeModel as NormativeModel
    from epizoo.detection import find_clusters as find_clusters
    from epizoo.detection import fit_normative as fit_normative
    from epizoo.export import export_encoder as export_encoder
    from epizoo.models import PatchModel as PatchModel
    from epizoo.models import create as create
    from epizoo.models import from_preset as from_preset
    from epizoo.models import list_models as list_models
    from epizoo.models import load_model as load_model
    from epizoo.models.callbacks import train as train
    from epizoo.run import Run as Run
    from epizoo.run_config import RunConfig as RunConfig

_HOMES = {
    "DenseEncoder": "epizoo.dense",
    "NormativeModel": "epizoo.detection",
    "PatchModel": "epizoo.models",
    "Run": "epizoo.run",
    "RunConfig": "epizoo.run_config",
    "create": "epizoo.models",
    "export_encoder": "epizoo.export",
    "find_clusters": "epizoo.detection",
    "fit_normative": "epizoo.detection",
    "from_preset": "epizoo.models",
    "list_models": "epizoo.models",
    "load_model": "epizoo.models",
    "train": "epizoo.models.callbacks",
}
_MODULES = ("dense", "detection", "evaluation", "export", "models", "report")
__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"epizoo.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'epizoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
