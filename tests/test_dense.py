"""DenseEncoder on volumes: slices, blocks, masks, background and memory, against the encoder itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from epizoo import dense
from epizoo.dense import DenseEncoder
from tests.dense_codes import assert_equal, codes_by_patch, volume_of
from tests.encoders import encoder_2d, encoder_of, randomise
from tfds_epilepsy.errors import InputError


def reference_3d(x):
    x = layers.Conv3D(6, 3, activation="relu")(x)
    x = layers.MaxPooling3D(2)(x)
    return layers.Dense(8)(layers.Flatten()(layers.Conv3D(5, 2, activation="relu")(x)))


def strided_3d(x):
    x = layers.Conv3D(4, (3, 1, 2), strides=(2, 1, 2), dilation_rate=1)(x)
    x = layers.BatchNormalization()(layers.AveragePooling3D((2, 2, 1), strides=1)(x))
    branch = layers.Cropping3D(((1, 0), (0, 2), (1, 0)))(x)
    return layers.Concatenate()([layers.GlobalAveragePooling3D()(x), layers.Flatten()(branch)])


@pytest.mark.parametrize(
    ("build", "patch_shape"),
    [(reference_3d, (9, 9, 9)), (strided_3d, (9, 5, 7))],
    ids=lambda v: getattr(v, "__name__", None),
)
@pytest.mark.parametrize("step_bytes", [dense.STEP_BYTES, 1], ids=["one_block", "thin_blocks"])
def test_equals_the_encoder_of_the_3d_patch_at_every_voxel(build, patch_shape, step_bytes, monkeypatch):
    monkeypatch.setattr(dense, "STEP_BYTES", step_bytes)
    encoder = encoder_of(build, patch_shape)
    volume = volume_of((6, 5, 21))
    volume[:, :, :4] = 0
    expected = codes_by_patch(encoder, volume)
    encode = DenseEncoder(encoder)
    assert_equal(encode(volume), expected)
    assert_equal(encode(volume, slice(3, 15)), expected[:, :, 3:15])
    mask = volume[..., 0] > 0.7
    assert_equal(encode.codes_at(volume, mask), expected[mask])


def two_pathways_3d(x):
    """As in ``synthetic``: what is pooled by 3 is worked out once a cube."""
    near = layers.Conv3D(4, 3, activation="relu")(layers.Conv3D(4, 3)(layers.Cropping3D(2)(x)))
    wide = layers.Conv3D(4, 3, activation="relu")(layers.AveragePooling3D(3)(x))
    return layers.Flatten()(layers.Conv3D(5, 1)(layers.Concatenate()([near, wide])))


def axial(x):
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(layers.MaxPooling2D(2, strides=1)(x))
    x = layers.Conv2D(6, (2, 1), groups=2)(layers.DepthwiseConv2D(2)(x))
    return layers.Dense(5)(layers.Concatenate()([layers.Flatten()(x), layers.GlobalMaxPooling2D()(x)]))


@pytest.mark.parametrize(
    ("build", "patch_shape"),
    [(two_pathways_3d, (9, 9, 9)), (strided_3d, (9, 5, 7)), (axial, (9, 11))],
    ids=lambda v: getattr(v, "__name__", None),
)
@pytest.mark.parametrize("stride", [2, 3, 20])
@pytest.mark.parametrize("step_bytes", [dense.STEP_BYTES, 1], ids=["one_block", "thin_blocks"])
def test_with_a_stride_codes_are_interpolated_between_those_of_the_patches(
    build, patch_shape, stride, step_bytes, monkeypatch
):
    monkeypatch.setattr(dense, "STEP_BYTES", step_bytes)
    encoder = encoder_of(build, patch_shape)
    volume = volume_of((8, 6, 11))
    expected = codes_by_patch(encoder, volume)
    for axis, size in enumerate(volume.shape[:3]):  # numpy's own interpolation, an axis at a time
        known = range(min(stride // 2, size - 1), size, stride)
        weights = [np.interp(range(size), known, one) for one in np.eye(len(known))]
        expected = np.moveaxis(np.tensordot(np.take(expected, known, axis), weights, (axis, 0)), -1, axis)
    expected = expected.astype(np.float32)
    encode, mask = DenseEncoder(encoder), volume[..., 0] > 0.5
    assert_equal(encode.codes_at(volume, mask, stride=stride), expected[mask])
    part = encode.codes_at(volume, mask, slice(3, 8), stride)
    assert_equal(part, expected[:, :, 3:8][mask[:, :, 3:8]])
    in_graph = tf.function(lambda x: encode.interpolated_in_graph(x, stride), autograph=False)
    assert_equal(in_graph(tf.constant(volume)).numpy(), expected)


def test_with_a_stride_what_is_pooled_is_convolved_once_a_cube():
    """The first convolution after the pool gets a cube's mean, not that around each voxel."""
    encode = DenseEncoder(encoder_of(two_pathways_3d, (9, 9, 9)))
    encode.codes_at(volume_of((12, 12, 12)), np.ones((12, 12, 12), bool), stride=3)
    graph = encode._strided[3].get_concrete_function().graph
    strides = [list(op.get_attr("strides")[1:4]) for op in graph.get_operations() if "Conv3D" in op.type]
    assert [3, 3, 3] in strides  # the last of the near pathway
    dilations = [list(op.get_attr("dilations")[1:4]) for op in graph.get_operations() if "Conv3D" in op.type]
    assert all(rates == [1, 1, 1] for rates in dilations)


