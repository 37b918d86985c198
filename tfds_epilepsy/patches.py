"""Volumes -> endless tf.data pipelines of patches and of co-located pairs.

Batch k is a pure function of (seed, k): the same on every machine and thread count, and a resumed training
asks for it with ``start_step=k``. Volumes are resident where the cohort fits the memory limit; else a window
of subjects moves over the cohort. One compiled loop draws positions and copies patches, without
Python's lock (:mod:`~tfds_epilepsy.patch_pool`).
"""

from __future__ import annotations

import atexit
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.patch_pool import PatchPool, Weights, memory_bytes
from tfds_epilepsy.progress import stderr
from tfds_epilepsy.volumes import Subject

__all__ = ["RandomIntensity", "RandomMirror", "memory_bytes", "patch_dataset"]

THREADS = min(os.cpu_count() or 1, 4)  # as many batches are made at a time; four outrun any training

Subjects = Iterable[Subject] | Callable[[], Iterable[Subject]]


def patch_dataset(
    subjects: Subjects,
    patch_shape: Sequence[int] = (15, 15),
    *,
    sampling: str = "patch",
    batch_size: int = 256,
    seed: int = 0,
    start_step: int = 0,
    weights: Weights | None = None,
    balance: bool = False,
    augment: Sequence[keras.layers.Layer] = (),
    memory_limit: int = 4 * 2**30,
    patches_per_subject: int = 25_000,
) -> tf.data.Dataset:
    """Endless batches of patches centred on voxels of the brain mask, zero beyond the volume.

    A subject is drawn uniformly, then a voxel of its mask, uniformly or by ``weights``. A pair is one voxel
    in two subjects, in the masks of both (Alaverdyan et al. 2020, Medical Image Analysis 60:101618).

    Where the cohort takes more than ``memory_limit``, as many subjects as fit are held at a time, in the
    order of the source, over and over: every ``patches_per_subject`` patches the oldest leaves and the next
    one, read meanwhile, enters. Pairs are drawn within that window. The memory
    that volumes will take is printed before they are read; :func:`memory_bytes` tells it too.

    Example:
        >>> batch = next(iter(patch_dataset(controls, sampling="pair", batch_size=4, seed=1)))
        >>> sorted(batch), batch["patch"].shape
        (['partner', 'patch', 'position'], TensorShape([4, 15, 15, 2]))

    Args:
        subjects: subjects on one grid: a list, another iterable, or a function that opens one. What does not
            fit is read again and again, so an iterator that can be read only once must fit into memory.
        patch_shape: odd sizes in voxels, ``(x, y)`` (axial) or ``(x, y, z)``.
        sampling: ``patch`` or ``pair``.
        batch_size: patches (or pairs) per batch.
        seed: any integer.
        start_step: number of the first batch. To resume costs nothing; with a window, the subjects before it
            are read.
        weights: non-negative ``(x, y, z)`` map on the grid, for instance a tissue probability or a region, or
            a function that makes one of a subject. A subject's voxels are drawn in proportion to it.
        balance: draw every location equally often: all of them come, in random order, before one comes again.
        augment: layers called as ``layer(element, seed=...)``: :class:`RandomIntensity`,
            :class:`RandomMirror`.
        memory_limit: bytes that the volumes may take. It does not depend on the machine, so that patches are
            the same everywhere.
        patches_per_subject: see above; the default is what the paper draws from each subject.

    Returns:
        Dataset of dicts of float32: ``patch`` ``(b, *patch_shape, m)``, ``position`` ``(b, 3)`` (in the
        template's box, [-1, 1], see :func:`~tfds_epilepsy.volumes.scaled_position`) and, for pairs,
        ``partner``, shaped like ``patch``.

    Raises:
        InputError: bad arguments, grids that disagree, empty masks, too few subjects, a subject given twice,
            values that are not finite. A subject that enters the window later fails in the pipeline, with
            that message.
    """
    patch_shape = tuple(patch_shape)
    _check_arguments(patch_shape, sampling, batch_size, start_step, weights, balance, patches_per_subject)
    names = ("patch", "partner") if sampling == "pair" else ("patch",)

    def new_pool() -> PatchPool:
        return PatchPool(patch_shape, len(names), batch_size, seed, weights, balance, memory_limit)

    resident = new_pool()
    all_fit = resident.fill(
        _open(subjects), count=len(subjects) if isinstance(subjects, Sequence) else None, say=_say
    )
    resident.batch(start_step)  # masks that have no voxel in common show here, not in the training
    shape = (batch_size, *patch_shape, resident.channels)
    pools = {0: resident}  # by number, so that the graph can name them

    def arrays_of(pool: int, step: int) -> list[NDArray[np.float32]]:
        _Exit.check()
        return pools[int(pool)].batch(int(step))

    def batch(pool: tf.Tensor, step: tf.Tensor) -> dict[str, tf.Tensor]:
        kinds = [tf.float32] * (len(names) + 1)
        arrays = tf.numpy_function(arrays_of, [pool, step], kinds, stateful=False)
        element = {name: tf.ensure_shape(a, shape) for name, a in zip(names, arrays[:-1], strict=True)}
        element["position"] = tf.ensure_shape(arrays[-1], (batch_size, 3))
        for number, layer in enumerate(augment):
            element = layer(element, seed=tf.stack([tf.constant((seed + number) % 2**63, tf.int64), step]))
        return element

    if all_fit:
        steps = tf.data.Dataset.counter(start_step)
        dataset = steps.map(lambda step: batch(tf.constant(0, tf.int64), step), THREADS)
    else:
        if iter(_open(subjects)) is subjects:
            raise InputError(
                f"memory_limit {memory_limit}: the subjects do not fit, and an iterator can be read only "
                "once; give a list or a function that opens it, or raise the limit."
            )
        size, numbers = pools.pop(0).size, itertools.count()
        steps_each = math.ceil(patches_per_subject / batch_size)

        def windows() -> Iterator[tuple[int, int, int]]:
            """One window after the other: its pool, first step, and the step after its last."""
            first = start_step // steps_each
            stream = _endless(subjects, first)
            number, pool = next(numbers), new_pool()  # each iterator over the dataset has a window of its own
            pool.fill(itertools.islice(stream, size), first)
            pools[number] = pool
            with ThreadPoolExecutor(1) as reader:
                try:
                    for window in itertools.count(first):
                        upcoming = reader.submit(next, stream)
                        yield number, max(start_step, window * steps_each), (window + 1) * steps_each
                        pool.put(upcoming.result(), window)  # flat_map comes back once those batches are made
                finally:
                    del pools[number]

        dataset = tf.data.Dataset.from_generator(
            windows, output_signature=(tf.TensorSpec((), tf.int64),) * 3
        ).flat_map(
            lambda pool, first, stop: tf.data.Dataset.range(first, stop).map(
                lambda step: batch(pool, step), THREADS
            )
        )
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(2).with_options(options)


