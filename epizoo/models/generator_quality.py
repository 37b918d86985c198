"""Does a generator make healthy patches, and all kinds of them? Figures of two samples, logged each epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from epizoo.models import blocks, training

PATCHES = 1000  # in each sample; more than there are features, so that a covariance has full rank
FEATURES = 64
NEIGHBOURS = 5  # Naeem et al. 2020: two samples of one kind then have a coverage of 1 - 2^-5
BATCH = 250


class GeneratorQuality(keras.callbacks.Callback):
    """Compares patches that a model makes up with held-out ones after each epoch.

    Adds to the epoch's figures ``val_frechet`` (:func:`frechet_distance`), ``val_precision``, ``val_recall``
    (:func:`precision_recall`) and ``val_coverage`` (:func:`coverage`), in :func:`random_features` that are
    standardised by the held-out patches'. Where a generator collapses, recall and coverage fall to 0 and the
    distance rises. Codes are the same each epoch, so the figures are a function of the weights.

    Args:
        patches: ``(n, *patch_shape, m)``. A model that completes patches completes every second one, and is
            compared with the others.
    """

    def __init__(self, patches: ArrayLike):
        super().__init__()
        self.patches = np.asarray(patches, np.float32)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.shape = self.model.made_shape
        self.network = random_features(self.shape, self.patches.shape[-1])
        completes = self.shape != self.model.patch_shape
        self.given = self.patches[1::2] if completes else self.patches
        features = self._features(self.patches[::2] if completes else self.patches)
        self.mean, self.deviation = features.mean(0), np.maximum(features.std(0), 1e-6)
        self.real = (features - self.mean) / self.deviation

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        starts = range(0, len(self.given), BATCH)
        made = [self.model.imagine(self.given[i : i + BATCH], seed=i) for i in starts]
        features = (self._features(np.concatenate(made)) - self.mean) / self.deviation
        precision, recall = precision_recall(self.real, features)
        if logs is not None:
            logs.update(
                val_frechet=frechet_distance(self.real, features),
                val_precision=precision,
                val_recall=recall,
                val_coverage=coverage(self.real, features),
            )

    def _features(self, patches: NDArray[np.float32]) -> NDArray[np.float64]:
        patches = blocks.crop(patches, self.shape)
        starts = range(0, len(patches), BATCH)
        seen = [np.asarray(self.network(patches[i : i + BATCH], training=False)) for i in starts]
        return np.asarray(np.concatenate(seen), np.float64)


def random_features(patch_shape: Sequence[int], channels: int) -> keras.Model:
    """A convolutional network that never learns: patches ``(n, *patch_shape, m)`` to ``(n, 64)`` features.

    The usual features are those of Inception on ImageNet: 2-D, three colours, 299 pixels wide. Patches of a
    brain are none of these, and there random convolutions judge a generator more soundly (Naeem et al. 2020,
    arXiv 2002.09797). Weights are N(0, 2 / inputs) (He et al. 2015), the same in every run, so
    figures of two models on the same data can be compared.

    Args:
        patch_shape: odd sizes, rank 2 or 3.
        channels: modalities.
    """
    stages = blocks.gan_stages(patch_shape)
    with training.keras_settings():
        network = blocks.conv_encoder(
            *(patch_shape, channels, FEATURES, stages),
            activation="leaky_relu",
            linear=True,
            name="random_features",
        )
    rng = np.random.default_rng(0)
    network.set_weights(
        [
            rng.normal(size=w.shape) * math.sqrt(2 / math.prod(w.shape[:-1])) if w.ndim > 1 else 0 * w
            for w in network.get_weights()
        ]
    )
    return network


def frechet_distance(real: NDArray[np.floating], made: NDArray[np.floating]) -> float:
    """``||m_r - m_g||^2 + tr(S_r + S_g - 2 (S_r S_g)^1/2)``: squared distance of two normal distributions.

    Heusel et al. 2017, arXiv 1706.08500, equation 6. Of finite samples it is above 0 even where both are of
    one kind.

    Args:
        real, made: features ``(n, d)`` and ``(m, d)``.

    Returns:
        In the features' squared units; NaN where a feature is not finite.
    """
    if not np.isfinite(made).all():
        return math.nan
    real_covariance, made_covariance = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    # (S_r S_g)^1/2 has the trace of (S_r^1/2 S_g S_r^1/2)^1/2, which is symmetric.
    values, vectors = np.linalg.eigh(real_covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ made_covariance @ root), 0)).sum()
    means = np.sum((real.mean(0) - made.mean(0)) ** 2)
    return float(means + np.trace(real_covariance) + np.trace(made_covariance) - 2 * common)


def precision_recall(
    real: NDArray[np.floating], made: NDArray[np.floating], k: int = NEIGHBOURS
) -> tuple[float, float]:
    """How much of what is made could be real, and how much of what is real could be made.

    A patch counts where it is nearer to one of the other sample than that one's own k-th neighbour is:
    improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    Args:
        real, made: features ``(n, d)`` and ``(m, d)``, more than k of each.
        k: which neighbour gives the radius.
    """
    distances = cdist(real, made)
    precision = (distances <= _radii(real, k)[:, None]).any(0)
    recall = (distances <= _radii(made, k)).any(1)
    return float(precision.mean()), float(recall.mean())


def coverage(real: NDArray[np.floating], made: NDArray[np.floating], k: int = NEIGHBOURS) -> float:
    """The share of real patches that have a made one nearer than their k-th real neighbour.

    Naeem et al. 2020, arXiv 2002.09797: unlike recall, outliers among the made ones do not raise it.

    Args:
        real, made, k: see :func:`precision_recall`.
    """
    return float((cdist(real, made).min(1) <= _radii(real, k)).mean())


def _radii(features: NDArray[np.floating], k: int) -> NDArray[np.float64]:
    """Distance of each sample to its k-th neighbour, itself not counted."""
    return np.partition(cdist(features, features), k, axis=1)[:, k]
