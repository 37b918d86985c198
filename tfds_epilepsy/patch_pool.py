"""Subjects in memory, and the patches drawn from them: NumPy and one compiled loop, without Python's lock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject, scaled_position, subject_problems

Weights = NDArray[np.floating] | Callable[[Subject], NDArray[np.floating]]


class PatchPool:
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

    @property
    def size(self) -> int:
        return len(self.names)

    def fill(
        self,
        subjects: Iterator[Subject],
        first: int = 0,
        *,
        count: int | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> bool:
        """Take subjects, numbered from ``first`` on, until memory is full; return whether those were all.

        Args:
            subjects: where they come from.
            first: number of the first.
            count: how many there are, where that is known.
            say: called with how much memory this will take, before it is taken.
        """
        head = next(subjects, None)
        if head is None:
            raise InputError("no subjects: at least one is needed, two for pairs.")
        self._allocate(head)
        say(self._memory(count))
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
        self.first = head.subject
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

    def _memory(self, count: int | None) -> str:
        held = self.capacity if count is None else min(count, self.capacity)
        subjects = f"{held} subjects" if held == count else f"at most {held} subjects at a time"
        each, total = self.bytes_each / 2**20, held * self.bytes_each / 2**30
        return f"{subjects} in memory, {each:.1f} MiB each: at most {total:.2f} GiB"

    def put(self, subject: Subject, number: int) -> None:
        """Put a subject into its slot, in the place of the one that is there."""
        slot = number % self.capacity
        weights = self.weights(subject) if callable(self.weights) else self.weights
        weights = None if weights is None else np.asarray(weights)
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
        first = f"sub-{self.first}"
        problems = subject_problems(subject, self.grid_shape, self.affine, self.channels, first)
        name, mask = f"sub-{subject.subject}", subject.brain_mask
        if weights is not None and not problems:
            if weights.shape != mask.shape:
                problems.append(f"{name}: weights {weights.shape} and brain mask {mask.shape} disagree.")
            elif not (np.isfinite(weights).all() and (weights >= 0).all() and weights[mask].any()):
                problems.append(
                    f"{name}: weights must be finite, not negative, and positive somewhere in the brain mask."
                )
        if subject.subject in (held for other, held in self.names.items() if other != slot):
            problems.append(f"{name}: the subject is there twice; labels must differ.")
        if problems:
            raise InputError(problems)

    def batch(self, step: int) -> list[NDArray[np.float32]]:
        """The patches (of both of a pair) ``(b, *patch_shape, m)`` and the positions ``(b, 3)`` of a step."""
        shape = (self.batch_size, *self.patch_shape, self.channels)
        patches = [_aligned(shape) for _ in range(self.views)]
        cells = np.empty(self.batch_size, np.int64)
        subjects = np.empty((self.views, self.batch_size), np.int64)
        drawn = _draw(
            cells,
            subjects,
            self.masks,
            self.cells,
            self.counts[: self.size],
            self.cumulative,
            self.locations,
            self.seed,
            step * self.batch_size,
        )
        if not drawn:
            raise InputError("the brain masks have no voxel in common, or hardly any: no pairs can be drawn.")
        images = self.images.reshape(self.capacity, -1)
        strides = (self.grid.padded[1] * self.grid.padded[2], self.grid.padded[2])
        for view, owners in zip(patches, subjects, strict=True):
            flat = view.reshape(self.batch_size, -1)
            _copy(flat, images, owners, cells, self.grid.patch, strides, self.channels)
        return [*patches, scaled_position(self.grid.voxels(cells), self.affine)]


def memory_bytes(
    shape: Sequence[int],
    channels: int,
    subjects: int,
    patch_shape: Sequence[int] = (15, 15),
    weighted: bool = False,
) -> int:
    """The bytes that a pipeline needs at most to hold its subjects; past ``memory_limit`` a window moves.

    Example:
        >>> round(memory_bytes((75, 94, 79), 2, subjects=40) / 2**30, 2)  # GiB
        0.32

    Args:
        shape: ``(x, y, z)`` of a volume.
        channels: modalities.
        subjects: how many subjects.
        patch_shape: as for :func:`patch_dataset`.
        weighted: whether voxels are drawn by weight.
    """
    grid = _Grid(tuple(shape), tuple(patch_shape))
    per_cell = 1 + 4 + 8 * weighted  # mask, list of voxels, cumulative weights
    return subjects * (4 * channels * (grid.before + grid.cells) + per_cell * grid.cells)


class _Grid:
    """How a volume lies in memory: flat, and with so many zeros around it that no patch can leave it.

    Rank-2 patches span x and y, so z comes first and y is contiguous; for rank 3 the axes keep their order. A
    row is followed by half a patch of zeros, for its own end and the start of the next; so is a plane.
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