@keras.saving.register_keras_serializable("tfds_epilepsy")
class RandomIntensity(keras.layers.Layer):
    """Change gain, offset and noise of every patch and modality; background stays 0, values stay in [0, 1].

    Example:
        >>> batch = next(iter(patch_dataset(controls, batch_size=4, augment=[RandomIntensity(noise=0.05)])))
        >>> batch["patch"].shape
        TensorShape([4, 15, 15, 2])

    Args:
        gain: intensities are multiplied by ``exp(N(0, gain))``.
        offset: standard deviation of a value that is added to all of a patch.
        noise: standard deviation of the values that are added to each voxel.
    """

    def __init__(self, gain: float = 0.1, offset: float = 0.05, noise: float = 0.02, **kwargs: Any):
        super().__init__(**kwargs)
        self.gain, self.offset, self.noise = gain, offset, noise

    def call(self, element: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        element = dict(element)
        for number, name in enumerate(name for name in ("patch", "partner") if name in element):
            patch = element[name]
            shape = tf.shape(patch)
            one = tf.concat([shape[:1], tf.ones_like(shape[1:-1]), shape[-1:]], 0)  # (b, 1, ..., 1, m)
            seeds = tf.random.split(tf.random.fold_in(seed, number), 3, alg="philox")
            changed = patch * tf.exp(self.gain * tf.random.stateless_normal(one, seeds[0], alg="philox"))
            changed += self.offset * tf.random.stateless_normal(one, seeds[1], alg="philox")
            changed += self.noise * tf.random.stateless_normal(shape, seeds[2], alg="philox")
            element[name] = tf.where(patch == 0, 0.0, tf.clip_by_value(changed, 0, 1))
        return element

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gain": self.gain, "offset": self.offset, "noise": self.noise}


@keras.saving.register_keras_serializable("tfds_epilepsy")
class RandomMirror(keras.layers.Layer):
    """Exchange left and right in half of the patches (in both of a pair), and in their positions.

    Use it only on purpose: brains are not symmetric, and a lesion often shows as a difference of the sides.

    Example:
        >>> batch = next(iter(patch_dataset(controls, batch_size=4, augment=[RandomMirror()])))
        >>> batch["patch"].shape
        TensorShape([4, 15, 15, 2])
    """

    def call(self, element: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        chosen = tf.random.stateless_uniform(tf.shape(element["position"])[:1], seed, alg="philox") < 0.5
        result = {}
        for name, value in element.items():
            mirrored = value * [-1.0, 1.0, 1.0] if name == "position" else tf.reverse(value, [1])
            result[name] = tf.where(tf.reshape(chosen, [-1] + [1] * (value.shape.rank - 1)), mirrored, value)
        return result


def _check_arguments(
    patch_shape: tuple[int, ...],
    sampling: str,
    batch_size: int,
    start_step: int,
    weights: Weights | None,
    balance: bool,
    patches_per_subject: int,
) -> None:
    problems = []
    if len(patch_shape) not in (2, 3) or any(n != int(n) or n < 1 or n % 2 == 0 for n in patch_shape):
        problems.append(f"patch_shape {patch_shape}: give 2 or 3 odd sizes, such as (15, 15) or (9, 9, 9).")
    if sampling not in ("patch", "pair"):
        problems.append(f"sampling {sampling!r}: choose 'patch' or 'pair'.")
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("start_step", start_step, 0),
        ("patches_per_subject", patches_per_subject, 1),
    ):
        if value != int(value) or value < least:
            problems.append(f"{name} {value!r}: an integer of at least {least} is needed.")
    if balance and weights is not None:
        problems.append("weights and balance contradict each other: give one of them.")
    if problems:
        raise InputError(problems)


def _say(memory: str) -> None:
    stderr.print(f"patches: {memory}", soft_wrap=True)


def _open(subjects: Subjects) -> Iterator[Subject]:
    return iter(subjects() if callable(subjects) else subjects)


def _endless(subjects: Subjects, start: int) -> Iterator[Subject]:
    """The subjects over and over, from number ``start`` of that series on."""
    if isinstance(subjects, Sequence):
        yield from (subjects[number % len(subjects)] for number in itertools.count(start))
    while True:
        count = 0
        for count, subject in enumerate(_open(subjects), 1):
            if count > start:
                yield subject
        start = max(0, start - count) % count


class _Exit:
    """Lets tf.data's threads, which read ahead, come to rest before the interpreter goes.

    A thread that waits for Python's lock while the interpreter takes an iterator down would wait for ever.
    """

    closing = False
    calls = 0

    @classmethod
    def check(cls) -> None:
        cls.calls += 1
        if cls.closing:
            raise RuntimeError("the interpreter is closing.")

    @classmethod
    def rest(cls) -> None:
        cls.closing, before = True, -1
        while before != cls.calls:  # what they read ahead is bounded
            before = cls.calls
            time.sleep(0.05)


atexit.register(_Exit.rest)
