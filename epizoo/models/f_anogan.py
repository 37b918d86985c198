"""f-AnoGAN: a Wasserstein GAN, and an encoder that learns to invert it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import layers

from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, DETECTOR, PATCH, STAGES, Choice, Log, Space


@register_model("f_anogan")
class FAnoGAN(PatchModel):
    """A WGAN-GP of healthy patches and an ``izi_f`` encoder, trained together.

    Schlegl et al. 2019, Med Image Anal 54:30, equations 2 to 4; ``f`` are the critic's last features:

        L_C = C(G(z)) - C(x) + 10 (||grad C(x')|| - 1)^2,   z ~ N(0, I), x' between x and G(z)
        L_G = -C(G(z))
        L_E = 1/n ||x - G(E(x))||^2 + kappa / n_f ||f(x) - f(G(E(x)))||^2

    In the paper E is trained when G is done. Here each step trains the critic ``critic_steps`` times, then G,
    then E against the averaged G, which hardly moves: one fit does it all, and nobody has to choose when G is
    done.

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`PatchModel`; the paper's code has 128 values.
        kappa: weight of the critic's features in the encoder's loss; 1 in the paper.
        critic_steps: how many steps the critic takes, each with a new z, for one step of G; 5 in the paper.
        filters: number of filters of the first convolutions; there are twice as many after the first pool.
    """

    paper = "Schlegl et al. 2019, Med Image Anal 54:30"
    tracked = ("wasserstein", "g_loss", "penalty", "e_loss", "reconstruction")
    monitor = "val_reconstruction"
    trains: ClassVar = {
        "g_optimizer": ("live_generator",),
        "c_optimizer": ("critic",),
        "e_optimizer": ("live_encoder",),
    }
    averages: ClassVar = {"encoder": "live_encoder", "decoder": "live_generator"}
    generates = True
    search_space: ClassVar[Space] = (
        *(PATCH, CODE, *STAGES, Log("kappa", 0.1, 10.0), Choice("critic_steps", (1, 2, 5))),
        *(Log("g_learning_rate", 1e-4, 4e-3), Log("c_learning_rate", 1e-4, 4e-3)),
        *(Log("e_learning_rate", 1e-4, 4e-3), *DETECTOR),
    )

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        kappa: float = 1.0,
        critic_steps: int = 5,
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
            patch = keras.Input((*self.patch_shape, channels), name="patch")
            features = layers.Flatten()(blocks.conv_stack(patch, stages, activation="leaky_relu"))
            score = layers.Dense(1, dtype="float32", name="score")(features)
            self.critic = keras.Model(patch, [score, features], name="critic")
        # === Config ===
        self.kappa = kappa
        self.critic_steps = critic_steps
        self.filters = filters

    def default_optimizers(self) -> dict[str, keras.Optimizer]:
        return {
            "g_optimizer": keras.optimizers.Adam(5e-4, beta_1=0.0, beta_2=0.9),
            "c_optimizer": keras.optimizers.Adam(5e-4, beta_1=0.0, beta_2=0.9),
            # The paper's RMSProp; its 5e-5 is for an encoder that has the GAN's whole training behind it.
            "e_optimizer": keras.optimizers.RMSprop(5e-4),
        }

    # === Losses ===

    def train_step(self, data: Any) -> dict[str, Any]:
        batch = self.check_batch(data)
        x = batch["patch"]
        n = tf.shape(x)[0]
        z = [self.noise(f"prior {i}", (n, self.latent_dim)) for i in range(self.critic_steps + 1)]
        mixes = [self.uniform(f"mix {i}", (n,)) for i in range(self.critic_steps)]

        for i, mix in enumerate(mixes):
            made = self.live_generator(z[i], training=True)
            with tf.GradientTape() as tape:
                wasserstein = tf.reduce_mean(losses.wasserstein_critic(self.score(x), self.score(made)))
                penalty = tf.reduce_mean(losses.gradient_penalty(self.score, x, made, mix))
                c_total = wasserstein + 10.0 * penalty
            self.minimise(c_total, tape, "c_optimizer")

        with tf.GradientTape() as tape:
            made = self.live_generator(z[-1], training=True)
            g_loss = tf.reduce_mean(losses.hinge_generator(self.score(made)))
        self.minimise(g_loss, tape, "g_optimizer")

        with tf.GradientTape() as tape:
            remade = self.decoder(self.live_encoder(x, training=True), training=False)
            features, features_hat = (self.critic(p, training=False)[1] for p in (x, remade))
            e_loss = tf.reduce_mean(
                losses.mean_squared_error(x, remade)
                + self.kappa * losses.mean_squared_error(features, features_hat)
            )
        self.minimise(e_loss, tape, "e_optimizer")
        return self.track(batch, wasserstein=-wasserstein, g_loss=g_loss, penalty=penalty, e_loss=e_loss)

    def score(self, patches: Any) -> Any:
        """What the critic thinks of patches, ``(n, 1)``; higher is more real."""
        return self.critic(patches, training=True)[0]

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        """On held-out controls: the squared error per patch of the averaged networks."""
        x = batch["patch"]
        return {"reconstruction": tf.reduce_mean(losses.squared_error(x, self.reconstruction(x)))}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kappa": self.kappa,
            "critic_steps": self.critic_steps,
            "filters": self.filters,
        }
