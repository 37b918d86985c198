"""DCGAN: what a discriminator learnt to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from epizoo.models import blocks, losses, training
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, DETECTOR, PATCH, R1, STAGES, TWO_RATES, Space

MMD_SAMPLES = 64  # patches of a batch that are compared, each with each


@register_model("dcgan")
class DCGAN(PatchModel):
    """A convolutional GAN whose discriminator's features are the code.

    Radford et al. 2016, arXiv 1511.06434: the features of every stage, max-pooled to a coarse grid and
    flattened, describe an image. Here a fixed random projection with orthonormal columns takes them to
    ``latent_dim``, which keeps distances (Johnson & Lindenstrauss 1984) and is part of the encoder. Training
    is brought up to date: no batch normalisation in D, R1 (Mescheder et al. 2018, arXiv 1801.04406), averages
    of D's features and of G:

        L_D = softplus(-D(x)) + softplus(D(G(z))) + r1 / 2 ||grad D(x)||^2,   z ~ N(0, I)
        L_G = softplus(-D(G(z)))

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`PatchModel`; z has ``latent_dim`` values.
        r1: weight of the penalty on the discriminator's slope; 0 leaves it out.
        filters: number of filters of the first convolutions; there are twice as many after the first pool.
    """

    paper = "Radford et al. 2016, arXiv 1511.06434"
    tracked: ClassVar[tuple[str, ...]] = ("d_loss", "g_loss", "r1", "mmd")
    monitor = "val_mmd"
    trains: ClassVar = {"d_optimizer": ("live_features", "classifier"), "g_optimizer": ("live_generator",)}
    averages: ClassVar = {"features": "live_features", "generator": "live_generator"}
    generates = True
    search_space: ClassVar[Space] = (PATCH, CODE, *STAGES, R1, *TWO_RATES, *DETECTOR)

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        r1: float = 0.5,
        filters: int = 32,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        # === Config ===
        self.r1 = r1
        self.filters = filters
        # === Layers ===
        with self.building():
            self.live_features, self.classifier, self.live_generator = self.build_networks()
            projection = layers.Dense(
                latent_dim,
                use_bias=False,
                kernel_initializer="orthogonal",
                trainable=False,
                name="latent",
                dtype="float32",
            )
        with training.keras_settings():
            self.encoder = keras.Model(self.features.input, projection(self.features.output), name="encoder")

    def default_optimizers(self) -> dict[str, keras.Optimizer]:
        return {
            "d_optimizer": keras.optimizers.Adam(1e-3, beta_1=0.0, beta_2=0.9),
            "g_optimizer": keras.optimizers.Adam(1e-3, beta_1=0.0, beta_2=0.9),
        }

    def generate(self, n: int, seed: int = 0) -> NDArray[np.float32]:
        z = tf.random.stateless_normal((n, self.latent_dim), (seed, 0))
        return np.asarray(self.generator(z, training=False), np.float32)

    # === Losses ===

    def train_step(self, data: Any) -> dict[str, Any]:
        batch = self.check_batch(data)
        x = batch["patch"]
        z = self.noise("prior", (tf.shape(x)[0], self.latent_dim))
        made = self.live_generator(z, training=True)
        with tf.GradientTape() as tape:
            d_loss = tf.reduce_mean(
                losses.non_saturating_discriminator(self.discriminate(x), self.discriminate(made))
            )
            figures, d_total = {"d_loss": d_loss}, d_loss
            if self.r1:
                figures["r1"] = tf.reduce_mean(losses.r1_penalty(self.discriminate, x))
                d_total += self.r1 / 2 * figures["r1"]
        self.minimise(d_total, tape, "d_optimizer")

        with tf.GradientTape() as tape:
            fake = self.discriminate(self.live_generator(z, training=True))
            g_loss = tf.reduce_mean(losses.non_saturating_generator(fake))
        self.minimise(g_loss, tape, "g_optimizer")
        return self.track(batch, **figures, g_loss=g_loss)

    def discriminate(self, patches: Any) -> Any:
        """Logits ``(n, 1)`` of the trained discriminator."""
        return self.classifier(self.live_features(patches, training=True), training=True)

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        """How far the patches of the averaged generator are from held-out controls, in intensities."""
        x = batch["patch"]
        z = self.noise("prior", (tf.shape(x)[0], self.latent_dim), training)
        real, made = (
            # The kernel is made for values of unit variance; 0.25 is about the spread of intensities.
            tf.reshape(self.gather(patches), (-1, math.prod(x.shape[1:])))[:MMD_SAMPLES] / 0.25
            for patches in (x, self.generator(z, training=False))
        )
        return {"mmd": losses.mmd(real, made)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "r1": self.r1, "filters": self.filters}

    # === Networks ===

    def build_networks(self) -> tuple[keras.Model, keras.Model, keras.Model]:
        """The discriminator's features, its logit of them, and the generator."""
        return self._networks(self.stages or blocks.gan_stages(self.patch_shape, self.filters), None, "group")

    def _networks(
        self, stages: Sequence[blocks.Stage], discriminator_norm: str | None, generator_norm: str | None
    ) -> tuple[keras.Model, keras.Model, keras.Model]:
        features = self._features(stages, discriminator_norm)
        width = features.output_shape[-1]
        classifier = keras.Sequential(
            [keras.Input((width,)), layers.Dense(1, dtype="float32")], name="classifier"
        )
        generator = blocks.conv_decoder(
            *(self.patch_shape, self.channels, self.latent_dim, stages), norm=generator_norm, name="generator"
        )
        return features, classifier, generator

    def _features(self, stages: Sequence[blocks.Stage], norm: str | None) -> keras.Model:
        """``patch`` to the features of every stage, each pooled to a grid of at most 4 a side."""
        patch = keras.Input((*self.patch_shape, self.channels), name="patch")
        pool = blocks.layer("MaxPooling", len(self.patch_shape))
        x, features = patch, []
        for i, stage in enumerate(stages):
            # Statistics of the input layer would hide from D how bright patches are (Radford et al. 2016).
            x = blocks.conv_stack(x, [stage], activation="leaky_relu", norm=norm if i else None)
            features.append(layers.Flatten()(pool([math.ceil(n / 4) for n in x.shape[1:-1]])(x)))
        return keras.Model(patch, layers.Concatenate()(features), name="features")


