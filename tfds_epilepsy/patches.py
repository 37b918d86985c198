"""Volumes -> endless tf.data pipelines of patches and of co-located pairs.

Batch k is a pure function of (seed, k): the same on every machine and thread count, and a resumed training
asks for it with ``start_step=k``. Volumes are resident where the cohort fits the memory limit; else a window
of subjects moves over the cohort. One compiled loop draws positions and copies patches, without holding
Python's lock.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numba
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject, same_grid, scaled_position

logger = logging.getLogger(__name__)

Subjects = Iterable[Subject] | Callable[[], Iterable[Subject]]
Weights = NDArray[np.floating] | Callable[[Subject], NDArray[np.floating]]


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
    one, read meanwhile, enters. Pairs are drawn within that window. What is held is logged;
    :func:`memory_bytes` tells it beforehand.

    >>> dataset = patch_dataset(controls, sampling="pair", seed=1)
    >>> model.fit(dataset, steps_per_epoch=1000, epochs=10)

    Args:
        subjects: subjects on one grid: a list, another iterable, or a function that opens one. What does not
            fit is read again and again, so an iterator that can be read only once must fit.
        patch_shape: odd sizes in voxels, ``(x, y)`` (axial) or ``(x, y, z)``.
        sampling: ``patch`` or ``pair``.
        batch_size: patches (or pairs) a batch.
        seed: any integer.
        start_step: number of the first batch. Resuming costs nothing (with a window: reading up to it).
        weights: non-negative ``(x, y, z)`` map on the grid, for instance a tissue probability or a region, or
            a function that makes one of a subject. A subject's voxels are drawn in proportion to it.
        balance: draw every location equally often: all come, in random order, before one comes again.
        augment: layers called as ``layer(element, seed=...)``: :class:`RandomIntensity`,
            :class:`RandomMirror`.
        memory_limit: bytes. An argument, not what the machine has, so that patches are the same everywhere.
        patches_per_subject: see above; the default is what the paper draws of a subject.

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

    def new_pool() -> _Pool:
        return _Pool(patch_shape, len(names), batch_size, seed, weights, balance, memory_limit)

    resident = new_pool()
    all_fit = resident.fill(_open(subjects))
    resident.batch(start_step)  # masks that have no voxel in common show here, not in the training
    logger.info("patches: %s", resident)
    shape = (batch_size, *patch_shape, resident.channels)
    pools = {0: resident}  # by number, so that the graph can name them

    def batch(pool: tf.Tensor, step: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(
            lambda pool, step: pools[int(pool)].batch(int(step)),
            [pool, step],
            [tf.float32] * (len(names) + 1),
            stateful=False,
        )
        element = {name: tf.ensure_shape(a, shape) for name, a in zip(names, arrays[:-1], strict=True)}
        element["position"] = tf.ensure_shape(arrays[-1], (batch_size, 3))
        for number, layer in enumerate(augment):
            element = layer(element, seed=tf.stack([tf.constant((seed + number) % 2**63, tf.int64), step]))
        return element

    if all_fit:
        steps = tf.data.Dataset.counter(start_step)
        dataset = steps.map(lambda step: batch(tf.constant(0, tf.int64), step), tf.data.AUTOTUNE)
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
            number, pool = (
                next(numbers),
                new_pool(),
            )  # every iterator over the dataset has a window of its own
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
                lambda step: batch(pool, step), tf.data.AUTOTUNE
            )
        )
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def memory_bytes(
    shape: Sequence[int],
    channels: int,
    subjects: int,
    patch_shape: Sequence[int] = (15, 15),
    weighted: bool = False,
) -> int:
    """Bytes that a pipeline needs at most to hold its subjects; past ``memory_limit`` a window moves.

    Args:
        shape: ``(x, y, z)`` of a volume.
        channels: modalities.
        subjects: how many.
        patch_shape: as for :func:`patch_dataset`.
        weighted: whether voxels are drawn by weight.
    """
    grid = _Grid(tuple(shape), tuple(patch_shape))
    per_cell = 1 + 4 + 8 * weighted  # mask, list of voxels, cumulative weights
    return subjects * (4 * channels * (grid.before + grid.cells) + per_cell * grid.cells)


@keras.saving.register_keras_serializable("tfds_epilepsy")
class RandomIntensity(keras.layers.Layer):
    """Another gain, offset and noise for every patch and modality; background stays 0, values stay in [0, 1].

    Args:
        gain: intensities are multiplied by ``exp(N(0, gain))``.
        offset: standard deviation of what is added to a patch.
        noise: standard deviation of what is added to each voxel.
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
    """Left and right exchanged in half of the patches (in both of a pair), and in their positions.

    Only on request: brains are not symmetric, and a lesion often shows in that its side is wrong.
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


class _Grid:
    """How a volume lies in memory: flat, and with so many zeros around it that no patch can leave it.

    Rank-2 patches span x and y, so z comes first and y is contiguous; for rank 3 the axes keep their order. A
    row is followed by half a patch of zeros, for its own end and the start of the next; so are planes.
    """

    def __init__(self, shape: tuple[int, ...], patch_shape: tuple[int, ...]):
        self.axes = (2, 0, 1) if len(patch_shape) == 2 else (0, 1, 2)
        self.shape = tuple(shape[axis] for axis in self.axes)
        self.patch = (1,) * (3 - len(patch_shape)) + patch_shape
        half = [n // 2 for n in self.patch]
        self.padded = tuple(n + h for n, h in zip(self.shape, half, strict=True))
        self.cells = math.prod(self.padded)
        self.before = (half[0] * self.padded[1] + half[1]) * self.padded[2] + half[
            2
        ]  # zeros before the volume

    def write(self, volume: NDArray[Any], out: NDArray[Any]) -> None:
        """Write ``(x, y, z, ...)`` into ``out`` ``(cells, ...)``, which is zero elsewhere."""
        a, b, c = self.shape
        order = (*self.axes, *range(3, volume.ndim))
        out.reshape(*self.padded, *volume.shape[3:])[:a, :b, :c] = volume.transpose(order)

    def voxels(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices ``(n, 3)``, in the order x, y, z, of cells ``(n,)``."""
        stored = np.unravel_index(cells, self.padded)
        return np.stack([stored[self.axes.index(axis)] for axis in range(3)], axis=1)


