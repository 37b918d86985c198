"""The view ``tissue``: probabilities of grey matter, white matter and CSF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from epizoo.maps.smoothing import smooth, smooth_in_graph
from epizoo.maps.view import Graph, View
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.tissue import TISSUES, template_priors
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    import tensorflow as tf

ITERATIONS = 20
EM_VOXELS = 200_000  # that the mixture is fitted on; more do not move it
SMALLEST_VARIANCE = 1e-5  # of intensities in [0, 1]
PRIOR_FLOOR = 0.05  # a tissue may be where the template has none: a thick cortex, a large ventricle


class Tissue(View):
    """Tissue probabilities, smoothed inside the brain; see ``tissue_probabilities``.

    Args:
        modalities: see :class:`View`; the first is T1.
        tissues: which of ``TISSUES``, in this order.
        fwhm: of the Gaussian, millimetres; 0 leaves the probabilities as they are.

    Raises:
        InputError: an unknown tissue.
    """

    name: ClassVar[str] = "tissue"

    def __init__(
        self,
        modalities: Sequence[str] | None = None,
        tissues: Sequence[str] = TISSUES,
        fwhm: float = 0.0,
    ):
        super().__init__(modalities)
        if not tissues or set(tissues) - set(TISSUES):
            raise InputError(f"tissues {', '.join(tissues) or 'none'}: choose of {', '.join(TISSUES)}.")
        self.tissues, self.fwhm = list(tissues), fwhm

    def __call__(self, subject: Subject) -> NDArray[np.float32]:
        """``(x, y, z, k)``, a map for each of ``tissues``."""
        maps = np.ascontiguousarray(tissue_probabilities(subject)[..., self._chosen])
        return smooth(maps, subject.brain_mask, subject.affine, self.fwhm) if self.fwhm else maps

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tissues)

    def graph(self, shape: tuple[int, ...], affine: NDArray[np.floating[Any]]) -> Graph:
        import tensorflow as tf

        priors = tf.Variable(template_priors(shape, affine).astype(np.float32), trainable=False)

        def maps(volume: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
            tissue = tissue_probabilities_in_graph(volume[..., 0], mask, priors)
            chosen = tf.gather(tissue, self._chosen, axis=-1)
            return smooth_in_graph(chosen, mask, affine, self.fwhm) if self.fwhm else chosen

        return Graph(maps, [priors])

    @property
    def _chosen(self) -> list[int]:
        return [TISSUES.index(tissue) for tissue in self.tissues]


def tissue_probabilities(subject: Subject) -> NDArray[np.float32]:
    """Grey matter, white matter and CSF at every voxel, from the first modality, T1.

    One Gaussian a tissue, fitted by EM with the template's tissue maps as priors (Ashburner & Friston 1997,
    2005, without bias field or warps: the volume lies in template space and is corrected). T1 alone, since
    the lesions that are looked for are bright on FLAIR, as no healthy tissue is.

    Args:
        subject: in template space.

    Returns:
        ``(x, y, z, 3)`` float32 in the order of ``TISSUES``, sums to 1 in the brain mask and is 0 outside.
    """
    mask = subject.brain_mask
    intensities = subject.image[..., 0][mask].astype(np.float64)
    priors = template_priors(mask.shape, subject.affine)[mask] + PRIOR_FLOOR  # (v, 3)
    priors /= priors.sum(1, keepdims=True)
    every = slice(None, None, max(1, len(intensities) // EM_VOXELS))
    sample, sample_priors = intensities[every, None], priors[every]
    posterior = sample_priors
    for _ in range(ITERATIONS):
        total = posterior.sum(0) + 1e-9
        means = (posterior * sample).sum(0) / total
        variances = (posterior * (sample - means) ** 2).sum(0) / total + SMALLEST_VARIANCE
        posterior = _posterior(sample, sample_priors, means, variances)
    result = np.zeros((*mask.shape, 3), np.float32)
    result[mask] = _posterior(intensities[:, None], priors, means, variances)
    return result


def _posterior(
    x: NDArray[np.float64],
    priors: NDArray[np.float64],
    means: NDArray[np.float64],
    variances: NDArray[np.float64],
) -> NDArray[np.float64]:
    """``(v, 3)`` of intensities ``(v, 1)``."""
    logs = np.log(priors / np.sqrt(variances)) - (x - means) ** 2 / (2 * variances)
    posterior: NDArray[np.float64] = np.exp(logs - logs.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    return posterior


# === In TensorFlow operations ===


def tissue_probabilities_in_graph(t1: tf.Tensor, mask: tf.Tensor, priors: tf.Tensor) -> tf.Tensor:
    """``tissue_probabilities``; ``priors`` are ``template_priors`` of the grid."""
    import tensorflow as tf

    x = tf.cast(tf.boolean_mask(t1, mask), tf.float64)[:, tf.newaxis]
    known = tf.cast(tf.boolean_mask(priors, mask), tf.float64) + PRIOR_FLOOR
    known /= tf.reduce_sum(known, 1, keepdims=True)
    count = tf.shape(x)[0]
    every = tf.range(0, count, tf.maximum(1, count // EM_VOXELS))
    sample, sample_priors = tf.gather(x, every), tf.gather(known, every)
    posterior = sample_priors
    for _ in range(ITERATIONS):
        total = tf.reduce_sum(posterior, 0) + 1e-9
        means = tf.reduce_sum(posterior * sample, 0) / total
        variances = tf.reduce_sum(posterior * tf.square(sample - means), 0) / total + SMALLEST_VARIANCE
        posterior = _posterior_in_graph(sample, sample_priors, means, variances)
    found = tf.cast(_posterior_in_graph(x, known, means, variances), tf.float32)
    return tf.scatter_nd(tf.where(mask), found, tf.shape(priors, tf.int64))


def _posterior_in_graph(x: tf.Tensor, priors: tf.Tensor, means: tf.Tensor, variances: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    logs = tf.math.log(priors / tf.sqrt(variances)) - tf.square(x - means) / (2 * variances)
    return tf.nn.softmax(logs, 1)
