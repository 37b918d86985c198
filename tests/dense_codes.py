"""Volumes to encode, the codes of each patch, and what counts as equal."""

import numpy as np


def volume_of(shape=(9, 7, 3), channels=2, seed=1):
    return np.random.default_rng(seed).random((*shape, channels), np.float32)


def codes_by_patch(encoder, volume):
    """The encoder on the zero-padded patch of every voxel: what DenseEncoder must equal."""
    patch_shape = (*encoder.input_shape[1:-1], 1)[:3]
    padded = np.pad(volume, [(n // 2, n // 2) for n in patch_shape] + [(0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, patch_shape, axis=(0, 1, 2))
    patches = np.moveaxis(windows, 3, -1).reshape(-1, *encoder.input_shape[1:])
    codes = np.concatenate(
        [np.asarray(encoder(part)) for part in np.array_split(patches, 1 + len(patches) // 4096)]
    )
    return codes.reshape(*volume.shape[:3], -1)


def assert_equal(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)
