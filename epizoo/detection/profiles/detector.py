"""The detector ``profiles``: several kinds of change, each against the controls, the rarest counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.classical import ZScore, ZScoreScorer
from epizoo.detection.codes import Codes
from epizoo.detection.detector import check_codes
from epizoo.detection.profiles.profile import Profile, create_profile
from epizoo.detection.signs import Signs
from epizoo.maps.deviations import Deviations
from epizoo.registry import PROFILES
from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from epizoo.detection.scorer import Scorer

TISSUE_FWHM = 4.0  # millimetres; the share of a tissue in one voxel is mostly 0 or 1


class Profiles(ZScore):
    """Several kinds of change, each by its profile; at each place the profile that is rarest there counts.

    It reads the signs of a scan, how much of each tissue is at a place, and what the model holds to be
    abnormal where it has a ``head``, each in standard deviations from the controls at the voxel. A profile
    makes one map of them (:class:`Profile`), which is calibrated on controls by itself: how often as high a
    value is met in a healthy brain makes the maps of different profiles comparable
    (``epizoo.detection.rarity``).

    Args:
        profiles: their names; all that epizoo has by default. Those that need maps that the scans do not have
            are left out.

    Attributes:
        mean_, sd_: ``(v, k)`` float32, of the controls; an sd under 1e-3 is raised to it; 0 and 1 of maps
            that are deviations already.

    Raises:
        InputError: an unknown profile, none, or one that stands twice.
    """

    name: ClassVar[str] = "profiles"
    views: ClassVar[Sequence[str]] = ("signs", "tissue")
    reads_model: ClassVar[bool] = True
    exportable: ClassVar[bool] = True
    calibration: ClassVar[str] = "neighbourhood"
    stride: ClassVar[int] = 3

    def __init__(self, profiles: Sequence[str] = tuple(PROFILES.own)):
        if not profiles or len(set(profiles)) < len(profiles):
            raise InputError(f"profiles={list(profiles)}: names are needed, each once.")
        self.profiles = list(profiles)
        self._profiles = [create_profile(name) for name in profiles]

    def view_options(self) -> Mapping[str, Mapping[str, Any]]:
        return {"tissue": {"fwhm": TISSUE_FWHM}}

    def read_of(self, model: Any) -> keras.Model:
        """The model's ``head``, as ``Signs`` does."""
        return Signs().read_of(model)

    @property
    def kinds(self) -> tuple[Profile, ...]:
        return tuple(profile for profile in self._profiles if profile.used(self.numbers))

    def told(self, codes: Codes) -> Self:
        """Keep what the maps are.

        Raises:
            InputError: maps that none of the profiles reads.
        """
        told = super().told(codes)
        if not self.kinds:
            raise InputError(
                f"maps {', '.join(self.numbers) or 'without names'}: no profile of "
                f"{', '.join(self.profiles)} reads them; name the modalities, or take another detector."
            )
        return told

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        """The highest of the profiles' sums at each voxel by itself, without their scale and their region.

        Of codes whose numbers have no names, the sum of all.
        """
        z = self.z(codes)
        alike = np.full(z.shape[2], z.shape[2] ** -0.5, np.float32)
        sums = [z @ weights for weights in [kind.weights_of(self.numbers) for kind in self.kinds] or [alike]]
        return np.asarray(np.max(sums, axis=0))

    def evidence(
        self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Each number of the codes in standard deviations from the controls at the voxel, ``(v, m, k)``."""
        return self.z(codes)

    def cross_evidence(
        self, codes: NDArray[np.float32], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        codes = check_codes(codes)
        z = np.empty(codes.shape, np.float32)
        for held_out, without in self.without_folds(codes, folds):
            z[:, held_out] = without.z(codes[:, held_out])
        return z

    def parts(self, codes: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
        """The z of each number of the codes, by its name (``Detector.numbers``)."""
        z = self.z(codes)
        return {name: z[..., k] for k, name in enumerate(self.numbers)}

    def moments(
        self, codes: NDArray[np.float32], folds: NDArray[np.integer], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As of ``ZScore``; 0 and 1 of maps that are in deviations from the same controls already.

        A control that deviates much has made the deviations of the others smaller: held against their spread
        again, it would seem to deviate more than a stranger does.
        """
        means, sds = super().moments(codes, folds, count)
        owners = [view for view in self.told_of.views for _ in view.names] if self.told_of else []
        for k, owner in enumerate(owners):
            if isinstance(owner, Deviations) and not owner.spread:
                means[..., k], sds[..., k] = 0, 1
        return means, sds

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        return ProfilesScorer(self, state, order)


class ProfilesScorer(ZScoreScorer):
    """The evidence is each number in z units; the score, the highest of the profiles' sums of them."""

    def __init__(self, detector: Profiles, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]):
        super().__init__(detector, state, order)
        self.weights = np.stack([kind.weights_of(detector.numbers) for kind in detector.kinds], 1)

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        return tf.reduce_max(self.z(codes, start, stop) @ self.weights, 1)

    def evidence(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return self.z(codes, start, stop)
