"""The interface of every detector: scikit-learn's manners on a batch of voxels.

A detector learns, at every voxel, what the codes of healthy controls look like, and scores how far a new
code lies from them. **Higher is more abnormal.**
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.codes import Codes, Intensities, as_codes
from tfds_epilepsy.errors import InputError

# Name -> "module:class", imported when asked for.
DETECTORS: dict[str, str] = {
    "ocsvm": "epizoo.detection.ocsvm:LocalOneClassSVM",
    "gaussian": "epizoo.detection.gaussian:LocalGaussian",
    "knn": "epizoo.detection.knn:LocalKNN",
    "pooled": "epizoo.detection.pooled:PooledOneClassSVM",
    "patient": "epizoo.detection.pooled:PatientOneClassSVM",
    "adjusted": "epizoo.detection.adjusted:Adjusted",
    "reconstruction": "epizoo.detection.reconstruction:Reconstruction",
    "head": "epizoo.detection.head:Head",
    "signs": "epizoo.detection.signs:Signs",
    "zscore": "epizoo.detection.classical:ZScore",
    "flair": "epizoo.detection.classical:FlairThreshold",
    "junction_extension": "epizoo.detection.classical:JunctionExtension",
    "spm": "epizoo.detection.classical:SPM",
}


def create_detector(name: str, **config: Any) -> Detector:
    """A detector by its name, for example ``create_detector("ocsvm", nu=0.05)``.

    Raises:
        InputError: an unknown name or option.
    """
    detector = detector_class(name)
    unknown = set(config) - set(detector.option_names())
    if unknown:
        raise InputError(
            f"detector {name!r} has no option {', '.join(sorted(unknown))}: "
            f"its options are {', '.join(detector.option_names()) or 'none'}."
        )
    return detector(**config)


def detector_of(modalities: Sequence[str], name: str, /, **config: Any) -> Detector:
    """A detector of images of some modalities; one that asks for their names is told them.

    Raises:
        InputError: see ``create_detector``; modalities of which the detector knows nothing.
    """
    if "modalities" in detector_class(name).option_names():
        config.setdefault("modalities", list(modalities))
    return create_detector(name, **config)


def detector_class(name: str) -> type[Detector]:
    """The class of a detector.

    Raises:
        InputError: an unknown name.
    """
    if name not in DETECTORS:
        raise InputError(f"unknown detector {name!r}: choose one of {', '.join(DETECTORS)}.")
    module, _, attribute = DETECTORS[name].partition(":")
    return getattr(import_module(module), attribute)


class Detector:
    """Base of the detectors.

    Sub-classes implement ``fit`` and ``score``; what they learn is kept in attributes that end in ``_``.

    ``name``: the key in ``DETECTORS``.
    ``sampled``: how many of a subject's voxels, from all over the brain, ``prepare`` wants to see; 0 for a
    detector that learns each voxel by itself.
    ``covariates``: of a subject, that ``fit``, ``cross_scores`` and ``score`` want to be given.
    ``calibration``: of the map: with mean and deviation of each ``voxel``, or one of each for the ``brain``.
    ``map_fwhm``: smoothing of its map in a run that names no other, millimetres.
    ``working``: what a fit and its calibration hold at once beside the codes, in sizes of theirs.
    ``reads``: ``codes`` of an encoder, the ``image`` itself (a baseline that needs no model), or both.
    """

    name: ClassVar[str]
    calibration: ClassVar[str] = "voxel"
    map_fwhm: ClassVar[float] = 0.0
    working: ClassVar[float] = 3.0
    reads: ClassVar[frozenset[str]] = frozenset({"codes"})
    sampled: int = 0
    covariates: Sequence[str] = ()

    def prepare(self, sample: NDArray[np.float32], folds: NDArray[np.integer] | None = None) -> Self:
        """Learn from the whole brain, where ``sampled``; called before anything else.

        Args:
            sample: ``(sampled, n, d)``, codes of n subjects at voxels from all over the brain.
            folds: ``(n,)`` of the controls that are fitted; None for a subject that is scored.
        """
        return self

    def fit(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        """Learn the controls.

        Args:
            latents: ``(v, n, d)``: the code of n controls at v voxels.
            **covariates: ``(n,)`` each, NaN where unknown, of a detector that names some.

        Returns:
            self.
        """
        raise NotImplementedError

    def score(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        """How abnormal codes are; higher is more abnormal.

        Args:
            latents: ``(v, m, d)``: m codes at each of the voxels that were fitted.

        Returns:
            ``(v, m)`` float32.
        """
        raise NotImplementedError

    def parts(self, latents: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
        """What a score is made of, by name, for the reader of a cluster; empty where that cannot be said.

        Args:
            latents: as of ``score``.

        Returns:
            ``(v, m)`` float32 each, in standard deviations from the controls.
        """
        return {}

    def codes(self, encoder: Any) -> Codes:
        """What it reads of a subject.

        Args:
            encoder: a Keras encoder, a ``PatchModel``, other codes, or None: the intensities.
        """
        return Intensities() if encoder is None else as_codes(encoder)

    def cross_scores(
        self, latents: NDArray[np.float32], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Scores of the controls, each by a detector that was fitted without its fold.

        Args:
            latents: ``(v, n, d)``.
            folds: ``(n,)``, the fold of each control.
            **covariates: ``(n,)`` each, of a detector that names some.

        Returns:
            ``(v, n)`` float32.
        """
        scores = np.empty(latents.shape[:2], np.float32)
        for fold in np.unique(folds):
            held_out = folds == fold
            rest = {name: values[~held_out] for name, values in covariates.items()}
            detector = type(self)(**self.get_config()).fit(latents[:, ~held_out], **rest)
            there = {name: values[held_out] for name, values in covariates.items()}
            scores[:, held_out] = detector.score(latents[:, held_out], **there)
        return scores

    def state(self) -> dict[str, NDArray[Any]]:
        """What was learnt, as arrays that NumPy stores without pickle."""
        return {name: value for name, value in vars(self).items() if name.endswith("_")}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], **config: Any) -> Self:
        """A fitted detector from the ``state`` and the configuration of another."""
        detector = cls(**config)
        vars(detector).update(state)
        return detector

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of the constructor's arguments."""
        return [name for name in inspect.signature(cls).parameters]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in self.option_names()}


def check_latents(latents: NDArray[np.floating], voxels: int | None = None) -> NDArray[np.float32]:
    """Latents as C-ordered float32 ``(v, n, d)``.

    Raises:
        InputError: not 3-D, no control or feature, another number of voxels than was fitted, NaN or infinity.
    """
    array = np.ascontiguousarray(latents, dtype=np.float32)
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise InputError(f"latents of shape {array.shape}: (voxels, subjects, features) is needed.")
    if voxels is not None and len(array) != voxels:
        raise InputError(f"latents at {len(array)} voxels: the detector was fitted at {voxels}.")
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(array.sum()) or np.isfinite(array).all()  # the sum alone is quicker
    if not finite:
        raise InputError("latents are NaN or infinite: the encoder or its input is broken.")
    return array
