"""A patch encoder's graph, layer by layer, in the form that runs over whole slices or blocks.

A field holds the patch tensors of all voxels at once; a rule for each kind of layer says what becomes of a
field. Users call ``epizoo.dense.DenseEncoder``.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, tree

from tfds_epilepsy.errors import InputError

_DILATE_3D: ContextVar[bool | None] = ContextVar("dilate_3d", default=None)


def codes_of(
    encoder: keras.Model,
    padded: tf.Tensor,
    patch_shape: tuple[int, ...],
    voxels: tf.Tensor | None = None,
    stride: int = 1,
) -> tuple[tf.Tensor, int]:
    """The codes at the voxels of some slices or blocks, by one walk over the encoder's graph.

    Args:
        encoder: functional, of patches ``(*patch_shape, m)``.
        padded: ``(n, *extent + patch_shape - 1, m)``, the voxels and what their patches see around them.
        voxels: ``(v, 1 + rank)`` indices ``(n, *position)`` where codes are wanted; None for all, in C order.
        stride: voxels from one that has a code to the next, along each axis; ``voxels`` counts these alone.

    Returns:
        ``(v, d)`` float32, and how many floats per voxel the widest step of the walk holds.

    Raises:
        InputError: a layer that cannot be converted, by name.
    """
    conversion = Conversion(voxels)
    rank = len(patch_shape)
    patch = _thinned(padded, patch_shape, (1,) * rank, (stride,) * rank)
    (codes,) = tree.flatten(conversion.run(encoder, [patch]))
    return tf.cast(conversion.at_voxels(codes).values, tf.float32), conversion.floats_per_voxel


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


@dataclass(frozen=True)
class Field:
    """A patch tensor of all voxels at once: element i of voxel v is ``values[v * every + i * step]``.

    The tensor of a voxel is ``(*size, c)``; ``values`` is ``(n, *extent, c)``. Along each axis the extent is
    ``(voxels - 1) * every + 1 + (size - 1) * step``; what no voxel reads is not kept (``_thinned``).
    """

    values: Any
    size: tuple[int, ...]
    step: tuple[int, ...]
    every: tuple[int, ...]

    @property
    def width(self) -> int:
        return math.prod(self.size) * int(self.values.shape[-1])


@dataclass(frozen=True)
class Codes:
    """A tensor of each voxel's own, ``(v, ...)``: nothing is shared with the neighbours any more."""

    values: Any

    @property
    def width(self) -> int:
        return math.prod(self.values.shape[1:])


@dataclass(frozen=True)
class Flat:
    """Tensors flattened and concatenated, not yet gathered at each voxel: a Dense takes them as they are."""

    parts: tuple[Field | Codes, ...]
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


