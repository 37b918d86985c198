"""Masked autoencoder: the code must know which tissue goes with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from epizoo.models import blocks, losses
from epizoo.models.autoencoder import Autoencoder
from epizoo.models.patch_model import register_model
from epizoo.models.search_space import CODE, DETECTOR, NORM, PATCH, RATE, STAGES, Choice, Log, Space
from tfds_epilepsy.errors import InputError


@register_model("masked")
class Masked(Autoencoder):
    """The autoencoder's networks see patches in which blocks are hidden, and must make the hidden blocks.

        L = ||m (x - D(E((1 - m) x)))||^2

    ``m`` is 1 in the hidden blocks; there the patch is 0, as it is outside the brain. Once trained, the
    encoder sees whole patches. Convolutional, as Pathak et al. 2016 (CVPR), with the random blocks of He et
    al. 2022 (CVPR).

    Args:
        patch_shape, channels, latent_dim, **kwargs: see :class:`Autoencoder`.
        hidden: share of the blocks that are hidden, between 0 and 1.
        block: the side of a block in voxels.

    Raises:
        InputError: numbers out of range.
    """

    paper = "He et al. 2022, CVPR; Pathak et al. 2016, CVPR"
    search_space: ClassVar[Space] = (
        *(PATCH, CODE, *STAGES, NORM, Choice("block", (1, 3, 5)), Log("hidden", 0.2, 0.8), RATE, *DETECTOR),
    )

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        hidden: float = 0.6,
        block: int = 3,
        **kwargs: Any,
    ):
        if not 0 < hidden < 1 or block < 1:
            raise InputError(f"hidden={hidden!r}, block={block!r}: a share between 0 and 1, and voxels.")
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        self.hidden = hidden
        self.block = block

    # === Losses ===

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        x = batch["patch"]
        counts = [-(-size // self.block) for size in self.patch_shape]
        chosen = self.uniform("mask", (tf.shape(x)[0], *counts, 1), training) < self.hidden
        mask = tf.cast(chosen, tf.float32)
        for axis in range(1, len(counts) + 1):
            mask = tf.repeat(mask, self.block, axis)
        mask = blocks.crop(mask, self.patch_shape)
        x_hat = self.decoder(self.encoder(x * (1 - mask), training=training), training=training)
        return {"loss": tf.reduce_mean(losses.squared_error(mask * x, mask * x_hat))}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden": self.hidden, "block": self.block}