def _aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An empty array that TensorFlow takes as it is; it would copy one that does not start at 64 bytes."""
    size = math.prod(shape)
    buffer = np.empty(size + 16, np.float32)
    start = -buffer.ctypes.data % 64 // 4
    return buffer[start : start + size].reshape(shape)


@numba.njit(nogil=True, cache=True)
def _draw(
    cells: NDArray[np.int64],
    subjects: NDArray[np.int64],
    masks: NDArray[np.bool_],
    allowed: NDArray[np.int32],
    counts: NDArray[np.int64],
    cumulative: NDArray[np.float64],
    locations: NDArray[np.int64],
    seed: np.uint64,
    first: int,
) -> bool:
    """Draw ``cells`` (b,) and ``subjects`` (views, b) of the patches numbered from ``first`` on.

    False where no pair is found.
    """
    size, pairs = len(counts), len(subjects) == 2
    for row in range(len(cells)):
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
                    cell = allowed[subject, np.searchsorted(cumulative[subject, :count], u, side="right")]
                else:
                    cell = allowed[subject, int(u * count)]
                found = True
            if pairs:
                state, u = _uniform(state)
                partner = int(u * (size - 1))
                partner += partner >= subject
                found = found and masks[partner, cell]
                subjects[1, row] = partner
            if found:
                break
        else:
            return False
        cells[row], subjects[0, row] = cell, subject
    return True


@numba.njit(nogil=True, cache=True)
def _copy(
    patches: NDArray[np.float32],
    images: NDArray[np.float32],
    subjects: NDArray[np.int64],
    cells: NDArray[np.int64],
    patch: tuple[int, ...],
    strides: tuple[int, ...],
    channels: int,
) -> None:
    """Copy the patches around ``cells``: with zeros before the volume, their first rows start there.

    Unsigned indices cannot count from the end, which makes the loop four times as fast. Patches lie all over
    memory, so copying is waiting for it: while one is copied, the rows of a later one are asked for.
    """
    width, line = np.uint64(patch[2] * channels), np.uint64(64 // 4)
    ahead = 1 + 128 // (patch[0] * patch[1])
    for row in range(len(cells)):
        image, out = images[subjects[row]], patches[row]
        later = min(row + ahead, len(cells) - 1)
        upcoming = images[subjects[later]]
        to = np.uint64(0)
        for a in range(patch[0]):
            for b in range(patch[1]):
                offset = a * strides[0] + b * strides[1]
                start = np.uint64((cells[later] + offset) * channels)
                for c in range(start, start + width, line):
                    prefetch(upcoming, c)
                prefetch(upcoming, start + width - np.uint64(1))
                start = np.uint64((cells[row] + offset) * channels)
                for c in range(width):
                    out[to + np.uint64(c)] = image[start + np.uint64(c)]
                to += width


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the memory at ``array[index]``, without waiting for it: LLVM's prefetch, for reading."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(call, [address, whole(0), whole(2), whole(1)])  # to read; into the L2 cache; data
        return context.get_dummy_value()

    return types.void(array, index), codegen


prefetch: Any = intrinsic(_prefetch)  # called with array and index in compiled code


@numba.njit(nogil=True, cache=True)
def _mixed(value: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _uniform(state: np.uint64) -> tuple[np.uint64, float]:
    """The next state of SplitMix64 and a float64 in [0, 1)."""
    state += np.uint64(0x9E3779B97F4A7C15)
    return state, np.float64(_mixed(state) >> np.uint64(11)) * 2.0**-53


@numba.njit(nogil=True, cache=True)
def _shuffled(index: int, count: int, key: np.uint64) -> int:
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
