"""Self-supervision: a network that finds where healthy tissue was altered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, FWHM, NU, RATE, Choice, Space
from tfds_epilepsy.errors import InputError

SCALE = 3  # the context is seen 3 times coarser
QUARTILE = 0.3186  # a quarter of standard normal values are nearer to 0
AS_IN_LESIONS = 0.86  # share of the changes that go the way lesions change a modality, where it is known
LOCAL_DEPTH = 4  # convolutions at full resolution, at most: they look at 9 voxels


@register_model("synthetic")
class Synthetic(PatchModel):
    """It finds alterations that were made in healthy tissue; the code is what it tells them by.

    In half of the patches a soft, irregular blob of tissue is altered, in one or several of these ways:

    - *foreign*: mixed with another patch of the batch (FPI: Tan et al. 2020, arXiv 2011.04197), in every
      second case at the mean of what it replaces, so that its borders do not give it away (NSA: Schlüter
      et al. 2022, arXiv 2109.15222);
    - *warped*: magnified or shrunk about a point of the blob, by up to 1.5, as thick or thin cortex is;
    - *grown*: the tissue of one of its voxels takes some of the next voxel's place;
    - *blurred*: by .3 to 1.3 voxels, as a junction is;
    - *replaced*: its signal goes toward that of another voxel of the patch, while the fine texture stays:
      tissue of one kind lies where another belongs;
    - *shifted*: brighter or darker by 2 to 12 %, some modalities and not others, each by its own amount; six
      of seven times in the direction in which lesions change the modality, where that is known;
    - *tinted*: the same, in one tissue only: in the voxels whose signal in one modality is like that of one
      voxel.

    Mixing, warping and blurring average the noise away. No lesion does this, and a network would find it
    sooner than any lesion: white noise of the patch's own level makes up for it. All patches, altered or not,
    vary in brightness as scans do.

    The network says for every voxel in the middle of the patch whether it was altered (cross-entropy over the
    brain's voxels). It has two pathways after DeepMedic (Kamnitsas et al. 2017, Med Image Anal 36:61): nine
    voxels at full resolution, and the whole patch three times coarser. The code of a voxel is made of what
    both see; ``head`` turns it into the logit.

    Training uses healthy scans alone, and nothing imitates a lesion beyond these edits. So judge the model on
    real lesions: it has seen none.

    Args:
        patch_shape: with 33x33x33 a code sees 27 voxels along each axis, and training judges 9x9x9 voxels of
            each patch at once.
        channels, latent_dim, **kwargs: see :class:`PatchModel`.
        filters: number of filters of each convolution.
        directions: of the change of each channel in lesions, as readers know it (FLAIR 1, T1w -1): 1 up, -1
            down, 0 either; those of the view if None, and 0 where it knows none.

    Raises:
        InputError: ``stages`` were given; not one direction per channel.
    """

    paper = "Edited tissue: Tan et al. 2020, arXiv 2011.04197; two pathways: Kamnitsas et al. 2017"
    views: ClassVar[tuple[str, ...]] = ("image",)  # Deviation is its form on deviation maps
    trains: ClassVar = {"optimizer": ("encoder", "head")}
    # A patch holds 36 000 voxels, and 729 of them are judged.
    run_defaults: ClassVar = {
        **PatchModel.run_defaults,
        "detector": "signs",
        "epochs": 8,
        "steps_per_epoch": 250,
        "batch_size": 16,
    }
    search_space: ClassVar[Space] = (
        *(Choice("cube", (15, 21, 27, 33)), Choice("width", (8, 16, 24)), CODE, RATE),
        *(Choice("detector", ("signs", "head", "ocsvm", "gaussian")), NU, FWHM),
    )

    def __init__(
        self,
        patch_shape: Sequence[int] = (33, 33, 33),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        filters: int = 24,
        directions: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        if directions is None:
            directions = self.view.directions or None
        if self.stages is not None:
            raise InputError("synthetic has two pathways of its own: give 'filters', not 'stages'.")
        if directions is not None and (len(directions) != channels or not {-1, 0, 1}.issuperset(directions)):
            raise InputError(f"directions {list(directions)}: -1, 0 or 1 for each of {channels} modalities.")
        # === Config ===
        self.filters = filters
        self.directions = None if directions is None else [int(d) for d in directions]
        self.judged_shape = tuple(9 if n >= 27 else 3 for n in self.patch_shape)
        # === Layers ===
        with self.building():
            self.encoder, self.head, self.segmenter = self.build_networks()

    def default_optimizers(self) -> dict[str, keras.Optimizer]:
        rate = keras.optimizers.schedules.ExponentialDecay(2e-3, 1000, 1 / 3)
        return {"optimizer": keras.optimizers.Adam(rate)}

    def build_networks(self) -> tuple[keras.Model, keras.Model, keras.Model]:
        """Of shared layers: patch to code, code to logit, patch to the logits of its judged voxels."""
        rank = len(self.patch_shape)
        coarse = [n // SCALE - (n // SCALE + 1) % 2 for n in self.patch_shape]  # an odd number of them
        context_depth = [(c - j // SCALE) // 2 for c, j in zip(coarse, self.judged_shape, strict=True)]
        local_depth = [
            min(LOCAL_DEPTH, (c * SCALE - j) // 2) for c, j in zip(coarse, self.judged_shape, strict=True)
        ]
        one = (1,) * rank
        local, context = (
            [layer for k in _kernels(depth) for layer in blocks.conv_layers(self.filters, k, norm="batch")]
            for depth in (local_depth, context_depth)
        )
        joint = blocks.conv_layers(2 * self.filters, one, norm="batch")
        code = blocks.layer("Conv", rank)(self.latent_dim, one, dtype="float32")
        pool = blocks.layer("AveragePooling", rank)(SCALE)
        grow = blocks.layer("UpSampling", rank)(SCALE)
        rectify, logit = layers.LeakyReLU(0.2), layers.Dense(1, dtype="float32", name="logit")

        def codes(patch: Any, judged: Sequence[int], wide: Sequence[int]) -> Any:
            near = [j + 2 * d for j, d in zip(judged, local_depth, strict=True)]
            seen = _apply(local, blocks.crop(patch, near))
            around = _apply(context, pool(blocks.crop(patch, wide)))
            around = grow(around) if max(judged) > 1 else around
            return code(_apply(joint, layers.Concatenate()([seen, around])))

        patch = keras.Input((*self.patch_shape, self.channels), name="patch")
        wide = [SCALE * (2 * d + 1) for d in context_depth]
        latent = layers.Flatten(name="latent", dtype="float32")(codes(patch, one, wide))
        encoder = keras.Model(patch, latent, name="encoder")
        known = keras.Input((self.latent_dim,), name="latent")
        head = keras.Model(known, logit(rectify(known)), name="head")
        wide = [SCALE * c for c in coarse]
        judged = logit(rectify(codes(patch, self.judged_shape, wide)))
        return encoder, head, keras.Model(patch, judged, name="segmenter")

    # === Losses ===

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        x, altered = self.alter(self.relight(batch["patch"], training), training)
        logits = self.segmenter(x, training=training)[..., 0]
        brain = tf.cast(tf.reduce_any(blocks.crop(batch["patch"], self.judged_shape) != 0, -1), tf.float32)
        loss = losses.binary_cross_entropy(blocks.crop(altered, self.judged_shape)[..., 0], logits)
        share = tf.reduce_mean(self.gather(brain))  # of the whole batch
        return {"loss": tf.reduce_mean(loss * brain) / tf.maximum(share, 1e-6)}

    def relight(self, x: Any, training: bool = True) -> Any:
        """Patches ``(n, *patch_shape, m)`` as other scans might show them, in brightness and bias field."""
        rank = len(self.patch_shape)

        def normal(name: str, *shape: int) -> Any:
            return self.noise(name, (tf.shape(x)[0], *[1] * rank, *shape), training)

        across = _grid(self.patch_shape) / np.array(self.patch_shape, np.float32)
        tilt = tf.reduce_sum(normal("tilt", rank, self.channels) * across[..., np.newaxis], -2)
        gain = 0.04 * (normal("gain", self.channels) + tilt)
        return relit(x, gain, 0.01 * normal("offset", self.channels))

    def alter(self, x: Any, training: bool = True) -> tuple[Any, Any]:
        """Alter about half of some healthy patches ``(n, *patch_shape, m)``.

        Returns:
            The patches, and a map ``(n, *patch_shape, 1)`` that is 1 where they were altered, else 0.
        """
        n, rank, m = tf.shape(x)[0], len(self.patch_shape), self.channels
        ones, size = (1,) * rank, np.array(self.patch_shape, np.float32)

        def draw(name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Any:
            return low + (high - low) * self.uniform(name, (n, *shape), training)

        def gains(name: str) -> Any:
            amount = tf.exp(draw(name, *ones, m, low=np.log(0.02), high=np.log(0.12)))
            brighter = 0.5 + (AS_IN_LESIONS - 0.5) * np.array(self.directions or [0] * m, np.float32)
            sign = tf.sign(brighter - draw(f"{name} sign", *ones, m))
            return sign * amount * tf.cast(draw(f"{name} any", *ones, m) < 0.6, tf.float32)

        centre, radius, weight = self.draw_blob(n, training)

        chosen = draw("altered") < 0.5
        healthy = x
        grain = noise_level(x) * self.noise("grain", (n, *self.patch_shape, m), training)

        def sometimes(edit: Callable[..., Any], share: float, *values: Any) -> Any:
            """The edit, mixed in by the blob's weight, in a share of the chosen patches."""
            where = tf.where(chosen & (draw(edit.__name__) < share))

            def edited() -> Any:
                before, w, *rest = (tf.gather(v, where[:, 0]) for v in (x, weight, *values))
                return tf.tensor_scatter_nd_update(x, where, edit(before, w, *rest))

            # TensorFlow 2.21 dies of gather_nd with batch_dims on an empty batch.
            return tf.cond(tf.size(where) > 0, edited, lambda: x)

        opacity = draw("opacity", *ones, 1, low=0.2)
        fits = tf.round(draw("fits", *ones, 1))
        x = sometimes(foreign, 0.1, neighbour(healthy), fits, opacity, grain)
        zoom = draw("zoom", *ones, 1, low=0.05, high=0.4) * tf.sign(draw("zoom sign", *ones, 1) - 0.5)
        point = centre + radius * draw("point", *ones, rank, low=-0.7, high=0.7)
        x = sometimes(warped, 0.4, tf.exp(zoom), point, grain)
        source = point + size // 2  # a voxel of the blob
        source = tf.cast(tf.clip_by_value(tf.reshape(source, (-1, rank)), 0, size - 1), tf.int32)
        tissue = tf.gather_nd(gaussian(healthy, 0.6 * tf.ones((n, *ones, 1))), source, batch_dims=1)
        width, reach = draw("tissue", *ones, 1, low=0.04, high=0.12), draw("reach", *ones, 1, low=0.2)
        x = sometimes(grown, 0.4, tf.reshape(tissue, (-1, *ones, m)), width, reach)
        x = sometimes(blurred, 0.4, draw("sigma", *ones, 1, low=0.3, high=1.3), grain)
        there = tf.cast((0.2 + 0.6 * draw("there", rank)) * size, tf.int32)
        signal = tf.reshape(tf.gather_nd(healthy, there, batch_dims=1), (-1, *ones, m))
        x = sometimes(replaced, 0.15, signal, draw("strength", *ones, 1, low=0.2))
        x = sometimes(shifted, 0.6, gains("shift"))
        here = size // 2 + tf.reshape(centre, (-1, rank)) + draw("here", rank, low=-2, high=2)
        here = tf.cast(tf.clip_by_value(here, 0, size - 1), tf.int32)
        like = tf.reshape(tf.gather_nd(x, here, batch_dims=1), (-1, *ones, m))
        by = tf.one_hot(tf.cast(draw("by", *ones) * m, tf.int32), m)
        x = sometimes(tinted, 0.4, gains("tint"), like, by, draw("range", *ones, 1, low=0.05, high=0.15))

        brain = tf.cast(tf.reduce_any(healthy > 0, -1, keepdims=True), tf.float32)
        x = tf.clip_by_value(x, 0.0, 1.0) * brain
        changed = tf.reduce_max(tf.abs(x - healthy), list(range(1, rank + 2)), keepdims=True) > 0.005
        return x, tf.cast((weight > 0.3) & changed, tf.float32)

    def draw_blob(self, n: Any, training: bool) -> tuple[Any, Any, Any]:
        """Places to alter: centre and radius ``(n, 1, ..., rank)``, weight ``(n, *patch_shape, 1)``."""
        rank, size = len(self.patch_shape), np.array(self.patch_shape, np.float32)
        ones = (1,) * rank

        def draw(name: str, *shape: int) -> Any:
            return self.uniform(name, (n, *ones, *shape), training)

        centre = (0.36 * draw("centre", rank) - 0.18) * size
        smallest, largest = np.log(np.maximum(0.045 * size, 1.0)), np.log(np.maximum(0.18 * size, 2.0))
        radius = tf.exp(smallest + (largest - smallest) * draw("radius", 1))
        radius *= tf.exp(0.6 * draw("axes", rank) - 0.3)
        waves = self.noise("waves", (n, *[5] * rank), training)
        return centre, radius, blob(self.patch_shape, centre, radius, waves)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "directions": self.directions}

    @classmethod
    def config_of_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        config = super().config_of_values(values)
        if "cube" in config:
            config |= {"patch_shape": [config.pop("cube")] * 3, "filters": config.pop("width")}
        return config