@register_model("original_dcgan")
class OriginalDCGAN(DCGAN):
    """The recipe of Radford et al. 2016, arXiv 1511.06434, section 3.

    Strided convolutions, twice as wide at each stride, in place of pools; batch normalisation in D and G but
    for D's first layer and G's first and last; rectifiers in G, leaky ones of slope 0.2 in D; weights from
    N(0, 0.02^2); Adam at 2e-4 with beta_1 = 0.5; cross-entropy, with neither R1 nor averages:

        L_D = -log s(D(x)) - log(1 - s(D(G(z)))),   L_G = -log s(D(G(z))),   s the sigmoid

    Unlike the paper's, kernels are 3 wide (5 there, on images of 64) with valid padding, z is normal, and
    intensities stay in [0, 1], so that G ends in a sigmoid, which is what tanh is on [-1, 1].

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`DCGAN`.
        filters: number of filters of the first convolution.
    """

    tracked: ClassVar[tuple[str, ...]] = ("d_loss", "g_loss", "mmd")
    search_space: ClassVar[Space] = (PATCH, CODE, *STAGES, *TWO_RATES, *DETECTOR)
    average_decay = 0.0  # the averages are the weights themselves

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        filters: int = 32,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, r1=0.0, filters=filters, **kwargs)

    def default_optimizers(self) -> dict[str, keras.Optimizer]:
        return {name: keras.optimizers.Adam(2e-4, beta_1=0.5) for name in self.trains}

    def get_config(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_config().items() if name != "r1"}

    def build_networks(self) -> tuple[keras.Model, keras.Model, keras.Model]:
        stages = self.stages or strided_stages(self.patch_shape, self.filters)
        networks = self._networks(stages, "batch", "batch")
        for weight in (w for network in networks for w in network.trainable_variables):
            if weight.name == "kernel":
                weight.assign(keras.initializers.RandomNormal(stddev=0.02)(weight.shape))
        return networks


def strided_stages(patch_shape: Sequence[int], filters: int) -> list[blocks.Stage]:
    """Strides of 2 until every axis holds one or two voxels, each stage twice as wide: 15 -> 7 -> 3 -> 1."""
    stages: list[blocks.Stage] = []
    shape = tuple(patch_shape)
    while max(shape) > 2:
        stages.append(blocks.Stage(filters * 2 ** len(stages), stride=2))
        shape = stages[-1].fit_to(shape).output
    return stages
