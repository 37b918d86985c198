"""Encoders of a few weights, of slices and of blocks."""

import keras
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