class _Pool:
    """Subjects in memory, and the batches that are drawn from them."""

    def __init__(
        self,
        patch_shape: tuple[int, ...],
        views: int,
        batch_size: int,
        seed: int,
        weights: Weights | None,
        balance: bool,
        memory_limit: int,
    ):
        self.patch_shape, self.views, self.batch_size = patch_shape, views, batch_size
        self.seed = np.uint64(seed % 2**64)
        self.weights, self.balance, self.memory_limit = weights, balance, memory_limit
        self.names: dict[int, str] = {}  # slot: subject

    def __str__(self) -> str:
        return f"{self.size} subjects in memory, at most {self.size * self.bytes_each / 2**30:.2f} GiB"

    @property
    def size(self) -> int:
        return len(self.names)

    def fill(self, subjects: Iterator[Subject], first: int = 0) -> bool:
        """Take subjects, numbered from ``first`` on, until memory is full; whether those were all."""
        head = next(subjects, None)
        if head is None:
            raise InputError("no subjects: at least one is needed, two for pairs.")
        self._allocate(head)
        problems: list[str] = []
        for number, subject in enumerate(
            itertools.chain([head], itertools.islice(subjects, self.capacity - 1)), first
        ):
            try:
                self.put(subject, number)
            except InputError as error:
                problems += error.problems
        if problems:
            raise InputError(problems)
        if self.size < self.views:
            raise InputError(f"sub-{head.subject} alone: pairs need at least 2 subjects.")
        return next(subjects, None) is None

    def _allocate(self, head: Subject) -> None:
        """Arrays for as many subjects as fit; the system gives the memory once it is written to."""
        if head.image.ndim != 4:
            raise InputError(f"sub-{head.subject}: image {head.image.shape}; (x, y, z, modality) is needed.")
        self.grid_shape, self.channels, self.affine = head.image.shape[:3], head.image.shape[3], head.affine
        self.grid = _Grid(self.grid_shape, self.patch_shape)
        weighted = self.weights is not None
        self.bytes_each = memory_bytes(self.grid_shape, self.channels, 1, self.patch_shape, weighted)
        self.capacity = self.memory_limit // self.bytes_each
        if self.capacity < self.views:
            raise InputError(
                f"memory_limit {self.memory_limit}: a subject takes {self.bytes_each} bytes, "
                f"and {self.views} must be held."
            )
        cells, before = self.grid.cells, self.grid.before
        self.images = np.zeros((self.capacity, before + cells, self.channels), np.float32)
        self.masks = np.zeros((self.capacity, cells), np.bool_)
        self.cells = np.empty((self.capacity, cells), np.int32)  # those that may be drawn, and how many:
        self.counts = np.zeros(self.capacity, np.int64)
        self.cumulative = np.empty((self.capacity, cells if weighted else 0))
        self.coverage = np.zeros(cells if self.balance else 0, np.int32)
        self.locations = np.empty(0, np.int64)

    def put(self, subject: Subject, number: int) -> None:
        """Put a subject into its slot, in the place of the one that is there."""
        slot = number % self.capacity
        weights = self.weights(subject) if callable(self.weights) else self.weights
        self._check(subject, slot, weights)
        self.names[slot] = subject.subject
        if self.balance:
            self.coverage -= self.masks[slot]
        self.grid.write(subject.image, self.images[slot, self.grid.before :])
        self.grid.write(subject.brain_mask, self.masks[slot])
        cells = np.flatnonzero(self.masks[slot])
        if weights is not None:
            flat = np.zeros(self.grid.cells)
            self.grid.write(weights, flat)
            cells = cells[flat[cells] > 0]
            total = np.cumsum(flat[cells])
            self.cumulative[slot, : len(cells)] = total / total[-1]
        if self.balance:
            self.coverage += self.masks[slot]
            self.locations = np.flatnonzero(self.coverage >= self.views)
        self.cells[slot, : len(cells)] = cells
        self.counts[slot] = len(cells)

    def _check(self, subject: Subject, slot: int, weights: NDArray[np.floating] | None) -> None:
        problems = []
        image, mask = subject.image, subject.brain_mask
        if not same_grid(image.shape[:3], subject.affine, self.grid_shape, self.affine):
            problems.append(
                f"grid {image.shape[:3]} or affine differs from the first subject's {self.grid_shape}"
            )
        elif image.shape[3:] != (self.channels,):
            problems.append(f"image {image.shape}; the first subject has {self.channels} modalities")
        elif not np.isfinite(image).all():
            problems.append("the image holds values that are NaN or infinite")
        if mask.shape != image.shape[:3]:
            problems.append(f"brain mask {mask.shape} and image {image.shape[:3]} disagree")
        elif not mask.any():
            problems.append("the brain mask is empty")
        elif weights is not None:
            if weights.shape != mask.shape:
                problems.append(f"weights {weights.shape} and brain mask {mask.shape} disagree")
            elif not (np.isfinite(weights).all() and (weights >= 0).all() and weights[mask].any()):
                problems.append(
                    "weights must be finite, not negative, and positive somewhere in the brain mask"
                )
        if subject.subject in (name for other, name in self.names.items() if other != slot):
            problems.append("the subject is there twice; labels must differ")
        if problems:
            raise InputError([f"sub-{subject.subject}: {problem}." for problem in problems])

    def batch(self, step: int) -> list[NDArray[np.float32]]:
        """The patches (of both of a pair) ``(b, *patch_shape, m)`` and the positions ``(b, 3)`` of a step."""
        _Exit.calls += 1
        if _Exit.closing:
            raise RuntimeError("the interpreter is closing.")
        shape = (self.batch_size, *self.patch_shape, self.channels)
        patches = [np.empty(shape, np.float32) for _ in range(self.views)]
        cells = np.empty(self.batch_size, np.int64)
        rows, planes = self.grid.padded[2], self.grid.padded[1] * self.grid.padded[2]
        drawn = _draw(
            cells,
            patches[0].reshape(self.batch_size, -1),
            patches[-1].reshape(self.batch_size, -1),
            self.images.reshape(self.capacity, -1),
            self.masks,
            self.cells,
            self.counts[: self.size],
            self.cumulative,
            self.locations,
            self.grid.patch,
            (planes, rows),
            self.channels,
            self.views == 2,
            self.seed,
            step * self.batch_size,
        )
        if not drawn:
            raise InputError("the brain masks have no voxel in common, or hardly any: no pairs can be drawn.")
        return [*patches, scaled_position(self.grid.voxels(cells), self.affine)]


