"""Wasserstein autoencoder with maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, DETECTOR, NORM, PATCH, RATE, STAGES, Log, Space


@register_model("wae")
class WAE(PatchModel):
    """A deterministic autoencoder whose codes, as a cloud, match a standard normal prior.

    ``L = ||x - x̂||^2 + weight MMD^2(codes of a batch, N(0, I))``: unlike the VAE's, no single code is
    pulled to the origin.

    Tolstikhin et al. 2018, arXiv 1711.01558 (WAE-MMD, inverse multiquadrics).

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`PatchModel`.
        weight: of the discrepancy; 10 as in the paper's experiments.
        norm: ``batch`` or None.
    """

    paper = "Tolstikhin et al. 2018, arXiv 1711.01558"
    tracked = ("loss", "reconstruction", "mmd")
    generates = True
    search_space: ClassVar[Space] = (PATCH, CODE, *STAGES, NORM, Log("weight", 0.5, 100.0), RATE, *DETECTOR)

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        weight: float = 10.0,
        norm: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        # === Layers ===
        with self.building():
            sizes = self.patch_shape, self.channels, self.latent_dim, self.stages
            self.encoder = blocks.conv_encoder(*sizes, norm=norm, linear=True)
            self.decoder = blocks.conv_decoder(*sizes, norm=norm)
        # === Config ===
        self.weight = weight
        self.norm = norm

    # === Losses ===

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        x = batch["patch"]
        z = self.encoder(x, training=training)
        reconstruction = tf.reduce_mean(losses.squared_error(x, self.decoder(z, training=training)))
        prior = self.noise("prior", (tf.shape(x)[0], self.latent_dim), training)
        mmd = losses.mmd(self.gather(z), self.gather(prior))
        return {"loss": reconstruction + self.weight * mmd, "reconstruction": reconstruction, "mmd": mmd}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight, "norm": self.norm}
