"""The only place where conv stacks are written: from a patch to a latent and back, in 2D and 3D.

A stack is a list of :class:`Stage`, shrinking by valid padding, so that every encoder has a dense form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import keras
from keras import layers

LAST = "channels_last"  # whatever the user has set: patches have their channels last


@dataclass(frozen=True)
class Stage:
    """One valid convolution, its activation, and the max pool after it.

    On an axis where fewer voxels are left than ``kernel``, ``stride`` or ``pool`` ask for, they shrink to
    that.
    """

    filters: int
    kernel: int = 3
    stride: int = 1
    pool: int = 1

    def fit_to(self, shape: Sequence[int]) -> _Fitted:
        """Its sizes along each axis, on an input of ``shape``."""
        kernel = tuple(min(self.kernel, n) for n in shape)
        stride = tuple(min(self.stride, k) for k in kernel)
        convolved = [(n - k) // s + 1 for n, k, s in zip(shape, kernel, stride, strict=True)]
        pool = tuple(min(self.pool, n) for n in convolved)
        return _Fitted(kernel, stride, pool, tuple(n // p for n, p in zip(convolved, pool, strict=True)))


class _Fitted(NamedTuple):
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pool: tuple[int, ...]
    output: tuple[int, ...]


def default_stages(patch_shape: Sequence[int], latent_dim: int, filters: int = 16) -> list[Stage]:
    """The stack of Alaverdyan et al. 2020 for any odd patch; 15 -> 13 -> 6 -> 4 -> 2 is theirs.

    3-wide convolutions, each followed by a pool of 2 while more than 8 voxels are left, until every axis
    holds one or two. The last one has as many filters as make the flattened size ``latent_dim`` (15x15 and
    64: 2x2x16, the paper's), where that divides; else ``filters``, and the encoder ends in a Dense.
    """
    stages: list[Stage] = []
    shape = tuple(patch_shape)
    while max(shape) > 2:
        # An axis that is down to two voxels waits for the longer ones.
        pool = 2 if max(shape) - 2 > 8 else 1
        stages.append(Stage(filters, pool=pool))
        shape = stages[-1].fit_to(shape).output
    voxels = math.prod(shape)
    if latent_dim % voxels == 0:
        stages[-1] = Stage(latent_dim // voxels, pool=stages[-1].pool)
    return stages


def gan_stages(patch_shape: Sequence[int], filters: int = 32) -> list[Stage]:
    """The stack of the GANs: :func:`default_stages`, twice as wide from the first pool on."""
    stages = default_stages(patch_shape, 1, filters)
    return [replace(stage, filters=(2 if i else 1) * filters) for i, stage in enumerate(stages)]


def conv_encoder(
    patch_shape: Sequence[int],
    channels: int,
    latent_dim: int,
    stages: Sequence[Stage] | None = None,
    *,
    activation: str = "relu",
    norm: str | None = None,
    spectral: bool = False,
    linear: bool = False,
    name: str = "encoder",
) -> keras.Model:
    """Functional encoder: ``patch`` (n, *patch_shape, channels) to ``latent`` (n, latent_dim) float32.

    The flattened bottleneck is the code where it has ``latent_dim`` values; else a linear Dense gives it that
    size.

    Args:
        patch_shape: odd sizes, rank 2 or 3.
        channels: modalities.
        latent_dim: size of the code.
        stages: the stack; :func:`default_stages` if None.
        activation, norm, spectral: see :func:`conv_stack`.
        linear: end in the Dense in any case, for codes that take both signs, as a normal prior demands.
        name: name of the model.
    """
    stages = default_stages(patch_shape, latent_dim) if stages is None else stages
    patch = keras.Input((*patch_shape, channels), name="patch")
    x = conv_stack(patch, stages, activation=activation, norm=norm, spectral=spectral)
    return keras.Model(patch, to_latent(x, latent_dim, linear=linear), name=name)


def conv_decoder(
    patch_shape: Sequence[int],
    channels: int,
    latent_dim: int,
    stages: Sequence[Stage] | None = None,
    *,
    activation: str = "relu",
    norm: str | None = None,
    output: str = "sigmoid",
    name: str = "decoder",
) -> keras.Model:
    """Functional decoder: ``latent`` (n, latent_dim) to ``patch`` (n, *patch_shape, channels) float32.

    It undoes the encoder's stages in reverse, by transposed convolutions, and by upsampling where the encoder
    pools. The kernel of the last layer makes up for what pools and strides dropped: 2 -> 4 -> 6 -> 12 -> 14
    -> 15 with a 2x2 kernel for 15x15, as in Alaverdyan et al. 2020.

    Args:
        patch_shape, channels, latent_dim, stages: those of the encoder.
        activation: activation of the hidden layers.
        norm: ``batch``, ``group`` or None.
        output: activation of the last layer; sigmoid for intensities in [0, 1].
        name: name of the model.
    """
    stages = default_stages(patch_shape, latent_dim) if stages is None else stages
    rank = len(patch_shape)
    fitted = []
    shape = tuple(patch_shape)
    for stage in stages:
        fitted.append(stage.fit_to(shape))
        shape = fitted[-1].output
    latent = keras.Input((latent_dim,), name="latent")
    x = from_latent(latent, (*shape, stages[-1].filters), activation)
    for i in reversed(range(len(stages))):
        kernel, stride, pool, _ = fitted[i]
        if max(pool) > 1:
            x = layer("UpSampling", rank)(pool)(x)
        x = layer("Conv", rank, "Transpose")(
            stages[max(i - 1, 0)].filters,
            kernel,
            strides=stride,
            use_bias=norm is None,
            kernel_initializer=_init(activation),
        )(x)
        x = _activate(x, activation, norm)
    missing = tuple(n - m + 1 for n, m in zip(patch_shape, x.shape[1:-1], strict=True))
    x = layer("Conv", rank, "Transpose")(channels, missing, kernel_initializer="glorot_uniform")(x)
    patch = layers.Activation(output, dtype="float32", name="patch")(x)
    return keras.Model(latent, patch, name=name)


def conv_stack(
    x: Any,
    stages: Sequence[Stage],
    *,
    activation: str = "relu",
    norm: str | None = None,
    spectral: bool = False,
) -> Any:
    """Apply stages to a tensor ``(n, *shape, c)``.

    Args:
        x: Keras tensor.
        stages: see :class:`Stage`.
        activation: a Keras name; ``leaky_relu`` has slope 0.2.
        norm: ``batch`` (synchronised between replicas), or None. Encoders take no other: statistics over the
            patch have no dense form.
        spectral: divide each kernel by its largest singular value (Miyato et al. 2018, arXiv 1802.05957).
    """
    for stage in stages:
        rank = len(x.shape) - 2
        kernel, stride, pool, _ = stage.fit_to(x.shape[1:-1])
        for one in conv_layers(
            stage.filters, kernel, stride, activation=activation, norm=norm, spectral=spectral
        ):
            x = one(x)
        if max(pool) > 1:
            x = layer("MaxPooling", rank)(pool)(x)
    return x


def conv_layers(
    filters: int,
    kernel: Sequence[int],
    stride: Sequence[int] | int = 1,
    *,
    activation: str = "relu",
    norm: str | None = None,
    spectral: bool = False,
) -> list[Any]:
    """A valid convolution, its norm and its activation, as layers: they may be applied in several places.

    Args:
        filters, kernel, stride: as in Keras; the kernel's sizes give the rank.
        activation, norm, spectral: see :func:`conv_stack`.
    """
    conv = layer("Conv", len(kernel))(
        filters, kernel, strides=stride, use_bias=norm is None, kernel_initializer=_init(activation)
    )
    return [
        layers.SpectralNormalization(conv) if spectral else conv,
        *_activations(activation, norm, filters),
    ]


def dense_stack(
    x: Any, units: Sequence[int], *, activation: str = "leaky_relu", spectral: bool = False
) -> Any:
    """Apply hidden Dense layers to a tensor ``(n, d)``; arguments as in :func:`conv_stack`."""
    for n in units:
        dense = layers.Dense(n, kernel_initializer=_init(activation))
        x = layers.SpectralNormalization(dense)(x) if spectral else dense(x)
        x = _activate(x, activation, None)
    return x


def to_latent(x: Any, latent_dim: int, name: str = "latent", *, linear: bool = False) -> Any:
    """Flatten to ``(n, latent_dim)`` float32; a linear Dense where the flattened size differs, or if told."""
    if math.prod(x.shape[1:]) == latent_dim and not linear:
        return layers.Flatten(name=name, dtype="float32", data_format=LAST)(x)
    return layers.Dense(latent_dim, name=name, dtype="float32")(layers.Flatten(data_format=LAST)(x))


def from_latent(latent: Any, shape: Sequence[int], activation: str = "relu") -> Any:
    """Reshape ``(n, latent_dim)`` to ``(n, *shape)``; a Dense first only where the size differs."""
    if latent.shape[1] != math.prod(shape):
        dense = layers.Dense(math.prod(shape), kernel_initializer=_init(activation))
        latent = _activate(dense(latent), activation, None)
    return layers.Reshape(tuple(shape))(latent)


def crop(patches: Any, shape: Sequence[int]) -> Any:
    """The centres ``(n, *shape, m)`` of patches ``(n, *patch_shape, m)``."""
    begin = [(n - k) // 2 for n, k in zip(patches.shape[1:-1], shape, strict=True)]
    return patches[(slice(None), *(slice(b, b + k) for b, k in zip(begin, shape, strict=True)))]


def _activate(x: Any, activation: str, norm: str | None) -> Any:
    for one in _activations(activation, norm, x.shape[-1]):
        x = one(x)
    return x


def _activations(activation: str, norm: str | None, filters: int) -> list[Any]:
    made: list[Any] = []
    if norm == "batch":
        # 0.9: the statistics of some hundred steps must be enough.
        made.append(layers.BatchNormalization(momentum=0.9, synchronized=True))
    elif norm == "group":
        made.append(layers.GroupNormalization(math.gcd(8, filters)))
    leaky = activation == "leaky_relu"
    return [*made, layers.LeakyReLU(0.2) if leaky else layers.Activation(activation)]


def _init(activation: str) -> str:
    """He et al. 2015 for rectifiers, else Glorot & Bengio 2010."""
    return "he_uniform" if activation in ("relu", "leaky_relu", "gelu") else "glorot_uniform"


def layer(kind: str, rank: int, suffix: str = "") -> Any:
    """A Keras class by kind and rank, channels last: ``layer("Conv", 3)`` makes a ``Conv3D``."""
    return partial(getattr(layers, f"{kind}{rank}D{suffix}"), data_format=LAST)
