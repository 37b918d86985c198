"""The interface of every detector: scikit-learn's manners on a batch of voxels.

A detector learns, at every voxel, what the codes of healthy controls look like, and scores how far a new
code lies from them. **Higher is more abnormal.**
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.codes import Codes, ViewCodes, codes_of
from epizoo.maps.image import Image
from epizoo.maps.view import create_view
from epizoo.registry import DETECTORS as DETECTORS
from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    import keras

    from epizoo.detection.profiles.profile import Profile
    from epizoo.detection.scorer import Scorer


def create_detector(name: str, **config: Any) -> Detector:
    """A detector by its name, for example ``create_detector("ocsvm", nu=0.05)``.

    Example:
        >>> create_detector("ocsvm", nu=0.05).nu
        0.05

    Raises:
        InputError: an unknown name or option.
    """
    detector_class = DETECTORS.get(name)
    options = detector_class.option_names()
    unknown = set(config) - set(options)
    if unknown:
        raise InputError(
            f"detector {name!r} has no option {', '.join(sorted(unknown))}: "
            f"its options are {', '.join(options) or 'none'}."
        )
    return detector_class(**config)


class Detector:
    """Base of the detectors.

    Sub-classes implement ``fit`` and ``score``; what they learn is kept in attributes that end in ``_``.

    >>> class Farthest(Detector):
    ...     name = "farthest"
    ...
    ...     def fit(self, codes, **covariates):
    ...         self.mean_ = check_codes(codes).mean(1)
    ...         return self
    ...
    ...     def score(self, codes, **covariates):
    ...         return np.abs(check_codes(codes, *self.mean_.shape) - self.mean_[:, None]).max(2)

    Attributes:
        name: what the registry calls it.
        views: names of the views whose maps it reads, in place of a model's code or before it. A detector
            with views is a baseline too: it can run without a model.
        reads_model: whether it reads what a model makes of a voxel (``read_of``).
        exportable: whether it has a form in TensorFlow operations (``graph``), for exported pipelines.
        sampled: how many of a subject's voxels, from all over the brain, ``prepare`` wants to see; 0 for a
            detector that learns each voxel by itself.
        covariates: of a subject, that ``fit``, ``cross_scores`` and ``score`` want to be given.
        calibration: of the map: with mean and deviation of each ``voxel``, or one of each for the
            ``brain``; or with the mean of each voxel and the deviation of its ``neighbourhood``.
        map_fwhm: smoothing of its map in a run that names no other, millimetres.
        stride: voxels from one at which it asks a model to the next, where its map is smoothed so widely that
            the figures are the same; 1: at every voxel, always.
        working: memory that fitting and calibrating a slab take beside the slab's codes, as a multiple of the
            memory of these codes.
        signs, directions: of the maps that it reads (``View.signs``, ``View.directions``); see ``told``.
        kinds: profiles of changes, each of which makes a map of its ``evidence``; none for a detector whose
            score is its map.
    """

    name: ClassVar[str]
    views: ClassVar[Sequence[str]] = ()
    reads_model: ClassVar[bool] = True
    exportable: ClassVar[bool] = False
    calibration: ClassVar[str] = "voxel"
    map_fwhm: ClassVar[float] = 0.0
    stride: ClassVar[int] = 1
    working: ClassVar[float] = 3.0
    covariates: Sequence[str] = ()
    told_of: Codes | None = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.endswith("_") and not name.startswith("_"):
                raise NotFittedError(f"detector {self.name!r} has learnt nothing yet: fit it first.")
            return self.__getattribute__(name)

    def codes(self, model: Any, modalities: Sequence[str] | None = None) -> Codes:
        """What it reads of a subject: the maps of its views, what a model makes of them, or both.

        Args:
            model: a ``PatchModel``, a Keras encoder, codes (which are read as they are), or None: the views
                alone, or the intensities for a detector that has none.
            modalities: names of the images' channels.

        Raises:
            InputError: a model that lacks what the detector reads of it.
        """
        if isinstance(model, Codes):
            return model
        encoded = None
        if model is not None and self.reads_model:
            encoded = codes_of(model, network=self.read_of(model), modalities=modalities)
            modalities = encoded.view.modalities
        options = {name: self.view_options().get(name, {}) for name in self.views}
        views = [create_view({"name": name, **options[name]}, modalities) for name in self.views]
        if encoded is None:
            return ViewCodes(views or [Image(modalities)])
        return ViewCodes(views, encoded) if views else encoded

    def view_options(self) -> Mapping[str, Mapping[str, Any]]:
        """Options of its views, by their names."""
        return {}

    def read_of(self, model: Any) -> keras.Model | None:
        """The Keras model from ``patch`` to what is read of a model; None for its encoder.

        Raises:
            InputError: the model lacks it.
        """
        return None

    def told(self, codes: Codes) -> Self:
        """Keep what the maps that it will be given are; returns the detector.

        Raises:
            InputError: maps that it can do nothing with.
        """
        self.told_of = codes
        return self

    @property
    def sampled(self) -> int:
        return 0

    @property
    def signs(self) -> tuple[str, ...]:
        return () if self.told_of is None else self.told_of.signs

    @property
    def directions(self) -> tuple[int, ...]:
        return () if self.told_of is None else self.told_of.directions

    def prepare(self, sample: NDArray[np.float32], folds: NDArray[np.integer] | None = None) -> Self:
        """Learn from the whole brain, where ``sampled``; called before anything else.

        Args:
            sample: ``(sampled, n, d)``, codes of n subjects at voxels from all over the brain.
            folds: ``(n,)`` of the controls that are fitted; None for a subject that is scored.
        """
        return self

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        """Learn the controls.

        Args:
            codes: ``(v, n, d)``: the code of n controls at v voxels.
            **covariates: ``(n,)`` each, NaN where unknown, of a detector that names some.

        Returns:
            self.
        """
        raise NotImplementedError

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        """How abnormal codes are; higher is more abnormal.

        Args:
            codes: ``(v, m, d)``: m codes at each of the voxels that were fitted.

        Returns:
            ``(v, m)`` float32.
        """
        raise NotImplementedError

    @property
    def kinds(self) -> Sequence[Profile]:
        return ()

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numbers of a code: of the views' maps, then ``model`` for what a model adds."""
        if self.told_of is None:
            return ()
        return (*self.told_of.names, *([] if self.told_of.encoded is None else [MODEL]))

    def evidence(
        self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """What maps are made of: the score, or the several numbers that the ``kinds`` read, ``(v, m, k)``.

        Args:
            codes: as of ``score``.
        """
        return self.score(codes, **covariates)[..., None]

    def cross_evidence(
        self, codes: NDArray[np.float32], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """``evidence`` of the controls ``(v, n, k)``, each by a detector that was fitted without its fold."""
        return self.cross_scores(codes, folds, **covariates)[..., None]

    def parts(self, codes: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
        """What a score is made of, by name, for the reader of a cluster; empty where that cannot be said.

        Args:
            codes: as of ``score``.

        Returns:
            ``(v, m)`` float32 each, in standard deviations from the controls.
        """
        return {}

    def cross_scores(
        self, codes: NDArray[np.float32], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Scores of the controls, each by a detector that was fitted without its fold.

        Args:
            codes: ``(v, n, d)``.
            folds: ``(n,)``, the fold of each control.
            **covariates: ``(n,)`` each, of a detector that names some.

        Returns:
            ``(v, n)`` float32.
        """
        scores = np.empty(codes.shape[:2], np.float32)
        for fold in np.unique(folds):
            held_out = folds == fold
            rest = {name: values[~held_out] for name, values in covariates.items()}
            detector = self.unfitted().fit(codes[:, ~held_out], **rest)
            there = {name: values[held_out] for name, values in covariates.items()}
            scores[:, held_out] = detector.score(codes[:, held_out], **there)
        return scores

    def unfitted(self) -> Self:
        """Another detector of the same configuration, told the same."""
        detector = type(self)(**self.get_config())
        return detector if self.told_of is None else detector.told(self.told_of)

    def state(self) -> dict[str, NDArray[Any]]:
        """What was learnt, as arrays that NumPy stores without pickle."""
        return {name: value for name, value in vars(self).items() if name.endswith("_")}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], **config: Any) -> Self:
        """A fitted detector from the ``state`` and the configuration of another."""
        detector = cls(**config)
        vars(detector).update(state)
        return detector

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        """A fitted detector in TensorFlow operations, where it is ``exportable``; see :class:`Scorer`.

        Args:
            state: of ``Detector.state``; the detector itself is not fitted, but was told what it reads.
            order: ``(v,)``: where in the state each voxel stands.
        """
        raise NotImplementedError(f"{type(self).__name__} has no form in TensorFlow operations.")

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of the constructor's arguments."""
        return [name for name in inspect.signature(cls).parameters]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in self.option_names()}


class NotFittedError(InputError, AttributeError):
    """A detector is asked for what it has not learnt yet."""


def check_codes(
    codes: NDArray[np.floating], voxels: int | None = None, size: int | None = None
) -> NDArray[np.float32]:
    """Codes as C-ordered float32 ``(v, n, d)``.

    Args:
        codes: any array of three axes.
        voxels, size: v and d of the codes that were fitted.

    Raises:
        InputError: not 3-D, no control or no number, other voxels or another size than were fitted, NaN,
            infinity, or beyond ``LARGEST``.
    """
    with np.errstate(over="ignore"):  # told below
        array = np.ascontiguousarray(codes, dtype=np.float32)
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise InputError(f"codes of shape {array.shape}: (voxels, subjects, numbers of a code) is needed.")
    if voxels is not None and len(array) != voxels:
        raise InputError(f"codes at {len(array)} voxels: the detector was fitted at {voxels}.")
    if size is not None and array.shape[2] != size:
        raise InputError(f"codes of {array.shape[2]} numbers: the detector was fitted on codes of {size}.")
    if array.size and not (array.min() >= -LARGEST and array.max() <= LARGEST):  # of NaN, neither
        raise InputError(
            f"codes are NaN or infinite, or beyond {LARGEST:g}: the encoder or its input is broken."
        )
    return array


MODEL = "model"  # of ``Detector.numbers``
LARGEST = 1e16  # of a number of a code: squared distances stay finite in float32
