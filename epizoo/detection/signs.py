"""The signs that readers look for, held against the controls at every voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.classical import ZScore, ZScoreScorer
from epizoo.detection.codes import Codes
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.lesions import DIRECTIONS

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from epizoo.detection.scorer import Scorer


class Signs(ZScore):
    """The sum of the signs of a lesion, each in z units of the controls at the voxel and one-sided.

    - the signal, less its mean over the surround: darker T1w, brighter FLAIR and T2w, less PET uptake;
    - the width of the junction of grey and white matter in the first modality, where it is blurred;
    - what the model itself holds to be abnormal, where it has a ``head``.

    These are the signs of focal cortical dysplasia that readers are taught (Blümcke et al. 2011, Epilepsia
    52:158-174; Colombo et al. 2009, AJNR 31:658-664). All count alike, ``sum z_k / sqrt(k)`` (Stouffer), so
    there is nothing to fit to lesions. The two halves make up for each other: the sum sees weak changes of
    any form, as the locally most powerful test does; a model that was taught sees strong ones in the form of
    a lesion.

    It reads the view ``signs``, or the deviations of a model that reads these; modalities whose direction is
    not known (``tfds_epilepsy.lesions.DIRECTIONS``) add no sign.

    Attributes:
        mean_, sd_: ``(v, k)`` float32, of the controls; an sd under 1e-3 is raised to it.
    """

    name: ClassVar[str] = "signs"
    views: ClassVar[Sequence[str]] = ("signs",)
    reads_model: ClassVar[bool] = True
    map_fwhm: ClassVar[float] = 8.0
    stride: ClassVar[int] = 3  # as coarse as what 'deviation' sees of the context, which is then seen once

    def __init__(self) -> None:
        pass

    def view_options(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def read_of(self, model: Any) -> keras.Model:
        """The model's ``head``.

        Raises:
            InputError: a model without one.
        """
        from epizoo.detection.head import Head  # brings TensorFlow

        return Head().read_of(model)

    def told(self, codes: Codes) -> Self:
        """Keep the signs and their directions.

        Raises:
            InputError: no modality whose direction is known.
        """
        if not any(codes.directions[:-1]):  # the last is the junction
            raise InputError(
                f"modalities {', '.join(codes.names[:-1]) or 'none'}: 'signs' knows how a lesion changes "
                f"{', '.join(DIRECTIONS)}; name the modalities, or take another detector ('head', for a "
                "model that has one)."
            )
        return super().told(codes)

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        return self.z(codes) @ self.weights(codes.shape[2])

    def parts(self, codes: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
        """The z of each sign in its direction; the score is their weighted sum, see above."""
        z = self.z(codes)
        weights = self.weights(z.shape[2])
        named = zip([*self.signs, "model"], np.sign(weights), strict=False)
        return {name: sign * z[..., k] for k, (name, sign) in enumerate(named) if sign}

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        return SignsScorer(self, state, order)

    def weights(self, numbers: int) -> NDArray[np.float32]:
        """What the z of each number of a code counts for, with its direction; a model's own score comes last.

        Raises:
            InputError: a code of fewer numbers than there are signs.
        """
        own = numbers - len(self.directions)
        if own < 0:
            raise InputError(
                f"codes of {numbers} numbers: there are {len(self.directions)} signs, "
                f"{', '.join(self.signs)}."
            )
        signs = np.concatenate([np.array(self.directions, np.float32), np.ones(own, np.float32)])
        return np.asarray(signs / np.linalg.norm(signs))


class SignsScorer(ZScoreScorer):
    """The sum of the signs, each in z units and in its direction."""

    def __init__(self, detector: Signs, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]):
        super().__init__(detector, state, order)
        self.weights = detector.weights(state["mean_"].shape[1])

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        return tf.linalg.matvec(self.z(codes, start, stop), self.weights)
