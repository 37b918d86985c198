"""Regularised siamese autoencoder: the reference method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, DETECTOR, NORM, PATCH, RATE, STAGES, Log, Space


@register_model("siamese")
class Siamese(PatchModel):
    """One autoencoder sees two controls at the same voxel, and their codes are drawn together.

    ``L = sum_t ||x_t - x̂_t||^2 - alpha cos(z_1, z_2)`` over pairs of patches at one template voxel in two
    controls. All pairs are similar pairs; the reconstruction keeps the codes from collapsing to a point.

    Alaverdyan, Jung, Bouet, Lartizien 2020, Medical Image Analysis 60:101618. The default sizes are theirs:
    15 -> 13 -> 6 -> 4 -> 2, 2x2x16 = 64; decoder 2 -> 4 -> 6 -> 12 -> 14 -> 15.

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`PatchModel`.
        alpha: weight of the similarity; 0.005 as in Munoz-Ramirez et al. 2021.
        norm: ``batch`` or None.
    """

    sampling = "pair"
    paper = "Alaverdyan et al. 2020, Med Image Anal 60:101618"
    tracked = ("loss", "reconstruction", "similarity")
    search_space: ClassVar[Space] = (PATCH, CODE, *STAGES, NORM, Log("alpha", 1e-3, 3.0), RATE, *DETECTOR)

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        alpha: float = 0.005,
        norm: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        # === Config ===
        self.alpha = alpha
        self.norm = norm
        # === Layers ===
        with self.building():
            self.encoder, self.decoder = self.build_networks()

    def build_networks(self) -> tuple[keras.Model, keras.Model]:
        sizes = self.patch_shape, self.channels, self.latent_dim, self.stages
        return blocks.conv_encoder(*sizes, norm=self.norm), blocks.conv_decoder(*sizes, norm=self.norm)

    # === Losses ===

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        x = tf.concat([batch["patch"], batch["partner"]], 0)  # (2n, *patch_shape, m)
        z = self.encoder(x, training=training)  # (2n, d)
        z1, z2 = tf.split(z, 2)
        reconstruction = 2 * tf.reduce_mean(losses.squared_error(x, self.decoder(z, training=training)))
        similarity = tf.reduce_mean(losses.cosine_similarity(z1, z2))
        return {
            "loss": reconstruction - self.alpha * similarity,
            "reconstruction": reconstruction / 2,  # per patch, to compare with other models
            "similarity": similarity,
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "norm": self.norm}


@register_model("deep_siamese")
class DeepSiamese(Siamese):
    """The later variant: strided, four convolutions, GELU and batch normalisation, a code of 16.

    Kernels 5, 3, 3, 3; strides 1, 1, 3, 1; filters 3, 4, 12, 16: 15 -> 11 -> 9 -> 3 -> 1. Pinon et al. 2023
    (ISBI), Zotova et al. 2025 (arXiv 2505.07364).

    Args:
        patch_shape, channels, latent_dim, alpha, norm, **kwargs: see :class:`Siamese`.
    """

    paper = "Zotova et al. 2025, arXiv 2505.07364"
    search_space: ClassVar[Space] = (PATCH, CODE, NORM, Log("alpha", 1e-3, 3.0), RATE, *DETECTOR)

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 16,
        *,
        norm: str | None = "batch",
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, norm=norm, **kwargs)

    def build_networks(self) -> tuple[keras.Model, keras.Model]:
        stages = self.stages or [
            blocks.Stage(filters, kernel, stride)
            for filters, kernel, stride in zip((3, 4, 12, 16), (5, 3, 3, 3), (1, 1, 3, 1), strict=True)
        ]
        sizes = self.patch_shape, self.channels, self.latent_dim, stages
        return (
            blocks.conv_encoder(*sizes, activation="gelu", norm=self.norm),
            blocks.conv_decoder(*sizes, activation="gelu", norm=self.norm),
        )
