"""Variational autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import layers

from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, DETECTOR, NORM, PATCH, RATE, STAGES, Log, Space


@register_model("vae")
class VAE(PatchModel):
    """Each code is a distribution, and all are held to a standard normal prior.

    ``L = ||x - x̂||^2 / (2 sigma^2) + KL(N(m(x), s(x)^2) || N(0, I))``, ``x̂`` decoded from a draw of
    ``N(m, s^2)``; the encoder gives the mean ``m``. Training minimises ``2 sigma^2 L``, in the units of the
    other models: ``||x - x̂||^2 + 2 sigma^2 KL``.

    Kingma & Welling 2014, arXiv 1312.6114.

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`PatchModel`.
        sigma: standard deviation of intensities about their reconstruction. 0.05 is near the noise and
            texture of normalised MRI; with 1 the prior would win and every code collapse.
        norm: ``batch`` or None.
    """

    paper = "Kingma & Welling 2014, arXiv 1312.6114"
    tracked = ("loss", "reconstruction", "kl")
    trains: ClassVar = {"optimizer": ("posterior", "decoder")}
    generates = True
    search_space: ClassVar[Space] = (PATCH, CODE, *STAGES, NORM, Log("sigma", 0.01, 0.3), RATE, *DETECTOR)

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        sigma: float = 0.05,
        norm: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        # === Layers ===
        with self.building():
            patch = keras.Input((*self.patch_shape, channels), name="patch")
            stages = self.stages or blocks.default_stages(patch_shape, 2 * latent_dim)
            features = blocks.conv_stack(patch, stages, norm=norm)
            flat = layers.Flatten()(features)
            mean = layers.Dense(latent_dim, name="latent", dtype="float32")(flat)
            log_var = layers.Dense(latent_dim, name="log_var", dtype="float32")(flat)
            self.posterior = keras.Model(patch, {"latent": mean, "log_var": log_var}, name="posterior")
            self.encoder = keras.Model(patch, mean, name="encoder")
            self.decoder = blocks.conv_decoder(patch_shape, channels, latent_dim, self.stages, norm=norm)
        # === Config ===
        self.sigma = sigma
        self.norm = norm

    # === Losses ===

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        x = batch["patch"]
        code = self.posterior(x, training=training)
        mean, log_var = code["latent"], code["log_var"]
        noise = self.noise("posterior", (tf.shape(x)[0], self.latent_dim), training)
        x_hat = self.decoder(mean + tf.exp(0.5 * log_var) * noise, training=training)
        reconstruction = tf.reduce_mean(losses.squared_error(x, x_hat))
        kl = tf.reduce_mean(losses.kl_divergence(mean, log_var))
        return {
            "loss": reconstruction + 2 * self.sigma**2 * kl,
            "reconstruction": reconstruction,
            "kl": kl,
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sigma": self.sigma, "norm": self.norm}