class _Exit:
    """Lets tf.data's threads, which read ahead, come to rest before the interpreter goes.

    A thread that waits for Python's lock while the interpreter takes an iterator down would wait for ever.
    """

    closing = False
    calls = 0

    @classmethod
    def rest(cls) -> None:
        cls.closing, before = True, -1
        while before != cls.calls:  # what they read ahead is bounded
            before = cls.calls
            time.sleep(0.05)


atexit.register(_Exit.rest)


@numba.njit(nogil=True, cache=True)
def _draw(
    drawn: NDArray[np.int64],
    patches: NDArray[np.float32],
    partners: NDArray[np.float32],
    images: NDArray[np.float32],
    masks: NDArray[np.bool_],
    cells: NDArray[np.int32],
    counts: NDArray[np.int64],
    cumulative: NDArray[np.float64],
    locations: NDArray[np.int64],
    patch: tuple[int, ...],
    strides: tuple[int, ...],
    channels: int,
    pairs: bool,
    seed: np.uint64,
    first: int,
) -> bool:
    """Draw the patches numbered from ``first`` on; False where no pair is found."""
    size = len(counts)
    for row in range(len(drawn)):
        number = first + row
        state = _mixed(seed ^ _mixed(np.uint64(number)))
        for _ in range(100_000):
            state, u = _uniform(state)
            subject = int(u * size)
            if len(locations):  # every location once, then again in another order
                key = _mixed(seed + np.uint64(number // len(locations)))
                cell = locations[_shuffled(number % len(locations), len(locations), key)]
                found = masks[subject, cell]
            else:
                state, u = _uniform(state)
                count = counts[subject]
                if cumulative.shape[1]:
                    cell = cells[subject, np.searchsorted(cumulative[subject, :count], u, side="right")]
                else:
                    cell = cells[subject, int(u * count)]
                found = True
            partner = subject
            if pairs:
                state, u = _uniform(state)
                partner = int(u * (size - 1))
                partner += partner >= subject
                found = found and masks[partner, cell]
            if found:
                break
        else:
            return False
        drawn[row] = cell
        _copy(images[subject], cell, patches[row], patch, strides, channels)
        if pairs:
            _copy(images[partner], cell, partners[row], patch, strides, channels)
    return True


@numba.njit(nogil=True, cache=True)
def _copy(image, cell, out, patch, strides, channels):
    """Copy the patch around ``cell``: with zeros before the volume, its first row starts there."""
    width = patch[2] * channels
    to = 0
    for a in range(patch[0]):
        for b in range(patch[1]):
            start = (cell + a * strides[0] + b * strides[1]) * channels
            for c in range(width):
                out[to + c] = image[start + c]
            to += width


@numba.njit(nogil=True, cache=True)
def _mixed(value):
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _uniform(state):
    """The next state of SplitMix64 and a float64 in [0, 1)."""
    state += np.uint64(0x9E3779B97F4A7C15)
    return state, np.float64(_mixed(state) >> np.uint64(11)) * 2.0**-53


@numba.njit(nogil=True, cache=True)
def _shuffled(index, count, key):
    """Where a random permutation of ``range(count)`` sends ``index``: Feistel rounds, until it is inside."""
    half = np.uint64(1)
    while (1 << (2 * int(half))) < count:
        half += np.uint64(1)
    low = (np.uint64(1) << half) - np.uint64(1)
    value = np.uint64(index)
    while True:
        left, right = value >> half, value & low
        for turn in range(4):
            left, right = right, left ^ (_mixed(right ^ _mixed(key + np.uint64(turn))) & low)
        value = (left << half) | right
        if value < np.uint64(count):
            return int(value)
