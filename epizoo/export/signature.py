"""What a consumer calls: named tensors to named tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


@dataclass(frozen=True)
class Signature:
    """One function of an export.

    Attributes:
        function: of tensors by name, gives a dict.
        inputs: their names and forms.
        given, expected: arrays of a test vector; ``expected`` made by the library, not by the export.
        about: one line for people.
        voxels: ``(v, 3)`` where the expected values stand, of an output that is a volume.
    """

    function: Callable[..., dict[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]
    given: Mapping[str, NDArray[Any]]
    expected: Mapping[str, NDArray[Any]]
    about: str
    voxels: NDArray[np.int64] | None = None

    @cached_property
    def specs(self) -> dict[str, tf.TensorSpec]:
        """The forms, each with its name."""
        return {n: tf.TensorSpec(s.shape, s.dtype, name=n) for n, s in self.inputs.items()}

    @cached_property
    def graph(self) -> Any:
        """The graph that it makes of inputs of these forms."""
        return tf.function(self.function, autograph=False).get_concrete_function(**self.specs)
