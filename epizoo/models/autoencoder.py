"""Stacked convolutional autoencoder: what the siamese is without its pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, DETECTOR, NORM, PATCH, RATE, STAGES, Space


@register_model("autoencoder")
class Autoencoder(PatchModel):
    """The siamese's networks on single patches: ``L = ||x - x̂||^2``.

    The ablation of Alaverdyan et al. 2020 (Medical Image Analysis 60:101618), after Masci et al. 2011
    (ICANN).

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`PatchModel`.
        norm: ``batch`` or None.
    """

    paper = "Masci et al. 2011, ICANN; Alaverdyan et al. 2020, Med Image Anal 60:101618"
    search_space: ClassVar[Space] = (PATCH, CODE, *STAGES, NORM, RATE, *DETECTOR)

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        norm: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        # === Layers ===
        sizes = self.patch_shape, self.channels, self.latent_dim, self.stages
        with self.building():
            self.encoder = blocks.conv_encoder(*sizes, norm=norm)
            self.decoder = blocks.conv_decoder(*sizes, norm=norm)
        # === Config ===
        self.norm = norm

    # === Losses ===

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        x = batch["patch"]
        x_hat = self.decoder(self.encoder(x, training=training), training=training)
        return {"loss": tf.reduce_mean(losses.squared_error(x, x_hat))}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "norm": self.norm}
