"""Context GAN: the code is what a place holds and its surround does not foretell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import ArrayLike, NDArray

from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, CYCLE, DETECTOR, R1, STAGES, TWO_RATES, Choice, Space
from tfds_epilepsy.errors import InputError

POSITION_KNOWN = 0.75  # share of the training patches whose position G and D are told


@register_model("context_gan")
class ContextGAN(PatchModel):
    """A BiGAN of the centre of a patch, given its surround and its place in the brain.

    One patch is three views of one voxel: the *centre* ``x`` at full resolution; the *surround* ``c``, wider
    crops pooled to the centre's size (a scale of 3: three times as wide, three times as coarse), with the
    centre cut out; the *position* ``p`` in the template. The generator makes the centre from its context and
    a code, the encoder finds the code of a centre in its context, the discriminator judges all of it:

        D tells (x, c, p, E(x, c)) from (G(z, c, p), c, p, z),   z ~ N(0, I)

        L_D   = softplus(-D(x, c, p, E(x, c))) + softplus(D(G(z, c, p), c, p, z)) + r1 / 2 ||grad_x D||^2
        L_G,E = the same with the labels exchanged + cycle mean |x - G(E(x, c), c, p)|

    Where D cannot tell them apart, ``z | c, p ~ N(0, I)`` on healthy tissue: the code does not depend on the
    context, so it holds what the context does not foretell, and an abnormal code is tissue that does not
    belong *there*. The encoder reads patches alone, so that it has a dense form; positions are told to G and
    D in training, and left out one time in four, so that G also works without.

    After BiGAN (Donahue et al. 2017, arXiv 1605.09782), context encoders (Pathak et al. 2016, arXiv
    1604.07379), scales as in DeepMedic (Kamnitsas et al. 2017, Med Image Anal 36:61) and conditioning on
    coordinates as in COCO-GAN (Lin et al. 2019, arXiv 1904.00284).

    The default patch, 45x45, has a centre of 15x15. For an ablation, ``scales=()`` leaves the surround out
    (the whole patch is its centre then: give 15x15), ``position=False`` the position, ``adversarial=False``
    the GAN.

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`PatchModel`. The centre is the patch over
            the largest scale, rounded down to odd and at least 3.
        scales: how much wider and coarser than the centre each surround is. (3, 5) with 75x75 patches is
            1, 3 and 5 voxels, DeepMedic's.
        position: condition G and D on ``position``, in [-1, 1], of the batch.
        adversarial: train with D; without it the model is a conditional autoencoder.
        cycle, r1, filters: see :class:`BiGAN`.

    Raises:
        InputError: a scale below 2; a patch that leaves no surround.
    """

    paper = "Context GAN: BiGAN (Donahue et al. 2017, arXiv 1605.09782) given surround and position"
    tracked = ("d_loss", "g_loss", "r1", "cycle", "reconstruction")
    monitor = "val_reconstruction"
    trains: ClassVar = {
        "g_optimizer": ("live_generator", "live_encoder"),
        "d_optimizer": ("discriminator",),
    }
    averages: ClassVar = {"encoder": "live_encoder", "generator": "live_generator"}
    generates = True
    search_space: ClassVar[Space] = (
        # The patch is the centre times the largest scale.
        *(Choice("centre", (5, 7, 9, 15)), Choice("scales", ("3", "5", "3 5")), CODE, *STAGES),
        *(Choice("position", ("no", "yes")), CYCLE, R1, *TWO_RATES, *DETECTOR),
    )

    def __init__(
        self,
        patch_shape: Sequence[int] = (45, 45),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        scales: Sequence[int] = (3,),
        position: bool = True,
        adversarial: bool = True,
        cycle: float = 10.0,
        r1: float = 5.0,
        filters: int = 32,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        # === Config ===
        self.scales = tuple(int(s) for s in scales)
        self.position = position
        self.adversarial = adversarial
        self.cycle = cycle
        self.r1 = r1
        self.filters = filters
        self.centre_shape = tuple(_centre(n, self.scales) for n in self.patch_shape)
        self._check_scales()
        self._holes = [_hole(self.patch_shape, self.centre_shape, scale) for scale in self.scales]
        # === Layers ===
        with self.building():
            self.live_encoder = self._encoder()
            self.live_generator = self._generator()
            self.discriminator = self._discriminator()

    def default_optimizers(self) -> dict[str, keras.Optimizer]:
        return {
            "g_optimizer": keras.optimizers.Adam(1e-3, beta_1=0.0, beta_2=0.9),
            "d_optimizer": keras.optimizers.Adam(1e-3, beta_1=0.0, beta_2=0.9),
        }

    # === What users call ===

    @property
    def reconstructs(self) -> bool:
        return True

    @property
    def feeds(self) -> dict[str, tuple[int, ...]]:
        return {**super().feeds, **({"position": (3,)} if self.position else {})}

    @property
    def made_shape(self) -> tuple[int, ...]:
        return self.centre_shape

    def generate(self, n: int, seed: int = 0) -> NDArray[np.float32]:
        """An error: this model makes a centre that suits a surround, see :meth:`imagine`."""
        raise InputError(f"{self.name} completes patches: give it some, imagine(patches).")

    def imagine(self, patches: ArrayLike, seed: int = 0) -> NDArray[np.float32]:
        """Patches with a centre drawn from what their surround leaves open: ``z ~ N(0, I)``."""
        patches = np.asarray(patches, np.float32)
        z = tf.random.stateless_normal((len(patches), self.latent_dim), (seed, 0))
        return np.asarray(self._complete(tf.constant(patches), z), np.float32)

    # === Losses ===

    def train_step(self, data: Any) -> dict[str, Any]:
        batch = self.check_batch(data)
        n = tf.shape(batch["patch"])[0]
        x, context = self._views(batch["patch"])
        z = self.noise("prior", (n, self.latent_dim))
        if self.position:
            told = tf.cast(self.uniform("position", (n, 1)) < POSITION_KNOWN, tf.float32)
            context.append(_place(batch["position"], told))

        figures: dict[str, Any] = {}
        if self.adversarial:
            code = self.live_encoder(batch["patch"], training=True)
            made = self.live_generator([z, *context], training=True)
            with tf.GradientTape() as tape:
                real = self.discriminator([x, code, *context], training=True)
                fake = self.discriminator([made, z, *context], training=True)
                r1 = tf.reduce_mean(
                    losses.r1_penalty(lambda x: self.discriminator([x, code, *context], training=True), x)
                )
                d_loss = tf.reduce_mean(losses.non_saturating_discriminator(real, fake))
                d_total = d_loss + self.r1 / 2 * r1
            self.minimise(d_total, tape, "d_optimizer")
            figures.update(d_loss=d_loss, r1=r1)

        with tf.GradientTape() as tape:
            code = self.live_encoder(batch["patch"], training=True)
            remade = self.live_generator([code, *context], training=True)
            cycle = tf.reduce_mean(losses.mean_absolute_error(x, remade))
            g_total = self.cycle * cycle
            figures.update(cycle=cycle)
            if self.adversarial:
                made = self.live_generator([z, *context], training=True)
                real = self.discriminator([x, code, *context], training=True)
                fake = self.discriminator([made, z, *context], training=True)
                g_loss = tf.reduce_mean(losses.non_saturating_discriminator(fake, real))
                g_total += g_loss
                figures.update(g_loss=g_loss)
        self.minimise(g_total, tape, "g_optimizer")
        return self.track(batch, **figures)

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        """On held-out controls: the squared error per centre of the averaged networks, without position."""
        x = batch["patch"]
        return {"reconstruction": tf.reduce_mean(losses.squared_error(x, self.reconstruction(x)))}

    def reconstruction(self, patches: Any) -> Any:
        return self._complete(patches, self.encoder(patches, training=False))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "scales": list(self.scales),
            "position": self.position,
            "adversarial": self.adversarial,
            "cycle": self.cycle,
            "r1": self.r1,
            "filters": self.filters,
        }

    @classmethod
    def config_of_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        config = super().config_of_values(values)
        if "scales" in config:
            config["scales"] = [int(scale) for scale in config["scales"].split()]
            config["patch_shape"] = [config.pop("centre") * max(config["scales"])] * 2
        if "position" in config:
            config["position"] = config["position"] == "yes"
        return config

    # === Networks ===

    def _encoder(self) -> keras.Model:
        """``patch`` to ``latent``: the centre and the whole surrounds, each by its own stack."""
        patch = keras.Input((*self.patch_shape, self.channels), name="patch")
        seen = [self._seen(view) for view in look(patch, self.centre_shape, self.scales)]
        hidden = blocks.dense_stack(_join(seen), [256])
        return keras.Model(patch, blocks.to_latent(hidden, self.latent_dim, linear=True), name="encoder")

    def _generator(self) -> keras.Model:
        """``[latent, *context]`` to the centre."""
        latent = keras.Input((self.latent_dim,), name="latent")
        context = self._context_inputs()
        told = _join([latent, *(self._seen(view) for view in context)])
        hidden = blocks.dense_stack(told, [256], activation="relu")
        decoder = blocks.conv_decoder(
            self.centre_shape, self.channels, 256, self._stages(self.centre_shape), norm="group"
        )
        return keras.Model([latent, *context], decoder(hidden), name="generator")

    def _discriminator(self) -> keras.Model:
        """``[centre, latent, *context]`` to a logit."""
        centre = keras.Input((*self.centre_shape, self.channels), name="centre")
        latent = keras.Input((self.latent_dim,), name="latent")
        context = self._context_inputs()
        seen = [self._seen(view) for view in (centre, *context)]
        joint = blocks.dense_stack(_join([*seen, blocks.dense_stack(latent, [128])]), [128, 128])
        logit = layers.Dense(1, dtype="float32")(joint)
        return keras.Model([centre, latent, *context], logit, name="discriminator")

    def _context_inputs(self) -> list[Any]:
        """Inputs for the surrounds and, where the model takes it, the position and whether it is known."""
        patch = keras.Input((*self.patch_shape, self.channels))
        surrounds = look(patch, self.centre_shape, self.scales)[1:]
        inputs = [keras.Input(view.shape[1:], name=f"surround_{i}") for i, view in enumerate(surrounds)]
        return [*inputs, keras.Input((4,), name="position")] if self.position else inputs

    def _seen(self, view: Any) -> Any:
        """A view as features ``(n, f)``: a conv stack on a patch, a Dense on a position."""
        if len(view.shape) == 2:
            return blocks.dense_stack(view, [64])
        return layers.Flatten()(
            blocks.conv_stack(view, self._stages(view.shape[1:-1]), activation="leaky_relu")
        )

    def _stages(self, shape: Sequence[int]) -> Sequence[blocks.Stage]:
        return self.stages or blocks.gan_stages(shape, self.filters)

    # === Helpers ===

    def _views(self, patches: Any) -> tuple[Any, list[Any]]:
        """The centre, and the surrounds with the centre cut out."""
        centre, *surrounds = look(patches, self.centre_shape, self.scales)
        return centre, [view * hole for view, hole in zip(surrounds, self._holes, strict=True)]

    def _complete(self, patches: Any, z: Any) -> Any:
        """The patches with centres that the averaged generator makes from codes; the position is unknown."""
        centre, context = self._views(patches)
        if self.position:
            context.append(tf.zeros((tf.shape(z)[0], 4)))
        made = tf.cast(self.generator([z, *context], training=False), tf.float32)
        before = [(n - k) // 2 for n, k in zip(self.patch_shape, self.centre_shape, strict=True)]
        return patches + tf.pad(made - centre, [(0, 0), *((b, b) for b in before), (0, 0)])

    def _check_scales(self) -> None:
        problems = [
            f"scale {s}: at least 2 is needed, to be wider than the centre." for s in self.scales if s < 2
        ]
        if self.scales and max(self.patch_shape) < 5:
            problems.append(
                f"patch_shape {self.patch_shape} leaves no surround of a centre of 3 voxels: give a larger "
                "one, or scales=()."
            )
        if problems:
            raise InputError(problems)


def look(patch: Any, centre_shape: Sequence[int], scales: Sequence[int]) -> list[Any]:
    """What is seen of a patch ``(n, *shape, m)``: its centre, and for each scale a wider crop, pooled.

    A crop that would reach past the patch ends at its border.
    """
    shape = patch.shape[1:-1]
    views = [blocks.crop(patch, centre_shape)]
    for scale in scales:
        wide = [min(n, k * scale) for n, k in zip(shape, centre_shape, strict=True)]
        pool = blocks.layer("AveragePooling", len(shape))
        views.append(pool([min(scale, n) for n in wide], dtype="float32")(blocks.crop(patch, wide)))
    return views


def _hole(patch_shape: Sequence[int], centre_shape: Sequence[int], scale: int) -> NDArray[np.float32]:
    """``(*shape, 1)``: 0 where a pooled voxel of the surround has a part in the centre, else 1."""
    marked = np.zeros((1, *patch_shape, 1), np.float32)
    blocks.crop(marked, centre_shape)[:] = 1
    pooled = np.asarray(look(marked, centre_shape, [scale])[1])[0]
    return np.asarray(pooled == 0, np.float32)


def _centre(size: int, scales: Sequence[int]) -> int:
    """The centre's size along one axis of a patch: the largest odd one that fits the scales, at least 3."""
    largest = size // max(scales, default=1)
    return max(largest - (largest + 1) % 2, 3)


def _place(position: Any, known: Any) -> Any:
    """Position and whether it is known ``(n, 4)``; all zero where it is not."""
    return tf.concat([position * known, known], -1)


def _join(features: Sequence[Any]) -> Any:
    return layers.Concatenate()(features) if len(features) > 1 else features[0]
