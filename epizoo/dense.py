"""An encoder's code at every voxel of a volume, exactly.

Encoding the patch around each voxel repeats almost all of its work at the next one. Here the patch encoder is
rewritten to run once over whole slices (axial patches) or blocks of slices (3-D patches): strides and pools
become dilations of everything that follows them (the à trous form: Giusti et al. 2013, arXiv 1302.1700;
Sermanet et al. 2014, arXiv 1312.6229), Flatten + Dense becomes one dilated convolution. The result is that of
the patches, to float32 rounding; what has no such form is an error that names the layer.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, tree
from numpy.typing import NDArray

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
        self._floats_a_voxel = max(channels, 2 * latent_dim)
        form = tf.TensorSpec((None,) * (len(patch_shape) + 1) + (channels,), tf.float32)
        voxels = tf.TensorSpec((None, len(patch_shape) + 1), tf.int32)
        self._encode = tf.function(self._convert, input_signature=[form], autograph=False)
        self._encode_at = tf.function(self._convert, input_signature=[form, voxels], autograph=False)
        self._check_equal()

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

    def latents(
        self, volume: NDArray[np.floating], mask: NDArray[np.bool_], z: slice | None = None
    ) -> NDArray[np.float32]:
        """The codes at the voxels of a mask alone: less work and memory than all voxels.

        Args:
            volume: ``(x, y, z, m)``.
            mask: ``(x, y, z)`` bool.
            z: which slices, all by default.

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
        count = tf.cast(STEP_BYTES // (4 * self._floats_a_voxel * plane), tf.int32)
        codes = in_runs(
            tf.shape(volume)[2],
            tf.maximum(count - self._halo, self._halo + 1),
            lambda start, stop: self.slices_in_graph(padded, start, stop),
            tf.TensorSpec((None, None, None, self.latent_dim), tf.float32),
        )
        return tf.transpose(codes, (1, 2, 0, 3))

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
        count = STEP_BYTES // (4 * self._floats_a_voxel * math.prod(padded[:2]))
        return max(count - self._halo, self._halo + 1)

    @property
    def _axial(self) -> bool:
        return len(self.patch_shape) == 2

    @property
    def _halo(self) -> int:
        """Slices beyond its own that a patch sees."""
        return 0 if self._axial else self.patch_shape[2] - 1

    def _convert(self, padded: tf.Tensor, voxels: tf.Tensor | None = None) -> tf.Tensor:
        """Slices or blocks ``(n, *extent + patch - 1, m)`` to codes ``(n, *extent, d)``, or ``(v, d)``."""
        conversion = _Conversion(voxels)
        patch = _Field(padded, self.patch_shape, (1,) * len(self.patch_shape))
        (codes,) = tree.flatten(conversion.run(self.encoder, [patch]))
        latent = tf.cast(conversion.at_voxels(codes).values, tf.float32)
        self._floats_a_voxel = max(self._floats_a_voxel, conversion.floats_a_voxel)
        if voxels is not None:
            return latent
        extent = tf.shape(padded)[1:-1] - (np.array(self.patch_shape, np.int32) - 1)
        return tf.reshape(latent, tf.concat([tf.shape(padded)[:1], extent, [self.latent_dim]], 0))

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


@dataclass(frozen=True)
class _Field:
    """A patch tensor ``(*size, c)`` of all voxels at once: element i of voxel v is ``values[v + i * step]``.

    ``values`` is ``(n, *extent, c)``; along each axis the extent is the number of voxels + (size - 1) * step.
    """

    values: Any
    size: tuple[int, ...]
    step: tuple[int, ...]

    @property
    def width(self) -> int:
        return math.prod(self.size) * self.values.shape[-1]


@dataclass(frozen=True)
class _Codes:
    """A tensor of each voxel's own, ``(v, ...)``: nothing is shared with the neighbours any more."""

    values: Any

    @property
    def width(self) -> int:
        return math.prod(self.values.shape[1:])


@dataclass(frozen=True)
class _Flat:
    """Tensors flattened and concatenated, not yet gathered at each voxel: a Dense takes them as they are."""

    parts: tuple[_Field | _Codes, ...]
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        return math.prod(self.shape)


_ELEMENTWISE_LAYERS = (
    layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity, layers.ActivityRegularization, layers.Dropout,
    layers.SpatialDropout2D, layers.SpatialDropout3D, layers.GaussianDropout, layers.GaussianNoise,
    layers.AlphaDropout,
)  # fmt: skip
_CHANNEL_LAYERS = (layers.Activation, layers.Rescaling, layers.Dense)  # they look along the last axis at most
_NORMALISATIONS = (
    layers.BatchNormalization, layers.LayerNormalization, layers.RMSNormalization, layers.UnitNormalization,
    layers.Normalization, layers.Softmax,
)  # fmt: skip
_MERGES = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
_ELEMENTWISE_FUNCTIONS = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "tanh", "sigmoid", "softplus",
    "softsign", "hard_sigmoid", "hard_silu", "hard_tanh", "mish", "exponential", "linear",
}  # fmt: skip
# Operations of keras.ops stand in a functional graph without a layer; their classes are known by name.
_ELEMENTWISE_OPS = {
    "Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Negative", "Absolute",
    "Square", "Sqrt", "Rsqrt", "Exp", "Log", "Log1p", "Power", "Clip", "Sign", "Sin", "Cos", "Cast", "Relu",
    "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Silu", "Tanh", "Sigmoid", "Softplus", "Softsign",
    "HardSigmoid", "HardSilu", "HardTanh",
}  # fmt: skip
_REDUCTIONS = {"Mean": tf.add, "Sum": tf.add, "Max": tf.maximum, "Min": tf.minimum}


