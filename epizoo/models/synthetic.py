"""Self-supervision: healthy patches, told from the same ones with altered tissue in their middle."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register


@register
class Synthetic(PatchModel):
    """A classifier of alterations made in healthy patches, whose penultimate features are the code.

    Half of a batch stays as it is. In the other half a blob of soft, irregular border around the central
    voxel is replaced, at an opacity of .5 to 1, by one of

    - *foreign* tissue: that of another patch of the batch (FPI: Tan et al. 2020, arXiv 2011.04197), shifted
      to the mean of what it replaces in every second case, so that its borders do not give it away (NSA:
      Schlüter et al. 2022, arXiv 2109.15222);
    - *warped* tissue: magnified or shrunk about a point near the centre by 1.3 to 2, as thickening does;
    - *blurred* tissue: what a blurred junction looks like;
    - *shifted* intensities: brighter or darker, a modality apart, by .03 to .2.

    The loss is cross-entropy over {healthy, foreign, warped, blurred, shifted}: naming the kind keeps more
    in the features than telling altered from not. Only healthy scans are used; what real lesions look like is
    not assumed beyond these edits, so judge it on lesions that training never imitated.

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`PatchModel`.
        filters: of the convolutions.
    """

    paper = "Tan et al. 2020, arXiv 2011.04197; Schlüter et al. 2022, arXiv 2109.15222"
    tracked = ("loss", "accuracy")
    trains: ClassVar = {"optimizer": ("encoder", "head")}

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        filters: int = 32,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        # === Layers ===
        with self.building():
            self.encoder = blocks.conv_encoder(
                self.patch_shape,
                channels,
                latent_dim,
                self.stages or blocks.gan_stages(patch_shape, filters),
                activation="leaky_relu",
                linear=True,
            )
            latent = keras.Input((latent_dim,), name="latent")
            hidden = layers.LeakyReLU(0.2)(latent)
            logits = layers.Dense(1 + len(EDITS), dtype="float32", name="logits")(hidden)
            self.head = keras.Model(latent, logits, name="head")
        # === Config ===
        self.filters = filters

    # === Losses ===

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        x, kind = self.alter(batch["patch"], training)
        logits = self.head(self.encoder(x, training=training), training=training)
        hit = tf.equal(tf.argmax(logits, -1, output_type=tf.int32), kind)
        return {
            "loss": tf.reduce_mean(losses.cross_entropy(kind, logits)),
            "accuracy": tf.reduce_mean(tf.cast(hit, tf.float32)),
        }

    def alter(self, x: Any, training: bool = True) -> tuple[Any, Any]:
        """Alter about half of healthy patches ``(n, *patch_shape, m)``.

        Returns:
            The patches, and the kind of each ``(n,)``: 0 healthy, else 1 + its place in ``EDITS``.
        """
        n = tf.shape(x)[0]

        def draw(name: str, *shape: int) -> Any:
            return self.uniform(name, (n, *shape), training)

        ones = [1] * (len(self.patch_shape) + 1)
        made = tf.stack([edit(x, draw) for edit in EDITS], 1)  # (n, edits, *patch_shape, m)
        choice = tf.cast(draw("kind") * 2 * len(EDITS), tf.int32)  # healthy where no edit has this number
        kind = tf.where(choice < len(EDITS), choice + 1, 0)
        altered = tf.gather(made, tf.maximum(kind - 1, 0), axis=1, batch_dims=1)
        opacity = (0.5 + 0.5 * draw("opacity", *ones)) * blob(draw, self.patch_shape)
        opacity *= tf.reshape(tf.cast(kind > 0, tf.float32), (-1, *ones))
        return x + opacity * (altered - x), kind

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


# === Edits: patches (n, *shape, m) and a function that draws uniform values, to patches ===

Draw = Callable[..., Any]


def foreign(x: Any, draw: Draw) -> Any:
    """Another patch of the batch, in every second case at the mean of the one that it replaces."""
    n = tf.shape(x)[0]
    # The neighbour in the batch, so that a share of the batch on another device gives the same.
    i = tf.range(n)
    neighbour = tf.bitwise.bitwise_xor(i, 1)
    other = tf.gather(x, tf.where(neighbour < n, neighbour, tf.maximum(i - 1, 0)))
    axes = list(range(1, len(x.shape) - 1))
    shift = tf.reduce_mean(x, axes, keepdims=True) - tf.reduce_mean(other, axes, keepdims=True)
    fits = tf.cast(draw("fits", *[1] * (len(x.shape) - 1)) < 0.5, tf.float32)
    return tf.clip_by_value(other + fits * shift, 0.0, 1.0)


def warped(x: Any, draw: Draw) -> Any:
    """Magnified or shrunk by 1.3 to 2 about a point near the centre."""
    shape = x.shape[1:-1]
    rank = len(shape)
    zoom = 1.3 + 0.7 * draw("zoom", *[1] * (rank + 1))
    zoom = tf.where(draw("magnify", *[1] * (rank + 1)) < 0.5, zoom, 1 / zoom)
    middle = np.float32(np.array(shape) // 2)
    point = middle + (draw("point", *[1] * rank, rank) - 0.5) * np.float32(shape) / 4
    grid = np.stack(np.meshgrid(*(np.arange(k) for k in shape), indexing="ij"), -1).astype(np.float32)
    return interpolate(x, point + (grid - point) / zoom)


def blurred(x: Any, draw: Draw) -> Any:
    """Twice the mean of three neighbours along each axis: a Gaussian of about 1.2 voxels."""
    for axis in range(1, len(x.shape) - 1):
        for _ in range(2):
            edges = [(1, 1) if i == axis else (0, 0) for i in range(len(x.shape))]
            padded = tf.pad(x, edges, "SYMMETRIC")
            size = x.shape[axis]
            x = tf.add_n([tf.gather(padded, tf.range(k, k + size), axis=axis) for k in range(3)]) / 3
    return x


def shifted(x: Any, draw: Draw) -> Any:
    """Brighter or darker by .03 to .2, each modality by its own amount."""
    form = (*[1] * (len(x.shape) - 2), x.shape[-1])
    amount = 0.03 + 0.17 * draw("amount", *form)
    changed = tf.clip_by_value(x + amount * tf.sign(draw("sign", *form) - 0.5), 0.0, 1.0)
    return tf.where(x > 0, changed, x)  # background stays background


EDITS = (foreign, warped, blurred, shifted)


def blob(draw: Draw, shape: Sequence[int]) -> Any:
    """Soft, irregular blobs around the centre, ``(n, *shape, 1)`` in [0, 1]; 1 at the central voxel.

    The distance from the centre, in radii of .2 to .5 of the patch drawn along each axis, is made uneven by
    a random plane wave, and falls off over a third of the radius.
    """
    rank = len(shape)
    ones = [1] * rank
    grid = np.stack(np.meshgrid(*(np.arange(k) - k // 2 for k in shape), indexing="ij"), -1)
    radius = (0.2 + 0.3 * draw("radius", *ones, rank)) * np.array(shape, np.float32)
    distance = tf.norm(np.float32(grid) / radius, axis=-1, keepdims=True)
    wave = (draw("wave", *ones, rank) - 0.5) * 4 * np.pi / np.array(shape, np.float32)
    phase = tf.reduce_sum(np.float32(grid) * wave, -1, keepdims=True) + 2 * np.pi * draw("phase", *ones, 1)
    return tf.clip_by_value(3 * (1 - distance * (1 + 0.3 * tf.sin(phase))), 0.0, 1.0)


def interpolate(x: Any, at: Any) -> Any:
    """Values of ``x (n, *shape, m)`` at voxel coordinates ``(n, *shape, rank)``: linear, edges repeated."""
    shape = np.array(x.shape[1:-1])
    at = tf.clip_by_value(at, 0.0, np.float32(shape - 1))
    low = tf.floor(at)
    part = at - low
    result = tf.zeros_like(x)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        index = tf.minimum(tf.cast(low, tf.int32) + corner, (shape - 1).astype(np.int32))
        weight = tf.reduce_prod(tf.where(np.array(corner) == 1, part, 1 - part), -1)
        result += weight[..., tf.newaxis] * tf.gather_nd(x, index, batch_dims=1)
    return result