# === Edits: patches (n, *shape, m), the blob's weight (n, *shape, 1) and their own values, to patches ===


def foreign(x: Any, weight: Any, other: Any, fits: Any, opacity: Any, grain: Any) -> Any:
    """Mix another patch in; where ``fits`` is 1, it takes the mean of the one that it replaces."""
    axes = list(range(1, len(x.shape) - 1))
    shift = tf.reduce_mean(x, axes, keepdims=True) - tf.reduce_mean(other, axes, keepdims=True)
    share = opacity * weight
    mixed = x + share * (tf.clip_by_value(other + fits * shift, 0.0, 1.0) - x)
    return mixed + grain * lost(share**2 + (1 - share) ** 2)


def warped(x: Any, weight: Any, zoom: Any, point: Any, grain: Any) -> Any:
    """Magnify by ``zoom`` (below 1: shrink) about a point, in voxels from the centre."""
    grid = _grid(x.shape[1:-1])
    at = grid + weight * (point - grid) * (1 - 1 / zoom) + np.float32(np.array(x.shape[1:-1]) // 2)
    part = at - tf.floor(at)
    kept = tf.reduce_prod(part**2 + (1 - part) ** 2, -1, keepdims=True)
    return interpolate(x, at) + grain * lost(kept)


def grown(x: Any, weight: Any, tissue: Any, width: Any, reach: Any) -> Any:
    """Let a tissue grow: voxels take its signal where voxels of that signal, within a width, are near."""
    member = tf.exp(-0.5 * tf.reduce_mean(tf.square((x - tissue) / width), -1, keepdims=True))
    near = gaussian(member, 0.9 * tf.ones_like(reach))
    signal = gaussian(member * x, 0.9 * tf.ones_like(reach)) / tf.maximum(near, 1e-3)
    valid = tf.cast(tf.reduce_any(x > 0, -1, keepdims=True), x.dtype)
    share = weight * reach * valid * tf.clip_by_value(2 * near, 0.0, 1.0) * (1 - member)
    return x + share * (signal - gaussian(x, 0.5 * tf.ones_like(reach)))  # the fine texture is kept


def blurred(x: Any, weight: Any, sigma: Any, grain: Any) -> Any:
    """Blur by a Gaussian of ``sigma`` voxels."""
    rank = len(x.shape) - 2
    kernel = _kernel(sigma)
    middle, energy = kernel[..., 2:3] ** rank, tf.reduce_sum(kernel**2, -1, keepdims=True) ** rank
    kept = (1 - weight) ** 2 + 2 * weight * (1 - weight) * middle + weight**2 * energy
    return x + weight * (gaussian(x, sigma) - x) + grain * lost(kept)


def replaced(x: Any, weight: Any, signal: Any, strength: Any) -> Any:
    """Move toward another signal, unless that is background, and keep the fine texture."""
    valid = tf.cast(tf.reduce_any(signal > 0, -1, keepdims=True), x.dtype)
    return x + strength * valid * weight * (signal - gaussian(x, 1.2 * tf.ones_like(strength)))


def shifted(x: Any, weight: Any, gain: Any) -> Any:
    """Make brighter or darker, each modality by its own gain."""
    return x * (1 + weight * gain)


def tinted(x: Any, weight: Any, gain: Any, like: Any, by: Any, width: Any) -> Any:
    """Make brighter or darker where the modality that ``by`` marks has about the signal ``like``."""
    off = tf.reduce_sum(by * (x - like), -1, keepdims=True)
    return x * (1 + weight * gain * tf.exp(-0.5 * tf.square(off / width)))


# === What the edits are made of ===


def relit(x: Any, gain: Any, offset: Any) -> Any:
    """Change the brightness of patches ``(n, *shape, m)``; what is brain stays above 0."""
    brain = tf.cast(tf.reduce_any(x > 0, -1, keepdims=True), x.dtype)
    return tf.clip_by_value(x * (1 + gain) + offset, 1e-3, 1.0) * brain


def noise_level(x: Any) -> Any:
    """Standard deviation of white noise in patches: ``(n, 1, ..., m)``; 0 where there is hardly any brain.

    From the lower quartile of second differences along the first axis, which edges between tissues move least
    (after Immerkaer 1996, Comput Vis Image Underst 64:300-302).
    """
    before, middle, after = x[:, :-2], x[:, 1:-1], x[:, 2:]
    inside = tf.reduce_all(tf.stack([before, middle, after]) > 0, 0)
    bend = tf.where(inside, tf.abs(middle - (before + after) / 2), np.inf)
    bend = tf.reshape(bend, (tf.shape(x)[0], -1, x.shape[-1]))[:, ::7]  # a sample is enough
    bend = tf.sort(tf.transpose(bend, (0, 2, 1)))
    count = tf.reduce_sum(tf.cast(tf.math.is_finite(bend), tf.int32), -1)
    quartile = tf.gather(bend, count // 4, batch_dims=2)
    level = tf.where(count >= 20, quartile / np.float32(QUARTILE * np.sqrt(1.5)), 0.0)
    return tf.reshape(level, (-1, *[1] * (len(x.shape) - 2), x.shape[-1]))


def lost(kept: Any) -> Any:
    """How much of its standard deviation white noise has lost where a share of its variance is kept."""
    return tf.sqrt(tf.maximum(1 - kept, 0.0))


@tf.function(jit_compile=True, autograph=False)  # one pass over the voxels in place of ten: 1 ms, not 12
def blob(shape: Sequence[int], centre: Any, radius: Any, waves: Any) -> Any:
    """Soft, irregular balls ``(n, *shape, 1)`` in [0, 1].

    Args:
        shape: of the patch.
        centre: ``(n, 1, ..., rank)`` voxels from the middle.
        radius: ``(n, 1, ..., rank)`` voxels along each axis.
        waves: ``(n, 5, ...)`` standard normal: makes the border uneven, by a third of the radius.
    """
    distance = tf.norm((_grid(shape) - centre) / radius, axis=-1, keepdims=True)
    border = 1 + 0.35 * stretched(waves, shape)[..., tf.newaxis]
    return tf.clip_by_value(2.5 * (1 - distance * border) + 0.5, 0.0, 1.0)


def stretched(values: Any, shape: Sequence[int]) -> Any:
    """Interpolate values ``(..., k, ..., k)`` at evenly spaced knots to ``(..., *shape)``."""
    for size in shape:  # one axis after the other: each goes to the end
        axis = len(values.shape) - len(shape)
        knots = values.shape[axis]
        at = np.abs(np.linspace(0, knots - 1, size)[:, None] - np.arange(knots))
        values = tf.tensordot(values, np.maximum(1 - at, 0).astype(np.float32), [[axis], [1]])
    return values


def neighbour(x: Any) -> Any:
    """The other patch of each two in the batch: a part of the batch, on another device, gives the same."""
    i = tf.range(tf.shape(x)[0])
    other = tf.bitwise.bitwise_xor(i, 1)
    return tf.gather(x, tf.where(other < tf.shape(x)[0], other, tf.maximum(i - 1, 0)))


def gaussian(x: Any, sigma: Any) -> Any:
    """Smooth by ``sigma (n, 1, ..., 1)`` voxels, over five voxels along each axis; edges are repeated."""
    rank = len(x.shape) - 2
    kernel = tf.reshape(_kernel(sigma), (-1, 5))
    for axis in range(1, rank + 1):
        size = x.shape[axis]
        padded = tf.pad(x, [(2, 2) if i == axis else (0, 0) for i in range(rank + 2)], "SYMMETRIC")
        taps = (tf.gather(padded, tf.range(k, k + size), axis=axis) for k in range(5))
        weights = (tf.reshape(kernel[:, k], (-1, *[1] * (rank + 1))) for k in range(5))
        x = tf.add_n([tap * weight for tap, weight in zip(taps, weights, strict=True)])
    return x


def interpolate(x: Any, at: Any) -> Any:
    """Linear values of ``x (n, *shape, m)`` at voxels ``(n, *shape, rank)``; edges are repeated."""
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


# === Helpers ===


def _kernel(sigma: Any) -> Any:
    """The weights ``(n, 1, ..., 5)`` of a Gaussian over five voxels, of ``sigma (n, 1, ..., 1)`` voxels."""
    kernel = tf.exp(-0.5 * tf.square(np.arange(-2, 3, dtype=np.float32) / sigma))
    return kernel / tf.reduce_sum(kernel, -1, keepdims=True)


def _grid(shape: Sequence[int]) -> NDArray[np.float32]:
    """How many voxels each voxel lies from the middle: ``(*shape, rank)``."""
    return np.stack(np.meshgrid(*(np.arange(k) - k // 2 for k in shape), indexing="ij"), -1).astype(
        np.float32
    )


def _kernels(depth: Sequence[int]) -> list[tuple[int, ...]]:
    """The kernel of each convolution: 3 wide along the axes that must still shrink, else 1."""
    return [tuple(3 if i < d else 1 for d in depth) for i in range(max(depth))]


def _apply(stack: Sequence[Any], x: Any) -> Any:
    for one in stack:
        x = one(x)
    return x