@pytest.fixture(scope="module")
def small():
    return randomise(encoder_2d())


def test_slices_are_those_of_the_whole_volume(small):
    encode, volume = DenseEncoder(small), volume_of((6, 7, 9))
    whole = encode(volume)
    np.testing.assert_allclose(encode(volume, slice(2, 5)), whole[:, :, 2:5], atol=1e-6)
    np.testing.assert_allclose(encode(volume, slice(-1, None)), whole[:, :, -1:], atol=1e-6)
    assert encode(volume, slice(4, 4)).shape == (6, 7, 0, 5)


def test_background_around_the_head_is_that_of_zero_patches(small):
    volume = np.zeros((40, 31, 4, 2), np.float32)
    volume[17:20, 12:16, 1] = 1.0
    volume[0, 30, 2] = 2.0
    encode = DenseEncoder(small)
    expected = codes_by_patch(small, volume)
    assert_equal(encode(volume), expected)
    one_at_a_time = np.concatenate([encode(volume, slice(k, k + 1)) for k in range(4)], axis=2)
    assert_equal(one_at_a_time, expected)


def test_latents_are_the_codes_of_the_mask_in_its_order(small, monkeypatch):
    encode, volume = DenseEncoder(small), volume_of((12, 9, 8))
    mask = np.zeros(volume.shape[:3], bool)
    mask[3:9, 2:8, 2:7] = volume[3:9, 2:8, 2:7, 0] > 0.4
    codes = encode(volume)
    for step_bytes in (dense.STEP_BYTES, 40_000, 1):
        monkeypatch.setattr(dense, "STEP_BYTES", step_bytes)
        assert_equal(encode.codes_at(volume, mask), codes[mask])
        assert_equal(encode.codes_at(volume, mask, slice(3, 6)), codes[:, :, 3:6][mask[:, :, 3:6]])
    assert encode.codes_at(volume, mask, slice(0, 2)).shape == (0, 5)


def test_memory_budget_does_not_change_the_codes(small, monkeypatch):
    encode, volume = DenseEncoder(small), volume_of((8, 9, 7))
    whole = encode(volume)
    monkeypatch.setattr(dense, "STEP_BYTES", 1)
    np.testing.assert_allclose(encode(volume), whole, atol=1e-6)


def test_follows_the_weights_of_the_encoder():
    encoder = randomise(encoder_2d())
    encode, volume = DenseEncoder(encoder), volume_of()
    before = encode(volume)
    randomise(encoder, seed=5)
    after = encode(volume)
    assert not np.allclose(before, after)
    assert_equal(after, codes_by_patch(encoder, volume))


def test_takes_any_float_or_integer_volume_read_only_or_strided(small):
    encode = DenseEncoder(small)
    volume = volume_of((6, 14, 3)).astype(np.float64)[:, ::2]
    volume.flags.writeable = False
    assert_equal(encode(volume), codes_by_patch(small, volume.astype(np.float32)))
    counts = np.arange(6 * 7 * 3 * 2, dtype=np.int16).reshape(6, 7, 3, 2)
    assert_equal(encode(counts), codes_by_patch(small, counts.astype(np.float32)))


def test_an_activation_that_looks_at_the_whole_patch_is_found_out():
    def centred(x):
        return x - tf.reduce_mean(x, axis=(1, 2), keepdims=True)

    with pytest.raises(InputError, match="differs from the encoder"):
        DenseEncoder(encoder_of(lambda x: layers.Flatten()(layers.Activation(centred)(x)), (5, 5)))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: encoder_of(layers.Flatten(), (4, 5)), "odd"),
        (lambda: encoder_of(layers.Conv2D(2, 3), (5, 5)), r"\(batch, d\)"),
        (lambda: keras.Sequential([keras.Input((5, 5, 1)), layers.Flatten()]), "functional"),
        (lambda: keras.Model([a := keras.Input((5,)), b := keras.Input((5,))], a + b), "one input"),
    ],
)
def test_an_encoder_of_another_form_is_refused(encoder, message):
    with pytest.raises(InputError, match=message):
        DenseEncoder(encoder())


def test_a_volume_that_does_not_fit_is_refused(small):
    encode = DenseEncoder(small)
    with pytest.raises(InputError, match=r"\(4, 4, 4\)"):
        encode(np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match=r"\(x, y, z, 2\)"):
        encode(np.zeros((4, 4, 4, 3)))
    with pytest.raises(InputError, match="1 NaN"):
        encode(np.where(np.arange(8).reshape(2, 2, 1, 2) == 3, np.nan, 0))
    with pytest.raises(InputError, match="step of 1"):
        encode(np.zeros((4, 4, 4, 2)), slice(None, None, 2))
    with pytest.raises(InputError, match="mask of shape"):
        encode.codes_at(np.zeros((4, 4, 4, 2)), np.ones((4, 4, 3), bool))
