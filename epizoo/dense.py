"""An encoder's code at every voxel of a volume, exactly.

Encoding the patch around each voxel repeats almost all of its work at the next one. Here the patch encoder is
rewritten to run once over whole slices (axial patches) or blocks of slices (3-D patches): strides and pools
become dilations of everything that follows them (the à trous form: Giusti et al. 2013, arXiv 1302.1700;
Sermanet et al. 2014, arXiv 1312.6229), Flatten + Dense becomes one dilated convolution. The result is that of
the patches, to float32 rounding; what has no such form is an error that names the layer.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from epizoo.dense_convert import codes_of
from tfds_epilepsy.errors import InputError

# Working memory of one step. Small enough that layers hand over their maps in cache (measured: 2 to 3 times
# faster than one step for the whole volume), large enough for several slices (oneDNN takes twice as long for
# a slice by itself).
STEP_BYTES = 128 * 2**20
# Steps side by side: much of one (gathers, copies, fresh memory) keeps a single core busy.
WORKERS = min(os.cpu_count() or 1, 4)


class DenseEncoder:
    """A patch encoder at every voxel of a volume.

    ``DenseEncoder(encoder)(volume)[i, j, k]`` equals ``encoder`` of the zero-padded patch centred at voxel
    ``(i, j, k)``. The weights are the encoder's own: train it further and the dense form follows.

    Converted: convolutions (strided, dilated, grouped, depthwise, separable), max and average pools, global
    pools, crops and slices, layers that act on each position alone (activations, batch normalisation in
    inference mode, rescaling, dropout, Dense on channels, ...), element-wise sums and channel concatenations
    of branches of one stride, nested models, spectral normalisation; Flatten, Reshape or a global pool, and
    after them any layer at all. Not convertible, because a position of the patch then depends on where in
    the patch it lies: zero padding inside the encoder, statistics over the patch that go back into it,
    upsampling, branches of different strides that meet before they are flattened.

    Args:
        encoder: a functional Keras model of one input ``(batch, *patch_shape, m)``, rank 2 (axial: x and y at
            one z) or 3, odd sizes, and one output ``(batch, d)``.

    Raises:
        InputError: a layer that cannot be converted, by name; an encoder of another form.

    Example:
        >>> patch = keras.Input((15, 15, 2), name="patch")
        >>> x = keras.layers.Conv2D(16, 3, activation="relu")(patch)
        >>> latent = keras.layers.Flatten(name="latent")(keras.layers.MaxPooling2D(4)(x))
        >>> DenseEncoder(keras.Model(patch, latent))(np.zeros((20, 30, 10, 2), np.float32)).shape
        (20, 30, 10, 144)
    """

    def __init__(self, encoder: keras.Model):
        patch_shape, channels, latent_dim = _check_form(encoder)
        self.encoder = encoder
        self.patch_shape = patch_shape
        self.channels = channels
        self.latent_dim = latent_dim
        self._floats_per_voxel = max(channels, 2 * latent_dim)
        form = tf.TensorSpec((None,) * (len(patch_shape) + 1) + (channels,), tf.float32)
        voxels = tf.TensorSpec((None, len(patch_shape) + 1), tf.int32)
        self._encode = tf.function(self._convert, input_signature=[form], autograph=False)
        self._encode_at = tf.function(self._convert, input_signature=[form, voxels], autograph=False)
        self._form, self._strided = form, dict[int, Any]()
        self._check_equal()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.encoder,)  # compiled functions cannot be copied or sent to a process

    def __call__(self, volume: NDArray[np.floating], z: slice | None = None) -> NDArray[np.float32]:
        """The code at every voxel of some axial slices.

        Args:
            volume: ``(x, y, z, m)``; patches that reach past it are zero-padded.
            z: which slices, all by default.

        Returns:
            ``(x, y, nz, d)`` float32; its memory runs slice by slice, each slice contiguous.

        Raises:
            InputError: another shape, values that are not finite, slices with a step.
        """
        volume = self._check_volume(volume)
        slices = _slices(z, volume.shape[2])
        shape = (len(slices), *volume.shape[:2], self.latent_dim)
        codes = np.moveaxis(
            np.empty(shape, np.float32), 0, 2
        )  # memory slice by slice: each is written at once

        def encode(step: range) -> None:
            part = codes[:, :, step.start - slices.start : step.stop - slices.start]
            box = self._foreground(volume, step)
            if part[box].shape != part.shape:
                part[:] = self._background()
            if part[box].size:
                block = _array(self._encode(self._padded(volume, step, box)))
                part[box] = np.moveaxis(block, 0, 2) if self._axial else block[0]

        _side_by_side(encode, self._steps(slices, volume.shape))
        return codes

    def codes_at(
        self,
        volume: NDArray[np.floating],
        mask: NDArray[np.bool_],
        z: slice | None = None,
        stride: int = 1,
    ) -> NDArray[np.float32]:
        """The codes at the voxels of a mask alone: less work and memory than all voxels.

        With a stride the encoder is asked at the central voxel of each cube of ``stride`` voxels alone, and
        the codes between are interpolated linearly: for what is smoothed more widely anyway.

        Args:
            volume: ``(x, y, z, m)``.
            mask: ``(x, y, z)`` bool.
            z: which slices, all by default.
            stride: voxels from one that is asked about to the next.

        Returns:
            ``(v, d)`` float32, in the order of ``np.nonzero(mask[:, :, z])``.

        Raises:
            InputError: as when called; a mask of another shape.
        """
        volume = self._check_volume(volume)
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != volume.shape[:3]:
            raise InputError(f"mask of shape {mask.shape} for a volume of shape {volume.shape}.")
        slices = _slices(z, volume.shape[2])
        wanted = mask[:, :, slices.start : slices.stop]
        if stride > 1:
            return self._interpolated(volume, slices, stride)[wanted]
        codes = np.empty((np.count_nonzero(wanted), self.latent_dim), np.float32)
        rows = np.cumsum(wanted, dtype=np.int64).reshape(wanted.shape) - 1

        def encode(step: range) -> None:
            here = slice(step.start - slices.start, step.stop - slices.start)
            box = _box(wanted[:, :, here].any(axis=2))
            if not wanted[box].size:
                return
            x, y, k = np.nonzero(wanted[(*box, here)])
            order = (k, x, y) if self._axial else (np.zeros_like(k), x, y, k)
            block = self._encode_at(self._padded(volume, step, box), np.stack(order, axis=1).astype(np.int32))
            codes[rows[(*box, here)][x, y, k]] = _array(block)

        _side_by_side(encode, self._steps(slices, volume.shape))
        return codes

    def in_graph(self, volume: tf.Tensor) -> tf.Tensor:
        """The whole volume in TensorFlow operations alone, for graphs and exports.

        Runs of slices one after the other: memory is that of ``STEP_BYTES`` or a slice, and of three results,
        since they are put together and reordered.

        Args:
            volume: ``(x, y, z, m)`` float32, of unknown size if need be.

        Returns:
            ``(x, y, z, d)`` float32.
        """
        padded = self.padded_in_graph(volume)
        plane = tf.cast(tf.reduce_prod(tf.shape(padded)[:2]), tf.int64)
        count = tf.cast(STEP_BYTES // (4 * self._floats_per_voxel * plane), tf.int32)
        codes = in_runs(
            tf.shape(volume)[2],
            tf.maximum(count - self._halo, self._halo + 1),
            lambda start, stop: self.slices_in_graph(padded, start, stop),
            tf.TensorSpec((None, None, None, self.latent_dim), tf.float32),
        )
        return tf.transpose(codes, (1, 2, 0, 3))

    def interpolated_in_graph(self, volume: tf.Tensor, stride: int) -> tf.Tensor:
        """``codes_at`` with a stride, at every voxel of a volume ``(x, y, z, m)`` of known shape."""
        lattices = [_Lattice(size, stride) for size in volume.shape[:3]]
        x, y, z = (lattice.first for lattice in lattices)
        padded = self.padded_in_graph(volume)[x:, y:]

        def some(start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
            block = padded[:, :, z + start * stride : z + (stop - 1) * stride + 1 + self._halo]
            if self._axial:
                return self._convert(tf.transpose(block[:, :, ::stride], (2, 0, 1, 3)), stride=stride)
            return tf.transpose(self._convert(block[tf.newaxis], stride=stride)[0], (2, 0, 1, 3))

        count = max(1, self.slices_at_once(padded.shape) // stride)
        spec = tf.TensorSpec((None, None, None, self.latent_dim), tf.float32)
        codes = tf.transpose(in_runs(lattices[2].count, count, some, spec), (1, 2, 0, 3))
        for axis, lattice in enumerate(lattices):
            low = tf.gather(codes, lattice.low, axis=axis)
            part = np.reshape(lattice.part, [-1 if i == axis else 1 for i in range(4)])
            codes = low + part * (tf.gather(codes, lattice.high, axis=axis) - low)
        return codes

    def padded_in_graph(self, volume: tf.Tensor) -> tf.Tensor:
        """A volume ``(x, y, z, m)`` with the zeros around it that patches at its border see."""
        return tf.pad(volume, [*([size // 2] * 2 for size in (*self.patch_shape, 1)[:3]), [0, 0]])

    def slices_in_graph(
        self, padded: tf.Tensor, start: Any, stop: Any, voxels: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The codes of some axial slices in TensorFlow operations alone.

        Args:
            padded: what ``padded_in_graph`` makes of the volume.
            start, stop: the slices, scalars.
            voxels: ``(v, 3)`` int32, indices (x, y, z) in the volume, within the slices; None for all.

        Returns:
            ``(stop - start, x, y, d)`` float32, or ``(v, d)``.
        """
        block = padded[:, :, start : stop + self._halo]
        block = tf.transpose(block, (2, 0, 1, 3)) if self._axial else block[tf.newaxis]
        if voxels is not None:
            x, y, z = tf.unstack(voxels, axis=1)
            z -= start
            order = (z, x, y) if self._axial else (tf.zeros_like(z), x, y, z)
            return self._convert(block, tf.stack(order, 1))
        codes = self._convert(block)
        return codes if self._axial else tf.transpose(codes[0], (2, 0, 1, 3))

    def slices_at_once(self, padded: Sequence[int]) -> int:
        """How many slices of a padded volume fit in ``STEP_BYTES``.

        The halo is worked on again in each block of slices: blocks are at least as thick as it is.
        """
        count = STEP_BYTES // (4 * self._floats_per_voxel * math.prod(padded[:2]))
        return max(count - self._halo, self._halo + 1)

    @property
    def _axial(self) -> bool:
        return len(self.patch_shape) == 2

    @property
    def _halo(self) -> int:
        """Slices beyond its own that a patch sees."""
        return 0 if self._axial else self.patch_shape[2] - 1

    def _convert(self, padded: tf.Tensor, voxels: tf.Tensor | None = None, stride: int = 1) -> tf.Tensor:
        """Slices or blocks ``(n, *extent + patch - 1, m)`` to codes ``(n, *extent, d)``, or ``(v, d)``.

        With a stride, to codes at the first voxel along each axis and at every further ``stride``-th.
        """
        latent, widest = codes_of(self.encoder, padded, self.patch_shape, voxels, stride)
        self._floats_per_voxel = max(self._floats_per_voxel, widest)
        if voxels is not None:
            return latent
        extent = (tf.shape(padded)[1:-1] - np.array(self.patch_shape, np.int32)) // stride + 1
        return tf.reshape(latent, tf.concat([tf.shape(padded)[:1], extent, [self.latent_dim]], 0))

    def _interpolated(self, volume: NDArray[np.float32], slices: range, stride: int) -> NDArray[np.float32]:
        """The codes ``(x, y, nz, d)`` of some slices, from those of a lattice."""
        x, y, z = (_Lattice(size, stride) for size in volume.shape[:3])
        if stride not in self._strided:
            convert = functools.partial(self._convert, stride=stride)
            self._strided[stride] = tf.function(convert, input_signature=[self._form], autograph=False)
        encode = self._strided[stride]
        if not slices:
            return np.empty((*volume.shape[:2], 0, self.latent_dim), np.float32)
        known = range(int(z.low[slices.start]), int(z.high[slices[-1]]) + 1)  # along z, on the lattice
        codes = np.empty((x.count, y.count, len(known), self.latent_dim), np.float32)
        box = (slice(x.first, x.last + 1), slice(y.first, y.last + 1))

        def encode_some(step: range) -> None:
            at = range(z.first + step.start * stride, z.first + step[-1] * stride + 1)
            part = codes[:, :, step.start - known.start : step.stop - known.start]
            if self._axial:
                planes = [self._padded(volume, range(k, k + 1), box) for k in at[::stride]]
                part[:] = np.moveaxis(_array(encode(np.concatenate(planes))), 0, 2)
            else:
                part[:] = _array(encode(self._padded(volume, at, box)))[0]

        padded = [size + patch - 1 for size, patch in zip(volume.shape[:2], self.patch_shape, strict=False)]
        fit = max(1, self.slices_at_once(padded) // stride)
        count = min(fit, -(-len(known) // WORKERS))
        starts = range(known.start, known.stop, count)
        _side_by_side(encode_some, (range(a, min(a + count, known.stop)) for a in starts))
        here = slice(slices.start, slices.stop)
        codes = _between(codes, 2, z.low[here] - known.start, z.high[here] - known.start, z.part[here])
        codes = _between(codes, 1, y.low, y.high, y.part)
        return _between(codes, 0, x.low, x.high, x.part)

    def _steps(self, slices: range, shape: tuple[int, ...]) -> Iterator[range]:
        """Runs of slices whose maps fit in ``STEP_BYTES``."""
        count = self.slices_at_once(
            [size + patch - 1 for size, patch in zip(shape[:2], self.patch_shape[:2], strict=True)]
        )
        for start in range(slices.start, slices.stop, count):
            yield range(start, min(start + count, slices.stop))

    def _padded(
        self, volume: NDArray[np.float32], step: range, box: tuple[slice, slice]
    ) -> NDArray[np.float32]:
        """The input of ``_convert`` for the voxels of a box, with their surround."""
        window = (*box, slice(step.start, step.stop))
        source, target, shape = [], [], []
        for part, patch, size in zip(window, (*self.patch_shape, 1)[:3], volume.shape, strict=False):
            low, high = part.start - patch // 2, part.stop + patch // 2
            source.append(slice(max(low, 0), min(high, size)))
            target.append(slice(max(-low, 0), min(high, size) - low))
            shape.append(high - low)
        block = np.zeros((*shape, self.channels), np.float32)
        block[tuple(target)] = volume[tuple(source)]
        return np.ascontiguousarray(np.moveaxis(block, 2, 0)) if self._axial else block[None]

    def _foreground(self, volume: NDArray[np.float32], step: range) -> tuple[slice, slice]:
        """The box ``(x, y)`` of voxels that have anything but zeros in their patches."""
        reach = (*self.patch_shape, 1)[:3]
        planes = volume[:, :, max(step.start - reach[2] // 2, 0) : step.stop + reach[2] // 2]
        x, y = (
            slice(max(part.start - patch // 2, 0), min(part.stop + patch // 2, size)) if part.stop else part
            for part, patch, size in zip(_box(planes.any(axis=(2, 3))), reach, volume.shape, strict=False)
        )
        return x, y

    def _background(self) -> NDArray[np.float32]:
        """The code ``(d,)`` of a patch of zeros."""
        return _array(self._encode(np.zeros((1, *self.patch_shape, self.channels), np.float32))).ravel()

    def _check_volume(self, volume: NDArray[np.floating]) -> NDArray[np.float32]:
        volume = np.asarray(volume)
        if volume.ndim != 4 or volume.shape[3] != self.channels or not volume.size:
            raise InputError(
                f"volume of shape {volume.shape}: the encoder takes (x, y, z, {self.channels}), one modality "
                "an entry of the last axis."
            )
        volume = volume.astype(np.float32, copy=False)
        if not np.isfinite(volume).all():
            raise InputError(
                f"the volume holds {np.count_nonzero(~np.isfinite(volume))} NaN or infinite values."
            )
        return volume

    def _check_equal(self) -> None:
        """Compare with the encoder itself on one small volume, corners and centre.

        A custom activation or a layer's subclass may do other than its class says; it must not go unnoticed.
        """
        shape = (*(*self.patch_shape, 1)[:3], self.channels)
        volume = np.random.default_rng(0).random(shape, np.float32)
        voxels = [(0, 0, 0), tuple(size // 2 for size in shape[:3]), tuple(size - 1 for size in shape[:3])]
        boxes = [tuple(slice(v, v + 1) for v in voxel) for voxel in voxels]
        patches = np.concatenate([self._padded(volume, range(k.start, k.stop), (i, j)) for i, j, k in boxes])
        expected = np.asarray(self.encoder(patches, training=False), np.float32)
        actual = np.stack([self(volume)[voxel] for voxel in voxels])
        exact = all(layer.compute_dtype == "float32" for layer in (self.encoder, *self.encoder.layers))
        tolerance = 1e-3 if exact else 0.1
        error, scale = np.abs(actual - expected).max(), np.abs(expected).max()
        if np.isfinite(scale) and not error <= tolerance * scale + 1e-6:
            raise InputError(
                f"encoder {self.encoder.name!r}: its dense form differs from the encoder by {error:.3g}, "
                f"codes reach {scale:.3g}. A layer depends on chance, on its batch, or on where in the patch "
                "a position lies (a custom activation or layer?): it has no dense form."
            )


def _side_by_side(work: Callable[[range], None], steps: Iterable[range]) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(work, steps):
            pass


def in_runs(total: Any, size: Any, work: Any, spec: tf.TensorSpec) -> tf.Tensor:
    """``work(start, stop)`` on runs of ``range(total)`` one after the other, results concatenated.

    Args:
        total: scalar; ``size``: of a run, at most.
        work: gives a tensor whose first axis has ``stop - start`` or any other number of rows.
        spec: of that tensor.
    """
    total, size = tf.convert_to_tensor(total, tf.int32), tf.convert_to_tensor(size, tf.int32)
    count = (total + size - 1) // size
    results = tf.TensorArray(
        spec.dtype, size=count, infer_shape=False, element_shape=spec.shape, clear_after_read=True
    )

    def step(i: tf.Tensor, results: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        start = i * size
        return i + 1, results.write(i, work(start, tf.minimum(start + size, total)))

    _, results = tf.while_loop(lambda i, _: i < count, step, (tf.constant(0), results), parallel_iterations=1)
    return results.concat()


def _check_form(encoder: Any) -> tuple[tuple[int, ...], int, int]:
    """Patch shape, channels and latent dimension of an encoder."""
    if isinstance(encoder, keras.Sequential) or not hasattr(encoder, "_run_through_graph"):
        raise InputError(
            f"encoder of type {type(encoder).__name__}: a functional Keras model is needed "
            "(for a PatchModel give model.encoder)."
        )
    shapes = [tuple(tensor.shape) for tensor in (*encoder.inputs, *encoder.outputs)]
    if len(encoder.inputs) != 1 or len(encoder.outputs) != 1 or len(shapes[1]) != 2 or None in shapes[1][1:]:
        raise InputError(
            f"encoder {encoder.name!r} of inputs and outputs {shapes}: one input (batch, *patch_shape, m) "
            "and one output (batch, d) are needed."
        )
    patch_shape = shapes[0][1:-1]
    if len(patch_shape) not in (2, 3) or any(n is None or n % 2 == 0 for n in patch_shape):
        raise InputError(
            f"encoder {encoder.name!r} takes patches of shape {patch_shape}: 2 or 3 odd sizes are needed, so "
            "that a patch has a central voxel."
        )
    return patch_shape, shapes[0][-1], shapes[1][1]


class _Lattice:
    """Along one axis: the middle of every run of ``stride`` voxels, and how each voxel lies between them.

    Attributes:
        first, last: voxels of the lattice; ``count`` of them.
        low, high: ``(size,)`` the points of the lattice on either side of each voxel, which may be one.
        part: ``(size,)`` float32, how far the voxel is on the way from the one to the other.
    """

    def __init__(self, size: int, stride: int):
        self.first = min(stride // 2, size - 1)
        self.count = (size - 1 - self.first) // stride + 1
        self.last = self.first + (self.count - 1) * stride
        place = np.clip((np.arange(size) - self.first) / stride, 0, self.count - 1)
        self.low = place.astype(np.int32)
        self.high = np.minimum(self.low + 1, self.count - 1)
        self.part = (place - self.low).astype(np.float32)


def _between(
    codes: NDArray[np.float32],
    axis: int,
    low: NDArray[np.int32],
    high: NDArray[np.int32],
    part: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Interpolate codes ``(x, y, z, d)`` along an axis: from entry ``low``, a part of the way to ``high``."""
    start = np.take(codes, low, axis)
    share = np.reshape(part, [-1 if i == axis else 1 for i in range(codes.ndim)])
    between: NDArray[np.float32] = start + share * (np.take(codes, high, axis) - start)
    return between


def _slices(z: slice | None, size: int) -> range:
    chosen = range(size)[slice(None) if z is None else z]
    if chosen.step != 1:
        raise InputError(f"slices {z}: a step of 1 is needed.")
    return chosen


def _box(inside: Any) -> tuple[slice, slice]:
    """The smallest box around what is True; empty slices where nothing is."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _array(tensor: tf.Tensor) -> NDArray[np.float32]:
    """A result on the host, as a view: it is large, and is copied once anyway."""
    with tf.device("CPU:0"):
        return np.asarray(memoryview(tf.identity(tensor)))
