"""Encoders of a few weights, of slices and of blocks, and any other with random weights."""

import math

import keras
import numpy as np
from keras import layers


def encoder_2d():
    patch = keras.Input((7, 9, 2), name="patch")
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2, activation="relu")(patch))
    return keras.Model(patch, layers.Dense(5, name="latent")(layers.Flatten()(x)), name="small")


def encoder_3d():
    patch = keras.Input((5, 5, 3, 1), name="patch")
    x = layers.MaxPooling3D((2, 2, 1))(layers.Conv3D(4, 2, activation="relu")(patch))
    x = layers.Conv3D(3, 2)(x)  # dilated in the dense form
    return keras.Model(patch, layers.Dense(3, name="latent")(layers.Flatten()(x)), name="small_3d")


def encoder_of(build, patch_shape, channels=2):
    patch = keras.Input((*patch_shape, channels), name="patch")
    return randomise(keras.Model(patch, build(patch)))


def randomise(model, seed=0):
    """Weights, biases and moving statistics away from their neutral starting values."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.dtype != "float32":
            continue
        shape, name = variable.shape, variable.path.rsplit("/", 1)[-1]
        if "variance" in name:
            value = rng.uniform(0.5, 2, shape)
        elif len(shape) > 1:
            value = rng.normal(0, (2 / math.prod(shape[:-1])) ** 0.5, shape)
        else:
            value = rng.normal(0, 0.5, shape)
        variable.assign(value.astype(np.float32))
    return model
