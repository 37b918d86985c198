"""Each kind of layer in its dense form against the encoder itself, patch by patch; those that have none."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from epizoo.dense import DenseEncoder
from tests.dense_codes import assert_equal, codes_by_patch, volume_of
from tests.encoders import encoder_of
from tfds_epilepsy.errors import InputError


def reference(x):
    x = layers.Conv2D(16, 3, activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    return layers.Flatten()(layers.Conv2D(16, 3, activation="relu")(x))


def deeper(x):
    for filters, size, stride in ((3, 5, 1), (4, 3, 1), (12, 3, 3), (16, 3, 1)):
        x = layers.Conv2D(filters, size, strides=stride, activation="gelu")(x)
        x = layers.BatchNormalization()(x)
    return layers.Flatten()(x)


def flatten_dense(x):
    x = layers.Conv2D(6, (3, 2), strides=(2, 3), activation="tanh")(x)
    x = layers.Flatten()(layers.Dropout(0.5)(x))
    x = layers.Dense(9, activation="softmax")(layers.ReLU()(x))
    return layers.Dense(5)(layers.LayerNormalization()(layers.BatchNormalization()(x)))


def odd_pools(x):
    x = layers.AveragePooling2D((3, 2), strides=(1, 2))(x)
    x = layers.MaxPooling2D(3, strides=2)(layers.Conv2D(4, 2)(x))
    x = layers.AveragePooling2D(2, strides=1)(layers.LeakyReLU()(x))
    return layers.Flatten()(x)


def convolution_kinds(x):
    x = layers.Conv2D(4, 3, dilation_rate=2, groups=2)(layers.Rescaling(2.0, offset=-1.0)(x))
    x = layers.DepthwiseConv2D(2, strides=2, depth_multiplier=3)(x)
    x = layers.SeparableConv2D(5, 2, activation="elu")(layers.PReLU(shared_axes=[1, 2])(x))
    return layers.GlobalAveragePooling2D()(layers.LayerNormalization()(x))


def residual_branches(x):
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
    inner = layers.Cropping2D(1)(x)
    y = layers.Add()([inner, layers.Conv2D(8, 3)(x)])
    y = layers.Concatenate()([y, layers.UnitNormalization()(inner)])
    y = layers.Multiply()([y, layers.Dense(16, activation="sigmoid")(y)])
    return layers.Dense(7)(layers.Flatten()(y))


def context(x):
    """The centre and, coarser and coarser, its surround."""
    size = x.shape[1]
    local = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(layers.Cropping2D((size - 5) // 2)(x)))
    wider = layers.AveragePooling2D(3)(layers.CenterCrop(9, 9)(x))
    wider = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 2, activation="relu")(wider))
    widest = layers.Flatten()(layers.Conv2D(4, 2, activation="relu")(layers.AveragePooling2D(5)(x)))
    joined = layers.Concatenate()([local, wider, layers.Dense(3)(widest), widest])
    return layers.Dense(6)(joined)


def nested(x):
    inner = keras.Input((15, 15, 2))
    y = layers.Conv2D(4, 3)(inner)
    stem = keras.Model(inner, layers.Activation("relu")(y))
    head = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.Conv2D(3, 3, strides=2), layers.Flatten(), layers.Dense(4)]
    )
    shared = layers.SpectralNormalization(layers.Conv2D(4, 1))
    y = layers.MaxPooling2D(2)(stem(x))
    return head(shared(shared(y)))


def bare_operations(x):
    x = (x - np.float32([0.5, 0.2])) * 2.0
    x = ops.concatenate([x[:, 1:-1, 1:-1], ops.square(x)[:, 2:, 2:, :1], x[:, :-2, :-2, 1:]], axis=-1)
    x = ops.relu(layers.Conv2D(6, 3)(x)) + 0.1
    odd = x[:, 1::2, ::3]
    return ops.concatenate(
        [ops.mean(x, axis=(1, 2)), ops.max(odd, axis=[1, 2]), ops.reshape(odd, (-1, 36))], axis=-1
    )


def reshapes(x):
    x = layers.MaxPooling2D(5)(layers.Conv2D(3, 1, padding="same")(x))
    x = layers.Flatten()(layers.Activation("relu")(layers.Reshape((-1, 3))(x)))
    x = layers.Reshape((3, 3, 3))(layers.Dense(27)(x))
    return layers.Flatten()(
        layers.Conv2D(2, 2, padding="same")(x)
    )  # a patch of one voxel's own: anything goes


def harmless_same(x):
    x = layers.MaxPooling2D(3, padding="same")(x)
    x = layers.Conv2D(4, 1, strides=2, padding="same")(x)
    return layers.Flatten()(layers.GlobalMaxPooling2D(keepdims=True)(x))


NETWORKS_2D = [
    (reference, (15, 15)),
    (deeper, (15, 15)),
    (flatten_dense, (11, 13)),
    (odd_pools, (15, 17)),
    (convolution_kinds, (13, 11)),
    (residual_branches, (13, 13)),
    (context, (15, 15)),
    (nested, (15, 15)),
    (bare_operations, (9, 13)),
    (reshapes, (15, 15)),
    (harmless_same, (15, 9)),
]


@pytest.mark.parametrize(
    ("build", "patch_shape"), NETWORKS_2D, ids=lambda value: getattr(value, "__name__", None)
)
def test_equals_the_encoder_of_the_patch_at_every_voxel(build, patch_shape):
    encoder = encoder_of(build, patch_shape)
    volume = volume_of()
    assert_equal(DenseEncoder(encoder)(volume), codes_by_patch(encoder, volume))


KINDS = ("conv", "max", "mean", "norm", "crop", "branch")
STAGES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4
)


def stack(x, stages, end):
    for kind, k, stride in stages:
        k = min(k, *x.shape[1:3])
        if kind == "conv":
            x = layers.Conv2D(4, k, strides=stride, activation="relu")(x)
        elif kind == "max":
            x = layers.MaxPooling2D(k, strides=stride)(x)
        elif kind == "mean":
            x = layers.AveragePooling2D(k, strides=stride)(x)
        elif kind == "norm":
            x = layers.BatchNormalization()(x)
        elif kind == "crop" and min(x.shape[1:3]) > 1:
            x = layers.Cropping2D(((1, 0), (0, 1)))(x)
        elif kind == "branch":
            branches = [layers.Conv2D(3, k, strides=stride)(x), layers.MaxPooling2D(k, strides=stride)(x)]
            x = layers.Concatenate()(branches)
    x = layers.GlobalAveragePooling2D()(x) if end == "mean" else layers.Flatten()(x)
    return layers.Dense(4)(x) if end == "dense" else x


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    stages=STAGES,
    end=st.sampled_from(["flatten", "dense", "mean"]),
    patch_shape=st.tuples(st.sampled_from([7, 9, 13]), st.sampled_from([7, 9, 11])),
    shape=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 2)),
)
def test_equals_the_encoder_for_random_networks_and_shapes(stages, end, patch_shape, shape):
    encoder = encoder_of(lambda x: stack(x, stages, end), patch_shape)
    volume = volume_of(shape)
    expected = codes_by_patch(encoder, volume)
    scale = max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(DenseEncoder(encoder)(volume), expected, rtol=0, atol=1e-5 * scale)


def test_bfloat16_encoder_is_matched_to_its_own_rounding():
    patch = keras.Input((9, 9, 1), name="patch")
    x = layers.Conv2D(8, 3, strides=2, activation="relu", dtype="mixed_bfloat16")(patch)
    x = layers.Flatten()(layers.BatchNormalization(dtype="mixed_bfloat16")(x))
    encoder = keras.Model(patch, layers.Dense(6)(x))
    volume = volume_of((5, 6, 2), channels=1)
    codes, expected = DenseEncoder(encoder)(volume), codes_by_patch(encoder, volume)
    assert codes.dtype == np.float32
    np.testing.assert_allclose(codes, expected, atol=0.02 * np.abs(expected).max())


def zero_padded(x):
    return layers.Flatten()(layers.Conv2D(2, 3, padding="same", name="culprit")(x))


def zero_padded_stride(x):
    return layers.Flatten()(layers.MaxPooling2D(2, padding="same", name="culprit")(x))


def padding_layer(x):
    return layers.Flatten()(layers.ZeroPadding2D(1, name="culprit")(x))


def group_norm(x):
    return layers.Flatten()(layers.GroupNormalization(1, name="culprit")(x))


def layer_norm_over_patch(x):
    return layers.Flatten()(layers.LayerNormalization(axis=[1, 2, 3], name="culprit")(x))


def upsampling(x):
    return layers.Flatten()(layers.UpSampling2D(2, name="culprit")(x))


def transposed(x):
    return layers.Flatten()(layers.Conv2DTranspose(2, 3, name="culprit")(x))


def squeeze_excite(x):
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Flatten()(layers.Multiply(name="culprit")([x, gate]))


def strides_that_differ(x):
    return layers.Flatten()(
        layers.Concatenate(name="culprit")([x[:, :5, :5], layers.AveragePooling2D(3)(x)[:, :5, :5]])
    )


def unshared_slopes(x):
    return layers.Flatten()(layers.PReLU(name="culprit")(x))


def sequence(x):
    return layers.Flatten()(layers.Conv1D(2, 3, name="culprit")(layers.Reshape((-1, 2))(x)))


def lambda_layer(x):
    return layers.Flatten()(layers.Lambda(lambda t: t[:, ::-1], output_shape=(15, 15, 2), name="culprit")(x))


def join_along_rows(x):
    return layers.Flatten()(layers.Concatenate(axis=1, name="culprit")([x, x]))


@pytest.mark.parametrize(
    "build",
    [
        zero_padded, zero_padded_stride, padding_layer, group_norm, layer_norm_over_patch, upsampling,
        transposed, squeeze_excite, strides_that_differ, unshared_slopes, sequence, lambda_layer,
        join_along_rows,
    ],
)  # fmt: skip
def test_a_layer_without_dense_form_is_named(build):
    with pytest.raises(InputError, match="'culprit'"):
        DenseEncoder(encoder_of(build, (15, 15)))


def test_a_reversing_slice_is_refused():
    with pytest.raises(InputError, match="reverses"):
        DenseEncoder(encoder_of(lambda x: layers.Flatten()(x[:, ::-1]), (5, 5)))