class Conversion:
    """One walk over an encoder's graph, its patch tensors replaced by dense ones.

    Args:
        voxels: ``(v, 1 + rank)`` indices ``(n, *position)`` where codes are wanted; None for all, in C order.
    """

    def __init__(self, voxels: tf.Tensor | None):
        self.voxels = voxels
        self.floats_per_voxel = 0

    def run(self, model: Any, inputs: Sequence[Any]) -> Any:
        return model._run_through_graph(inputs, operation_fn=lambda op: functools.partial(self.convert, op))

    def convert(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """The outputs of one layer or operation for dense inputs."""
        inputs = _dense_tensors((args, kwargs))
        if all(isinstance(value, Codes) for value in inputs):
            result: Any = Codes(_call(op, args, kwargs))
        elif isinstance(op, keras.Sequential):
            return self.run(op._functional, inputs)
        elif hasattr(op, "_run_through_graph"):
            return self.run(op, inputs)
        elif isinstance(op, layers.SpectralNormalization):
            return self.convert(op.layer, *args, **kwargs)
        elif getattr(op, "data_format", "channels_last") == "channels_first":
            raise _not_convertible(op, "it puts channels first; use data_format='channels_last'")
        elif any(isinstance(value, Field) for value in inputs):
            result = self._of_fields(op, inputs, args, kwargs)
        else:
            result = self._of_flat(op, inputs, args, kwargs)
        self._count(inputs, result)
        return result

    def at_voxels(self, value: Field | Flat | Codes) -> Codes:
        """Each voxel's own copy of a tensor."""
        if isinstance(value, Codes):
            return value
        if isinstance(value, Flat):
            parts = [self.at_voxels(part).values for part in value.parts]
            return Codes(parts[0] if len(parts) == 1 else tf.concat(parts, -1))
        gathered = []
        for position in itertools.product(*(range(n) for n in value.size)):
            begin = [i * s for i, s in zip(position, value.step, strict=True)]
            if self.voxels is None:
                end = [(n - 1 - i) * s for n, i, s in zip(value.size, position, value.step, strict=True)]
                own = _subsampled(_cut(value.values, begin, end), value.every)
                gathered.append(tf.reshape(own, (-1, value.values.shape[-1])))
            else:
                at = self.voxels * np.array([1, *value.every], np.int32) + np.array([0, *begin], np.int32)
                gathered.append(tf.gather_nd(value.values, at))
        return Codes(gathered[0] if len(gathered) == 1 else tf.concat(gathered, -1))

    def _count(self, inputs: Sequence[Any], result: Any) -> None:
        """Remember the widest step: floats per voxel of its inputs, its output and one copy."""
        widths = [
            part.values.shape[-1] if isinstance(part, Field) else part.width
            for value in (*inputs, result)
            for part in (value.parts if isinstance(value, Flat) else [value])
        ]
        self.floats_per_voxel = max(self.floats_per_voxel, sum(widths) + max(widths))

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
            return Flat((field,), (field.width,))
        if isinstance(op, layers.Reshape):
            return _reshape(Flat((field,), (*field.size, field.values.shape[-1])), op.target_shape)
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
            return _reshape(Flat((field,), (*field.size, field.values.shape[-1])), op.newshape[1:])
        if name in _REDUCTIONS and op.axis is not None:
            rank = len(field.size) + 2
            axes = op.axis if isinstance(op.axis, (list, tuple)) else [op.axis]
            if {axis % rank for axis in axes} == set(range(1, rank - 1)):
                return self._pool_all(field, _REDUCTIONS[name], mean=name == "Mean", keepdims=op.keepdims)
        raise _not_convertible(op, "no rule for this operation on patches")

    def _pool_all(self, field: Field, combine: Any, *, mean: bool, keepdims: bool) -> Field | Codes:
        values = _combine_window(field.values, field.size, field.step, combine)
        one = (1,) * len(field.size)
        pooled = _thinned(values / math.prod(field.size) if mean else values, one, one, field.every)
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
        if any(isinstance(value, Flat) and len(value.shape) > 1 for value in inputs):
            raise _not_convertible(op, "it works on the positions of the patch as a sequence")
        if isinstance(op, layers.Dense):
            return self._dense(op, flat)
        if name == "Concatenate":
            parts = tuple(itertools.chain(*(v.parts if isinstance(v, Flat) else [v] for v in inputs)))
            return Flat(parts, (sum(value.width for value in inputs),))
        args, kwargs = tree.map_structure(
            lambda value: self.at_voxels(value) if isinstance(value, Flat) else value, (args, kwargs)
        )
        return Codes(_call(op, args, kwargs))

    def _dense(self, layer: Any, flat: Flat) -> Codes:
        """A Dense on flattened fields: the rows of its kernel that belong to a field are a convolution."""
        kernels = tf.split(_tensor(layer.kernel), [part.width for part in flat.parts])
        terms = []
        for part, kernel in zip(flat.parts, kernels, strict=True):
            if isinstance(part, Codes):
                terms.append(tf.matmul(tf.cast(part.values, tf.float32), kernel))
            else:
                kernel = tf.reshape(kernel, (*part.size, part.values.shape[-1], layer.units))
                whole = functools.partial(_conv, part.values, kernel, part.step)
                one = (1,) * len(part.size)
                terms.append(self.at_voxels(_strided(whole, part.step, one, one, part.every)).values)
        return Codes(_finish(layer, terms[0] if len(terms) == 1 else tf.add_n(terms)))


def _convolve(layer: Any, field: Field) -> Field:
    field, rates, size, step = _window(layer, field, layer.kernel_size, layer.dilation_rate)
    kernel = _tensor(layer.kernel)

    def convolved(strides: Sequence[int]) -> tf.Tensor:
        pairs = zip(tf.split(field.values, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True)
        parts = [_conv(part, filters, rates, strides) for part, filters in pairs]
        return _finish(layer, parts[0] if len(parts) == 1 else tf.concat(parts, -1))

    return _strided(convolved, rates, size, step, field.every)


def _convolve_depthwise(layer: Any, field: Field, depthwise: Any, pointwise: Any = None) -> Field:
    field, rates, size, step = _window(layer, field, layer.kernel_size, layer.dilation_rate)
    values = tf.nn.depthwise_conv2d(
        tf.cast(field.values, tf.float32), _tensor(depthwise), (1, 1, 1, 1), "VALID", dilations=rates
    )
    if pointwise is not None:
        values = _conv(values, _tensor(pointwise), (1, 1))
    return _thinned(_finish(layer, values), size, step, field.every)


def _pool(layer: Any, field: Field, pool: Any, combine: Any) -> Field:
    field, rates, size, step = _window(layer, field, layer.pool_size, (1,) * len(field.size))

    def pooled(strides: Sequence[int]) -> tf.Tensor:
        if all(rate == 1 for rate in rates):
            return pool(field.values, layer.pool_size, strides, "VALID")
        values = _combine_window(field.values, layer.pool_size, rates, combine)
        return values / math.prod(layer.pool_size) if combine is tf.add else values

    return _strided(pooled, rates, size, step, field.every)


def _strided(
    work: Callable[[Sequence[int]], tf.Tensor],
    rates: Sequence[int],
    size: tuple[int, ...],
    step: tuple[int, ...],
    every: tuple[int, ...],
) -> Field:
    """The field that a window gives, worked out where a voxel reads it alone, if nothing is dilated.

    Args:
        work: from the strides of the window to values.
        rates: its dilation.
        size, step, every: of the field at strides of 1.
    """
    if any(rate > 1 for rate in rates):
        return _thinned(work((1,) * len(rates)), size, step, every)
    return _thinned(work(_common(size, step, every)), size, step, every, done=True)


def _thinned(
    values: tf.Tensor,
    size: tuple[int, ...],
    step: tuple[int, ...],
    every: tuple[int, ...],
    done: bool = False,
) -> Field:
    """A field without the values that no voxel reads; they are left out already if ``done``."""
    common = _common(size, step, every)
    step = tuple(s // c if n > 1 else 1 for n, s, c in zip(size, step, common, strict=True))
    every = tuple(e // c for e, c in zip(every, common, strict=True))
    return Field(values if done else _subsampled(values, common), size, step, every)


def _common(size: Sequence[int], step: Sequence[int], every: Sequence[int]) -> tuple[int, ...]:
    """Along each axis, what the positions that voxels read are multiples of."""
    return tuple(math.gcd(e, s) if n > 1 else e for n, s, e in zip(size, step, every, strict=True))


def _window(
    layer: Any, field: Field, window: Sequence[int], dilation: Sequence[int]
) -> tuple[Field, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
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


def _crop(field: Field, begin: Sequence[int], end: Sequence[int]) -> Field:
    size = tuple(n - b - e for n, b, e in zip(field.size, begin, end, strict=True))
    cut = [[count * step for count, step in zip(side, field.step, strict=True)] for side in (begin, end)]
    step = tuple(s if n > 1 else 1 for n, s in zip(size, field.step, strict=True))
    return _thinned(_cut(field.values, *cut), size, step, field.every)


def _get_item(op: Any, field: Field, key: Any) -> Field:
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
    return _thinned(cropped.values[..., keys[-1]], tuple(len(r) for r in chosen), step, cropped.every)


def _merge(op: Any, inputs: Sequence[Any], args: Any, kwargs: Any) -> Field:
    if not all(isinstance(value, Field) for value in inputs):
        raise _not_convertible(op, "it brings a vector of the whole patch back to its positions")
    if len({field.size for field in inputs}) > 1:
        raise _not_convertible(op, f"it spreads one size of patch over another: {[f.size for f in inputs]}")
    if len({(field.step, field.every) for field in inputs}) > 1:
        raise _not_convertible(
            op,
            f"branches of strides {[f.step for f in inputs]} meet position by position; "
            "flatten or pool each branch before they meet",
        )
    axis = getattr(op, "axis", -1)
    if axis not in (-1, len(inputs[0].size) + 1):
        raise _not_convertible(op, f"it joins along axis {axis}; along channels (axis=-1) it can")
    first: Field = inputs[0]
    return replace(first, values=_call(op, args, kwargs))


def _reshape(flat: Flat, shape: Sequence[int]) -> Flat:
    known = math.prod(n for n in shape if n not in (-1, None))
    return replace(flat, shape=tuple(flat.width // known if n in (-1, None) else n for n in shape))


def _conv(
    values: tf.Tensor, kernel: tf.Tensor, rates: Sequence[int], strides: Sequence[int] | None = None
) -> tf.Tensor:
    """A valid convolution in float32: dilated, or strided."""
    values = tf.cast(values, tf.float32)
    rates = [r if k > 1 else 1 for k, r in zip(kernel.shape, rates, strict=False)]
    strides = tuple(strides or (1,) * len(rates))
    if len(rates) == 2:
        return tf.nn.conv2d(values, kernel, strides, "VALID", dilations=rates)
    if _DILATE_3D.get() or (_DILATE_3D.get() is None and _dilates_in_3d()):
        return tf.nn.conv3d(values, kernel, (1, *strides, 1), "VALID", dilations=(1, *rates, 1))
    return tf.nn.convolution(values, kernel, strides, "VALID", dilations=rates)


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


def _cut(values: tf.Tensor, begin: Sequence[int], end: Sequence[int]) -> tf.Tensor:
    """Leave out that many entries at the two ends of each axis of extent."""
    if not any(begin) and not any(end):
        return values
    return values[(slice(None), *(slice(b, -e if e else None) for b, e in zip(begin, end, strict=True)))]


def _subsampled(values: tf.Tensor, strides: Sequence[int]) -> tf.Tensor:
    """The first entry along each axis of extent, and those at multiples of its stride."""
    if all(stride == 1 for stride in strides):
        return values
    return values[(slice(None), *(slice(None, None, stride) for stride in strides))]


def _call(op: Any, args: Any, kwargs: Any) -> Any:
    """A Keras layer or operation on the values of dense tensors."""
    args, kwargs = tree.map_structure(
        lambda value: value.values if isinstance(value, (Field, Codes)) else value, (args, kwargs)
    )
    return op(*args, **kwargs)


def _dense_tensors(structure: Any) -> list[Any]:
    return [value for value in tree.flatten(structure) if isinstance(value, (Field, Flat, Codes))]


def _tensor(variable: Any) -> tf.Tensor:
    return tf.cast(keras.ops.convert_to_tensor(variable), tf.float32)


def _is_layer(op: Any) -> bool:
    return isinstance(op, keras.Layer)


def _not_convertible(op: Any, why: str) -> InputError:
    return InputError(f"layer {op.name!r} ({type(op).__name__}) has no dense form: {why}.")
