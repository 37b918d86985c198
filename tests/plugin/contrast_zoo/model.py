"""A contrastive encoder of ConvNeXt blocks; its class is called as one of epizoo's is."""

import keras
import tensorflow as tf
from keras import layers

from epizoo.models import losses
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.models.search_space import CODE, RATE, Choice, Log


@register_model("contrast")
class Siamese(PatchModel):
    """Two controls at one voxel are alike, others are not: ``L = CE(cos(z_i, z'_j) / t)`` (SimCLR)."""

    paper = "Chen et al. 2020, ICML (SimCLR); Liu et al. 2022, CVPR (ConvNeXt)"
    sampling = "pair"
    tracked = ("loss", "similarity")
    trains = {"optimizer": ("encoder",)}  # noqa: RUF012 (a class attribute of epizoo's)
    run_defaults = {  # noqa: RUF012
        **PatchModel.run_defaults,
        "detector": "farthest",
        "epochs": 1,
        "steps_per_epoch": 2,
        "batch_size": 16,
    }
    search_space = (CODE, Log("temperature", 0.05, 0.5), RATE, Choice("detector", ("farthest", "gaussian")))

    def __init__(self, patch_shape=(9, 9), channels=2, latent_dim=8, *, width=8, temperature=0.1, **kwargs):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        # === Config ===
        self.width, self.temperature = width, temperature
        # === Layers ===
        with self.building():
            patch = keras.Input((*self.patch_shape, channels), name="patch")
            x = layers.Conv2D(width, 3)(patch)
            mixed = layers.LayerNormalization()(layers.DepthwiseConv2D(3)(x))
            mixed = layers.Dense(width)(layers.Dense(2 * width, activation="gelu")(mixed))
            x = layers.Add()([layers.Cropping2D(1)(x), mixed])
            code = layers.Dense(latent_dim, dtype="float32", name="latent")(
                layers.GlobalAveragePooling2D()(x)
            )
            self.encoder = keras.Model(patch, code, name="encoder")

    # === Losses ===

    def compute_losses(self, batch, training):
        z, other = (self.encoder(batch[name], training=training) for name in ("patch", "partner"))
        unit, others = (self.gather(tf.math.l2_normalize(codes, -1)) for codes in (z, other))
        logits = tf.matmul(unit, others, transpose_b=True) / self.temperature
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(tf.shape(logits)[0]), logits)
        similarity = tf.reduce_mean(losses.cosine_similarity(z, other))
        return {"loss": tf.reduce_mean(loss), "similarity": similarity}

    def get_config(self):
        return {**super().get_config(), "width": self.width, "temperature": self.temperature}