class _Conversion:
    """One walk over an encoder's graph, its patch tensors replaced by dense ones.

    Args:
        voxels: ``(v, 1 + rank)`` indices ``(n, *position)`` where codes are wanted; None for all, in C order.
    """

    def __init__(self, voxels: tf.Tensor | None):
        self.voxels = voxels
        self.floats_a_voxel = 0

    def run(self, model: Any, inputs: Sequence[Any]) -> Any:
        return model._run_through_graph(inputs, operation_fn=lambda op: functools.partial(self.convert, op))

    def convert(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """The outputs of one layer or operation for dense inputs."""
        inputs = _dense_tensors((args, kwargs))
        if all(isinstance(value, _Codes) for value in inputs):
            result: Any = _Codes(_call(op, args, kwargs))
        elif isinstance(op, keras.Sequential):
            return self.run(op._functional, inputs)
        elif hasattr(op, "_run_through_graph"):
            return self.run(op, inputs)
        elif isinstance(op, layers.SpectralNormalization):
            return self.convert(op.layer, *args, **kwargs)
        elif getattr(op, "data_format", "channels_last") == "channels_first":
            raise _not_convertible(op, "it puts channels first; use data_format='channels_last'")
        elif any(isinstance(value, _Field) for value in inputs):
            result = self._of_fields(op, inputs, args, kwargs)
        else:
            result = self._of_flat(op, inputs, args, kwargs)
        self._count(inputs, result)
        return result

    def at_voxels(self, value: _Field | _Flat | _Codes) -> _Codes:
        """Each voxel's own copy of a tensor."""
        if isinstance(value, _Codes):
            return value
        if isinstance(value, _Flat):
            parts = [self.at_voxels(part).values for part in value.parts]
            return _Codes(parts[0] if len(parts) == 1 else tf.concat(parts, -1))
        gathered = []
        for position in itertools.product(*(range(n) for n in value.size)):
            begin = [i * s for i, s in zip(position, value.step, strict=True)]
            if self.voxels is None:
                end = [(n - 1 - i) * s for n, i, s in zip(value.size, position, value.step, strict=True)]
                gathered.append(tf.reshape(_cut(value.values, begin, end), (-1, value.values.shape[-1])))
            else:
                gathered.append(tf.gather_nd(value.values, self.voxels + np.array([0, *begin], np.int32)))
        return _Codes(gathered[0] if len(gathered) == 1 else tf.concat(gathered, -1))

    def _count(self, inputs: Sequence[Any], result: Any) -> None:
        """Remember the widest step: floats a voxel of its inputs, its output and one copy."""
        widths = [
            part.values.shape[-1] if isinstance(part, _Field) else part.width
            for value in (*inputs, result)
            for part in (value.parts if isinstance(value, _Flat) else [value])
        ]
        self.floats_a_voxel = max(self.floats_a_voxel, sum(widths) + max(widths))

    # === Patch tensors ===

    def _of_fields(self, op: Any, inputs: Sequence[Any], args: Any, kwargs: Any) -> Any:
        field, name = inputs[0], type(op).__name__
        if isinstance(op, (layers.Concatenate, *_MERGES)) or (not _is_layer(op) and name == "Concatenate"):
            return _merge(op, inputs, args, kwargs)
        if not _is_layer(op):
            return self._of_fields_without_layer(op, inputs, args, kwargs)
        if len(inputs) > 1:
            raise _not_convertible(op, "no rule for several inputs")
        if isinstance(op, (layers.Conv2D, layers.Conv3D)):
            return _convolve(op, field)
        if isinstance(op, layers.DepthwiseConv2D):
            return _convolve_depthwise(op, field, op.kernel)
        if isinstance(op, layers.SeparableConv2D):
            return _convolve_depthwise(op, field, op.depthwise_kernel, op.pointwise_kernel)
        if isinstance(op, (layers.MaxPooling2D, layers.MaxPooling3D)):
            return _pool(op, field, tf.nn.max_pool, tf.maximum)
        if isinstance(op, (layers.AveragePooling2D, layers.AveragePooling3D)):
            return _pool(op, field, tf.nn.avg_pool, tf.add)
        if isinstance(op, (layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D)):
            return self._pool_all(field, tf.maximum, mean=False, keepdims=op.keepdims)
        if isinstance(op, (layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)):
            return self._pool_all(field, tf.add, mean=True, keepdims=op.keepdims)
        if isinstance(op, (layers.Cropping2D, layers.Cropping3D)):
            return _crop(field, *zip(*op.cropping, strict=True))
        if isinstance(op, layers.CenterCrop) and all(
            n >= m for n, m in zip(field.size, (op.height, op.width), strict=True)
        ):
            begin = [(n - m) // 2 for n, m in zip(field.size, (op.height, op.width), strict=True)]
            end = [n - m - b for n, m, b in zip(field.size, (op.height, op.width), begin, strict=True)]
            return _crop(field, begin, end)
        if isinstance(op, layers.Flatten):
            return _Flat((field,), (field.width,))
        if isinstance(op, layers.Reshape):
            return _reshape(_Flat((field,), (*field.size, field.values.shape[-1])), op.target_shape)
        if isinstance(op, _NORMALISATIONS):
            axes = op.axis if isinstance(op.axis, (list, tuple)) else [op.axis]
            if not set(axes) <= {-1, len(field.size) + 1}:
                raise _not_convertible(op, f"it works along axes {axes}; along channels (axis=-1) it can")
        elif isinstance(op, layers.PReLU):
            if math.prod(op.alpha.shape[:-1]) != 1:
                raise _not_convertible(op, "a slope for each position; share them: shared_axes=[1, 2(, 3)]")
        elif not isinstance(op, (*_ELEMENTWISE_LAYERS, *_CHANNEL_LAYERS)):
            raise _not_convertible(op, "what it gives at a position depends on where in the patch that lies")
        return replace(field, values=_call(op, args, kwargs))

    def _of_fields_without_layer(self, op: Any, inputs: Sequence[Any], args: Any, kwargs: Any) -> Any:
        field, name = inputs[0], type(op).__name__
        if name in _ELEMENTWISE_OPS:
            if any(np.ndim(value) > 1 for value in tree.flatten((args, kwargs)) if hasattr(value, "shape")):
                raise _not_convertible(op, "a constant that differs between positions of the patch")
            return _merge(op, inputs, args, kwargs)
        if name == "GetItem":
            return _get_item(op, field, args[1] if len(args) > 1 else kwargs["key"])
        if name == "Reshape":
            return _reshape(_Flat((field,), (*field.size, field.values.shape[-1])), op.newshape[1:])
        if name in _REDUCTIONS and op.axis is not None:
            rank = len(field.size) + 2
            axes = op.axis if isinstance(op.axis, (list, tuple)) else [op.axis]
            if {axis % rank for axis in axes} == set(range(1, rank - 1)):
                return self._pool_all(field, _REDUCTIONS[name], mean=name == "Mean", keepdims=op.keepdims)
        raise _not_convertible(op, "no rule for this operation on patches")

    def _pool_all(self, field: _Field, combine: Any, *, mean: bool, keepdims: bool) -> _Field | _Codes:
        values = _combine_window(field.values, field.size, field.step, combine)
        pooled = _at_one(values / math.prod(field.size) if mean else values)
        return pooled if keepdims else self.at_voxels(pooled)

    # === Flattened patch tensors ===

    def _of_flat(self, op: Any, inputs: Sequence[Any], args: Any, kwargs: Any) -> Any:
        flat, name = inputs[0], type(op).__name__
        if isinstance(op, layers.Flatten):
            return replace(flat, shape=(flat.width,))
        if name == "Reshape":
            return _reshape(flat, op.target_shape if _is_layer(op) else op.newshape[1:])
        if isinstance(op, _ELEMENTWISE_LAYERS) or (
            isinstance(op, layers.Activation)
            and getattr(op.activation, "__name__", "") in _ELEMENTWISE_FUNCTIONS
        ):
            parts = tuple(replace(part, values=_call(op, (part,), {})) for part in flat.parts)
            return replace(flat, parts=parts)
        if any(isinstance(value, _Flat) and len(value.shape) > 1 for value in inputs):
            raise _not_convertible(op, "it works on the positions of the patch as a sequence")
        if isinstance(op, layers.Dense):
            return self._dense(op, flat)
        if name == "Concatenate":
            parts = tuple(itertools.chain(*(v.parts if isinstance(v, _Flat) else [v] for v in inputs)))
            return _Flat(parts, (sum(value.width for value in inputs),))
        args, kwargs = tree.map_structure(
            lambda value: self.at_voxels(value) if isinstance(value, _Flat) else value, (args, kwargs)
        )
        return _Codes(_call(op, args, kwargs))

    def _dense(self, layer: Any, flat: _Flat) -> _Codes:
        """A Dense on flattened fields: the rows of its kernel that belong to a field are a convolution."""
        kernels = tf.split(_tensor(layer.kernel), [part.width for part in flat.parts])
        terms = []
        for part, kernel in zip(flat.parts, kernels, strict=True):
            if isinstance(part, _Codes):
                terms.append(tf.matmul(tf.cast(part.values, tf.float32), kernel))
            else:
                kernel = tf.reshape(kernel, (*part.size, part.values.shape[-1], layer.units))
                terms.append(self.at_voxels(_at_one(_conv(part.values, kernel, part.step))).values)
        return _Codes(_finish(layer, terms[0] if len(terms) == 1 else tf.add_n(terms)))


def _convolve(layer: Any, field: _Field) -> _Field:
    field, rates, size, step = _window(layer, field, layer.kernel_size, layer.dilation_rate)
    kernel = _tensor(layer.kernel)
    if layer.groups == 1:
        values = _conv(field.values, kernel, rates)
    else:
        pairs = zip(tf.split(field.values, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True)
        values = tf.concat([_conv(part, filters, rates) for part, filters in pairs], -1)
    return _Field(_finish(layer, values), size, step)


def _convolve_depthwise(layer: Any, field: _Field, depthwise: Any, pointwise: Any = None) -> _Field:
    field, rates, size, step = _window(layer, field, layer.kernel_size, layer.dilation_rate)
    values = tf.nn.depthwise_conv2d(
        tf.cast(field.values, tf.float32), _tensor(depthwise), (1, 1, 1, 1), "VALID", dilations=rates
    )
    if pointwise is not None:
        values = _conv(values, _tensor(pointwise), (1, 1))
    return _Field(_finish(layer, values), size, step)


def _pool(layer: Any, field: _Field, pool: Any, combine: Any) -> _Field:
    field, rates, size, step = _window(layer, field, layer.pool_size, (1,) * len(field.size))
    if all(rate == 1 for rate in rates):
        values = pool(field.values, layer.pool_size, 1, "VALID")
    else:
        values = _combine_window(field.values, layer.pool_size, rates, combine)
        values = values / math.prod(layer.pool_size) if combine is tf.add else values
    return _Field(values, size, step)


def _window(
    layer: Any, field: _Field, window: Sequence[int], dilation: Sequence[int]
) -> tuple[_Field, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The field without what strides never reach, dilation rates, and size and step of the result."""
    excess, sizes, steps = [], [], []
    for n, k, d, stride, step in zip(field.size, window, dilation, layer.strides, field.step, strict=True):
        reach = (k - 1) * d + 1
        if layer.padding != "valid" and (math.ceil(n / stride) - 1) * stride + reach > n:
            raise _not_convertible(
                layer,
                f"padding={layer.padding!r} puts zeros around a patch of size {field.size}; use 'valid'",
            )
        size = (n - reach) // stride + 1
        excess.append((n - reach - (size - 1) * stride) * step)
        sizes.append(size)
        steps.append(step * stride if size > 1 else 1)
    trimmed = replace(field, values=_cut(field.values, [0] * len(excess), excess))
    rates = tuple(d * step if k > 1 else 1 for k, d, step in zip(window, dilation, field.step, strict=True))
    return trimmed, rates, tuple(sizes), tuple(steps)


def _combine_window(
    values: tf.Tensor, window: Sequence[int], rates: Sequence[int], combine: Any
) -> tf.Tensor:
    """Sum or maximum over a dilated window at every position, an axis at a time."""
    for axis, (count, rate) in enumerate(zip(window, rates, strict=True)):
        none = [0] * axis
        shifts = [_cut(values, [*none, i * rate], [*none, (count - 1 - i) * rate]) for i in range(count)]
        values = functools.reduce(combine, shifts)
    return values


def _crop(field: _Field, begin: Sequence[int], end: Sequence[int]) -> _Field:
    size = tuple(n - b - e for n, b, e in zip(field.size, begin, end, strict=True))
    cut = [[count * step for count, step in zip(side, field.step, strict=True)] for side in (begin, end)]
    step = tuple(s if n > 1 else 1 for n, s in zip(size, field.step, strict=True))
    return _Field(_cut(field.values, *cut), size, step)


def _get_item(op: Any, field: _Field, key: Any) -> _Field:
    keys = list(key) if isinstance(key, (tuple, list)) else [key]
    rank = len(field.size) + 2
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (rank - len(keys) + 1)
    keys += [slice(None)] * (rank - len(keys))
    if len(keys) != rank or not all(isinstance(k, slice) for k in keys) or keys[0] != slice(None):
        raise _not_convertible(op, f"index {key!r}: only slices of positions and channels have a dense form")
    chosen = [range(n)[k] for n, k in zip(field.size, keys[1:-1], strict=True)]
    if any(r.step < 1 for r in chosen):
        raise _not_convertible(op, f"index {key!r} reverses the patch")
    end = [n - 1 - r[-1] for n, r in zip(field.size, chosen, strict=True)]
    cropped = _crop(field, [r[0] for r in chosen], end)
    step = tuple(s * r.step if len(r) > 1 else 1 for s, r in zip(cropped.step, chosen, strict=True))
    return _Field(cropped.values[..., keys[-1]], tuple(len(r) for r in chosen), step)


def _merge(op: Any, inputs: Sequence[Any], args: Any, kwargs: Any) -> _Field:
    if not all(isinstance(value, _Field) for value in inputs):
        raise _not_convertible(op, "it brings a vector of the whole patch back to its positions")
    if len({field.size for field in inputs}) > 1:
        raise _not_convertible(op, f"it spreads one size of patch over another: {[f.size for f in inputs]}")
    if len({field.step for field in inputs}) > 1:
        raise _not_convertible(
            op,
            f"branches of strides {[f.step for f in inputs]} meet position by position; "
            "flatten or pool each branch before they meet",
        )
    axis = getattr(op, "axis", -1)
    if axis not in (-1, len(inputs[0].size) + 1):
        raise _not_convertible(op, f"it joins along axis {axis}; along channels (axis=-1) it can")
    return replace(inputs[0], values=_call(op, args, kwargs))


def _reshape(flat: _Flat, shape: Sequence[int]) -> _Flat:
    known = math.prod(n for n in shape if n not in (-1, None))
    return replace(flat, shape=tuple(flat.width // known if n in (-1, None) else n for n in shape))


def _conv(values: tf.Tensor, kernel: tf.Tensor, rates: Sequence[int]) -> tf.Tensor:
    """A dilated valid convolution in float32, stride 1."""
    values = tf.cast(values, tf.float32)
    rates = [r if k > 1 else 1 for k, r in zip(kernel.shape, rates, strict=False)]
    if len(rates) == 2:
        return tf.nn.conv2d(values, kernel, 1, "VALID", dilations=rates)
    if _DILATE_3D.get() or (_DILATE_3D.get() is None and _dilates_in_3d()):
        return tf.nn.conv3d(values, kernel, (1,) * 5, "VALID", dilations=(1, *rates, 1))
    return tf.nn.convolution(values, kernel, 1, "VALID", dilations=rates)


_DILATE_3D: ContextVar[bool | None] = ContextVar("dilate_3d", default=None)


@contextmanager
def dilating_in_3d(dilate: bool) -> Iterator[None]:
    """Graphs that are made in here dilate 3-D convolutions themselves, or reorder their input instead.

    The second runs everywhere; by default it is what the machine that makes the graph can do.
    """
    token = _DILATE_3D.set(dilate)
    try:
        yield
    finally:
        _DILATE_3D.reset(token)


@functools.cache
def _dilates_in_3d() -> bool:
    """Whether this TensorFlow dilates 3-D convolutions itself (oneDNN does, plain Eigen does not)."""
    with tf.init_scope():
        try:
            tf.nn.conv3d(
                tf.zeros((1, 3, 3, 3, 1)),
                tf.zeros((2, 2, 2, 1, 1)),
                (1,) * 5,
                "VALID",
                dilations=(1, 2, 2, 2, 1),
            )
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True


def _finish(layer: Any, values: tf.Tensor) -> tf.Tensor:
    """Bias and activation of a convolution or Dense."""
    if layer.bias is not None:
        values = tf.nn.bias_add(values, _tensor(layer.bias))
    return values if layer.activation is None else layer.activation(values)


def _at_one(values: tf.Tensor) -> _Field:
    """A field of one position."""
    ones = (1,) * (values.shape.rank - 2)
    return _Field(values, ones, ones)


def _cut(values: tf.Tensor, begin: Sequence[int], end: Sequence[int]) -> tf.Tensor:
    """Leave out that many entries at the two ends of each axis of extent."""
    if not any(begin) and not any(end):
        return values
    return values[(slice(None), *(slice(b, -e if e else None) for b, e in zip(begin, end, strict=True)))]


def _call(op: Any, args: Any, kwargs: Any) -> Any:
    """A Keras layer or operation on the values of dense tensors."""
    args, kwargs = tree.map_structure(
        lambda value: value.values if isinstance(value, (_Field, _Codes)) else value, (args, kwargs)
    )
    return op(*args, **kwargs)


def _dense_tensors(structure: Any) -> list[Any]:
    return [value for value in tree.flatten(structure) if isinstance(value, (_Field, _Flat, _Codes))]


def _tensor(variable: Any) -> tf.Tensor:
    return tf.cast(keras.ops.convert_to_tensor(variable), tf.float32)


def _is_layer(op: Any) -> bool:
    return isinstance(op, keras.Layer)


def _not_convertible(op: Any, why: str) -> InputError:
    return InputError(f"layer {op.name!r} ({type(op).__name__}) has no dense form: {why}.")


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
