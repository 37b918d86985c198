"""Dense encoding of a 1 mm volume against patch by patch of the same encoder.

    python -m benchmarks.dense

One run: the methods take turns, so that a busy machine disturbs all alike; medians of times and of ratios.
Patch by patch is timed on a sample of brain voxels, its patches cut beforehand and not counted, and scaled to
the voxels of the volume. Dense times hold the allocation of the result, a gigabyte for every voxel.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from statistics import median

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from epizoo.dense import DenseEncoder
from tfds_epilepsy.volumes import load_template

ROUNDS = 5
SAMPLE = 16_384  # patches a round
BATCHES = (256, 1024, 4096)  # the fastest counts


def reference_encoder() -> keras.Model:
    """The encoder of Alaverdyan et al. 2020: 15x15 patches of two modalities to 64 features."""
    patch = keras.Input((15, 15, 2), name="patch")
    x = layers.Conv2D(16, 3, activation="relu")(patch)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    return keras.Model(patch, layers.Flatten(name="latent")(x))


def template_volume() -> tuple[np.ndarray, np.ndarray]:
    """T1 of the 1 mm template and a FLAIR-like mix of its tissues ``(149, 187, 157, 2)``; its brain mask."""
    template = load_template(1)
    flair = 0.75 * template.gm + 0.6 * template.wm + 0.15 * template.csf
    return np.stack([template.t1, flair], axis=-1) * template.brain_mask[..., None], template.brain_mask


def patches_at(volume: np.ndarray, voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Axial patches ``(n, *shape, m)`` around voxels ``(n, 3)``."""
    padded = np.pad(volume, [(n // 2, n // 2) for n in shape] + [(0, 0), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, shape, axis=(0, 1))
    return np.ascontiguousarray(np.moveaxis(windows[tuple(voxels.T)], 1, -1))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds: the second tells what a machine shared with others would hide."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    encoder = reference_encoder()
    dense = DenseEncoder(encoder)
    volume, mask = template_volume()
    voxels = math.prod(mask.shape)
    rng = np.random.default_rng(0)
    sample = np.argwhere(mask)[rng.choice(np.count_nonzero(mask), SAMPLE, replace=False)]
    patches = patches_at(volume, sample, dense.patch_shape)

    encode = tf.function(lambda patch: encoder(patch, training=False), autograph=False)

    def by_function(size: int) -> list[np.ndarray]:
        return [encode(tf.constant(patches[i : i + size])).numpy() for i in range(0, SAMPLE, size)]

    def by_predict(size: int) -> np.ndarray:
        return encoder.predict(patches, batch_size=size, verbose=0)

    matrix = tf.random.stateless_normal((2048, 2048), (0, 1))
    matmul = tf.function(lambda: tf.matmul(matrix, matrix), autograph=False)

    expected = np.concatenate(by_function(1024))
    codes = dense(volume)
    difference = np.abs(codes[tuple(sample.T)] - expected).max() / np.abs(expected).max()
    masked = dense.codes_at(volume, mask)
    same = np.array_equal(masked, codes[mask])
    del codes, masked

    methods: dict[str, Callable[[], object]] = {
        "dense": lambda: dense(volume),
        "dense, mask": lambda: dense.codes_at(volume, mask),
        **{f"function {size}": lambda size=size: by_function(size) for size in BATCHES},  # type: ignore[misc]
        **{f"predict {size}": lambda size=size: by_predict(size) for size in BATCHES},  # type: ignore[misc]
        "matmul": lambda: [matmul() for _ in range(10)],
    }
    for work in methods.values():
        work()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, work in methods.items():
            times[name].append(seconds(work))

    flops = voxels * sum(2 * math.prod(layer.kernel.shape) for layer in encoder.layers if layer.weights)
    product = 10 * 2 * 2048**3
    print(f"volume {volume.shape}: {voxels} voxels, {np.count_nonzero(mask)} in the mask")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {ROUNDS} rounds")
    for name, label in (("dense", "every voxel"), ("dense, mask", "voxels of the mask")):
        wall, processor = np.median(times[name], axis=0)
        print(f"{'dense, ' + label:40}{wall:8.2f} s  {processor:8.2f} processor s")
    for kind, label, target in (("function", "one tf.function", 20), ("predict", "model.predict", 50)):
        best = min((f"{kind} {size}" for size in BATCHES), key=lambda name: median(t[0] for t in times[name]))
        scaled = np.array(times[best]) * voxels / SAMPLE
        wall, processor = np.median(scaled, axis=0)
        print(f"{f'patch by patch, {label}, scaled':40}{wall:8.2f} s  {processor:8.2f} processor s  ({best})")
        wall, processor = np.median(scaled / np.array(times["dense"]), axis=0)
        print(f"{'  over dense':40}{wall:8.1f} x  {processor:8.1f} x  (target {target})")
    print(f"largest difference, relative to the largest code: {difference:.1e} (target 1e-5)")
    print(f"codes at the mask equal those of every voxel: {same}")
    for column, label in ((0, "wall"), (1, "processor")):
        rate = median(flops / t[column] / 1e9 for t in times["dense"])
        peak = median(product / t[column] / 1e9 for t in times["matmul"])
        print(
            f"{flops / 1e9:.1f} GFLOP, {rate:.0f} a {label} s; a matrix product {peak:.0f}: {rate / peak:.0%}"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
