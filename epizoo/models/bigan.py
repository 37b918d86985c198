"""BiGAN with a cycle term: a GAN that inverts itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import layers

from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, CYCLE, DETECTOR, PATCH, R1, STAGES, TWO_RATES, Space


@register_model("bigan")
class BiGAN(PatchModel):
    """A generator, its inverse, and a discriminator that judges a patch together with its code.

    ``D`` tells ``(x, E(x))`` from ``(G(z), z)``, ``z ~ N(0, I)``; where it cannot, ``E`` inverts ``G``
    (Donahue et al. 2017, arXiv 1605.09782; Dumoulin et al. 2017, arXiv 1606.00704). In practice the inversion
    is loose; a cycle term makes it tight (ALICE: Li et al. 2017, arXiv 1709.01215; ALAD: Zenati et al. 2018,
    arXiv 1812.02288):

        L_D   = softplus(-D(x, E(x))) + softplus(D(G(z), z)) + r1 / 2 ||grad_x D(x, E(x))||^2
        L_G,E = softplus(D(x, E(x))) + softplus(-D(G(z), z)) + cycle mean |x - G(E(x))|

    Non-saturating losses with R1 (Mescheder et al. 2018, arXiv 1801.04406); averages of E and G encode and
    reconstruct.

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`PatchModel`.
        cycle: weight of the cycle term; 10 as in Zhu et al. 2017, arXiv 1703.10593.
        r1: weight of the penalty on the discriminator's slope; 5 keeps both losses near their balance on
            normalised T1-weighted scans.
        filters: number of filters of the first convolutions; there are twice as many after the first pool.
    """

    paper = "Donahue et al. 2017, arXiv 1605.09782; Zenati et al. 2018, arXiv 1812.02288"
    tracked = ("d_loss", "g_loss", "r1", "cycle", "reconstruction")
    monitor = "val_reconstruction"
    trains: ClassVar = {"d_optimizer": ("discriminator",), "g_optimizer": ("live_generator", "live_encoder")}
    averages: ClassVar = {"encoder": "live_encoder", "decoder": "live_generator"}
    generates = True
    search_space: ClassVar[Space] = (PATCH, CODE, *STAGES, CYCLE, R1, *TWO_RATES, *DETECTOR)

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        cycle: float = 10.0,
        r1: float = 5.0,
        filters: int = 32,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        # === Layers ===
        sizes = self.patch_shape, self.channels, self.latent_dim
        stages = self.stages or blocks.gan_stages(patch_shape, filters)
        with self.building():
            self.live_encoder = blocks.conv_encoder(*sizes, stages, activation="leaky_relu", linear=True)
            self.live_generator = blocks.conv_decoder(*sizes, stages, norm="group")
            self.discriminator = joint_discriminator(*sizes, stages)
        # === Config ===
        self.cycle = cycle
        self.r1 = r1
        self.filters = filters

    def default_optimizers(self) -> dict[str, keras.Optimizer]:
        return {
            "d_optimizer": keras.optimizers.Adam(1e-3, beta_1=0.0, beta_2=0.9),
            "g_optimizer": keras.optimizers.Adam(1e-3, beta_1=0.0, beta_2=0.9),
        }

    # === Losses ===

    def train_step(self, data: Any) -> dict[str, Any]:
        batch = self.check_batch(data)
        x = batch["patch"]
        z = self.noise("prior", (tf.shape(x)[0], self.latent_dim))
        code, made = self.live_encoder(x, training=True), self.live_generator(z, training=True)
        with tf.GradientTape() as tape:
            real = self.discriminator([x, code], training=True)
            fake = self.discriminator([made, z], training=True)
            r1 = tf.reduce_mean(
                losses.r1_penalty(lambda patch: self.discriminator([patch, code], training=True), x)
            )
            d_loss = tf.reduce_mean(losses.non_saturating_discriminator(real, fake))
            d_total = d_loss + self.r1 / 2 * r1
        self.minimise(d_total, tape, "d_optimizer")

        with tf.GradientTape() as tape:
            code = self.live_encoder(x, training=True)
            real = self.discriminator([x, code], training=True)
            fake = self.discriminator([self.live_generator(z, training=True), z], training=True)
            # The discriminator's loss with the labels exchanged.
            g_loss = tf.reduce_mean(losses.non_saturating_discriminator(fake, real))
            cycle = tf.reduce_mean(losses.mean_absolute_error(x, self.live_generator(code, training=True)))
            g_total = g_loss + self.cycle * cycle
        self.minimise(g_total, tape, "g_optimizer")
        return self.track(batch, d_loss=d_loss, g_loss=g_loss, r1=r1, cycle=cycle)

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        """On held-out controls: the squared error per patch of the averaged networks."""
        x = batch["patch"]
        return {"reconstruction": tf.reduce_mean(losses.squared_error(x, self.reconstruction(x)))}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "cycle": self.cycle, "r1": self.r1, "filters": self.filters}


def joint_discriminator(
    patch_shape: Sequence[int], channels: int, latent_dim: int, stages: Sequence[blocks.Stage]
) -> keras.Model:
    """``[patch, latent]`` to a logit ``(n, 1)``: a conv stack on the patch, joined by the code."""
    patch = keras.Input((*patch_shape, channels), name="patch")
    latent = keras.Input((latent_dim,), name="latent")
    seen = layers.Flatten()(blocks.conv_stack(patch, stages, activation="leaky_relu"))
    told = blocks.dense_stack(latent, [128])
    joint = blocks.dense_stack(layers.Concatenate()([seen, told]), [128, 128])
    return keras.Model([patch, latent], layers.Dense(1, dtype="float32")(joint), name="discriminator")
