"""Detectors that were fitted before there were views: what their manifests say, in today's words.

They hold the same arrays; manifest and fingerprint are other. Runs that were made with them still open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from epizoo.detection.codes import Codes, EncoderCodes, Homotopic, ViewCodes, WithPosition
from epizoo.maps.deviations import Deviations
from epizoo.maps.view import View


def upgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of version 1 as one of version 2, with the fingerprint that it had."""
    config = dict(manifest["config"])
    modalities = config.pop("modalities", None)  # only 'signs' knew them
    renamed = {
        "channels": manifest["modalities"],
        "code_size": manifest["features"],
        "codes": manifest["encoder"],
        "normalised": None,  # not known
    }
    kept = {name: value for name, value in manifest.items() if name != "features"}
    return {**kept, **renamed, "version": 2, "config": config, "modalities": modalities}


def fingerprint(codes: Codes) -> str:
    """What version 1 called the codes."""
    if isinstance(codes, EncoderCodes):
        view = codes.view
        if not isinstance(view, Deviations):
            return codes.encoder_fingerprint
        arrays = [view.mask_, view.count_, view.mean_, view.squares_, view.prior_, view.images_, view.spread]
        deviations = _digest(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
        return _digest(codes.encoder_fingerprint.encode() + deviations.encode())
    if isinstance(codes, Homotopic):
        return _class("Homotopic", 1, inner=fingerprint(codes.inner))
    if isinstance(codes, WithPosition):
        return _class("WithPosition", 1, inner=fingerprint(codes.inner), weight=codes.weight)
    assert isinstance(codes, ViewCodes)
    if codes.encoded is not None:
        return _class("SignMaps", 3, inner=fingerprint(codes.encoded))
    (view,) = codes.views
    return _of_view(view)


def _of_view(view: View) -> str:
    """Of a baseline's only view; one that version 1 did not have is known by its own fingerprint."""
    if view.name == "image":
        return _class("Intensities", 1, **view.options())
    if view.name == "junction_extension":
        return _class("JunctionExtensionMaps", 1)
    if view.name == "tissue":
        return _class("GreyMatter", 1, fwhm=view.options()["fwhm"])
    return _class("SignMaps", 3, inner=None) if view.name == "signs" else view.fingerprint


def _class(name: str, version: int, **attributes: Any) -> str:
    return _digest(json.dumps([name, version, attributes], sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
