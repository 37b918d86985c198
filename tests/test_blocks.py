import random

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epizoo.models import blocks


def sizes(model, kinds):
    return [layer.output.shape[1] for layer in model.layers if any(kind in layer.name for kind in kinds)]


def test_default_sizes_are_the_papers():
    encoder = blocks.conv_encoder((15, 15), 2, 64)
    assert sizes(encoder, ["conv", "pool"]) == [13, 6, 4, 2]
    assert encoder.layers[-2].output.shape == (None, 2, 2, 16)
    assert isinstance(encoder.layers[-1], keras.layers.Flatten)
    decoder = blocks.conv_decoder((15, 15), 2, 64)
    assert sizes(decoder, ["conv", "up_sampling"]) == [4, 6, 12, 14, 15]
    assert decoder.layers[-2].kernel_size == (2, 2)
    assert decoder.layers[-1].activation is keras.activations.sigmoid
    # Weights and biases by hand: 3x3 convolutions of 2 -> 16 -> 16 -> 16 channels; back, 2x2 at the end.
    assert encoder.count_params() == (9 * 2 + 1) * 16 + 2 * (9 * 16 + 1) * 16
    assert decoder.count_params() == 3 * (9 * 16 + 1) * 16 + (4 * 16 + 1) * 2


odd = st.integers(1, 9).map(lambda n: 2 * n + 1)
shapes = st.one_of(st.tuples(odd, odd), st.tuples(odd, odd, odd))
stacks = st.lists(
    st.builds(
        blocks.Stage,
        filters=st.integers(1, 4),
        kernel=st.integers(1, 5),
        stride=st.integers(1, 3),
        pool=st.integers(1, 3),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, latent_dim=st.integers(1, 20), channels=st.integers(1, 3), stages=st.none() | stacks)
def test_any_odd_patch_is_encoded_and_comes_back_in_its_shape(shape, latent_dim, channels, stages):
    encoder = blocks.conv_encoder(shape, channels, latent_dim, stages)
    decoder = blocks.conv_decoder(shape, channels, latent_dim, stages)
    assert encoder.input_shape == (None, *shape, channels)
    assert encoder.output_shape == decoder.input_shape == (None, latent_dim)
    assert decoder.output_shape == encoder.input_shape
    decoded = decoder(encoder(np.zeros((1, *shape, channels), np.float32)))
    assert decoded.shape == (1, *shape, channels)


def test_default_stack_ends_in_one_or_two_voxels_and_flattens_to_the_latent_where_it_can():
    for shape in [(3, 3), (9, 9), (21, 21), (31, 31), (45, 45), (9, 9, 9), (15, 15, 5)]:
        encoder = blocks.conv_encoder(shape, 1, 64)
        assert max(encoder.layers[-2].output.shape[1:-1]) <= 2
        assert isinstance(encoder.layers[-1], keras.layers.Flatten)
    projected = blocks.conv_encoder((15, 15), 1, 10).layers[-1]
    assert isinstance(projected, keras.layers.Dense)
    assert projected.activation is keras.activations.linear


def test_linear_code_takes_both_signs():
    patches = np.random.default_rng(0).random((50, 15, 15, 2), dtype=np.float32)
    assert float(np.min(blocks.conv_encoder((15, 15), 2, 64)(patches))) == 0
    assert float(np.min(blocks.conv_encoder((15, 15), 2, 64, linear=True)(patches))) < 0


def test_normalised_and_spectral_stacks_have_their_layers():
    encoder = blocks.conv_encoder((9, 9), 1, 4, norm="batch", spectral=True, activation="leaky_relu")
    kinds = [type(layer).__name__ for layer in encoder.layers]
    assert {"BatchNormalization", "SpectralNormalization", "LeakyReLU"} <= set(kinds)
    decoder = blocks.conv_decoder((9, 9), 1, 4, norm="group", activation="leaky_relu")
    assert "GroupNormalization" in {type(layer).__name__ for layer in decoder.layers}


def test_spectral_norm_bounds_the_largest_singular_value():
    random.seed(0)
    patch = keras.Input((5, 5, 2))
    model = keras.Model(patch, blocks.conv_stack(patch, [blocks.Stage(8)], spectral=True))
    layer = next(x for x in model.layers if isinstance(x, keras.layers.SpectralNormalization))
    layer.layer.kernel.assign(layer.layer.kernel * 10)
    for _ in range(30):  # power iterations
        model(np.ones((1, 5, 5, 2), np.float32), training=True)
    kernel = np.reshape(layer.layer.kernel.numpy(), (-1, 8))
    assert np.linalg.svd(kernel, compute_uv=False)[0] == pytest.approx(1, rel=1e-2)
